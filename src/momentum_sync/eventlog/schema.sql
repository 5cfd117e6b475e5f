-- The server's own tables: the event log and the checkpoint. Every `migrate` runs this file; a second run changes
-- nothing and waits for no lock.
--
-- They belong to the owner of the app's tables. The server's role has privileges and no ownership, so it cannot create
-- a trigger, a rule or a default there that the owner's next `migrate` would run.

create schema if not exists momentum;

-- A log of an earlier version, or of another owner, is dropped and recreated: DROP runs no code of that role. Clients
-- learn `history_changed` and get a snapshot.
do $$
declare
    owner oid := (select c.relowner from pg_class c where c.oid = 'public.daily_engagement_scores'::regclass);
begin
    if exists (
        select from pg_class c
        where c.oid in (
                to_regclass('momentum.event_log'), to_regclass('momentum.stream'), to_regclass('momentum.followed_tables'),
                to_regclass('momentum.realtime_sessions'), to_regclass('momentum.realtime_session_numbers'),
                to_regclass('momentum.devices'))
            and c.relowner <> owner
    ) or exists (
        select from (values
            ('momentum.stream', 'kept_mark'), ('momentum.event_log', 'keys'), ('momentum.event_log', 'rows')) as needed (name, attribute)
        where to_regclass(needed.name) is not null and not exists (
            select from pg_attribute a
            where a.attrelid = to_regclass(needed.name) and a.attname = needed.attribute and not a.attisdropped)
    ) or exists (
        select from pg_namespace n where n.nspname = 'momentum_log' and n.nspowner <> owner
    ) then
        drop table if exists momentum.event_log, momentum.stream, momentum.followed_tables,
            momentum.realtime_sessions, momentum.devices cascade;
        drop sequence if exists momentum.realtime_session_numbers;
        drop schema if exists momentum_log cascade;
    end if;
    -- The log's partitions are in a schema of their own.
    if to_regnamespace('momentum_log') is null then
        execute format('create schema momentum_log authorization %s', owner::regrole);
    end if;
end;
$$;
revoke all on schema momentum_log from public;

-- One row for each event, in commit order. `momentum.keep_partitions` creates a partition for each UTC day of logged_at
-- in advance, and drops expired ones.
create table if not exists momentum.event_log (
    number bigint not null,
    commit_lsn pg_lsn not null,
    commit_index integer not null,
    xid bigint not null,
    committed_at timestamptz not null,
    logged_at timestamptz not null default now(),
    channels text[] not null,
    keys text[] not null,
    event json not null,
    rows json,
    primary key (number, logged_at)
) partition by range (logged_at);

-- The checkpoint: the epoch, its last event, the offset from which on the log is complete and the mark of the event
-- before that (0: the epoch begins there), the holder's fencing token with its place in the order of holders, how far
-- the slot may have been confirmed: never further than the log is complete, and whether snapshots see everything from
-- before the epoch, so that clients may be served. Retention may empty the log; this row stays.
create table if not exists momentum.stream (
    single boolean primary key default true check (single),
    slot text not null,
    epoch text not null,
    system_identifier text not null,
    timeline integer not null,
    kept_from bigint not null,
    kept_mark bigint not null,
    last_number bigint not null,
    last_lsn pg_lsn not null,
    last_index integer not null,
    last_mark bigint not null,
    confirmed_lsn pg_lsn not null,
    holder uuid not null,
    fence bigint not null default 0,
    live boolean not null default false
);

-- Columns that the row lacks if an earlier version made the table. Its epoch has been served.
do $$
begin
    if not exists (
        select from pg_attribute a
        where a.attrelid = 'momentum.stream'::regclass and a.attname = 'live' and not a.attisdropped
    ) then
        alter table momentum.stream
            add column if not exists fence bigint not null default 0,
            add column live boolean not null default true;
        alter table momentum.stream alter column live set default false;
    end if;
end;
$$;

-- The tables whose changed rows are events, for clients of Supabase's protocol: those in transactions that commit after
-- the LSN. Offsets depend on these rows, so only the holder of the checkpoint adds one.
create table if not exists momentum.followed_tables (
    relation oid primary key,
    after_lsn pg_lsn not null,
    followed_at timestamptz not null default now()
);

-- Sessions of clients of Supabase's protocol, and the positions up to which each has its topics. Updates of these
-- columns touch no index.
create sequence if not exists momentum.realtime_session_numbers;
create table if not exists momentum.realtime_sessions (
    session bigint primary key,
    identity text not null,
    ref bigint not null,
    cursors jsonb not null,
    seen_at timestamptz not null default now()
) with (fillfactor = 50);
create index if not exists realtime_sessions_identity_idx on momentum.realtime_sessions (identity);

-- The user of a session, for receipts; null in records of an earlier version, and of clients without a user.
do $$
begin
    if not exists (
        select from pg_attribute a
        where a.attrelid = 'momentum.realtime_sessions'::regclass and a.attname = 'user_id' and not a.attisdropped
    ) then
        alter table momentum.realtime_sessions add column user_id uuid;
        create index realtime_sessions_user_id_idx on momentum.realtime_sessions (user_id) where user_id is not null;
    end if;
end;
$$;

-- The receipts of devices of the native protocol: the position up to which each has confirmed everything on its keys.
create table if not exists momentum.devices (
    user_id uuid not null,
    device text not null,
    epoch text not null,
    number bigint not null,
    keys text[] not null,
    confirmed_at timestamptz not null default now(),
    primary key (user_id, device)
) with (fillfactor = 50);

do $$
declare
    owner name := (
        select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'public.daily_engagement_scores'::regclass);
    made regclass;
begin
    foreach made in array array[
        'momentum.event_log', 'momentum.stream', 'momentum.followed_tables', 'momentum.realtime_sessions',
        'momentum.realtime_session_numbers', 'momentum.devices']::regclass[]
    loop
        if (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = made) <> owner then
            execute format('alter table %s owner to %I', made, owner);
        end if;
    end loop;
    -- xid grows almost monotonically with the log, so a block range index is enough and costs appends nothing.
    if to_regclass('momentum.event_log_xid_idx') is null then
        create index event_log_xid_idx on momentum.event_log
            using brin (xid int8_minmax_multi_ops) with (pages_per_range = 16, autosummarize = on);
    end if;
    -- For a client's missed events. A short pending list keeps reads fast; it costs an append a tenth.
    if to_regclass('momentum.event_log_keys_idx') is null then
        create index event_log_keys_idx on momentum.event_log
            using gin (keys) with (gin_pending_list_limit = 256);
    end if;
end;
$$;

-- Another version of PostgreSQL may print the shipped policies differently.
do $$
begin
    if exists (
        select from momentum.policies p where p.shipped <> momentum.shipped_policies(p.table_name)
    ) then
        perform momentum.reset_policies();
    end if;
end;
$$;

-- Only the owner reads them, and the server's role by a policy of its own. The publication has no table: capture reads
-- logical messages, which belong to no publication; tables come with `supabase_realtime`.
do $$
begin
    if not (select bool_and(c.relrowsecurity) from pg_class c
            where c.oid in (
                'momentum.event_log'::regclass, 'momentum.followed_tables'::regclass,
                'momentum.realtime_sessions'::regclass, 'momentum.devices'::regclass)) then
        alter table momentum.event_log enable row level security;
        alter table momentum.stream enable row level security;
        alter table momentum.followed_tables enable row level security;
        alter table momentum.realtime_sessions enable row level security;
        alter table momentum.devices enable row level security;
    end if;
    if not exists (select from pg_publication where pubname = 'momentum_sync') then
        create publication momentum_sync;
    end if;
end;
$$;

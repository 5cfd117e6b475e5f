-- The server's own tables: the log of events and where capture stands. Run by every `migrate`; each statement does
-- nothing, and waits for nothing, the second time.
--
-- They belong to the owner of the app's tables. The server's role has privileges on them and no ownership, so it can leave
-- nothing there (a trigger, a rule, a default) that the owner's next `migrate` would run.

create schema if not exists momentum;

-- A log of an earlier version, or one that belongs to a lesser role, is made anew: dropping runs nothing of that role's.
-- Clients are told that the history changed, and begin with a snapshot.
do $$
declare
    owner oid := (select c.relowner from pg_class c where c.oid = 'public.daily_engagement_scores'::regclass);
begin
    if exists (
        select from pg_class c
        where c.oid in (to_regclass('momentum.event_log'), to_regclass('momentum.stream')) and c.relowner <> owner
    ) or exists (
        select from (values
            ('momentum.stream', 'kept_mark'), ('momentum.event_log', 'keys'), ('momentum.event_log', 'rows')) as needed (name, attribute)
        where to_regclass(needed.name) is not null and not exists (
            select from pg_attribute a
            where a.attrelid = to_regclass(needed.name) and a.attname = needed.attribute and not a.attisdropped)
    ) or exists (
        select from pg_namespace n where n.nspname = 'momentum_log' and n.nspowner <> owner
    ) then
        drop table if exists momentum.event_log, momentum.stream cascade;
        drop schema if exists momentum_log cascade;
    end if;
    -- The log's partitions are in a schema of their own.
    if to_regnamespace('momentum_log') is null then
        execute format('create schema momentum_log authorization %s', owner::regrole);
    end if;
end;
$$;
revoke all on schema momentum_log from public;

-- One row an event, in the order in which the transactions committed. `momentum.keep_partitions` makes a partition for each
-- UTC day of logged_at ahead, and drops expired ones.
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

-- The history that numbers count in, its last event, the number from which on the log holds all of it and the mark of the
-- event before that (0: the history begins there), who writes it now, and how far the slot may have been confirmed:
-- never further than the log is complete. Retention may empty the log; this row stays.
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
    holder uuid not null
);

do $$
declare
    owner name := (
        select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'public.daily_engagement_scores'::regclass);
    made regclass;
begin
    foreach made in array array['momentum.event_log', 'momentum.stream']::regclass[] loop
        if (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = made) <> owner then
            execute format('alter table %s owner to %I', made, owner);
        end if;
    end loop;
    -- xid grows with the log but for a little disorder: a block range index costs an append nothing.
    if to_regclass('momentum.event_log_xid_idx') is null then
        create index event_log_xid_idx on momentum.event_log
            using brin (xid int8_minmax_multi_ops) with (pages_per_range = 16, autosummarize = on);
    end if;
    -- Where a client's missed events are found. A short pending list keeps reading quick; it costs an append a tenth.
    if to_regclass('momentum.event_log_keys_idx') is null then
        create index event_log_keys_idx on momentum.event_log
            using gin (keys) with (gin_pending_list_limit = 256);
    end if;
end;
$$;

-- Another PostgreSQL may word the shipped policies otherwise.
do $$
begin
    if exists (
        select from momentum.policies p where p.shipped <> momentum.shipped_policies(p.table_name)
    ) then
        perform momentum.reset_policies();
    end if;
end;
$$;

-- Nobody reads them but the owner, and the server's role by a policy of its own. The publication has no table: capture
-- reads logical messages only, and those belong to no publication.
do $$
begin
    if not (select c.relrowsecurity from pg_class c where c.oid = 'momentum.event_log'::regclass) then
        alter table momentum.event_log enable row level security;
        alter table momentum.stream enable row level security;
    end if;
    if not exists (select from pg_publication where pubname = 'momentum_sync') then
        create publication momentum_sync;
    end if;
end;
$$;

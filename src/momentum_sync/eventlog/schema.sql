-- The server's own tables: the log of events and where capture stands. Run by every `migrate`; each statement does
-- nothing, and waits for nothing, the second time.

create schema if not exists momentum;

-- The log's partitions are in a schema of their own: the server's role makes them there, and nothing where the functions
-- are that the app's triggers call.
create schema if not exists momentum_log;
revoke all on schema momentum_log from public;

-- One row an event, in the order in which the transactions committed. Partitions by the UTC day of
-- logged_at are made ahead and dropped by the server.
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

-- The history that numbers count in, its last event, the number from which on the log holds all of it, who writes it
-- now, and how far the slot may have been confirmed: never further than the log is complete. Retention may empty the
-- log; this row stays.
create table if not exists momentum.stream (
    single boolean primary key default true check (single),
    slot text not null,
    epoch text not null,
    system_identifier text not null,
    timeline integer not null,
    kept_from bigint not null,
    last_number bigint not null,
    last_lsn pg_lsn not null,
    last_index integer not null,
    confirmed_lsn pg_lsn not null,
    holder uuid not null
);

-- A log from before events could be found by their keys: what it holds can no longer be resumed from.
do $$
begin
    if exists (
        select from pg_catalog.pg_attribute
        where attrelid = 'momentum.stream'::regclass and attname = 'first_number' and not attisdropped
    ) then
        alter table momentum.stream rename column first_number to kept_from;
        update momentum.stream set kept_from = last_number + 1;
        alter table momentum.event_log add column keys text[] not null default '{}';
        alter table momentum.event_log alter column keys drop default;
    end if;
end;
$$;

-- A log from before versions of rows came with their events.
do $$
begin
    if not exists (
        select from pg_catalog.pg_attribute
        where attrelid = 'momentum.event_log'::regclass and attname = 'rows' and not attisdropped
    ) then
        alter table momentum.event_log add column rows json;
    end if;
end;
$$;

do $$
begin
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
        update momentum.policies p set
            shipped = momentum.shipped_policies(p.table_name), current = momentum.describe_policies(p.table_name);
    end if;
end;
$$;

-- Nobody but the owner reads them. The publication has no table: capture reads logical messages only, and those
-- belong to no publication.
do $$
begin
    if not (select c.relrowsecurity from pg_catalog.pg_class c where c.oid = 'momentum.event_log'::regclass) then
        alter table momentum.event_log enable row level security;
        alter table momentum.stream enable row level security;
    end if;
    if not exists (select from pg_catalog.pg_publication where pubname = 'momentum_sync') then
        create publication momentum_sync;
    end if;
end;
$$;

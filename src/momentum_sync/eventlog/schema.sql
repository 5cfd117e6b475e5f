-- The server's own tables: the log of events and where capture stands. Run at every start and by `migrate`;
-- each statement does nothing the second time.

create schema if not exists momentum;

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
    event json not null,
    primary key (number, logged_at)
) partition by range (logged_at);

-- xid grows with the log but for a little disorder: a block range index costs an append nothing.
create index if not exists event_log_xid_idx on momentum.event_log
    using brin (xid int8_minmax_multi_ops) with (pages_per_range = 16);

-- The history that numbers count in, the last event of it, who writes it now, and how far the slot may have been
-- confirmed: never further than the log is complete. Retention may empty the log; this row stays.
create table if not exists momentum.stream (
    single boolean primary key default true check (single),
    slot text not null,
    epoch text not null,
    system_identifier text not null,
    timeline integer not null,
    first_number bigint not null,
    last_number bigint not null,
    last_lsn pg_lsn not null,
    last_index integer not null,
    confirmed_lsn pg_lsn not null,
    holder uuid not null
);

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

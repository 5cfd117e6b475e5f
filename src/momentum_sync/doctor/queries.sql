-- name: session
-- The backend of this connection, the time of the database, and the bounds of connections and retained WAL.
select
    pg_backend_pid() as pid,
    extract(epoch from clock_timestamp())::float8 as now,
    current_setting('max_connections')::int as max_connections,
    (select count(*)::int from pg_catalog.pg_stat_activity a where a.backend_type = 'client backend') as connections,
    current_setting('max_slot_wal_keep_size') as keep_size

-- name: slots
-- The replication slots of the cluster. WAL from `restart_lsn` on is retained; everything before
-- `confirmed_flush_lsn` is confirmed.
select
    r.slot_name::text as name,
    r.active as is_active,
    coalesce(r.wal_status, 'unknown') as wal_status,
    pg_wal_lsn_diff(pg_current_wal_lsn(), r.restart_lsn)::bigint as retained,
    pg_wal_lsn_diff(pg_current_wal_lsn(), r.confirmed_flush_lsn)::bigint as behind,
    r.safe_wal_size as reserve,
    coalesce(pg_blocking_pids(r.active_pid), '{}') as blocked_by
from pg_catalog.pg_replication_slots r
order by r.slot_name

-- name: transactions
-- Transactions that have been open for a long time, or for a time that this role may not see, and prepared ones: WAL
-- since the oldest is retained.
select 'process ' || a.pid as what, extract(epoch from clock_timestamp() - a.xact_start)::float8 as seconds,
    coalesce(nullif(a.application_name, ''), a.usename::text, '') as who,
    format('select pg_terminate_backend(%%s);', a.pid) as remedy
from pg_catalog.pg_stat_activity a
where a.pid <> pg_backend_pid() and a.backend_type = 'client backend'
    and (a.xact_start < clock_timestamp() - %(seconds)s * interval '1 second'
        or a.xact_start is null and a.backend_xid is not null)
union all
select 'prepared transaction ' || p.gid, extract(epoch from clock_timestamp() - p.prepared)::float8, p.owner::text,
    format('rollback prepared %%L;', p.gid)
from pg_catalog.pg_prepared_xacts p
where p.prepared < clock_timestamp() - %(seconds)s * interval '1 second'
order by 2 desc nulls last

-- name: sees_sessions
-- Whether this role sees the transactions of other roles.
select pg_has_role(current_user, 'pg_read_all_stats', 'usage') as sees, quote_ident(current_user) as role

-- name: role
-- The server's role, and whether it bypasses row level security.
select current_user::text as name, r.rolsuper as is_superuser, r.rolbypassrls as bypasses,
    exists (
        select from pg_catalog.pg_class c
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and c.relowner = r.oid) as owns_tables
from pg_catalog.pg_roles r
where r.rolname = current_user

-- name: role_settings
-- Settings of the server's role and of the database.
select coalesce('role ' || r.rolname, 'database') as whose, s.setting
from pg_catalog.pg_db_role_setting d
left join pg_catalog.pg_roles r on r.oid = d.setrole
cross join lateral unnest(d.setconfig) as s (setting)
where (d.setdatabase = 0 or d.setdatabase = (select b.oid from pg_catalog.pg_database b where b.datname = current_database()))
    and (d.setrole = 0 or r.rolname = current_user)
order by 1, 2

-- name: published
-- Published tables: row level security, and whether the replica identity is the whole row or missing. Without one,
-- PostgreSQL refuses UPDATE and DELETE, whichever publication it is.
select format('%I.%I', n.nspname, c.relname) as name,
    bool_or(p.pubname = 'supabase_realtime') as is_ours,
    c.relrowsecurity as is_secured,
    c.relreplident = 'f' as is_full,
    case c.relreplident
        when 'n' then true
        when 'f' then false
        else not exists (
            select from pg_catalog.pg_index i
            where i.indrelid = c.oid and case c.relreplident when 'd' then i.indisprimary else i.indisreplident end)
    end as lacks_identity
from pg_catalog.pg_publication_tables p
join pg_catalog.pg_publication b on b.pubname = p.pubname and (b.pubupdate or b.pubdelete)
join pg_catalog.pg_namespace n on n.nspname = p.schemaname
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
group by n.nspname, c.oid, c.relname, c.relrowsecurity, c.relreplident
order by 1

-- name: publication
select exists (select from pg_catalog.pg_publication p where p.pubname = 'supabase_realtime') as is_there

-- name: is_migrated
-- By the catalog: names cannot be looked up in a schema without a privilege on it.
select exists (
    select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'momentum' and p.proname = 'settle')

-- name: dropped_slot
-- The slot that the events in the log came through, if it is gone.
select s.slot as name
from momentum.stream s
where not exists (select from pg_catalog.pg_replication_slots r where r.slot_name = s.slot)

-- name: log
-- The log: bytes, partitions, the time that it covers in seconds, and whether there is a partition for tomorrow.
select
    coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint as size,
    count(c.oid)::int as partitions,
    (
        select extract(epoch from max(l.logged_at) - min(l.logged_at))::float8 from momentum.event_log l
    ) as covers,
    bool_or(c.relname = to_char((now() at time zone 'utc') + interval '1 day', '"event_log_"YYYYMMDD')) as has_tomorrow
from pg_catalog.pg_inherits i
join pg_catalog.pg_class c on c.oid = i.inhrelid
where i.inhparent = 'momentum.event_log'::regclass

-- name: servers
-- The servers that are connected. Each names its version in the connection of its log.
select distinct substr(a.application_name, length('momentum-sync log ') + 1) as version,
    coalesce(host(a.client_addr), 'this machine') as address
from pg_catalog.pg_stat_activity a
where a.datname = current_database() and a.application_name ~ '^momentum-sync log \d'
order by 2, 1


-- name: publish
select momentum.publish(array[%(channel)s], jsonb_build_object(
    'event_type', %(type)s::text, 'user_id', %(user)s::text, 'mark', %(mark)s::text))

-- name: server
select
    current_setting('server_version_num')::int / 10000 as version,
    current_setting('wal_level') as wal_level,
    current_setting('server_encoding') as encoding,
    current_setting('max_replication_slots')::int as max_slots,
    current_setting('max_wal_senders')::int as max_senders,
    (select count(*)::int from pg_catalog.pg_replication_slots) as slots,
    (select count(*)::int from pg_catalog.pg_stat_replication) as senders,
    (select r.rolreplication or r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user)
        or coalesce(pg_has_role(current_user, (
            select r.oid from pg_catalog.pg_roles r where r.rolname = 'rds_replication'), 'member'), false)
        as may_replicate,
    current_user::text as role,
    current_setting('synchronous_standby_names') as standbys,
    pg_is_in_recovery() as is_replica,
    current_database() || ' ' || extract(epoch from pg_postmaster_start_time()) as database

-- name: log
-- Whether the log exists in this version, the owner of the app's tables, whether all functions exist, and whether the
-- role has the privileges that the server needs: on the log, on those functions, and on its callers' roles.
with functions as (
    select p.oid
    from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'momentum' and (p.proname, oidvectortypes(p.proargtypes)) in (
        ('become', 'text, text'), ('admit', 'jsonb'), ('check_policies', ''), ('keep_partitions', 'interval'),
        ('check_publishing', ''), ('mark', 'pg_lsn, timestamp with time zone'), ('accept_policies', 'text, text, text'),
        ('keep_message_partitions', ''), ('place_messages', 'text'))
)
select
    current_user::text as role,
    c.oid is not null as is_there,
    (
        select pg_get_userbyid(t.relowner)::text from pg_catalog.pg_class t
        where t.oid = to_regclass('public.daily_engagement_scores')
    ) as app_owner,
    (select count(*) = 9 from functions) as is_whole,
    coalesce(
        has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')
        and has_table_privilege(s.oid, 'select') and has_table_privilege(s.oid, 'insert')
        and has_table_privilege(s.oid, 'update')
        and has_table_privilege(f.oid, 'select') and has_table_privilege(f.oid, 'insert')
        and has_table_privilege(f.oid, 'update') and has_table_privilege(f.oid, 'delete')
        and has_table_privilege(r.oid, 'select') and has_table_privilege(r.oid, 'insert')
        and has_table_privilege(r.oid, 'update') and has_table_privilege(r.oid, 'delete')
        and has_table_privilege(d.oid, 'select') and has_table_privilege(d.oid, 'insert')
        and has_table_privilege(d.oid, 'update') and has_table_privilege(d.oid, 'delete')
        and has_table_privilege(to_regclass('momentum.policies'), 'select')
        and has_schema_privilege(c.relnamespace, 'usage')
        and (select bool_and(has_function_privilege(p.oid, 'execute')) from functions p)
        -- By id: a role that does not exist yet would be an error.
        and (
            select count(*) = 3 from pg_catalog.pg_roles r
            where r.rolname in ('anon', 'authenticated', 'service_role')
                and pg_has_role(current_user, r.oid, become.right_to)),
        false) as is_equipped,
    current_database() || ' ' || extract(epoch from pg_postmaster_start_time()) as database
from (
    select case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end as right_to
) as become
left join (
    pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'momentum'
    join pg_catalog.pg_class s on s.relnamespace = n.oid and s.relname = 'stream'
    join pg_catalog.pg_class f on f.relnamespace = n.oid and f.relname = 'followed_tables'
    join pg_catalog.pg_class r on r.relnamespace = n.oid and r.relname = 'realtime_sessions'
    join pg_catalog.pg_class d on d.relnamespace = n.oid and d.relname = 'devices'
    join pg_catalog.pg_attribute a on a.attrelid = s.oid and a.attname = 'live' and not a.attisdropped
) on c.relname = 'event_log'

-- name: log_slot
-- The slot that the log belongs to, if it is another one that still exists. A database created from a template has a
-- copy of the template's log, and the slot of that log belongs to the template.
select s.slot
from momentum.stream s
join pg_catalog.pg_replication_slots r on r.slot_name = s.slot and r.database = current_database()
where s.slot <> %(slot)s

-- name: slot
-- Columns that an older PostgreSQL lacks are null. `last_reply` is null if the role may not see it.
select
    r.database::text, r.database = current_database() as ours, r.plugin::text, r.active_pid,
    (select a.backend_start::text from pg_catalog.pg_stat_activity a where a.pid = r.active_pid) as active_since,
    (
        select case when p.state is not null then coalesce(p.reply_time::text, 'none yet') end
        from pg_catalog.pg_stat_replication p
        where p.pid = r.active_pid
    ) as last_reply,
    r.wal_status,
    r.confirmed_flush_lsn::text as confirmed_lsn,
    to_jsonb(r) ->> 'invalidation_reason' as invalidation_reason,
    (to_jsonb(r) ->> 'failover')::boolean as failover
from pg_catalog.pg_replication_slots r
where r.slot_name = %(slot)s

-- name: create_slot
select from pg_create_logical_replication_slot(%(slot)s, 'pgoutput')

-- name: create_slot_failover
select from pg_create_logical_replication_slot(%(slot)s, 'pgoutput', failover => true)

-- name: look
select
    case when wal_status = 'lost' then 'lost' when active then 'reading' else 'idle' end,
    pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint,
    safe_wal_size
from pg_catalog.pg_replication_slots
where slot_name = %(slot)s and database = current_database()

-- name: publication
select from pg_catalog.pg_publication where pubname = %(publication)s

-- name: end_process
select pg_terminate_backend(%(pid)s)

-- name: drop_slot
select pg_drop_replication_slot(%(slot)s)

-- name: last_logged
select s.epoch, s.last_number, s.kept_from from momentum.stream s

-- name: lock_checkpoint
-- A statement of its own: one that waits for the row of an append would see that row, but not the appended events.
select from momentum.stream for update

-- name: checkpoint
-- The checkpoint; whether the log has its first and last event, or has none; and whether the last event is a TRUNCATE,
-- with which an epoch ends. Slots of other databases may have the same name.
select slot, epoch, system_identifier, timeline, confirmed_lsn::text, kept_from, kept_mark, last_number,
    last_lsn::text, last_index, last_mark, live,
    exists (
        select from pg_replication_slots r where r.slot_name = s.slot and r.database = current_database()
    ) as slot_exists,
    last_number < kept_from or (
        exists (select from momentum.event_log l where l.number = s.kept_from)
        and exists (select from momentum.event_log l where l.number = s.last_number)) as whole,
    exists (
        select from momentum.event_log l
        where l.number = s.last_number and l.number >= s.kept_from and l.channels @> array['momentum:control']
            and l.event ->> 'event_type' = 'table_truncated') as truncated
from momentum.stream s

-- name: log_is_whole
select last_number < kept_from or (
    exists (select from momentum.event_log l where l.number = s.kept_from)
    and exists (select from momentum.event_log l where l.number = s.last_number))
from momentum.stream s

-- name: last_offset
select greatest(
    coalesce((select max(number) from momentum.event_log), 0),
    coalesce((select last_number from momentum.stream), 0))

-- name: hold_checkpoint
update momentum.stream set holder = %(holder)s, fence = fence + 1
returning fence

-- name: set_live
-- Only the holder of the checkpoint.
update momentum.stream set live = true where holder = %(holder)s
returning fence

-- name: new_epoch
insert into momentum.stream (
    slot, epoch, system_identifier, timeline, confirmed_lsn, kept_from, kept_mark, last_number, last_lsn, last_index,
    last_mark, holder, fence, live)
values (
    %(slot)s, %(epoch)s, %(system_identifier)s, %(timeline)s, %(confirmed_lsn)s::pg_lsn, %(offset)s + 1, 0,
    %(offset)s, %(last_lsn)s::pg_lsn, %(last_index)s, 0, %(holder)s, 1, false)
on conflict (single) do update set
    slot = excluded.slot, epoch = excluded.epoch, system_identifier = excluded.system_identifier,
    timeline = excluded.timeline, confirmed_lsn = excluded.confirmed_lsn, kept_from = excluded.kept_from,
    kept_mark = excluded.kept_mark, last_number = excluded.last_number, last_lsn = excluded.last_lsn, last_index = excluded.last_index,
    last_mark = excluded.last_mark, holder = excluded.holder, fence = stream.fence + 1, live = false
returning fence

-- name: followed
-- The followed tables; which publications a stream may name, since from PostgreSQL 18 on that of rows need not exist;
-- the publication of messages to topics, if there are any; and whether PostgreSQL is that new.
select
    coalesce(array_agg(f.relation::bigint order by f.relation), '{}'),
    coalesce(array_agg((f.after_lsn - '0/0'::pg_lsn)::bigint order by f.relation), '{}'),
    array(
        select wanted.name
        from unnest(%(publications)s::text[]) as wanted (name)
        where current_setting('server_version_num')::int >= 180000 and wanted.name <> %(broadcasts)s
            or exists (select from pg_catalog.pg_publication p where p.pubname = wanted.name)),
    (
        select p.oid::bigint from pg_catalog.pg_publication p
        where p.pubname = %(broadcasts)s and exists (
            select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where n.nspname = 'realtime' and c.relname = 'messages')),
    current_setting('server_version_num')::int >= 180000
from momentum.followed_tables f

-- name: follow
-- Only the holder of the checkpoint.
insert into momentum.followed_tables (relation, after_lsn)
select %(relation)s::oid, %(after_lsn)s::pg_lsn
from momentum.stream s
where s.holder = %(holder)s
for share of s
returning relation

-- name: follow_messages
insert into momentum.followed_tables (relation, after_lsn) values (%(messages)s::oid, '0/0') on conflict do nothing

-- name: unfollow_all
delete from momentum.followed_tables

-- name: follow_from_the_start
-- Where an epoch begins, no event has an offset yet.
update momentum.followed_tables set after_lsn = '0/0'

-- name: published
-- Whether the publication exists, a position of the WAL behind its creation, and a transaction id behind it.
select exists (select from pg_catalog.pg_publication p where p.pubname = %(publication)s),
    (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint

-- name: is_our_own
select exists (
    select from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = %(relation)s::oid and (
        n.nspname in ('momentum', 'momentum_log') or n.nspname = 'realtime' and c.relname ~ '^messages(_|$)'))

-- name: recent_xids
-- The transactions of the newest events.
select array(
    select distinct l.xid from momentum.event_log l
    where l.number > %(offset)s - 20000 and l.number >= (select s.kept_from from momentum.stream s))

-- name: have_ended
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= %(ceiling)s

-- name: are_visible
select coalesce(bool_and(pg_visible_in_snapshot(x.id::text::xid8, pg_current_snapshot())), true)
from unnest(%(xids)s::bigint[]) as x (id)

-- name: probe
select pg_logical_emit_message(true, %(prefix)s, %(content)s)

-- name: check_policies
select momentum.check_policies()

-- name: changed_policies
select p.table_name, p.shipped, p.current from momentum.policies p where p.changed order by p.table_name

-- name: accept_policies
select momentum.accept_policies(%(table)s, %(shipped)s, %(described)s)

-- name: check_triggers
select p.found -> 'problems', p.found -> 'foreign_triggers'
from momentum.check_publishing() as p (found)

-- name: types
-- Types by id with all that they are made of: domains, elements, attributes. A type that no longer exists has no row.
with recursive needed (oid) as (
    select unnest(%(oids)s::oid[])
    union
    select part.oid
    from needed
    join pg_catalog.pg_type t on t.oid = needed.oid
    cross join lateral (
        select t.typbasetype as oid where t.typbasetype <> 0
        union all
        select t.typelem where t.typelem <> 0
        union all
        select a.atttypid from pg_catalog.pg_attribute a
        where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
    ) part
)
select
    t.oid::bigint,
    t.typname::text as name,
    t.typbasetype::bigint as base,
    -- As PostgreSQL's get_element_type: a type such as point has elements, but is no array.
    case when t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc then t.typelem::bigint else 0 end as element,
    coalesce((select e.typdelim::text from pg_catalog.pg_type e where e.oid = t.typelem), ',') as delimiter,
    coalesce(
        (
            select array_agg(a.attname::text order by a.attnum) from pg_catalog.pg_attribute a
            where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
        ),
        '{}'
    ) as attributes,
    coalesce(
        (
            select array_agg(a.atttypid::bigint order by a.attnum) from pg_catalog.pg_attribute a
            where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
        ),
        '{}'
    ) as attribute_types,
    t.typtype = 'c' as is_composite
from needed
join pg_catalog.pg_type t on t.oid = needed.oid;

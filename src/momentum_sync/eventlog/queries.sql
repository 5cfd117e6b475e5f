-- name: head
-- How far the log has come. No row before capture has begun.
select epoch, fence, last_number,
    case when last_number < kept_from then kept_mark else last_mark end,
    (confirmed_lsn - '0/0'::pg_lsn)::bigint, live, kept_from
from momentum.stream

-- name: followed_state
-- Whether a relation is followed, and whether it can be: the publication of its rows exists, and it is none of ours.
-- Messages in `realtime.messages` have the id 0.
select
    exists (select from momentum.followed_tables f where f.relation = %(relation)s::oid),
    case when %(relation)s::oid = 0 then
        exists (
            select from pg_catalog.pg_publication p where p.pubname = 'supabase_realtime_messages_publication')
        and exists (
            select from pg_catalog.pg_class c
            join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where n.nspname = 'realtime' and c.relname = 'messages')
    else
        exists (select from pg_catalog.pg_publication p where p.pubname = 'supabase_realtime')
        and not exists (
            select from pg_catalog.pg_class c
            join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where c.oid = %(relation)s::oid and (
                n.nspname in ('momentum', 'momentum_log') or n.nspname = 'realtime' and c.relname ~ '^messages(_|$)'))
    end

-- name: ask_to_follow
select pg_logical_emit_message(true, %(prefix)s, %(relation)s)

-- name: identity
-- A name that no other database has, for what goes over a shared broker.
select (select system_identifier from pg_control_system())::text || '-' || d.oid::text
from pg_catalog.pg_database d
where d.datname = current_database()

-- name: written_up_to
select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint

-- name: following
-- All events after an offset, in order, up to the first with which their bytes exceed `most`.
select number, commit_lsn, commit_index, xid, committed_at, channels, event, rows
from (
    select number, commit_lsn::text, commit_index, xid, channels, event::text, rows::text,
        extract(epoch from committed_at)::double precision as committed_at,
        sum(size) over (order by number) - size as before
    from (
        select *, octet_length(event::text) + coalesce(octet_length(rows::text), 0) as size from momentum.event_log
        where number > %(offset)s
        order by number
        limit %(limit)s
    ) as page
) as measured
where before <= %(most)s
order by number

-- name: next_xid
-- The next transaction id, and the run of PostgreSQL that assigns them: the time of its start, combined with the time
-- at which it last reset its statistics, which happens after the crash of one of its processes.
select pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
    (extract(epoch from pg_postmaster_start_time()) * 1000000
        + coalesce(extract(epoch from (select w.stats_reset from pg_stat_wal w)) * 1000000, 0))::bigint & 4294967295

-- name: mark_of
-- The mark of the event at an offset in an epoch; no row if the log no longer has it.
select case when s.kept_from = %(offset)s + 1 then s.kept_mark
    else (
        select momentum.mark(l.commit_lsn, l.committed_at)
        from momentum.event_log l
        where l.number = %(offset)s and l.number >= s.kept_from
    ) end
from momentum.stream s
where s.epoch = %(epoch)s

-- name: append
-- One statement, so one round trip and one commit. A process that is no longer the holder appends nothing; the row lock
-- makes a new holder wait for a running append.
with held as (
    update momentum.stream set
        confirmed_lsn = greatest(confirmed_lsn, %(confirmed_lsn)s::pg_lsn),
        last_number = %(last_offset)s, last_lsn = %(last_lsn)s::pg_lsn, last_index = %(last_index)s,
        last_mark = %(last_mark)s
    where holder = %(holder)s
    returning slot
), added as (
    insert into momentum.event_log (number, commit_lsn, commit_index, xid, committed_at, channels, keys, event, rows)
    select e."offset", '0/0'::pg_lsn + e.lsn, e.index, e.xid, to_timestamp(e.at), e.channels, e.keys, e.event, e.rows
    from held, json_to_recordset(%(events)s::json) as e (
        "offset" bigint, lsn numeric, index integer, xid bigint, at double precision, channels text[], keys text[],
        event json, rows json)
)
select count(*) from held

-- name: confirm
update momentum.stream set confirmed_lsn = greatest(confirmed_lsn, %(confirmed_lsn)s::pg_lsn)
where holder = %(holder)s
returning slot

-- name: first_unseen
-- The first event below an offset that a snapshot does not see: of a transaction in progress, or a later one. A range
-- scan from the oldest of them would cover days of events if a transaction has been open for days.
select min(number)
from momentum.event_log
where (xid >= %(xmax)s or xid = any (%(under_way)s::bigint[]))
    and number >= (select kept_from from momentum.stream) and number < %(below)s and keys && %(keys)s

-- name: reaches
-- Whether the log has everything between two offsets of the present epoch: the first and the last event exist. The last
-- one is missing after failover to a lagging standby, until capture detects it.
select s.epoch = %(epoch)s and s.kept_from <= %(offset)s + 1
    and exists (select from momentum.event_log where number = %(offset)s + 1)
    and exists (select from momentum.event_log where number = %(below)s - 1)
from momentum.stream s

-- name: count_after
select count(*)
from (
    select from momentum.event_log
    where number > %(offset)s and number < %(below)s and keys && %(keys)s
        and (%(snapshot)s::pg_snapshot is null or not pg_visible_in_snapshot(xid::text::xid8, %(snapshot)s::pg_snapshot))
    limit %(most)s
) as counted

-- name: after
-- Events in order, up to the first with which their bytes exceed `most`.
select number, commit_lsn, commit_index, xid, committed_at, channels, event, rows
from (
    select number, commit_lsn::text, commit_index, xid, channels, event::text, rows::text,
        extract(epoch from committed_at)::double precision as committed_at,
        sum(octet_length(event::text)) over (order by number) - octet_length(event::text) as before
    from (
        select * from momentum.event_log
        where number > %(offset)s and number < %(below)s and keys && %(keys)s
        order by number
        limit %(limit)s
    ) as page
) as measured
where before <= %(most)s
order by number

-- name: log_reaches_back
-- The first offset, and whether the log has every event since a time, also of `realtime.messages`, which has the id 0;
-- no row if the epoch has ended.
select s.kept_from,
    (
        s.kept_from = 1 or exists (
            select from momentum.event_log l
            where l.number = s.kept_from and l.committed_at <= to_timestamp(%(since)s)))
        and exists (
            select from momentum.followed_tables f
            where f.relation = 0 and (f.after_lsn = '0/0' or f.followed_at <= to_timestamp(%(since)s)))
from momentum.stream s
where s.epoch = %(epoch)s

-- name: newest_on
-- From the newest backwards, up to the first with which their bytes exceed `most`.
select number, commit_lsn, commit_index, xid, committed_at, channels, event, rows
from (
    select number, commit_lsn::text, commit_index, xid, channels, event::text, rows::text,
        extract(epoch from committed_at)::double precision as committed_at,
        sum(octet_length(event::text)) over (order by number desc) - octet_length(event::text) as before
    from (
        select * from momentum.event_log
        where number >= %(first)s and number < %(below)s and keys && array[%(key)s::text]
            and committed_at >= to_timestamp(%(since)s)
        order by number desc
        limit %(limit)s
    ) as page
) as measured
where before <= %(most)s
order by number desc

-- name: newest
-- From the last event backwards, up to `most` bytes.
select number, commit_lsn, commit_index, xid, committed_at, channels, event, rows
from (
    select number, commit_lsn::text, commit_index, xid, channels, event::text, rows::text,
        extract(epoch from committed_at)::double precision as committed_at,
        sum(octet_length(event::text)) over (order by number desc) as size
    from momentum.event_log
    where number > %(offset)s and number <= %(last)s
) as measured
where size <= %(most)s
order by number

-- name: keep_partitions
select momentum.keep_partitions(%(retention)s)

-- name: keep_message_partitions
select momentum.keep_message_partitions()

-- name: write_metrics
insert into public.realtime_event_metrics (
    event_type, channel_name, user_id, payload_size, processing_time_ms, success, error_message)
select s.event_type, s.channel, s.user_id, s.size, s.milliseconds, s.success, s.error
from json_to_recordset(%(samples)s::json) as s (
    event_type text, channel text, user_id uuid, size integer, milliseconds integer, success boolean, error text)

-- name: cleanup_metrics
select public.cleanup_realtime_metrics()

-- name: session_numbers
select array(select nextval('momentum.realtime_session_numbers') from generate_series(1, %(count)s))

-- name: sessions_of
-- The sessions of some clients, which no other transaction can settle until the transaction ends.
select s.session, s.identity, s.ref, s.cursors::text, s.seen_at > now() - %(recent)s::interval
from momentum.realtime_sessions s
where s.identity = any (%(identities)s)
order by s.session
for update

-- name: begin_sessions
-- A database that was restored from a copy gives numbers again, and both sockets may be open.
insert into momentum.realtime_sessions (session, identity, ref, cursors, user_id)
select * from unnest(
    %(sessions)s::bigint[], %(identities)s::text[], %(refs)s::bigint[], %(cursors)s::jsonb[], %(users)s::uuid[])
on conflict (session) do update set
    identity = excluded.identity, ref = excluded.ref, cursors = excluded.cursors, user_id = excluded.user_id,
    seen_at = now()

-- name: end_sessions
delete from momentum.realtime_sessions s where s.session = any (%(sessions)s)

-- name: discard_sessions
delete from momentum.realtime_sessions s
using unnest(%(sessions)s::bigint[], %(identities)s::text[]) as renamed (session, identity)
where s.identity = renamed.identity and s.session < renamed.session

-- name: save_sessions
-- Return the sessions that are still there: another one has continued each of the others.
update momentum.realtime_sessions s
set ref = saved.ref, cursors = saved.cursors, identity = saved.identity, user_id = saved.user_id, seen_at = now()
from unnest(
    %(sessions)s::bigint[], %(identities)s::text[], %(refs)s::bigint[], %(cursors)s::jsonb[], %(users)s::uuid[])
    as saved (session, identity, ref, cursors, user_id)
where s.session = saved.session
returning s.session

-- name: forget_sessions
delete from momentum.realtime_sessions s where s.seen_at < now() - %(retention)s::interval


-- name: save_receipts
-- A device that moved to another gateway may be saved by both; the later position counts.
insert into momentum.devices as d (user_id, device, epoch, number, keys)
select saved.user_id, saved.device, saved.epoch, saved.number,
    array(select jsonb_array_elements_text(saved.keys))
from unnest(%(users)s::uuid[], %(devices)s::text[], %(epochs)s::text[], %(offsets)s::bigint[], %(keys)s::jsonb[])
    as saved (user_id, device, epoch, number, keys)
join momentum.stream s on s.epoch = saved.epoch
order by saved.user_id, saved.device
on conflict (user_id, device) do update
set epoch = excluded.epoch, number = excluded.number, keys = excluded.keys, confirmed_at = excluded.confirmed_at
where d.epoch <> excluded.epoch or d.number <= excluded.number

-- name: bound_receipts
delete from momentum.devices d
using (
    select s.user_id, s.device,
        row_number() over (partition by s.user_id order by s.confirmed_at desc, s.device) > %(most)s as is_beyond
    from momentum.devices s
    where s.user_id = any (%(users)s::uuid[])
) as known
where known.is_beyond and d.user_id = known.user_id and d.device = known.device

-- name: forget_receipts
delete from momentum.devices d where d.confirmed_at < now() - %(retention)s::interval

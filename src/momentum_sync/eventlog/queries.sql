-- name: stream
-- Where the history stands; whether the log still holds what it should: both ends of it are there, or nothing is due; and
-- whether a table was truncated, with which a history ends. Slots of other databases may have the same name.
select slot, epoch, system_identifier, timeline, confirmed_lsn::text, kept_from, kept_mark, last_number,
    last_lsn::text, last_index, last_mark,
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
for update

-- name: mark_of
-- The commit of the event with a number in an epoch; no row if the log does not know it any longer.
select case when s.kept_from = %(offset)s + 1 then s.kept_mark
    else (
        select momentum.mark(l.commit_lsn, l.committed_at)
        from momentum.event_log l
        where l.number = %(offset)s and l.number >= s.kept_from
    ) end
from momentum.stream s
where s.epoch = %(epoch)s

-- name: whole
select last_number < kept_from or (
    exists (select from momentum.event_log l where l.number = s.kept_from)
    and exists (select from momentum.event_log l where l.number = s.last_number))
from momentum.stream s

-- name: last_number
select greatest(
    coalesce((select max(number) from momentum.event_log), 0),
    coalesce((select last_number from momentum.stream), 0))

-- name: keep_stream
update momentum.stream set holder = %(holder)s

-- name: new_stream
insert into momentum.stream (
    slot, epoch, system_identifier, timeline, confirmed_lsn, kept_from, kept_mark, last_number, last_lsn, last_index,
    last_mark, holder)
values (
    %(slot)s, %(epoch)s, %(system_identifier)s, %(timeline)s, %(confirmed_lsn)s::pg_lsn, %(offset)s + 1, 0,
    %(offset)s, %(last_lsn)s::pg_lsn, %(last_index)s, 0, %(holder)s)
on conflict (single) do update set
    slot = excluded.slot, epoch = excluded.epoch, system_identifier = excluded.system_identifier,
    timeline = excluded.timeline, confirmed_lsn = excluded.confirmed_lsn, kept_from = excluded.kept_from,
    kept_mark = excluded.kept_mark, last_number = excluded.last_number, last_lsn = excluded.last_lsn, last_index = excluded.last_index,
    last_mark = excluded.last_mark, holder = excluded.holder

-- name: now
-- The transaction id that comes next, and which run of PostgreSQL counts them: when it started, and when it last threw its
-- statistics away, which it does after a crash of one of its processes.
select pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
    (extract(epoch from pg_postmaster_start_time()) * 1000000
        + coalesce(extract(epoch from (select w.stats_reset from pg_stat_wal w)) * 1000000, 0))::bigint & 4294967295

-- name: recent_xids
-- The transactions of the newest events.
select array(
    select distinct l.xid from momentum.event_log l
    where l.number > %(offset)s - 20000 and l.number >= (select s.kept_from from momentum.stream s))

-- name: append
-- One statement, so one round trip and one commit. Whoever is no longer the holder adds nothing; the row lock
-- makes a new holder wait for an append under way.
with held as (
    update momentum.stream set
        confirmed_lsn = greatest(confirmed_lsn, %(confirmed_lsn)s::pg_lsn),
        last_number = %(last_number)s, last_lsn = %(last_lsn)s::pg_lsn, last_index = %(last_index)s,
        last_mark = %(last_mark)s
    where holder = %(holder)s
    returning slot
), added as (
    insert into momentum.event_log (number, commit_lsn, commit_index, xid, committed_at, channels, keys, event, rows)
    select e.number, '0/0'::pg_lsn + e.lsn, e.index, e.xid, to_timestamp(e.at), e.channels, e.keys, e.event, e.rows
    from held, json_to_recordset(%(events)s::json) as e (
        number bigint, lsn numeric, index integer, xid bigint, at double precision, channels text[], keys text[],
        event json, rows json)
)
select count(*) from held

-- name: confirm
update momentum.stream set confirmed_lsn = greatest(confirmed_lsn, %(confirmed_lsn)s::pg_lsn)
where holder = %(holder)s
returning slot

-- name: first_unseen
-- The first event below a number, of the history that the log holds from `kept_from`, that a snapshot does not see: those
-- are of the transactions that were under way, and of later ones. A range over everything since the oldest of them would be
-- days of events where one has been open for days.
select min(number)
from momentum.event_log
where (xid >= %(xmax)s or xid = any (%(under_way)s::bigint[]))
    and number >= (select kept_from from momentum.stream) and number < %(below)s and keys && %(keys)s

-- name: reaches
-- Whether the log holds all that follows a number, in the history that goes on: its very next event is there.
select s.epoch = %(epoch)s and s.kept_from <= %(offset)s + 1
    and exists (select from momentum.event_log where number = %(offset)s + 1)
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
-- Events in order, up to the one with which their bytes exceed `most`.
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

-- name: newest
-- From the last one back, as far as `most` bytes go.
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

-- name: ended
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= %(ceiling)s

-- name: visible
select coalesce(bool_and(pg_visible_in_snapshot(x.id::text::xid8, pg_current_snapshot())), true)
from unnest(%(xids)s::bigint[]) as x (id)

-- name: beat
select pg_logical_emit_message(true, %(prefix)s, %(content)s)

-- name: check_policies
select momentum.check_policies()

-- name: check_publishing
select p.found -> 'problems', p.found -> 'foreign_triggers'
from momentum.check_publishing() as p (found)

-- name: keep_partitions
select momentum.keep_partitions(%(retention)s)

-- name: write_metrics
insert into public.realtime_event_metrics (
    event_type, channel_name, user_id, payload_size, processing_time_ms, success, error_message)
select s.event_type, s.channel, s.user_id, s.size, s.milliseconds, s.success, s.error
from json_to_recordset(%(samples)s::json) as s (
    event_type text, channel text, user_id uuid, size integer, milliseconds integer, success boolean, error text)

-- name: cleanup_metrics
select public.cleanup_realtime_metrics()

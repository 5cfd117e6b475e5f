-- name: stream
select epoch, system_identifier, timeline, confirmed_lsn::text, last_number, last_lsn::text, last_index
from momentum.stream
where slot = %(slot)s
for update

-- name: last_number
select coalesce(max(number), 0) from momentum.event_log

-- name: keep_stream
update momentum.stream set holder = %(holder)s where slot = %(slot)s

-- name: new_stream
insert into momentum.stream (
    slot, epoch, system_identifier, timeline, confirmed_lsn, last_number, last_lsn, last_index, holder)
values (
    %(slot)s, %(epoch)s, %(system_identifier)s, %(timeline)s, %(confirmed_lsn)s::pg_lsn, %(number)s, '0/0', 0,
    %(holder)s)
on conflict (slot) do update set
    epoch = excluded.epoch, system_identifier = excluded.system_identifier, timeline = excluded.timeline,
    confirmed_lsn = excluded.confirmed_lsn, last_number = excluded.last_number, last_lsn = excluded.last_lsn,
    last_index = excluded.last_index, holder = excluded.holder

-- name: next_xid
select pg_snapshot_xmax(pg_current_snapshot())::text::bigint

-- name: append
-- One statement, so one round trip and one commit. Whoever is no longer the holder adds nothing; the row lock
-- makes a new holder wait for an append under way.
with held as (
    update momentum.stream set
        confirmed_lsn = greatest(confirmed_lsn, %(confirmed_lsn)s::pg_lsn),
        last_number = %(last_number)s, last_lsn = %(last_lsn)s::pg_lsn, last_index = %(last_index)s
    where slot = %(slot)s and holder = %(holder)s
    returning slot
), added as (
    insert into momentum.event_log (number, commit_lsn, commit_index, xid, committed_at, channels, event)
    select e.number, e.commit_lsn, e.commit_index, e.xid, to_timestamp(e.committed_at), e.channels, e.event
    from held, json_to_recordset(%(events)s::json) as e (
        number bigint, commit_lsn pg_lsn, commit_index integer, xid bigint, committed_at double precision,
        channels text[], event json)
)
select count(*) from held

-- name: confirm
update momentum.stream set confirmed_lsn = greatest(confirmed_lsn, %(confirmed_lsn)s::pg_lsn)
where slot = %(slot)s and holder = %(holder)s
returning slot

-- name: unseen
-- Candidates for what a snapshot does not see, below a number; the caller looks closer.
select number, commit_lsn::text, commit_index, xid, extract(epoch from committed_at)::double precision, channels,
    event::text
from momentum.event_log
where xid >= %(xmin)s and number < %(below)s and channels && %(channels)s
order by number

-- name: lock_partitions
select pg_advisory_xact_lock(hashtext('momentum.event_log partitions'))

-- name: partitions
select c.relname
from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
where i.inhparent = 'momentum.event_log'::regclass
order by c.relname

-- name: cleanup_metrics
select public.cleanup_realtime_metrics()

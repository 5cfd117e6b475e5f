-- name: stream
select slot, epoch, system_identifier, timeline, confirmed_lsn::text, first_number, last_number, last_lsn::text,
    last_index, exists (select from pg_catalog.pg_replication_slots r where r.slot_name = s.slot) as slot_exists
from momentum.stream s
for update

-- name: last_number
select coalesce(max(number), 0) from momentum.event_log

-- name: keep_stream
update momentum.stream set holder = %(holder)s

-- name: new_stream
insert into momentum.stream (
    slot, epoch, system_identifier, timeline, confirmed_lsn, first_number, last_number, last_lsn, last_index, holder)
values (
    %(slot)s, %(epoch)s, %(system_identifier)s, %(timeline)s, %(confirmed_lsn)s::pg_lsn, %(number)s + 1, %(number)s,
    '0/0', 0, %(holder)s)
on conflict (single) do update set
    slot = excluded.slot, epoch = excluded.epoch, system_identifier = excluded.system_identifier,
    timeline = excluded.timeline, confirmed_lsn = excluded.confirmed_lsn, first_number = excluded.first_number,
    last_number = excluded.last_number, last_lsn = excluded.last_lsn, last_index = excluded.last_index,
    holder = excluded.holder

-- name: next_xid
select pg_snapshot_xmax(pg_current_snapshot())::text::bigint

-- name: append
-- One statement, so one round trip and one commit. Whoever is no longer the holder adds nothing; the row lock
-- makes a new holder wait for an append under way.
with held as (
    update momentum.stream set
        confirmed_lsn = greatest(confirmed_lsn, %(confirmed_lsn)s::pg_lsn),
        last_number = %(last_number)s, last_lsn = %(last_lsn)s::pg_lsn, last_index = %(last_index)s
    where holder = %(holder)s
    returning slot
), added as (
    insert into momentum.event_log (number, commit_lsn, commit_index, xid, committed_at, channels, event)
    -- Channels come as the text of an array each: SQL has no array of arrays of unequal length.
    select e.number, e.commit_lsn, e.commit_index, e.xid, to_timestamp(e.committed_at), e.channels::text[],
        e.event::json
    from held, unnest(
        %(numbers)s::bigint[], %(lsns)s::pg_lsn[], %(indexes)s::integer[], %(xids)s::bigint[],
        %(times)s::double precision[], %(channels)s::text[], %(bodies)s::text[]
    ) as e (number, commit_lsn, commit_index, xid, committed_at, channels, event)
)
select count(*) from held

-- name: confirm
update momentum.stream set confirmed_lsn = greatest(confirmed_lsn, %(confirmed_lsn)s::pg_lsn)
where holder = %(holder)s
returning slot

-- name: unseen
-- What a snapshot does not see of the history that began with `first`, below a number.
select number, commit_lsn::text, commit_index, xid, extract(epoch from committed_at)::double precision, channels,
    event::text
from momentum.event_log
where xid >= %(xmin)s and number >= %(first)s and number < %(below)s and channels && %(channels)s
    and not pg_visible_in_snapshot(xid::text::xid8, %(snapshot)s::pg_snapshot)
order by number
limit %(limit)s

-- name: lock_partitions
select pg_advisory_xact_lock(hashtext('momentum.event_log partitions'))

-- name: partitions
select c.relname
from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
where i.inhparent = 'momentum.event_log'::regclass
order by c.relname

-- name: cleanup_metrics
select public.cleanup_realtime_metrics()

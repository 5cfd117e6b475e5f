-- Receipts: which devices of a user have an event. `migrate` runs this file after the schema of the log.

create or replace function momentum.event_ids(channel text, contains jsonb, since timestamptz default now() - interval '1 day')
returns table (event_id text, event jsonb, committed_at timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select
        s.epoch || '-' || l.number || '-' || to_hex(momentum.mark(l.commit_lsn, l.committed_at)),
        l.event::jsonb,
        l.committed_at
    from momentum.stream s
    join momentum.event_log l on l.number >= s.kept_from
    where l.keys @> array[event_ids.channel] and l.committed_at >= event_ids.since
        and l.event::jsonb @> event_ids.contains
    order by l.number
$$;
comment on function momentum.event_ids(text, jsonb, timestamptz) is 'Find events in the log by their content.

An event gets its id when capture appends it to the log, shortly after its transaction commits.

Args:
    channel: a channel of the event, such as notifications:<user>.
    contains: fields that the event must have, such as {"notification_id": "…"}.
    since: the earliest commit time to search; by default one day ago.
Returns:
    `event_id`, as clients know it; `event`; `committed_at`. In commit order.
Example:
    select event_id from momentum.event_ids(
        ''notifications:5f1d7c3e-0b7a-4c56-9d6e-2f8a4b1c9e03'',
        ''{"notification_id": "a3c5e1f2-6d84-4b97-8e10-7f2b9c4d5a68"}'');';

create or replace function momentum.receipts(user_id uuid, event_id text)
returns table (device text, protocol text, topic text, has_event boolean, confirmed_at timestamptz)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted bigint;
    event_keys text[];
begin
    if event_id is null or event_id !~ '^[0-9a-f]{8}-[0-9]{1,18}-[0-9a-f]{1,8}(\.[0-9A-Fa-f_.]*)?$' then
        raise exception 'momentum.receipts got %, which is not the id of an event', quote_nullable(left(event_id, 100))
            using errcode = 'invalid_parameter_value',
            hint = 'Take it from momentum.event_ids, or from the `id` of a delivered event.';
    end if;
    wanted := split_part(event_id, '-', 2);
    -- Offsets are comparable within an epoch only, and a restored database gives them to other events.
    select l.keys into event_keys
    from momentum.stream s
    join momentum.event_log l on l.number = wanted and l.number >= s.kept_from
    where s.epoch = split_part(event_id, '-', 1)
        and to_hex(momentum.mark(l.commit_lsn, l.committed_at)) = split_part(split_part(event_id, '-', 3), '.', 1);
    if not found then
        raise exception 'momentum.receipts: the event % is not in the log', left(event_id, 100)
            using errcode = 'no_data_found',
            hint = 'It has expired, or a failover or restore has begun another epoch.';
    end if;
    return query
        select d.device, 'native', null::text, d.number >= wanted and d.keys && event_keys, d.confirmed_at
        from momentum.devices d
        where d.user_id = receipts.user_id
        union all
        select r.identity, 'supabase', c.topic,
            case
                when split_part(c.place, '-', 2)::bigint < wanted then false
                -- A topic has the messages that were sent to it. Which tables it watches is not recorded.
                when array['topic:' || named.topic, 'public_topic:' || named.topic] && event_keys then true
                when exists (select from unnest(event_keys) as k (key) where k.key like 'momentum:rows:%') then null
                else false
            end,
            r.seen_at
        from momentum.realtime_sessions r
        cross join lateral jsonb_each_text(r.cursors) as c (topic, place)
        cross join lateral (select regexp_replace(c.topic, '^realtime:', '')) as named (topic)
        where r.user_id = receipts.user_id
        order by 5 desc, 1, 3;
end;
$$;
comment on function momentum.receipts(uuid, text) is 'Return which devices of a user have an event.

A device has an event when its WebSocket library has answered a ping sent after it: the app has received the event or is
about to. Only the app knows whether a person has seen it.

Args:
    user_id: the user.
    event_id: the id of an event, from momentum.event_ids or from a delivered event.
Returns:
    one row for each device that connected with a `client_id` and has confirmed an event (at most the 100 most recent of
    a user), and one for each topic of each client of Supabase''s protocol. Rows are deleted 30 days after their last
    confirmation, or after MOMENTUM_RETENTION if that is longer. Columns: `device`; `protocol` (native or supabase);
    `topic` (null for native); `has_event`, also true for a snapshot taken after the event, and null for a
    change of a row that a topic of Supabase''s protocol has if it watches the table; `confirmed_at`.
Raises:
    invalid_parameter_value: `event_id` is not the id of an event.
    no_data_found: the event is not in the log, or not any longer.
Example:
    select e.event_id, r.device, r.has_event
    from momentum.event_ids(
        ''notifications:5f1d7c3e-0b7a-4c56-9d6e-2f8a4b1c9e03'',
        ''{"notification_id": "a3c5e1f2-6d84-4b97-8e10-7f2b9c4d5a68"}'') as e
    cross join lateral momentum.receipts(''5f1d7c3e-0b7a-4c56-9d6e-2f8a4b1c9e03'', e.event_id) as r;';

do $$
declare
    owner name := (
        select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'public.daily_engagement_scores'::regclass);
    made regprocedure;
begin
    foreach made in array array[
        'momentum.event_ids(text, jsonb, timestamptz)', 'momentum.receipts(uuid, text)']::regprocedure[]
    loop
        if (select pg_get_userbyid(p.proowner) from pg_proc p where p.oid = made) <> owner then
            execute format('alter function %s owner to %I', made, owner);
        end if;
        execute format('revoke all on function %s from public', made);
        execute format('grant execute on function %s to service_role', made);
    end loop;
end;
$$;

-- `momentum.installed` has what publishing depends on. Migrations that are applied again would add these functions.
delete from momentum.installed i
where i.name in (
    'function momentum.event_ids(text,jsonb,timestamp with time zone)', 'function momentum.receipts(uuid,text)');

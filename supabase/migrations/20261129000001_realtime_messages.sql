-- Broadcasts from the database: Supabase's table `realtime.messages` and the functions that write to it. What Supabase
-- has made stays as it is; this file makes what is missing.
--
-- Creates: schema realtime with messages, topic(), send(), send_binary() and broadcast_changes(); the publication
--   supabase_realtime_messages_publication, each only where it is missing; the functions
--   momentum.keep_message_partitions() and momentum.place_messages(text).
-- Changes in your tables: none. `realtime.messages` gets a partition for each of the coming days.
-- Locks: none on your tables; `realtime.messages` for a moment.
-- Needs: 20261128000003_momentum_authorization. To make what is missing in an existing schema realtime, its owner.
-- Undo: `momentum-sync uninstall`, which drops only what this file has made.

-- pg_temp comes last in search_path, so that no object of a session can replace one of PostgreSQL while this file runs.
-- Notices about existing objects are suppressed.
set search_path = pg_catalog, pg_temp;
set client_min_messages = warning;


-- The objects are marked by their comments: a later version replaces these, and `uninstall` drops them.
do $$
declare
    mark constant text := 'Made by Momentum Sync.';
    owner name := (
        select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'public.daily_engagement_scores'::regclass);
    made record;
begin
    if to_regnamespace('realtime') is null then
        execute format('create schema realtime authorization %I', owner);
        execute format('comment on schema realtime is %L', 'Broadcasts from the database. ' || mark);
        grant usage on schema realtime to anon, authenticated, service_role;
    end if;

    if to_regclass('realtime.messages') is null then
        create table realtime.messages (
            topic text not null,
            extension text not null,
            payload jsonb,
            event text,
            private boolean default false,
            updated_at timestamp not null default now(),
            inserted_at timestamp not null default now(),
            id uuid not null default gen_random_uuid(),
            binary_payload bytea,
            primary key (id, inserted_at)
        ) partition by range (inserted_at);
        execute format('comment on table realtime.messages is %L', 'Messages sent to topics in the last three days. ' || mark);
        -- A SELECT policy lets a caller join a private topic, an INSERT policy lets it send there.
        alter table realtime.messages enable row level security;
        grant select, insert, update on realtime.messages to anon, authenticated, service_role;
        execute format('alter table realtime.messages owner to %I', owner);
        -- For days without a partition of their own: the server is down for longer, or the clock was set.
        create table realtime.messages_default partition of realtime.messages default;
        alter table realtime.messages_default enable row level security;
        execute format('comment on table realtime.messages_default is %L', mark);
        execute format('alter table realtime.messages_default owner to %I', owner);
    end if;

    for made in
        select f.signature, f.definition, f.purpose
        from (values
            (
                'realtime.topic()',
                $function$
create or replace function realtime.topic() returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $body$
    select nullif(current_setting('realtime.topic', true), '')
$body$
                $function$,
                'Return the topic that a policy on realtime.messages decides about.'
            ),
            (
                'realtime.send(jsonb, text, text, boolean)',
                $function$
create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $body$
declare
    message_id uuid := gen_random_uuid();
begin
    if length(send.topic) not between 1 and 246 or send.event is null or octet_length(send.payload::text) > 3072000 then
        raise exception 'realtime.send needs a topic of 1 to 246 characters, an event, and at most 3,000 KiB'
            using errcode = 'invalid_parameter_value';
    end if;
    -- Before the INSERT, whose policies read it. They apply to the writer: this function runs with its rights.
    perform set_config('realtime.topic', send.topic, true);
    insert into realtime.messages (id, payload, event, topic, private, extension)
    values (
        message_id,
        case when jsonb_typeof(send.payload) = 'object' and not send.payload ? 'id'
            then send.payload || jsonb_build_object('id', message_id) else send.payload end,
        send.event, send.topic, send.private, 'broadcast');
exception when others then
    -- A writer never fails because of a message. The server counts the failure when it reads this from the WAL.
    raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
    perform pg_logical_emit_message(true, 'momentum_sync.send_failed', sqlstate);
end;
$body$
                $function$,
                'Send a JSON message to a topic.'
            ),
            (
                'realtime.send_binary(bytea, text, text, boolean)',
                $function$
create or replace function realtime.send_binary(payload bytea, event text, topic text, private boolean default true)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $body$
begin
    if length(send_binary.topic) not between 1 and 246 or octet_length(send_binary.payload) > 3072000
        or coalesce(octet_length(send_binary.event), 256) > 255
    then
        raise exception
            'realtime.send_binary needs a topic of 1 to 246 characters, an event of at most 255 bytes, and at most 3,000 KiB'
            using errcode = 'invalid_parameter_value';
    end if;
    perform set_config('realtime.topic', send_binary.topic, true);
    insert into realtime.messages (binary_payload, event, topic, private, extension)
    values (send_binary.payload, send_binary.event, send_binary.topic, send_binary.private, 'broadcast');
exception when others then
    raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
    perform pg_logical_emit_message(true, 'momentum_sync.send_failed', sqlstate);
end;
$body$
                $function$,
                'Send bytes to a topic. Clients of version 1.0.0 of the protocol do not get them.'
            ),
            (
                'realtime.broadcast_changes(text, text, text, text, text, record, record, text)',
                $function$
create or replace function realtime.broadcast_changes(
    topic_name text, event_name text, operation text, table_name text, table_schema text, new record, old record,
    level text default 'ROW')
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $body$
begin
    if level = 'STATEMENT' then
        raise exception 'realtime.broadcast_changes was called for a statement; create the trigger `for each row`'
            using errcode = 'feature_not_supported';
    end if;
    if operation not in ('INSERT', 'UPDATE', 'DELETE') then
        raise exception 'realtime.broadcast_changes got the operation %; it takes INSERT, UPDATE and DELETE', operation
            using errcode = 'invalid_parameter_value';
    end if;
    perform realtime.send(
        jsonb_build_object(
            'old_record', broadcast_changes.old, 'record', broadcast_changes.new, 'operation', operation,
            'table', table_name, 'schema', table_schema),
        event_name, topic_name);
end;
$body$
                $function$,
                'Send a changed row to a private topic, from a trigger.'
            )
        ) as f (signature, definition, purpose)
    loop
        if to_regprocedure(made.signature) is null
            or obj_description(to_regprocedure(made.signature), 'pg_proc') like '%' || mark
        then
            execute made.definition;
            execute format('alter function %s owner to %I', made.signature, owner);
            execute format('comment on function %s is %L', made.signature, made.purpose || ' ' || mark);
        end if;
    end loop;

    if not exists (select from pg_publication where pubname = 'supabase_realtime_messages_publication') then
        create publication supabase_realtime_messages_publication for table realtime.messages;
        execute format('alter publication supabase_realtime_messages_publication owner to %I', owner);
    end if;
exception when insufficient_privilege then
    -- The role does not own Supabase's schema. Without the rest, there are no broadcasts from the database.
    raise warning 'momentum: broadcasts from the database are not available: %', sqlerrm
        using hint = 'Run `momentum-sync migrate --again` as the owner of schema realtime, or let Supabase make it.';
end;
$$;

-- The partitions of `realtime.messages`, as Supabase names and bounds them. Supabase's own server makes them only while
-- clients are connected to it, and without one for today no message can be sent.
create or replace function momentum.keep_message_partitions() returns text[]
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '500ms'
as $$
declare
    mark constant text := 'Made by Momentum Sync.';
    messages oid := (
        select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'realtime' and c.relname = 'messages' and c.relkind = 'p');
    today date := now()::date;
    name text;
    day date;
    part record;
    missing text[] := '{}';
    has_default boolean := exists (
        select from pg_partitioned_table p
        where p.partrelid = messages and obj_description(p.partdefid, 'pg_class') = mark);
begin
    if messages is null then
        return missing;
    end if;
    perform s.single from momentum.settings s for update skip locked;  -- one server at a time
    if not found then
        return missing;
    end if;
    -- From yesterday on: `inserted_at` is in the time zone of the writer's session.
    for day in select today + ahead from generate_series(-1, 3) as ahead loop
        name := 'messages_' || to_char(day, 'YYYY_MM_DD');
        continue when exists (
            select from pg_class c join pg_class m on m.relnamespace = c.relnamespace
            where m.oid = messages and c.relname = name);
        begin
            if has_default then
                -- The attachment looks through it. A lock that is waited for would hold up the writers behind it.
                lock table only realtime.messages_default in access exclusive mode nowait;
            end if;
            -- First the table, then its attachment: unlike `create table ... partition of`, this blocks no writer.
            execute format('create table realtime.%I (like realtime.messages including defaults)', name);
            execute format('alter table realtime.%I enable row level security', name);
            execute format('comment on table realtime.%I is %L', name, mark);
            execute format(
                'alter table realtime.messages attach partition realtime.%I for values from (%L) to (%L)',
                name, day::timestamp, (day + 1)::timestamp);
        exception when insufficient_privilege or invalid_object_definition or check_violation or lock_not_available then
            if not has_default then  -- else that has messages of the day already, or takes them for now
                missing := missing || name;
            end if;
        end;
    end loop;
    if has_default then
        delete from realtime.messages_default d where d.inserted_at < today - 3;
    end if;
    -- As at Supabase, messages are kept for three days. What topics get comes from the event log, which has its own
    -- retention.
    for part in
        select c.oid::regclass as name
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        where i.inhparent = messages and c.relname ~ '^messages_[0-9]{4}_[0-9]{2}_[0-9]{2}$'
            and to_date(substr(c.relname, 10), 'YYYY_MM_DD') < today - 3
            and obj_description(c.oid, 'pg_class') = mark
        order by c.relname
    loop
        begin
            -- DROP locks the whole table. Where somebody uses it, the next hour is soon enough.
            lock table realtime.messages in access exclusive mode nowait;
            execute format('drop table %s', part.name);
        exception when lock_not_available then
            exit;
        end;
    end loop;
    return missing;
end;
$$;
comment on function momentum.keep_message_partitions() is 'Create the partitions of realtime.messages of the coming days, and drop those older than three days.

The server calls it every hour. It drops only partitions that it created, waits for no lock, and leaves what is in use
for the next time.

Returns:
    the names of partitions that could not be created, because the owner of the app''s tables does not own
    realtime.messages, or because another partition covers their day.
Example:
    select momentum.keep_message_partitions()';

select momentum.keep_message_partitions();

-- Messages of a topic, for the server to see whether a caller can select them. It rolls them back.
create or replace function momentum.place_messages(topic text) returns uuid[]
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    ids uuid[];
begin
    with placed as (
        insert into realtime.messages (topic, extension, private)
        select place_messages.topic, each.extension, true
        from unnest(array['broadcast', 'presence']) as each (extension)
        returning id
    )
    select array_agg(placed.id) into ids from placed;
    return ids;
end;
$$;
comment on function momentum.place_messages(text) is 'Insert a private message of each extension into realtime.messages.

The server reads them as a caller, to decide whether the caller may join the topic, and rolls the transaction back.

Args:
    topic: the topic, without `realtime:`.
Returns:
    the ids of the messages.
Example:
    select momentum.place_messages(''room-1'')';



select momentum.settle();

reset client_min_messages;
reset search_path;

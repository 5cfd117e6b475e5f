-- Publishing: the only way for an event to leave the database, its settings, and maintenance of the log.
--
-- Creates: schema momentum with the functions that publish, the tables settings and installed, the function
--   public.momentum_rfc3339(timestamptz).
-- Changes in your tables: none. If one of them lacks a column that the triggers of the next file read, this file fails
-- and changes nothing.
-- Locks: none on your tables.
-- Needs: the three tables; their owner.
-- Undo: `momentum-sync uninstall`, which keeps tables and data.

-- pg_temp comes last in search_path, so that no object of a session can replace one of PostgreSQL while this file runs.
-- Notices about existing objects are suppressed.
set search_path = pg_catalog, pg_temp;
set client_min_messages = warning;


-- Existing tables are adopted only if they have the columns that the triggers read: a trigger that reads a missing
-- column would fail the app's writes.
do $$
declare
    wrong text;
begin
    select string_agg(
        format('%s.%s (%s%s)', n.table_name, n.column_name, n.type_name, case when n.required then ' not null' else '' end),
        ', ' order by n.place)
    into wrong
    from (values
        (1, 'daily_engagement_scores', 'id', 'uuid', true),
        (2, 'daily_engagement_scores', 'user_id', 'uuid', true),
        (3, 'daily_engagement_scores', 'score_date', 'date', true),
        (4, 'daily_engagement_scores', 'momentum_state', 'text', false),
        (5, 'daily_engagement_scores', 'final_score', 'numeric', false),
        (6, 'daily_engagement_scores', 'events_count', 'integer', false),
        (7, 'daily_engagement_scores', 'breakdown', 'jsonb', false),
        (8, 'daily_engagement_scores', 'updated_at', 'timestamp with time zone', false),
        (9, 'momentum_notifications', 'id', 'uuid', true),
        (10, 'momentum_notifications', 'user_id', 'uuid', true),
        (11, 'momentum_notifications', 'notification_type', 'text', false),
        (12, 'momentum_notifications', 'title', 'text', false),
        (13, 'momentum_notifications', 'message', 'text', false),
        (14, 'momentum_notifications', 'action_type', 'text', false),
        (15, 'momentum_notifications', 'action_data', 'jsonb', false),
        (16, 'momentum_notifications', 'status', 'text', false),
        (17, 'momentum_notifications', 'opened_at', 'timestamp with time zone', false),
        (18, 'momentum_notifications', 'created_at', 'timestamp with time zone', false),
        (19, 'coach_interventions', 'id', 'uuid', true),
        (20, 'coach_interventions', 'user_id', 'uuid', true),
        (21, 'coach_interventions', 'intervention_type', 'text', false),
        (22, 'coach_interventions', 'trigger_reason', 'text', false),
        (23, 'coach_interventions', 'status', 'text', false),
        (24, 'coach_interventions', 'assigned_coach_id', 'uuid', false),
        (25, 'coach_interventions', 'scheduled_date', 'date', false),
        (26, 'coach_interventions', 'created_at', 'timestamp with time zone', false),
        (27, 'realtime_event_metrics', 'event_type', 'text', false),
        (28, 'realtime_event_metrics', 'channel_name', 'text', false),
        (29, 'realtime_event_metrics', 'user_id', 'uuid', false),
        (30, 'realtime_event_metrics', 'payload_size', 'integer', false),
        (31, 'realtime_event_metrics', 'processing_time_ms', 'integer', false),
        (32, 'realtime_event_metrics', 'success', 'boolean', false),
        (33, 'realtime_event_metrics', 'error_message', 'text', false),
        (34, 'realtime_event_metrics', 'created_at', 'timestamp with time zone', false)
    ) as n (place, table_name, column_name, type_name, required)
    where to_regclass('public.' || n.table_name) is not null and not exists (
        select from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attname = n.column_name and not a.attisdropped
        where c.oid = to_regclass('public.' || n.table_name) and c.relkind in ('r', 'p') and c.relpersistence = 'p'
            and (a.attnotnull or not n.required)
            and replace(format_type(a.atttypid, null), 'character varying', 'text') = n.type_name);
    if wrong is not null then
        raise exception 'tables of the app lack columns that Momentum Sync needs: %', wrong
            using errcode = 'undefined_column',
                hint = 'Nothing was changed. Add or alter the columns, or rename the table if it has another purpose.';
    end if;
    -- The same for objects of others that would be replaced: a schema or functions of these names, if no version of
    -- these migrations was applied.
    if to_regclass('momentum.installed') is null then
        select string_agg(distinct o.name, ', ' order by o.name) into wrong
        from (
            select 'schema momentum' as name
            from pg_class c where c.relnamespace = to_regnamespace('momentum')
            union all
            select 'schema momentum' from pg_proc p where p.pronamespace = to_regnamespace('momentum')
            union all
            select 'function ' || p.oid::regprocedure
            from pg_proc p
            where p.pronamespace = 'public'::regnamespace and p.proname in (
                'momentum_rfc3339', 'momentum_caller_role', 'momentum_is_unbound', 'momentum_may_act_for',
                'momentum_must_act_for', 'momentum_grant')
        ) as o;
        if wrong is not null and to_regclass('momentum.settings') is null then
            raise exception 'objects with names of Momentum Sync exist and were not created by it: %', wrong
                using errcode = 'duplicate_object', hint = 'Nothing was changed. Rename or drop these objects.';
        end if;
    end if;
end;
$$;

do $$
declare
    wanted text;
begin
    foreach wanted in array array['daily_engagement_scores', 'momentum_notifications', 'coach_interventions'] loop
        if to_regclass('public.' || wanted) is null then
            raise exception 'the table public.% is missing', wanted
                using errcode = 'undefined_table',
                    hint = 'Apply 20241215000000_momentum_meter.sql of Momentum Sync, which makes what is missing.';
        end if;
    end loop;
end;
$$;


-- Publishing ----------------------------------------------------------------------------------------------------------

-- Nothing in it is for callers of the API: neither `anon` nor `authenticated` has a privilege on it.
create schema if not exists momentum;
revoke all on schema momentum from public, anon, authenticated;
grant usage on schema momentum to service_role;

-- The format of times in events and answers: UTC, RFC 3339, milliseconds. In public, because reads under a caller's
-- role use it. PostgreSQL parses a body after `return` when the function is created, under the search_path of that
-- moment, and inlines it.
create or replace function public.momentum_rfc3339(moment timestamptz) returns text
language sql
stable
return to_char(moment at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');
comment on function public.momentum_rfc3339(timestamptz) is 'Return a time as events and answers carry it: UTC, RFC 3339, milliseconds.

Args:
    moment: the time.
Example:
    select public.momentum_rfc3339(now())';
revoke all on function public.momentum_rfc3339(timestamptz) from public, anon;
grant execute on function public.momentum_rfc3339(timestamptz) to authenticated, service_role;

-- Settings of the operator, in one row: `update momentum.settings set notify = true`. Custom parameters would need a
-- superuser, which Supabase does not provide. The server accepts no larger events from the WAL than the upper bounds
-- here.
create table if not exists momentum.settings (
    single boolean primary key default true check (single),
    notify boolean not null default false,
    metrics_retention interval not null default '7 days',
    max_event_bytes integer not null default 1048576 check (max_event_bytes between 131072 and 16777216),
    max_event_depth integer not null default 64 check (max_event_depth between 8 and 256),
    max_channels integer not null default 1000 check (max_channels between 2 and 10000)
);
insert into momentum.settings default values on conflict do nothing;
alter table momentum.settings enable row level security;
grant select on momentum.settings to service_role;
drop policy if exists "Service role reads settings" on momentum.settings;
create policy "Service role reads settings" on momentum.settings for select to service_role using (true);

-- The setting `notify`, for clients that LISTEN in SQL. NOTIFY carries at most 7,999 bytes and names of at most 63, and
-- fails a commit when its queue is full, so larger events are shortened or omitted.
create or replace function momentum.notify(channels text[], event jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    payload text := event::text;
    channel text;
begin
    if pg_notification_queue_usage() > 0.9 then
        raise warning 'momentum.notify: the NOTIFY queue is nearly full, an event was not notified'
            using hint = 'A listener holds its transaction open; see pg_stat_activity.';
        return;
    end if;
    if octet_length(payload) > 7999 then
        payload := jsonb_build_object(
            'event_type', left(event ->> 'event_type', 200),
            'user_id', left(event ->> 'user_id', 200),
            'timestamp', left(event ->> 'timestamp', 200),
            'truncated', true)::text;
    end if;
    foreach channel in array channels loop
        if octet_length(channel) between 1 and 63 then
            perform pg_notify(channel, payload);
        else
            raise warning 'momentum.notify: % is no name for NOTIFY, an event was not notified', channel;
        end if;
    end loop;
end;
$$;

-- Two settings as constant functions: `momentum.notifies()`, whether the setting `notify` is on, and
-- `momentum.has_changed_policies(table)`, whether a table's policies differ from those created here. PostgreSQL inlines
-- the constant, so reading it costs a writer nothing; a SELECT would cost 17 us, as much as the rest of a trigger. They
-- are replaced in the transaction that changes their source, and apply to statements of others that lock a table after
-- its commit, as every statement about a policy does.
create or replace function momentum.keep_constants() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    policy record;
    settings momentum.settings;
    as_shipped text[] := '{}';
begin
    -- Not an advisory lock, which any role may hold.
    perform s.single from momentum.settings s for update;
    if to_regclass('momentum.policies') is not null then
        -- Locked, so that a snapshot older than a concurrent change raises an error instead of winning.
        for policy in select p.table_name, p.changed from momentum.policies p order by p.table_name for share loop
            if not policy.changed then
                as_shipped := as_shipped || policy.table_name;
            end if;
        end loop;
    end if;
    select s.* into settings from momentum.settings s for share;
    execute format(
        'create or replace function momentum.notifies() returns boolean language sql stable return %L::boolean',
        coalesce(settings.notify, false));
    execute format(
        'create or replace function momentum.max_event_bytes() returns integer language sql stable return %s',
        coalesce(settings.max_event_bytes, 1048576));
    execute format(
        'create or replace function momentum.max_event_depth() returns integer language sql stable return %s',
        coalesce(settings.max_event_depth, 64));
    execute format(
        'create or replace function momentum.max_channels() returns integer language sql stable return %s',
        coalesce(settings.max_channels, 1000));
    execute format(
        'create or replace function momentum.has_changed_policies(target text) returns boolean language sql stable'
        ' return target <> all (%L::text[])', as_shipped);
end;
$$;

create or replace function momentum.constants_may_have_changed() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform momentum.keep_constants();
    return null;
end;
$$;

create or replace trigger momentum_settings_constants
    after insert or update or delete on momentum.settings
    for each statement execute function momentum.constants_may_have_changed();
select momentum.keep_constants();

-- The fast path of publishing: a logical message, written to the WAL with the caller's transaction and read back in
-- commit order. Both arguments must be JSON already: this function does not check, and capture discards anything else.
-- Inlined into triggers.
create or replace function momentum.emit(channels text, event text) returns pg_lsn
language sql
return pg_logical_emit_message(true, 'momentum_sync', '{"channels": ' || channels || ', "event": ' || event || '}');

-- Return whether arrays and objects of a JSON text are nested more than `levels` deep. Brackets within strings do not
-- count. Each round of the loop removes the innermost pairs.
create or replace function momentum.is_deeper(json_text text, levels integer) returns boolean
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
    brackets text;
begin
    if length(json_text) - length(translate(json_text, '{[', '')) <= levels then
        return false;  -- the common case
    end if;
    brackets := translate(regexp_replace(
        regexp_replace(json_text, '"(?:[^"\\]|\\.)*"', '', 'g'), '[^][{}]+', '', 'g'), '{}', '[]');
    for level in 1 .. levels loop
        exit when brackets = '';
        brackets := replace(brackets, '[]', '');
    end loop;
    return brackets <> '';
end;
$$;

-- Return an event within the limits: the largest fields, and those nested too deeply, are omitted and listed in
-- `omitted`. `left_out` lists fields that the caller has omitted already, because they alone were too large.
create or replace function momentum.fit(event jsonb, left_out text[] default '{}') returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    fitting jsonb := event - left_out;
    omitted text[] := left_out;
    field record;
begin
    if cardinality(left_out) = 0 and octet_length(event::text) <= momentum.max_event_bytes()
        and not momentum.is_deeper(event::text, momentum.max_event_depth()) then
        return event;
    end if;
    for field in
        -- Oversized fields are omitted at any depth; determining it would take long.
        select f.key, octet_length(f.value::text) as bytes, case
            when octet_length(f.value::text) > momentum.max_event_bytes() then true
            else momentum.is_deeper(f.value::text, momentum.max_event_depth() - 1) end as never_fits
        from jsonb_each(fitting) f
        where f.key not in ('event_type', 'user_id', 'timestamp', 'score_date', 'intervention_id', 'notification_id',
            'out_of_sight')
        order by 2 desc
    loop
        if field.never_fits or octet_length(fitting::text) + octet_length(omitted::text) + 100 > momentum.max_event_bytes() then
            fitting := fitting - field.key;
            omitted := omitted || field.key;
        end if;
    end loop;
    return fitting || jsonb_build_object('omitted', omitted);
end;
$$;

-- Return the versions of a row, `was` and `is`, on which policies are evaluated; null if they are larger than the log
-- should keep. Then policies are evaluated on the row itself.
create or replace function momentum.row_versions(was anyelement, becomes anyelement) returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    versions jsonb;
begin
    versions := case when was is null then '{}' else jsonb_build_object('was', was) end
        || case when becomes is null then '{}' else jsonb_build_object('is', becomes) end;
    if octet_length(versions::text) > 4 * momentum.max_event_bytes()
        or momentum.is_deeper(versions::text, momentum.max_event_depth()) then
        return null;
    end if;
    return versions;
exception when program_limit_exceeded or out_of_memory then
    return null;  -- a row can be larger than any JSON
end;
$$;

-- Return the last version of a deleted row, because policies may have changed when its event is read. Of a row larger
-- than the log should keep, only the user is returned, which is all that the shipped policies need.
create or replace function momentum.last_version(was anyelement, user_id uuid) returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(momentum.row_versions(was, null), jsonb_build_object('was', jsonb_build_object('user_id', user_id)))
$$;

create or replace function momentum.publish(channels text[], event jsonb, rows jsonb default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    envelope jsonb;
begin
    if coalesce(cardinality(channels), 0) = 0 or array_position(channels, null) is not null then
        raise exception 'momentum.publish needs at least one channel and no null among them'
            using errcode = 'invalid_parameter_value';
    end if;
    if cardinality(channels) > momentum.max_channels() then
        raise exception 'momentum.publish got % channels; the limit is %',
                cardinality(channels), momentum.max_channels()
            using errcode = 'program_limit_exceeded',
                hint = 'Publish on a channel that all of them hold, or raise max_channels in momentum.settings.';
    end if;
    if exists (select from unnest(channels) as channel where length(channel) > 200) then
        raise exception 'momentum.publish needs channels of at most 200 characters'
            using errcode = 'invalid_parameter_value';
    end if;
    if jsonb_typeof(event) is distinct from 'object' then
        raise exception 'momentum.publish needs a JSON object as the event'
            using errcode = 'invalid_parameter_value';
    end if;
    if octet_length(event::text) > momentum.max_event_bytes() then
        raise exception 'momentum.publish got an event of % bytes; the limit is %',
                octet_length(event::text), momentum.max_event_bytes()
            using errcode = 'program_limit_exceeded',
                hint = 'Publish an id and let clients fetch the rest, or raise max_event_bytes in momentum.settings.';
    end if;
    if momentum.is_deeper(event::text, momentum.max_event_depth()) then
        raise exception 'momentum.publish got an event nested more than % levels deep', momentum.max_event_depth()
            using errcode = 'program_limit_exceeded',
                hint = 'Publish it as text, or raise max_event_depth in momentum.settings.';
    end if;

    envelope := jsonb_build_object('channels', channels, 'event', event - array['id', 'previous_id', 'channel']);
    if rows is not null then
        envelope := envelope || jsonb_build_object('rows', rows);
    end if;
    perform pg_logical_emit_message(true, 'momentum_sync', envelope::text);
    -- PostgreSQL orders the changes of subtransactions by LSN, and takes the end of a message for it, but the start of
    -- a row. So the row that follows directly could come before the message; and after a change of rights it must not.
    if 'momentum:control' = any (channels) then
        perform pg_logical_emit_message(true, 'momentum_sync.space', '');
    end if;
    if momentum.notifies() then
        perform momentum.notify(channels, event);
    end if;
end;
$$;
comment on function momentum.publish(text[], jsonb, jsonb) is 'Publish an event: it is delivered when the transaction commits, and only then.

It is the only way for an event to leave the database. An operator''s trigger may call it; a trigger function that runs
for ordinary users needs `security definer`. The server adds `id`, `previous_id` and `channel` to the event.

Args:
    channels: 1 to `max_channels` names of at most 200 characters. A client that has several gets the event once.
    event: a JSON object of at most `max_event_bytes`, nested at most `max_event_depth` levels (momentum.settings).
    rows: the versions of the row that the event is about, `was` and `is`, for policies that must be evaluated on them.
Raises:
    invalid_parameter_value: no channel, a null or too long one, or the event is not an object.
    program_limit_exceeded: a limit of momentum.settings.
Example:
    select momentum.publish(array[''announcements''], jsonb_build_object(''event_type'', ''maintenance'', ''at'', now()))';

-- Helpers of the triggers and of `publish`, for roles that may publish.
grant execute on function
    momentum.publish(text[], jsonb, jsonb), momentum.notify(text[], jsonb), momentum.notifies(), momentum.fit(jsonb, text[]),
    momentum.is_deeper(text, integer), momentum.max_event_bytes(), momentum.max_event_depth(), momentum.max_channels()
    to service_role;

-- The log, and a check of the installation ------------------------------------------------------------------

-- Return the mark of a commit, which tells events with the same offset on different branches of history apart.
create or replace function momentum.mark(commit_lsn pg_lsn, committed_at timestamptz) returns bigint
language sql
immutable
return ((mod(commit_lsn - '0/0'::pg_lsn, 4294967296))::bigint
    # ((extract(epoch from committed_at) * 1000000)::bigint & 4294967295));

-- The log belongs to the owner of the tables, so that the server's role can leave no code there that runs with an
-- owner's rights. This function does the owner's work for the role.
create or replace function momentum.keep_partitions(retention interval) returns text[]
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '500ms'
as $$
declare
    today date := now()::date;
    oldest date := (now() - retention)::date;
    day date;
    part record;
    dropped text[] := '{}';
begin
    if retention < interval '0' then
        raise exception 'momentum.keep_partitions got retention %; it must not be negative', retention
            using errcode = 'invalid_parameter_value';
    end if;
    lock table momentum.stream in share update exclusive mode;  -- not an advisory lock, which any role may hold
    for day in select today + ahead from generate_series(-1, 2) as ahead loop
        continue when to_regclass(format('momentum_log.%I', 'event_log_' || to_char(day, 'YYYYMMDD'))) is not null;
        begin
            -- First the table, then its attachment: unlike `create table ... partition of`, this blocks no append.
            execute format('create table momentum_log.%I (like momentum.event_log including defaults)',
                'event_log_' || to_char(day, 'YYYYMMDD'));
            execute format(
                'alter table momentum.event_log attach partition momentum_log.%I for values from (%L) to (%L)',
                'event_log_' || to_char(day, 'YYYYMMDD'), day::timestamptz, (day + 1)::timestamptz);
        exception when invalid_object_definition or check_violation then
            raise warning 'momentum.keep_partitions: another partition already covers %; detach it', day;
        end;
    end loop;
    for part in
        select c.oid::regclass as name, c.relname, to_date(substr(c.relname, 11), 'YYYYMMDD') as day
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'momentum_log'
        where i.inhparent = 'momentum.event_log'::regclass and c.relname ~ '^event_log_[0-9]{8}$'
        order by c.relname
    loop
        exit when oldest is null or part.day >= oldest;
        if cardinality(dropped) = 0 then  -- the same order as an append: the table first, then the row of the stream
            lock table momentum.event_log in access exclusive mode;
        end if;
        update momentum.stream s set kept_from = last.number + 1, kept_mark = last.mark
        from (
            select l.number, momentum.mark(l.commit_lsn, l.committed_at) as mark from momentum.event_log l
            where l.logged_at >= part.day and l.logged_at < part.day + 1
            order by l.number desc
            limit 1
        ) as last
        where s.kept_from <= last.number;
        execute format('drop table %s', part.name);
        dropped := dropped || part.relname::text;
    end loop;
    return dropped;
end;
$$;
comment on function momentum.keep_partitions(interval) is 'Create the log''s partitions of the days around today, and drop those with no row younger than `retention`.

The server calls it every hour. Days and the times of rows are by PostgreSQL''s clock.

Args:
    retention: how long events are kept, not negative; null drops nothing.
Returns:
    the names of the dropped partitions.
Raises:
    invalid_parameter_value: `retention` is negative.
    lock_not_available: the log was in use for half a second.
Example:
    select momentum.keep_partitions(interval ''14 days'')';

-- The functions and triggers as these migrations created them, to detect those that were changed, disabled or dropped
-- since.
create table if not exists momentum.installed (
    name text primary key,
    definition text not null
);
alter table momentum.installed enable row level security;

-- The present functions and triggers that publishing depends on, without those that change with a setting.
create or replace function momentum.definitions() returns table (name text, definition text)
language sql
stable
set search_path = pg_catalog, pg_temp
set quote_all_identifiers = off
as $$
    select 'function ' || p.oid::regprocedure, md5(concat_ws(E'\n',
        p.prosrc, pg_get_function_sqlbody(p.oid), p.proconfig::text, p.prosecdef::text, p.provolatile::text, l.lanname))
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
    join pg_language l on l.oid = p.prolang
    where (
            n.nspname = 'momentum' and p.proname not in (
                'notifies', 'has_changed_policies', 'max_event_bytes', 'max_event_depth', 'max_channels')
            or n.nspname = 'public' and p.proname in (
                'publish_momentum_update', 'publish_intervention_notification', 'publish_push_notification',
                'invalidate_momentum_cache', 'momentum_rfc3339', 'momentum_grant', 'momentum_is_unbound',
                'momentum_may_act_for'))
    union all
    select 'trigger ' || t.tgname || ' on ' || t.tgrelid::regclass,
        case t.tgenabled when 'D' then 'disabled' when 'A' then '' else 'not always ' end || pg_get_triggerdef(t.oid)
    from pg_trigger t
    where t.tgrelid in (
            to_regclass('public.daily_engagement_scores'), to_regclass('public.coach_interventions'),
            to_regclass('public.momentum_notifications'))
        and t.tgname in (
            'momentum_score_realtime_trigger', 'momentum_cache_invalidation_trigger', 'intervention_realtime_trigger',
            'notification_realtime_trigger', 'momentum_score_truncate_trigger', 'intervention_truncate_trigger',
            'notification_truncate_trigger')
$$;

create or replace function momentum.check_publishing() returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'problems', coalesce((
            select jsonb_agg(found.problem order by found.problem)
            from (
                select i.name || case when d.name is null then ' is missing'
                    when d.definition like 'disabled%' then ' is disabled' else ' is not as it was installed' end
                from momentum.installed i
                left join momentum.definitions() d using (name)
                where d.definition is distinct from i.definition
                union all
                select 'publication supabase_realtime_messages_publication is missing'
                from pg_namespace n
                join pg_class c on c.relnamespace = n.oid and c.relname = 'messages'
                where n.nspname = 'realtime' and obj_description(n.oid, 'pg_namespace') like '%Made by Momentum Sync.'
                    and not exists (
                        select from pg_publication p where p.pubname = 'supabase_realtime_messages_publication')
            ) as found (problem)), '[]'),
        'foreign_triggers', coalesce((
            select jsonb_agg(distinct t.tgname || ' on ' || t.tgrelid::regclass)
            from pg_trigger t
            join pg_trigger ours on ours.tgrelid = t.tgrelid and t.tgname < ours.tgname
            where not t.tgisinternal and t.tgenabled <> 'D'
                and t.tgtype & 1 = 1 and t.tgtype & 66 = 0  -- for each row; neither BEFORE nor INSTEAD OF
                and t.tgtype & 20 <> 0  -- on INSERT or UPDATE
                and ours.tgfoid in (
                    to_regprocedure('public.publish_momentum_update()'),
                    to_regprocedure('public.publish_intervention_notification()'),
                    to_regprocedure('public.publish_push_notification()'))
                and t.tgname not in (
                    'momentum_score_realtime_trigger', 'momentum_cache_invalidation_trigger',
                    'intervention_realtime_trigger', 'notification_realtime_trigger')), '[]'))
$$;
comment on function momentum.check_publishing() is 'Return what stands in the way of publishing, as an object of two arrays.

`problems` are functions, triggers and publications that are not as the migrations created them. `foreign_triggers` are AFTER triggers
of others that run before the publishing ones: if one changes the row again, the event of the later version is
published before that of the earlier one.

Example:
    select momentum.check_publishing()';

-- The last step of each file. Everything belongs to the owner of the tables, also if another role runs the file:
-- functions with
-- their owner's rights then have no more than the tables need, and PostgreSQL inlines only between objects of one
-- owner. Privileges that were not granted explicitly are revoked, and the created objects are recorded.
create or replace function momentum.settle() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    owner name := (
        select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'public.daily_engagement_scores'::regclass);
    made record;
begin
    if (select n.nspowner::regrole::name from pg_namespace n where n.nspname = 'momentum') <> owner then
        execute format('alter schema momentum owner to %I', owner);
    end if;
    for made in
        select 'table' as kind, c.oid::regclass::text as name
        from pg_class c
        where c.relnamespace = 'momentum'::regnamespace and c.relkind in ('r', 'p')
            and c.relname in ('settings', 'policies', 'revocations', 'installed')
            and pg_get_userbyid(c.relowner) <> owner
        union all
        select 'function', p.oid::regprocedure::text
        from pg_proc p
        where pg_get_userbyid(p.proowner) <> owner and (
            p.pronamespace = 'momentum'::regnamespace
            or p.pronamespace = 'public'::regnamespace and p.proname in (
                'publish_momentum_update', 'publish_intervention_notification', 'publish_push_notification',
                'invalidate_momentum_cache', 'momentum_rfc3339', 'log_realtime_event', 'cleanup_realtime_metrics',
                'get_realtime_momentum_state', 'get_realtime_interventions', 'subscribe_to_momentum_channels',
                'momentum_caller_role', 'momentum_is_unbound', 'momentum_may_act_for', 'momentum_must_act_for',
                'momentum_grant', 'momentum_set_updated_at'))
    loop
        execute format('alter %s %s owner to %I', made.kind, made.name, owner);
    end loop;
    for made in
        select p.oid::regprocedure::text as name
        from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
        where p.pronamespace = 'momentum'::regnamespace and a.grantee = 0
    loop
        execute format('revoke all on function %s from public', made.name);
    end loop;
    delete from momentum.installed;
    insert into momentum.installed select d.name, d.definition from momentum.definitions() d;
end;
$$;


select momentum.settle();

reset client_min_messages;
reset search_path;

-- Every change of the three tables becomes an event on its channels, in the transaction that made it.
--
--   1  replica identity and publication     6  policies for coaches and admins
--   2  momentum: publishing                 7  policies: as made here, or changed since
--   3  triggers                             8  the grant of a channel
--   4  what a client asks for               9  whom the server works for, and revocation
--   5  metrics of events                   10  the server's work on its log, and a check of all of this

-- Names are looked up in pg_catalog first and in the session's temporary schema last, so that nobody's objects stand in
-- for PostgreSQL's own while this file runs.
set search_path = pg_catalog, pg_temp;


-- 1  Replica identity and publication -----------------------------------------------------------------

alter table public.daily_engagement_scores replica identity full;
alter table public.momentum_notifications replica identity full;
alter table public.coach_interventions replica identity full;

do $$
declare
    wanted text;
begin
    foreach wanted in array array['daily_engagement_scores', 'momentum_notifications', 'coach_interventions'] loop
        if not exists (
            select from pg_catalog.pg_publication_tables p
            where p.pubname = 'supabase_realtime' and p.schemaname = 'public' and p.tablename = wanted
        ) then
            execute format('alter publication supabase_realtime add table public.%I', wanted);
        end if;
    end loop;
end;
$$;


-- 2  momentum: publishing -----------------------------------------------------------------------------

-- Nothing in it is for those who come through the API: neither `anon` nor `authenticated` may look inside.
create schema if not exists momentum;
revoke all on schema momentum from public, anon, authenticated;
grant usage on schema momentum to service_role;

-- Names that this file gave before its release.
drop function if exists
    momentum.publish(text[], jsonb), momentum.describe_policies(text, text[]), momentum.policies_changed(text),
    momentum.may_subscribe(text), momentum.may_act_for(uuid), momentum.refuse(uuid),
    momentum.rfc3339(timestamptz), momentum.measure(text[], jsonb), momentum.emit(text[], json),
    momentum.score_event(text, uuid, date, text, numeric, text, boolean), momentum.invalidation_event(uuid, text[]),
    momentum.cache_keys(uuid, date), momentum.breakdown_key(uuid, date);

-- The time in an event and in an answer: UTC, RFC 3339, milliseconds. In public, because callers' own reads use it.
-- A body after `return` is parsed when it is made, with the search_path of then, and put in place where it is called.
create or replace function public.momentum_rfc3339(moment timestamptz) returns text
language sql
stable
return to_char(moment at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');
revoke all on function public.momentum_rfc3339(timestamptz) from public, anon;
grant execute on function public.momentum_rfc3339(timestamptz) to authenticated, service_role;

-- What an operator switches, in its one row: `update momentum.settings set notify = true`. Custom parameters would need
-- a superuser, whom Supabase does not give.
create table if not exists momentum.settings (
    single boolean primary key default true check (single),
    notify boolean not null default false,
    metrics_retention interval not null default '7 days'
);
-- The limits of an event. The server takes no more than the upper bounds from the WAL, so none may be set higher.
alter table momentum.settings
    drop column if exists metrics,
    add column if not exists max_event_bytes integer not null default 1048576
        check (max_event_bytes between 131072 and 16777216),
    add column if not exists max_event_depth integer not null default 64 check (max_event_depth between 8 and 256),
    add column if not exists max_channels integer not null default 1000 check (max_channels between 2 and 10000);
insert into momentum.settings default values on conflict do nothing;
alter table momentum.settings enable row level security;
grant select on momentum.settings to service_role;
drop policy if exists "Service role reads settings" on momentum.settings;
create policy "Service role reads settings" on momentum.settings for select to service_role using (true);

-- The switch `notify`, for whoever LISTENs in SQL. NOTIFY carries at most 7,999 bytes and names of at most 63, and it
-- fails a commit when its queue is full, so what does not fit is shortened or left out.
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

-- What an event's way depends on, as functions that are constants: `momentum.notifies()`, whether the switch `notify` is
-- on, and `momentum.has_changed_policies(table)`, whether a table's policies are not those made here. PostgreSQL puts the
-- constant in place of the call, so that asking costs a writer nothing; a SELECT would cost 17 us, as much as all the
-- rest of a trigger. They are made anew in the transaction that changes what they are made from, and count for statements
-- of others that lock a table after it has committed, as every statement of a policy does.
create or replace function momentum.keep_constants() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    policy record;
    settings momentum.settings;
    as_shipped text[] := '{}';
begin
    -- Not an advisory lock, which anybody may hold.
    perform s.single from momentum.settings s for update;
    if to_regclass('momentum.policies') is not null then
        -- Locked, so that a snapshot from before another's change is an error and not the last word.
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

-- An event on its way, where nothing but that is to be done: a logical message, written to the WAL with the caller's
-- transaction and read back in commit order. Both must be JSON already: nothing here looks, and what is not is lost. Put in
-- place where a trigger assigns it.
create or replace function momentum.emit(channels text, event text) returns pg_lsn
language sql
return pg_logical_emit_message(true, 'momentum_sync', '{"channels": ' || channels || ', "event": ' || event || '}');

-- Whether arrays and objects of a JSON text are nested more than so many levels deep. Brackets within strings do not count.
-- The text is peeled: each round takes away the innermost pairs.
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
        return false;  -- nearly always
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

-- Return an event that keeps to the limits: the largest fields, and those nested too deeply, are left out and named in
-- `omitted`. `left_out` names fields that the caller has left out already, because they alone were too large.
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
        -- What is too large goes whatever its depth, which would take long to find.
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

-- Return the versions of a row, as it `was` and `is`, for policies to be held against; null where they are more than the
-- log should keep. Rights are then asked of the row itself.
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

-- The one way for an event to leave the database. Any trigger of the operator's may call it; a trigger function
-- that runs for ordinary users needs `security definer`. `id`, `previous_id` and `channel` are the server's to fill in.
-- `rows` are versions of the row that an event speaks of, as it `was` and `is`, where policies must be held against them.
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
    if momentum.notifies() then
        perform momentum.notify(channels, event);
    end if;
end;
$$;

revoke all on function momentum.publish(text[], jsonb, jsonb), momentum.notify(text[], jsonb) from public;
grant execute on function
    momentum.publish(text[], jsonb, jsonb), momentum.notify(text[], jsonb), momentum.notifies() to service_role;


-- 3  Triggers -----------------------------------------------------------------------------------------
-- They run as their owner, because whoever writes a row need not be one who may publish.
--
-- A deleted row can no longer be SELECTed, so its event carries what the policies as shipped may ask of it. Where an
-- operator has changed the policies, each event carries the whole version of the row that it speaks of, and an update may
-- take a row out of somebody's sight: an event `…_deleted` that is `out_of_sight` goes before it, for those alone to
-- whom this happens.
--
-- The writer pays for every statement and every variable here. So a trigger first asks whether all is as it mostly is, and
-- then does its work in one expression, of functions that PostgreSQL puts in place of their calls; all else is for a
-- function of its own. Scores change most. Their JSON is made by `format`: json_build_object looks up how to write each of
-- its arguments, names too, which costs a writer more than all the rest. `to_json` quotes what may need it, and writes a
-- date as ISO whatever the writer's `datestyle`.

create or replace function momentum.score_json(
    event_type text, user_id uuid, score_date date, momentum_state text, final_score numeric, previous_state text,
    state_changed boolean
) returns text
language sql
return format(
    '{"event_type": "%s", "user_id": "%s", "score_date": %s, "momentum_state": %s, "final_score": %s, '
    '"previous_state": %s, "state_changed": %s, "timestamp": "%s"}',
    event_type,
    user_id,
    coalesce(to_json(score_date), 'null'),
    coalesce(to_json(momentum_state), 'null'),
    coalesce(to_json(final_score), 'null'),
    coalesce(to_json(previous_state), 'null'),
    coalesce(to_json(state_changed), 'null'),
    public.momentum_rfc3339(clock_timestamp()));

create or replace function momentum.intervention_event(
    event_type text, user_id uuid, intervention_id uuid, intervention_type text, trigger_reason text, status text,
    previous_status text, status_changed boolean, scheduled_date date
) returns json
language sql
return json_build_object(
    'event_type', event_type,
    'user_id', user_id,
    'intervention_id', intervention_id,
    'intervention_type', intervention_type,
    'trigger_reason', trigger_reason,
    'status', status,
    'previous_status', previous_status,
    'status_changed', status_changed,
    'scheduled_date', scheduled_date,
    'timestamp', public.momentum_rfc3339(clock_timestamp()));

-- The keys of a user's score of one day, and the one among them that is of that day alone: members of a list.
create or replace function momentum.breakdown_key_json(user_id uuid, score_date date) returns text
language sql
stable
return format('"momentum:breakdown:%s:%s"', user_id, btrim(to_json(score_date)::text, '"'));

create or replace function momentum.cache_keys_json(user_id uuid, score_date date) returns text
language sql
stable
return format(
    '"momentum:current:%1$s", "momentum:history:%1$s", "momentum:trend:%1$s", %2$s',
    user_id, momentum.breakdown_key_json(user_id, score_date));

create or replace function momentum.invalidation_json(user_id uuid, cache_keys text) returns text
language sql
return format(
    '{"event_type": "cache_invalidation", "user_id": "%s", "cache_keys": [%s], "timestamp": "%s"}',
    user_id, cache_keys, public.momentum_rfc3339(clock_timestamp()));

-- A score changed: for the user who has it now, and, where it had been another's, for that one. `was` and `becomes` are the
-- row before and after; one of them is null when it was made or deleted.
create or replace function momentum.publish_score(
    was public.daily_engagement_scores, becomes public.daily_engagement_scores
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    changed boolean := momentum.has_changed_policies('daily_engagement_scores');
    moved boolean := coalesce(becomes.user_id <> was.user_id, false);
    is_new boolean := was.id is null or moved;
begin
    if was.id is not null and (becomes.id is null or moved or changed) then
        perform momentum.publish(
            array['momentum_updates:' || was.user_id, 'momentum_updates:all'],
            momentum.fit(momentum.score_json(
                'momentum_score_deleted', was.user_id, was.score_date, was.momentum_state, was.final_score,
                was.momentum_state, false)::jsonb
                || case when becomes.id is null or moved then '{}' else '{"out_of_sight": true}' end::jsonb),
            case when not changed then jsonb_build_object('was', jsonb_build_object('user_id', was.user_id))
                when becomes.id is null or moved then momentum.row_versions(was, null)
                else momentum.row_versions(was, becomes) end);
    end if;
    if becomes.id is not null then
        perform momentum.publish(
            array['momentum_updates:' || becomes.user_id, 'momentum_updates:all'],
            momentum.fit(momentum.score_json(
                case when is_new then 'momentum_score_created' else 'momentum_score_updated' end,
                becomes.user_id, becomes.score_date, becomes.momentum_state, becomes.final_score,
                case when not is_new then was.momentum_state end,
                is_new or becomes.momentum_state is distinct from was.momentum_state)::jsonb),
            case when changed then momentum.row_versions(null, becomes) end);
    end if;
end;
$$;

create or replace function public.publish_momentum_update() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    at pg_lsn;
begin
    if tg_op = 'DELETE' or new.user_id <> old.user_id
        or momentum.has_changed_policies('daily_engagement_scores') or momentum.notifies()
        or octet_length(new.momentum_state) > 1000 or octet_length(old.momentum_state) > 1000 then
        perform momentum.publish_score(old, new);
    else
        at := momentum.emit(
            '["momentum_updates:' || new.user_id || '", "momentum_updates:all"]',
            momentum.score_json(
                case tg_op when 'INSERT' then 'momentum_score_created' else 'momentum_score_updated' end,
                new.user_id, new.score_date, new.momentum_state, new.final_score, old.momentum_state,
                new.momentum_state is distinct from old.momentum_state));
    end if;
    return null;
end;
$$;

-- The same of an intervention. One that becomes another's is a change to the coaches, who may see all of them.
create or replace function momentum.publish_intervention(
    was public.coach_interventions, becomes public.coach_interventions
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    changed boolean := momentum.has_changed_policies('coach_interventions');
    moved boolean := coalesce(becomes.user_id <> was.user_id, false);
    was_too_long text[] := case when octet_length(was.trigger_reason) > momentum.max_event_bytes()
        then array['trigger_reason'] else '{}' end;
    too_long text[] := case when octet_length(becomes.trigger_reason) > momentum.max_event_bytes()
        then array['trigger_reason'] else '{}' end;
begin
    if was.id is not null and (becomes.id is null or moved or changed) then
        perform momentum.publish(
            array['interventions:' || was.user_id]
                || case when becomes.id is null or changed then array['interventions:coaches'] else '{}' end,
            momentum.fit(momentum.intervention_event(
                'intervention_deleted', was.user_id, was.id, was.intervention_type,
                case when cardinality(was_too_long) = 0 then was.trigger_reason end, was.status, was.status, false,
                was.scheduled_date)::jsonb
                || case when becomes.id is null or moved then '{}' else '{"out_of_sight": true}' end::jsonb,
                was_too_long),
            case when not changed then jsonb_build_object('was', jsonb_build_object('user_id', was.user_id))
                when becomes.id is null or moved then momentum.row_versions(was, null)
                else momentum.row_versions(was, becomes) end);
    end if;
    if becomes.id is not null then
        perform momentum.publish(
            array['interventions:' || becomes.user_id, 'interventions:coaches'],
            momentum.fit(momentum.intervention_event(
                case when was.id is null then 'intervention_created' else 'intervention_updated' end,
                becomes.user_id, becomes.id, becomes.intervention_type,
                case when cardinality(too_long) = 0 then becomes.trigger_reason end, becomes.status, was.status,
                becomes.status is distinct from was.status, becomes.scheduled_date)::jsonb, too_long),
            case when changed then momentum.row_versions(null, becomes) end);
    end if;
end;
$$;

create or replace function public.publish_intervention_notification() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    at pg_lsn;
begin
    if tg_op = 'DELETE' or new.user_id <> old.user_id
        or momentum.has_changed_policies('coach_interventions') or momentum.notifies()
        or coalesce(octet_length(new.trigger_reason), 0) + coalesce(octet_length(new.intervention_type), 0)
            + coalesce(octet_length(new.status), 0) + coalesce(octet_length(old.status), 0) > 10000 then
        perform momentum.publish_intervention(old, new);
    else
        at := momentum.emit(
            '["interventions:' || new.user_id || '", "interventions:coaches"]',
            momentum.intervention_event(
                case tg_op when 'INSERT' then 'intervention_created' else 'intervention_updated' end,
                new.user_id, new.id, new.intervention_type, new.trigger_reason, new.status, old.status,
                new.status is distinct from old.status, new.scheduled_date)::text);
    end if;
    return null;
end;
$$;

-- Whether an app shows a notification of this type to its user.
create or replace function momentum.is_user_facing(notification_type text) returns boolean
language sql
immutable
return notification_type in ('momentum_drop', 'needs_care_consecutive', 'celebration', 'consistency_reminder');

create or replace function momentum.notification_event(
    user_id uuid, notification_id uuid, notification_type text, title text, message text, action_type text,
    action_data jsonb, status text
) returns json
language sql
return json_build_object(
    'event_type', 'push_notification',
    'user_id', user_id,
    'notification_id', notification_id,
    'notification_type', notification_type,
    'title', title,
    'message', message,
    'action_type', action_type,
    'action_data', action_data,
    'status', status,
    'timestamp', public.momentum_rfc3339(clock_timestamp()));

-- The same of a notification. `notification_removed` is for the user who had it: it was deleted, is another user's now, or
-- is no longer of a type that an app shows.
create or replace function momentum.publish_notification(
    was public.momentum_notifications, becomes public.momentum_notifications
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    changed boolean := momentum.has_changed_policies('momentum_notifications');
    was_shown boolean := was.id is not null and coalesce(momentum.is_user_facing(was.notification_type), false);
    is_shown boolean := becomes.id is not null and coalesce(momentum.is_user_facing(becomes.notification_type), false);
    gone boolean := was_shown and (not is_shown or becomes.user_id <> was.user_id);
    too_long text[] := array_remove(array[
        case when octet_length(becomes.title) > momentum.max_event_bytes() then 'title' end,
        case when octet_length(becomes.message) > momentum.max_event_bytes() then 'message' end,
        -- The size in the row is that of the compressed value, at best one in 255.
        case when pg_column_size(becomes.action_data) > momentum.max_event_bytes() / 256
                and octet_length(becomes.action_data::text) > momentum.max_event_bytes()
            then 'action_data' end], null);
begin
    if was_shown and (gone or changed) then
        perform momentum.publish(
            array['notifications:' || was.user_id],
            jsonb_build_object(
                'event_type', 'notification_removed',
                'user_id', was.user_id,
                'notification_id', was.id,
                'timestamp', public.momentum_rfc3339(clock_timestamp()))
                || case when gone then '{}' else '{"out_of_sight": true}' end::jsonb,
            case when not changed then jsonb_build_object('was', jsonb_build_object('user_id', was.user_id))
                when gone then momentum.row_versions(was, null)
                else momentum.row_versions(was, becomes) end);
    end if;
    if is_shown then
        perform momentum.publish(
            array['notifications:' || becomes.user_id],
            momentum.fit(
                momentum.notification_event(
                    becomes.user_id, becomes.id, becomes.notification_type,
                    case when 'title' <> all (too_long) then becomes.title end,
                    case when 'message' <> all (too_long) then becomes.message end,
                    becomes.action_type, case when 'action_data' <> all (too_long) then becomes.action_data end,
                    becomes.status)::jsonb,
                too_long),
            case when changed then momentum.row_versions(null, becomes) end);
    end if;
end;
$$;

create or replace function public.publish_push_notification() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    at pg_lsn;
begin
    if tg_op = 'DELETE' or new.user_id <> old.user_id or new.notification_type <> old.notification_type
        or momentum.has_changed_policies('momentum_notifications') or momentum.notifies()
        or octet_length(new.title) + octet_length(new.message) > 10000 or pg_column_size(new.action_data) > 2000
        or octet_length(new.action_data::text) > 10000 or momentum.is_deeper(new.action_data::text, 7) then
        perform momentum.publish_notification(old, new);
    elsif momentum.is_user_facing(new.notification_type) then
        at := momentum.emit(
            '["notifications:' || new.user_id || '"]',
            momentum.notification_event(
                new.user_id, new.id, new.notification_type, new.title, new.message, new.action_type,
                new.action_data, new.status)::text);
    end if;
    return null;
end;
$$;

create or replace function public.invalidate_momentum_cache() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    at pg_lsn;
begin
    if tg_op = 'DELETE' or new.user_id <> old.user_id or new.score_date <> old.score_date or momentum.notifies() then
        if tg_op <> 'INSERT' and (tg_op = 'DELETE' or new.user_id <> old.user_id) then
            perform momentum.publish(
                array['cache_invalidation'],
                momentum.invalidation_json(
                    old.user_id, momentum.cache_keys_json(old.user_id, old.score_date))::jsonb,
                null::jsonb);
        end if;
        if tg_op <> 'DELETE' then
            perform momentum.publish(
                array['cache_invalidation'],
                momentum.invalidation_json(
                    new.user_id,
                    momentum.cache_keys_json(new.user_id, new.score_date)
                        || case when new.user_id = old.user_id and new.score_date <> old.score_date
                            then ', ' || momentum.breakdown_key_json(old.user_id, old.score_date) else '' end)::jsonb,
                null::jsonb);
        end if;
    else
        at := momentum.emit(
            '["cache_invalidation"]',
            momentum.invalidation_json(new.user_id, momentum.cache_keys_json(new.user_id, new.score_date)));
    end if;
    return null;
end;
$$;

revoke all on function
    public.publish_momentum_update(), public.publish_intervention_notification(),
    public.publish_push_notification(), public.invalidate_momentum_cache()
    from public, anon, authenticated;

create or replace trigger momentum_score_realtime_trigger
    after insert or update or delete on public.daily_engagement_scores
    for each row execute function public.publish_momentum_update();
create or replace trigger momentum_cache_invalidation_trigger
    after insert or update or delete on public.daily_engagement_scores
    for each row execute function public.invalidate_momentum_cache();
create or replace trigger intervention_realtime_trigger
    after insert or update or delete on public.coach_interventions
    for each row execute function public.publish_intervention_notification();
create or replace trigger notification_realtime_trigger
    after insert or update or delete on public.momentum_notifications
    for each row execute function public.publish_push_notification();

-- A TRUNCATE has no rows to tell of: the history ends with it, and every client reads the tables anew.
create or replace function momentum.publish_truncate() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform momentum.publish(
        array['momentum:control'],
        jsonb_build_object('event_type', 'table_truncated', 'table', tg_table_name), null::jsonb);
    return null;
end;
$$;

create or replace trigger momentum_score_truncate_trigger
    after truncate on public.daily_engagement_scores
    for each statement execute function momentum.publish_truncate();
create or replace trigger intervention_truncate_trigger
    after truncate on public.coach_interventions
    for each statement execute function momentum.publish_truncate();
create or replace trigger notification_truncate_trigger
    after truncate on public.momentum_notifications
    for each statement execute function momentum.publish_truncate();

-- Always: also for what a subscription applies, and for sessions with `session_replication_role = replica`.
alter table public.daily_engagement_scores
    enable always trigger momentum_score_realtime_trigger,
    enable always trigger momentum_cache_invalidation_trigger,
    enable always trigger momentum_score_truncate_trigger;
alter table public.coach_interventions
    enable always trigger intervention_realtime_trigger,
    enable always trigger intervention_truncate_trigger;
alter table public.momentum_notifications
    enable always trigger notification_realtime_trigger,
    enable always trigger notification_truncate_trigger;


-- 4  What a client asks for ---------------------------------------------------------------------------
-- They read as the caller, under row level security. The answer to one who may not ask is the same for a
-- user who exists and for one who does not.

-- Whether row level security does not bind the caller: service_role, the owner of the tables.
create or replace function public.momentum_is_unbound() returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select from pg_catalog.pg_roles r
        where r.rolname = current_user and (r.rolbypassrls or r.rolsuper)
    ) or exists (
        select from pg_catalog.pg_class c
        where c.oid = 'public.daily_engagement_scores'::regclass and pg_has_role(current_user, c.relowner, 'usage'))
$$;

-- Whether the caller may do for this user what the user may: the user, an admin, and whoever row level security does
-- not bind.
create or replace function public.momentum_may_act_for(target uuid) returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select target is not null and (
        coalesce(target = auth.uid(), false)
        or coalesce(public.momentum_caller_role() = 'admin', false)
        or public.momentum_is_unbound())
$$;

create or replace function public.momentum_must_act_for(target uuid) returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if not public.momentum_may_act_for(target) then
        raise exception 'not allowed to read the data of user %', coalesce(target::text, 'null')
            using errcode = 'insufficient_privilege';
    end if;
end;
$$;

create or replace function public.get_realtime_momentum_state(target_user_id uuid) returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    score public.daily_engagement_scores;
begin
    select s.* into score
    from public.daily_engagement_scores s
    where s.user_id = target_user_id
    order by s.score_date desc
    limit 1;

    if found then
        return jsonb_build_object(
            'user_id', target_user_id,
            'has_data', true,
            'score_date', score.score_date,
            'momentum_state', score.momentum_state,
            'final_score', score.final_score,
            'events_count', score.events_count,
            'breakdown', score.breakdown,
            'last_updated', public.momentum_rfc3339(score.updated_at),
            'timestamp', public.momentum_rfc3339(now()));
    end if;
    perform public.momentum_must_act_for(target_user_id);
    return jsonb_build_object(
        'user_id', target_user_id,
        'has_data', false,
        'message', 'No momentum data available for user',
        'timestamp', public.momentum_rfc3339(now()));
end;
$$;

create or replace function public.get_realtime_interventions(target_user_id uuid) returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    found_interventions jsonb;
begin
    select jsonb_agg(
        jsonb_build_object(
            'id', i.id,
            'intervention_type', i.intervention_type,
            'status', i.status,
            'scheduled_date', i.scheduled_date,
            'trigger_reason', i.trigger_reason,
            'created_at', public.momentum_rfc3339(i.created_at))
        order by i.scheduled_date nulls last, i.created_at, i.id)
    into found_interventions
    from public.coach_interventions i
    where i.user_id = target_user_id and i.status in ('scheduled', 'in_progress');

    if found_interventions is null
        and not exists (select from public.coach_interventions i where i.user_id = target_user_id) then
        perform public.momentum_must_act_for(target_user_id);
    end if;
    return jsonb_build_object(
        'user_id', target_user_id,
        'interventions', coalesce(found_interventions, '[]'),
        'timestamp', public.momentum_rfc3339(now()));
end;
$$;

create or replace function public.subscribe_to_momentum_channels(target_user_id uuid) returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    perform public.momentum_must_act_for(target_user_id);
    return jsonb_build_object(
        'channels', jsonb_build_array(
            'momentum_updates:' || target_user_id,
            'interventions:' || target_user_id,
            'notifications:' || target_user_id,
            'cache_invalidation'),
        'user_id', target_user_id,
        'timestamp', public.momentum_rfc3339(now()));
end;
$$;

revoke all on function
    public.get_realtime_momentum_state(uuid), public.get_realtime_interventions(uuid),
    public.subscribe_to_momentum_channels(uuid), public.momentum_may_act_for(uuid), public.momentum_is_unbound(),
    public.momentum_must_act_for(uuid)
    from public, anon;
grant execute on function
    public.get_realtime_momentum_state(uuid), public.get_realtime_interventions(uuid),
    public.subscribe_to_momentum_channels(uuid), public.momentum_may_act_for(uuid), public.momentum_is_unbound(),
    public.momentum_must_act_for(uuid)
    to authenticated, service_role;


-- 5  Metrics of events --------------------------------------------------------------------------------

create table if not exists public.realtime_event_metrics (
    id uuid primary key default gen_random_uuid(),
    event_type text not null,
    channel_name text not null,
    user_id uuid,
    payload_size integer,
    processing_time_ms integer,
    success boolean default true,
    error_message text,
    created_at timestamptz not null default now()
);
create index if not exists realtime_event_metrics_created_idx on public.realtime_event_metrics (created_at);

alter table public.realtime_event_metrics enable row level security;
revoke all on public.realtime_event_metrics from anon, authenticated;
grant select, insert, update, delete, truncate on public.realtime_event_metrics to service_role;
-- Whoever may put a trigger on a table has everybody who writes there run it, a superuser, too.
revoke trigger, references on public.realtime_event_metrics from service_role;
drop policy if exists "Service role manages event metrics" on public.realtime_event_metrics;
create policy "Service role manages event metrics" on public.realtime_event_metrics
    for all to service_role using (true) with check (true);

create or replace function public.log_realtime_event(
    p_event_type text,
    p_channel_name text,
    p_user_id uuid default null,
    p_payload_size integer default null,
    p_processing_time_ms integer default null,
    p_success boolean default true,
    p_error_message text default null
) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into public.realtime_event_metrics (
        event_type, channel_name, user_id, payload_size, processing_time_ms, success, error_message)
    values (
        p_event_type, p_channel_name, p_user_id, p_payload_size, p_processing_time_ms, p_success, p_error_message)
$$;

-- Deletes what is older than the setting `metrics_retention`; returns how many rows that was.
create or replace function public.cleanup_realtime_metrics() returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    kept interval := (select s.metrics_retention from momentum.settings s);
    deleted integer;
begin
    delete from public.realtime_event_metrics m where m.created_at < now() - kept;
    get diagnostics deleted = row_count;
    return deleted;
end;
$$;

revoke all on function
    public.log_realtime_event(text, text, uuid, integer, integer, boolean, text), public.cleanup_realtime_metrics()
    from public, anon, authenticated;
grant execute on function
    public.log_realtime_event(text, text, uuid, integer, integer, boolean, text), public.cleanup_realtime_metrics()
    to service_role;


-- 6  Policies for coaches and admins ------------------------------------------------------------------

drop policy if exists "Coaches can view all interventions" on public.coach_interventions;
create policy "Coaches can view all interventions" on public.coach_interventions
    for select to authenticated using ((select public.momentum_caller_role()) = 'coach');

drop policy if exists "Coaches can view scores of assigned users" on public.daily_engagement_scores;
create policy "Coaches can view scores of assigned users" on public.daily_engagement_scores
    for select to authenticated using (
        (select public.momentum_caller_role()) = 'coach'
        and user_id in (
            select i.user_id from public.coach_interventions i
            where i.assigned_coach_id = (select auth.uid())));

drop policy if exists "Admins can view all scores" on public.daily_engagement_scores;
create policy "Admins can view all scores" on public.daily_engagement_scores
    for select to authenticated using ((select public.momentum_caller_role()) = 'admin');
drop policy if exists "Admins can view all notifications" on public.momentum_notifications;
create policy "Admins can view all notifications" on public.momentum_notifications
    for select to authenticated using ((select public.momentum_caller_role()) = 'admin');
drop policy if exists "Admins can view all interventions" on public.coach_interventions;
create policy "Admins can view all interventions" on public.coach_interventions
    for select to authenticated using ((select public.momentum_caller_role()) = 'admin');


-- 7  Policies: as made here, or changed since ----------------------------------------------------------
-- The policies decide who gets which event; this is how the server knows what they say without a query an event.
--
-- As made here, they give users, coaches and admins their rows by what a token says, but for one: a coach sees the
-- scores of assigned users, and assignments are rows. So a channel is *held* when the token alone gives it, and *asked*
-- when rows or an operator's own policies have a say; of what is asked the server has the database say of each event,
-- as the caller, whether the caller may see it, before it hands the event on.

-- The policies that hold for the SELECTs of an authenticated caller.
create or replace function momentum.policies_of(target regclass) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
set quote_all_identifiers = off
as $$
    select string_agg(
        concat_ws(' ', p.polname, p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid)),
        E'\n' order by p.polname)
    from pg_catalog.pg_policy p
    where p.polrelid = target and p.polcmd in ('r', '*') and exists (
        select from unnest(p.polroles) as to_role (oid)
        where to_role.oid = 0 or pg_has_role('authenticated', to_role.oid, 'usage'))
$$;

-- What decides which rows and columns of a table an authenticated caller may SELECT, as it is.
create or replace function momentum.describe_policies(target text) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select concat_ws(E'\n',
        'row level security ' || c.relrowsecurity,
        'readable ' || has_table_privilege('authenticated', c.oid, 'select'),
        -- A policy of the scores asks for assignments; where nobody may read those, nobody can SELECT a score.
        'assignments ' || (
            select count(*) = 2 and bool_and(has_column_privilege('authenticated', a.attrelid, a.attnum, 'select'))
            from pg_catalog.pg_attribute a
            where target = 'daily_engagement_scores' and a.attrelid = to_regclass('public.coach_interventions')
                and a.attname in ('user_id', 'assigned_coach_id')
            having target = 'daily_engagement_scores'),
        'role ' || (
            select md5(p.prosrc) from pg_catalog.pg_proc p
            where p.oid = to_regprocedure('public.momentum_caller_role()')),
        momentum.policies_of(c.oid::regclass))
    from pg_catalog.pg_class c
    where c.oid = to_regclass(format('public.%I', target))
$$;

-- The same as these migrations make it, in the words of this PostgreSQL: told from policies made anew on an empty
-- table, because those on the real one may have been altered.
create or replace function momentum.shipped_policies(target text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    ours record;
    described text;
begin
    create temporary table momentum_shipped (user_id uuid);
    for ours in
        select name, expression
        from (values
            ('daily_engagement_scores', 'Users can view own momentum scores', '(select auth.uid()) = user_id'),
            ('momentum_notifications', 'Users can view own notifications', '(select auth.uid()) = user_id'),
            ('coach_interventions', 'Users can view own interventions', '(select auth.uid()) = user_id'),
            ('daily_engagement_scores', 'Admins can view all scores',
                '(select public.momentum_caller_role()) = ''admin'''),
            ('momentum_notifications', 'Admins can view all notifications',
                '(select public.momentum_caller_role()) = ''admin'''),
            ('coach_interventions', 'Admins can view all interventions',
                '(select public.momentum_caller_role()) = ''admin'''),
            ('coach_interventions', 'Coaches can view all interventions',
                '(select public.momentum_caller_role()) = ''coach'''),
            ('daily_engagement_scores', 'Coaches can view scores of assigned users',
                '(select public.momentum_caller_role()) = ''coach'' and user_id in ('
                'select i.user_id from public.coach_interventions i where i.assigned_coach_id = (select auth.uid()))')
        ) as made (table_name, name, expression)
        where made.table_name = target
    loop
        execute format(
            'create policy %I on pg_temp.momentum_shipped for select to authenticated using (%s)',
            ours.name, ours.expression);
    end loop;
    described := concat_ws(E'\n',
        'row level security true',
        'readable true',
        case when target = 'daily_engagement_scores' then 'assignments true' end,
        'role ' || md5(E'\n    select auth.jwt() -> ''app_metadata'' ->> ''role''\n'),
        momentum.policies_of('pg_temp.momentum_shipped'::regclass));
    drop table pg_temp.momentum_shipped;
    return described;
end;
$$;

create table if not exists momentum.policies (
    table_name text primary key,
    shipped text not null,
    current text not null,
    changed boolean not null generated always as (current <> shipped) stored
);
alter table momentum.policies enable row level security;

create or replace trigger momentum_policies_constants
    after insert or update or delete on momentum.policies
    for each statement execute function momentum.constants_may_have_changed();

insert into momentum.policies (table_name, shipped, current)
select name, momentum.shipped_policies(name), coalesce(momentum.describe_policies(name), 'no such table')
from unnest(array['daily_engagement_scores', 'coach_interventions', 'momentum_notifications']) as name
on conflict (table_name) do update set shipped = excluded.shipped, current = excluded.current;

-- Writes down what the policies say now, and tells every gateway if that is new. Where it cannot be told, they count as
-- changed.
create or replace function momentum.note_policies() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    known momentum.policies;
    described text;
    is_new boolean := false;
begin
    for known in select p.* from momentum.policies p order by p.table_name loop
        begin
            described := coalesce(momentum.describe_policies(known.table_name), 'no such table');
        exception
            when lock_not_available then
                raise;
            when others then
                described := 'unknown: ' || sqlstate;
        end;
        if described <> known.current then
            update momentum.policies p set current = described where p.table_name = known.table_name;
            is_new := true;
        end if;
    end loop;
    if exists (
        select from momentum.policies p where p.changed <> momentum.has_changed_policies(p.table_name)
    ) then
        perform momentum.keep_constants();  -- a table restored without its triggers, or emptied
    end if;
    if is_new then
        perform momentum.publish(
            array['momentum:control'], jsonb_build_object('event_type', 'policies_changed'), null::jsonb);
    end if;
end;
$$;

-- The server calls it once a second. Whoever holds a table is not waited for, but looked at the next time.
create or replace function momentum.check_policies() returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
    perform momentum.note_policies();
end;
$$;

-- The same at once, in the transaction that changes a policy: so the word of it stands in the WAL before any event
-- that the new policy is for. Whatever is wrong with it, the operator's statement goes on. What was dropped, and on what
-- rights were granted, an event trigger is not told; of all else only what is ours is looked at.
create or replace function momentum.policies_may_have_changed() returns event_trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
begin
    if tg_tag in (
        'CREATE POLICY', 'ALTER POLICY', 'ALTER TABLE', 'CREATE FUNCTION', 'ALTER FUNCTION', 'ALTER ROUTINE'
    ) and not exists (
        select from pg_event_trigger_ddl_commands() as done
        where done.objid in (
                to_regclass('public.daily_engagement_scores')::oid, to_regclass('public.coach_interventions')::oid,
                to_regclass('public.momentum_notifications')::oid)
            or done.object_identity = 'public.momentum_caller_role()'
            or done.object_identity like '% on public.daily_engagement_scores'
            or done.object_identity like '% on public.coach_interventions'
            or done.object_identity like '% on public.momentum_notifications'
    ) then
        return;
    end if;
    perform momentum.note_policies();
exception when others then
    raise warning 'momentum: changed policies are noticed within a second, not at once: %', sqlerrm;
end;
$$;

do $$
begin
    drop event trigger if exists momentum_policies;
    create event trigger momentum_policies on ddl_command_end
        when tag in (
            'CREATE POLICY', 'ALTER POLICY', 'DROP POLICY', 'ALTER TABLE', 'DROP TABLE', 'DROP OWNED', 'GRANT',
            'REVOKE', 'CREATE FUNCTION', 'ALTER FUNCTION', 'ALTER ROUTINE', 'DROP FUNCTION', 'DROP ROUTINE')
        execute function momentum.policies_may_have_changed();
exception when insufficient_privilege then
    null;  -- it takes a superuser; without it changed policies are noticed within a second, as `migrate` says
end;
$$;


-- 8  The grant of a channel ----------------------------------------------------------------------------

-- Whether the caller may have a channel, asked under the caller's role and claims and so under the policies: `held`,
-- `asked` (each event of it must be asked about) or null. The server says in `momentum.changed` which tables have
-- changed policies; who asks without it is told the more careful answer.
create or replace function public.momentum_grant(channel text) returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    caller_role text := coalesce(public.momentum_caller_role(), '');
    kind text := split_part(channel, ':', 1);
    subject text := substr(channel, length(kind) + 2);
    source text := case kind
        when 'momentum_updates' then 'daily_engagement_scores'
        when 'cache_invalidation' then 'daily_engagement_scores'
        when 'interventions' then 'coach_interventions'
        when 'notifications' then 'momentum_notifications' end;
    tables text := coalesce(nullif(current_setting('momentum.changed', true), ''), '*');
    changed boolean := tables = '*' or source = any (string_to_array(tables, ','));
    by_token text := case when changed then 'asked' else 'held' end;
    visible boolean;
begin
    if public.momentum_is_unbound() then
        return 'held';  -- an operator's own channels, too
    elsif channel = 'cache_invalidation' then
        return by_token;  -- the gateway hands on the keys of the connection's own user only
    elsif source is null then
        return null;
    elsif channel = 'interventions:coaches' then
        return case when caller_role in ('coach', 'admin') then by_token end;
    elsif channel = 'momentum_updates:all' then
        return case when caller_role = 'admin' then by_token end;
    elsif subject !~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then
        return null;
    elsif public.momentum_may_act_for(subject::uuid) then
        return by_token;
    elsif caller_role <> 'coach' and not changed then
        return null;
    end if;
    execute format('select exists (select from public.%I t where t.user_id = $1)', source)
        into visible using subject::uuid;
    return case when visible then case when kind = 'interventions' then by_token else 'asked' end end;
exception when insufficient_privilege then
    return null;
end;
$$;

revoke all on function public.momentum_grant(text) from public, anon;
grant execute on function public.momentum_grant(text) to authenticated, service_role;


-- 9  Whom the server works for, and revocation ---------------------------------------------------------

create table if not exists momentum.revocations (
    user_id uuid primary key,
    revoked_at timestamptz not null
);
alter table momentum.revocations enable row level security;
grant select, insert, update on momentum.revocations to service_role;

-- Ends what a user's tokens give: every gateway closes the user's connections when it reads this in the log, and no
-- token issued until now opens anything again. A token issued later does, so ban the user where tokens are issued, too.
create or replace function momentum.revoke(target uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if target is null then
        raise exception 'momentum.revoke needs a user' using errcode = 'null_value_not_allowed';
    end if;
    insert into momentum.revocations as r (user_id, revoked_at) values (target, clock_timestamp())
    on conflict (user_id) do update set revoked_at = greatest(r.revoked_at, excluded.revoked_at);
    perform momentum.publish(
        array['momentum:control'], jsonb_build_object('event_type', 'revoked', 'user_id', target), null::jsonb);
end;
$$;

-- Which tables have changed policies, for `momentum.changed`; an error for a token that was revoked. `iat` counts whole
-- seconds, so a token of the second of the revocation is refused; one that does not say when it was issued, too.
create or replace function momentum.admit(claims jsonb) returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (
        select from momentum.revocations r
        where r.user_id = (
                substring(lower(claims ->> 'sub') from '^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$'))::uuid
          and coalesce((claims ->> 'iat')::numeric, 0) <= extract(epoch from r.revoked_at)
    ) then
        raise exception 'the token was revoked' using errcode = 'invalid_authorization_specification';
    end if;
    return (select coalesce(string_agg(p.table_name, ','), 'none') from momentum.policies p where p.changed);
end;
$$;

-- Makes the rest of the transaction the caller's, as PostgREST does.
create or replace function momentum.become(caller_role text, claims text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform set_config('momentum.changed', momentum.admit(claims::jsonb), true);
    perform set_config('request.jwt.claims', claims, true);
    perform set_config('role', caller_role, true);
end;
$$;


-- 10  The server's work on its log, and a check of all of this ----------------------------------------

-- The mark of a commit, by which ids tell an event from another one that has its number on another branch of history.
create or replace function momentum.mark(commit_lsn pg_lsn, committed_at timestamptz) returns bigint
language sql
immutable
return ((mod(commit_lsn - '0/0'::pg_lsn, 4294967296))::bigint
    # ((extract(epoch from committed_at) * 1000000)::bigint & 4294967295));

-- Make the log's partitions of the days around today, and drop those that hold nothing younger than `retention` (null:
-- none). Return the names of those dropped. The log belongs to the owner of the tables, so that nothing which the
-- server's role could leave there ever runs with an owner's rights; the days are PostgreSQL's, as are the rows' times.
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
    lock table momentum.stream in share update exclusive mode;  -- not an advisory lock, which anybody may hold
    for day in select today + ahead from generate_series(-1, 2) as ahead loop
        continue when to_regclass(format('momentum_log.%I', 'event_log_' || to_char(day, 'YYYYMMDD'))) is not null;
        begin
            -- A table, then its attachment, which blocks no append as `create table ... partition of` does.
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
        if cardinality(dropped) = 0 then  -- as an append does: the table first, then the row of the stream
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

-- What these migrations made, as they made it: so that a function or a trigger which was changed, disabled or dropped
-- since can be told from what publishes.
create table if not exists momentum.installed (
    name text primary key,
    definition text not null
);
alter table momentum.installed enable row level security;

-- The functions and triggers that publishing depends on, as they are now. What changes with a setting is left out.
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

-- Return what keeps events from being published: `problems` are functions and triggers that are not as installed;
-- `foreign_triggers` are AFTER triggers of others that run before ours. Such a trigger that changes the row again makes
-- the later version's event come first, and the earlier version's last.
create or replace function momentum.check_publishing() returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'problems', coalesce((
            select jsonb_agg(
                i.name || case when d.name is null then ' is missing'
                    when d.definition like 'disabled%' then ' is disabled' else ' is not as it was installed' end
                order by i.name)
            from momentum.installed i
            left join momentum.definitions() d using (name)
            where d.definition is distinct from i.definition), '[]'),
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

-- Everything belongs to the owner of the tables, whoever runs this file: functions that run with their owner's rights then
-- have no more than the tables need, and what is put in place of calls is so for one owner only.
do $$
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
                'invalidate_momentum_cache', 'momentum_rfc3339', 'log_realtime_event', 'cleanup_realtime_metrics'))
    loop
        execute format('alter %s %s owner to %I', made.kind, made.name, owner);
    end loop;
end;
$$;

revoke all on all functions in schema momentum from public;
grant execute on function momentum.revoke(uuid) to service_role;
-- What the triggers and `publish` call, and the settings decide: for whoever may publish.
grant execute on function
    momentum.publish(text[], jsonb, jsonb), momentum.notify(text[], jsonb), momentum.notifies(), momentum.fit(jsonb, text[]),
    momentum.is_deeper(text, integer), momentum.max_event_bytes(), momentum.max_event_depth(), momentum.max_channels()
    to service_role;

delete from momentum.installed;
insert into momentum.installed select d.name, d.definition from momentum.definitions() d;

reset search_path;

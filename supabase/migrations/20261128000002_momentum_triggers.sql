-- Triggers that publish every change of the three tables, functions that clients call, and metrics.
--
-- Creates: seven triggers on the three tables with their functions; public.get_realtime_momentum_state(uuid),
--   get_realtime_interventions(uuid), subscribe_to_momentum_channels(uuid), log_realtime_event(…),
-- cleanup_realtime_metrics(), the table public.realtime_event_metrics unless it exists. Existing functions and triggers
-- of these names are replaced: they gave any user's data to every caller.
-- Changes in your tables: the triggers. Data, policies and grants stay.
-- Locks: each of the three tables for a moment, against writers.
-- Needs: 20261128000001_momentum_publish; the tables' owner.
-- Undo: `momentum-sync uninstall`, which keeps tables and data.

-- pg_temp comes last in search_path, so that no object of a session can replace one of PostgreSQL while this file runs.
-- Notices about existing objects are suppressed.
set search_path = pg_catalog, pg_temp;
set client_min_messages = warning;


-- Functions of these names with other arguments or results would remain beside the new ones, or conflict with them.
do $$
declare
    other regprocedure;
begin
    for other in
        select p.oid::regprocedure
        from pg_proc p
        left join (values
            ('get_realtime_momentum_state', 'uuid', 'jsonb', '{target_user_id}'::text[]),
            ('get_realtime_interventions', 'uuid', 'jsonb', '{target_user_id}'),
            ('subscribe_to_momentum_channels', 'uuid', 'jsonb', '{target_user_id}'),
            ('log_realtime_event', 'text, text, uuid, integer, integer, boolean, text', 'void',
                '{p_event_type,p_channel_name,p_user_id,p_payload_size,p_processing_time_ms,p_success,p_error_message}'),
            ('cleanup_realtime_metrics', '', 'integer', null)
        ) as ours (name, arguments, result, names)
            on ours.name = p.proname and ours.arguments = oidvectortypes(p.proargtypes)
                and ours.result = format_type(p.prorettype, null) and ours.names is not distinct from p.proargnames
        where p.pronamespace = 'public'::regnamespace and ours.name is null and p.proname in (
                'get_realtime_momentum_state', 'get_realtime_interventions', 'subscribe_to_momentum_channels',
                'log_realtime_event', 'cleanup_realtime_metrics')
            or p.pronamespace = 'momentum'::regnamespace and p.proname in ('intervention_event', 'notification_event')
                and 'created_at' <> all (p.proargnames)
    loop
        execute format('drop function %s', other);
    end loop;
end;
$$;

-- Triggers ------------------------------------------------------------------------------------------------------------

-- They run as their owner, because roles that write rows need not be allowed to publish.
--
-- A deleted row can no longer be selected, so its event carries its last version. Where an operator has changed the
-- policies, each event carries the version of its row, and an update may make a row invisible to some callers: an event
-- `…_deleted` with `out_of_sight` precedes it, for those callers only.
--
-- The writer pays for every statement and every variable here. So a trigger first tests for the common case, which is
-- one expression of functions that PostgreSQL inlines; everything else is in a function of its own. Scores change most.
-- Their JSON is made by `format`: json_build_object looks up the output function of each argument, names included,
-- which costs a writer more than the rest. `to_json` quotes where needed, and writes dates in ISO format under every
-- `datestyle`.

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
    previous_status text, status_changed boolean, scheduled_date date, created_at timestamptz
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
    'created_at', public.momentum_rfc3339(created_at),
    'timestamp', public.momentum_rfc3339(clock_timestamp()));

-- The cache keys of a user's score of one day as members of a JSON array, and the key of that day alone.
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

-- Publish a changed score to its user and, if it moved, to its previous user. `was` and `becomes` are the row before
-- and after; one of them is null if it was inserted or deleted.
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
            case when becomes.id is null or moved then momentum.last_version(was, was.user_id)
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
comment on function public.publish_momentum_update() is 'Trigger function: publish a changed score to its user and to `momentum_updates:all`.';

-- Publish a changed intervention. If it moves to another user, coaches get an update, because they may see all.
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
                was.scheduled_date, was.created_at)::jsonb
                || case when becomes.id is null or moved then '{}' else '{"out_of_sight": true}' end::jsonb,
                was_too_long),
            case when becomes.id is null or moved then momentum.last_version(was, was.user_id)
                else momentum.row_versions(was, becomes) end);
    end if;
    if becomes.id is not null then
        perform momentum.publish(
            array['interventions:' || becomes.user_id, 'interventions:coaches'],
            momentum.fit(momentum.intervention_event(
                case when was.id is null then 'intervention_created' else 'intervention_updated' end,
                becomes.user_id, becomes.id, becomes.intervention_type,
                case when cardinality(too_long) = 0 then becomes.trigger_reason end, becomes.status, was.status,
                becomes.status is distinct from was.status, becomes.scheduled_date, becomes.created_at)::jsonb,
                too_long),
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
                new.status is distinct from old.status, new.scheduled_date, new.created_at)::text);
    end if;
    return null;
end;
$$;
comment on function public.publish_intervention_notification() is 'Trigger function: publish a changed intervention to its user and to `interventions:coaches`.';

-- Return whether an app shows a notification of this type to its user.
create or replace function momentum.is_user_facing(notification_type text) returns boolean
language sql
immutable
return notification_type in ('momentum_drop', 'needs_care_consecutive', 'celebration', 'consistency_reminder');

create or replace function momentum.notification_event(
    user_id uuid, notification_id uuid, notification_type text, title text, message text, action_type text,
    action_data jsonb, status text, created_at timestamptz
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
    'created_at', public.momentum_rfc3339(created_at),
    'timestamp', public.momentum_rfc3339(clock_timestamp()));

-- Publish a changed notification. `notification_removed` goes to the old row's user if the notification was deleted,
-- moved to another user, or is no longer of a type that an app shows.
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
        -- The size in the row is that of the compressed value, as little as 1/255 of it.
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
            case when gone then momentum.last_version(was, was.user_id)
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
                    becomes.status, becomes.created_at)::jsonb,
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
                new.action_data, new.status, new.created_at)::text);
    end if;
    return null;
end;
$$;
comment on function public.publish_push_notification() is 'Trigger function: publish a changed notification that an app shows to its user.';

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
comment on function public.invalidate_momentum_cache() is 'Trigger function: publish the cache keys that a changed score invalidates.';

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

-- A TRUNCATE names no rows: the epoch ends, and every client gets a new snapshot.
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

-- ENABLE ALWAYS: also for rows that a subscription applies, and in sessions with `session_replication_role = replica`.
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

-- Functions that clients call
-- ----------------------------------------------------------------------------------------------

-- They read as the caller, under row level security. A caller without rights gets the same answer for an existing and a
-- missing user.

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
comment on function public.get_realtime_momentum_state(uuid) is 'Return the latest momentum of a user: `has_data`, and if true `score_date`, `momentum_state`, `final_score`,
`events_count`, `breakdown`, `last_updated`.

It reads as the caller, under row level security, and answers alike for an existing and a missing user without rights.

Args:
    target_user_id: the user.
Raises:
    insufficient_privilege: the caller may not act for the user and sees no score of theirs.
Example:
    select public.get_realtime_momentum_state(''11111111-1111-4111-8111-111111111111'')';

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
        order by i.scheduled_date nulls last, public.momentum_rfc3339(i.created_at), i.id)
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
comment on function public.get_realtime_interventions(uuid) is 'Return the interventions of a user that are scheduled or in progress, by date, those without a date last.

It reads as the caller, under row level security.

Args:
    target_user_id: the user.
Raises:
    insufficient_privilege: the caller may not act for the user and sees no intervention of theirs.
Example:
    select public.get_realtime_interventions(''11111111-1111-4111-8111-111111111111'')';

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
comment on function public.subscribe_to_momentum_channels(uuid) is 'Return the channels of a user. It subscribes to nothing: pass the names to a client.

Args:
    target_user_id: the user.
Raises:
    insufficient_privilege: the caller may not act for the user.
Example:
    select public.subscribe_to_momentum_channels(''11111111-1111-4111-8111-111111111111'')';

revoke all on function
    public.get_realtime_momentum_state(uuid), public.get_realtime_interventions(uuid),
    public.subscribe_to_momentum_channels(uuid)
    from public, anon;
grant execute on function
    public.get_realtime_momentum_state(uuid), public.get_realtime_interventions(uuid),
    public.subscribe_to_momentum_channels(uuid)
    to authenticated, service_role;

-- Metrics of events ---------------------------------------------------------------------------------------------------

do $$
begin
    if to_regclass('public.realtime_event_metrics') is null then
        create table public.realtime_event_metrics (
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
        comment on table public.realtime_event_metrics is 'A sample of events. Made by Momentum Sync.';
        create index realtime_event_metrics_created_idx on public.realtime_event_metrics (created_at);
        alter table public.realtime_event_metrics enable row level security;
        revoke all on public.realtime_event_metrics from anon, authenticated;
        grant select, insert, update, delete, truncate on public.realtime_event_metrics to service_role;
        -- A trigger runs with the privileges of the writer, even a superuser's.
        revoke trigger, references on public.realtime_event_metrics from service_role;
        create policy "Service role manages event metrics" on public.realtime_event_metrics
            for all to service_role using (true) with check (true);
    elsif exists (
        select from pg_policy p
        where p.polrelid = 'public.realtime_event_metrics'::regclass and p.polname = 'Service role manages event metrics'
    ) and obj_description('public.realtime_event_metrics'::regclass, 'pg_class') is null and (
        select string_agg(a.attname, ' ' order by a.attnum) from pg_attribute a
        where a.attrelid = 'public.realtime_event_metrics'::regclass and a.attnum > 0 and not a.attisdropped
    ) = 'id event_type channel_name user_id payload_size processing_time_ms success error_message created_at' then
        comment on table public.realtime_event_metrics is 'A sample of events. Made by Momentum Sync.';
    end if;
end;
$$;

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
comment on function public.log_realtime_event(text, text, uuid, integer, integer, boolean, text) is 'Add a row to `realtime_event_metrics`; for the service only.

Args:
    p_event_type: the event''s type.
    p_channel_name: its channel.
    p_user_id: its user.
    p_payload_size: bytes.
    p_processing_time_ms: milliseconds.
    p_success: whether it was delivered.
    p_error_message: what failed.
Example:
    select public.log_realtime_event(''score_recalculated'', ''jobs'', p_processing_time_ms => 12)';

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
comment on function public.cleanup_realtime_metrics() is 'Delete the rows of `realtime_event_metrics` that are older than `metrics_retention` in momentum.settings. Return their
number. The server calls it every hour.

Example:
    select public.cleanup_realtime_metrics()';

revoke all on function
    public.log_realtime_event(text, text, uuid, integer, integer, boolean, text), public.cleanup_realtime_metrics()
    from public, anon, authenticated;
grant execute on function
    public.log_realtime_event(text, text, uuid, integer, integer, boolean, text), public.cleanup_realtime_metrics()
    to service_role;


select momentum.settle();

reset client_min_messages;
reset search_path;

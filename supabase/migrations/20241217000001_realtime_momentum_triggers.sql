-- Every change of the three tables becomes an event on its channels, in the transaction that made it.
--
--   1  replica identity and publication     4  what a client asks for
--   2  momentum: publishing and rights      5  metrics of events
--   3  triggers                             6  policies for coaches and admins


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


-- 2  momentum: publishing and rights ------------------------------------------------------------------

create schema if not exists momentum;
revoke all on schema momentum from public;
grant usage on schema momentum to authenticated, service_role;

-- The time in an event: UTC, RFC 3339, milliseconds.
create or replace function momentum.rfc3339(moment timestamptz) returns text
language sql
stable
set search_path = ''
as $$
    select to_char(moment at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
$$;

-- What an operator switches, in its one row: `update momentum.settings set notify = true`. Custom parameters would need
-- a superuser, whom Supabase does not give.
create table if not exists momentum.settings (
    single boolean primary key default true check (single),
    notify boolean not null default false,
    metrics boolean not null default false,
    metrics_retention interval not null default '7 days'
);
insert into momentum.settings default values on conflict do nothing;
alter table momentum.settings enable row level security;
grant select on momentum.settings to service_role;
drop policy if exists "Service role reads settings" on momentum.settings;
create policy "Service role reads settings" on momentum.settings for select to service_role using (true);

-- The switch `notify`, for whoever LISTENs in SQL. NOTIFY carries at most 7,999 bytes and names of at most 63, and it
-- fails a commit when its queue is full, so what does not fit is shortened or left out.
create or replace function momentum.notify(channels text[], event jsonb) returns void
language plpgsql
set search_path = ''
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

-- The one way for an event to leave the database: a logical message, written to the WAL with the caller's
-- transaction and read back in commit order. Any trigger of the operator's may call it; a trigger function
-- that runs for ordinary users needs `security definer`. `id`, `previous_id` and `channel` are the server's to fill in.
create or replace function momentum.publish(channels text[], event jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
    settings momentum.settings;
begin
    if coalesce(cardinality(channels), 0) = 0 or array_position(channels, null) is not null then
        raise exception 'momentum.publish needs at least one channel and no null among them'
            using errcode = 'invalid_parameter_value';
    end if;
    if exists (select from unnest(channels) as channel where length(channel) > 200) then
        raise exception 'momentum.publish needs channels of at most 200 characters'
            using errcode = 'invalid_parameter_value';
    end if;
    if jsonb_typeof(event) is distinct from 'object' then
        raise exception 'momentum.publish needs a JSON object as the event'
            using errcode = 'invalid_parameter_value';
    end if;

    perform pg_logical_emit_message(true, 'momentum_sync', jsonb_build_object(
        'channels', channels,
        'event', event - array['id', 'previous_id', 'channel'])::text);

    select s.* into settings from momentum.settings s;
    if settings.notify then
        perform momentum.notify(channels, event);
    end if;
    if settings.metrics then
        perform momentum.measure(channels, event);
    end if;
end;
$$;

-- Whether the caller may do for this user what the user may: the user, an admin, and whoever row level
-- security does not bind (service_role, the owner of the tables).
create or replace function momentum.may_act_for(target uuid) returns boolean
language sql
stable
set search_path = ''
as $$
    select target is not null and (
        not row_security_active('public.daily_engagement_scores')
        or coalesce(target = auth.uid(), false)
        or coalesce(public.momentum_caller_role() = 'admin', false))
$$;

-- The grant of a channel, asked as the caller and so under the policies: when a channel is asked for, and
-- again when the token changes.
create or replace function momentum.may_subscribe(channel text) returns boolean
language plpgsql
stable
set search_path = ''
as $$
declare
    caller_role text := coalesce(public.momentum_caller_role(), '');
    unbound boolean := not row_security_active('public.daily_engagement_scores');
    kind text := split_part(channel, ':', 1);
    subject text := substr(channel, length(kind) + 2);
begin
    if unbound then
        return true;  -- an operator's own channels, too
    elsif channel = 'cache_invalidation' then
        return true;  -- the gateway hands on the keys of the connection's own user only
    elsif channel = 'interventions:coaches' then
        return caller_role in ('coach', 'admin');
    elsif channel = 'momentum_updates:all' then
        return caller_role = 'admin';
    elsif kind not in ('momentum_updates', 'interventions', 'notifications')
        or subject !~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then
        return false;
    elsif momentum.may_act_for(subject::uuid) then
        return true;
    elsif caller_role = 'coach' and kind = 'interventions' then
        return exists (select from public.coach_interventions i where i.user_id = subject::uuid);
    elsif caller_role = 'coach' and kind = 'momentum_updates' then
        return exists (select from public.daily_engagement_scores s where s.user_id = subject::uuid);
    end if;
    return false;
end;
$$;

revoke all on all functions in schema momentum from public;
grant execute on function momentum.may_act_for(uuid), momentum.may_subscribe(text), momentum.rfc3339(timestamptz)
    to authenticated, service_role;
grant execute on function momentum.publish(text[], jsonb), momentum.notify(text[], jsonb) to service_role;


-- 3  Triggers -----------------------------------------------------------------------------------------
-- They run as their owner, because whoever writes a row need not be one who may publish.

create or replace function public.publish_momentum_update() returns trigger
language plpgsql
security definer
set search_path = ''
as $$
declare
    score public.daily_engagement_scores := coalesce(new, old);
    happened text := case tg_op when 'INSERT' then 'created' when 'UPDATE' then 'updated' else 'deleted' end;
    before_state text := case when tg_op <> 'INSERT' then old.momentum_state end;
begin
    if tg_op = 'UPDATE' and new.user_id <> old.user_id then
        perform momentum.publish(
            array['momentum_updates:' || old.user_id, 'momentum_updates:all'],
            jsonb_build_object(
                'event_type', 'momentum_score_deleted',
                'user_id', old.user_id,
                'score_date', old.score_date,
                'momentum_state', old.momentum_state,
                'final_score', old.final_score,
                'previous_state', old.momentum_state,
                'state_changed', false,
                'timestamp', momentum.rfc3339(clock_timestamp())));
        happened := 'created';
        before_state := null;
    end if;
    perform momentum.publish(
        array['momentum_updates:' || score.user_id, 'momentum_updates:all'],
        jsonb_build_object(
            'event_type', 'momentum_score_' || happened,
            'user_id', score.user_id,
            'score_date', score.score_date,
            'momentum_state', score.momentum_state,
            'final_score', score.final_score,
            'previous_state', before_state,
            'state_changed', happened <> 'deleted' and score.momentum_state is distinct from before_state,
            'timestamp', momentum.rfc3339(clock_timestamp())));
    return null;
end;
$$;

create or replace function public.publish_intervention_notification() returns trigger
language plpgsql
security definer
set search_path = ''
as $$
declare
    intervention public.coach_interventions := coalesce(new, old);
    happened text := case tg_op when 'INSERT' then 'created' when 'UPDATE' then 'updated' else 'deleted' end;
    before_status text := case when tg_op <> 'INSERT' then old.status end;
begin
    if tg_op = 'UPDATE' and new.user_id <> old.user_id then
        perform momentum.publish(
            array['interventions:' || old.user_id],
            jsonb_build_object(
                'event_type', 'intervention_deleted',
                'user_id', old.user_id,
                'intervention_id', old.id,
                'intervention_type', old.intervention_type,
                'trigger_reason', old.trigger_reason,
                'status', old.status,
                'previous_status', old.status,
                'status_changed', false,
                'scheduled_date', old.scheduled_date,
                'timestamp', momentum.rfc3339(clock_timestamp())));
    end if;
    perform momentum.publish(
        array['interventions:' || intervention.user_id, 'interventions:coaches'],
        jsonb_build_object(
            'event_type', 'intervention_' || happened,
            'user_id', intervention.user_id,
            'intervention_id', intervention.id,
            'intervention_type', intervention.intervention_type,
            'trigger_reason', intervention.trigger_reason,
            'status', intervention.status,
            'previous_status', before_status,
            'status_changed', happened <> 'deleted' and intervention.status is distinct from before_status,
            'scheduled_date', intervention.scheduled_date,
            'timestamp', momentum.rfc3339(clock_timestamp())));
    return null;
end;
$$;

create or replace function public.publish_push_notification() returns trigger
language plpgsql
security definer
set search_path = ''
as $$
begin
    if new.notification_type in (
        'momentum_drop', 'needs_care_consecutive', 'celebration', 'consistency_reminder'
    ) then
        perform momentum.publish(
            array['notifications:' || new.user_id],
            jsonb_build_object(
                'event_type', 'push_notification',
                'user_id', new.user_id,
                'notification_id', new.id,
                'notification_type', new.notification_type,
                'title', new.title,
                'message', new.message,
                'action_type', new.action_type,
                'action_data', new.action_data,
                'status', new.status,
                'timestamp', momentum.rfc3339(clock_timestamp())));
    end if;
    return null;
end;
$$;

create or replace function public.invalidate_momentum_cache() returns trigger
language plpgsql
security definer
set search_path = ''
as $$
declare
    changed record;
begin
    for changed in
        select touched.user_id, array_agg(touched.score_date order by touched.score_date) as dates
        from (
            select old.user_id, old.score_date where tg_op <> 'INSERT'
            union
            select new.user_id, new.score_date where tg_op <> 'DELETE'
        ) as touched
        group by touched.user_id
    loop
        perform momentum.publish(
            array['cache_invalidation'],
            jsonb_build_object(
                'event_type', 'cache_invalidation',
                'user_id', changed.user_id,
                'cache_keys', array[
                    'momentum:current:' || changed.user_id,
                    'momentum:history:' || changed.user_id,
                    'momentum:trend:' || changed.user_id
                ] || array(
                    select 'momentum:breakdown:' || changed.user_id || ':' || score_date
                    from unnest(changed.dates) as score_date),
                'timestamp', momentum.rfc3339(clock_timestamp())));
    end loop;
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
    after insert or update on public.momentum_notifications
    for each row execute function public.publish_push_notification();


-- 4  What a client asks for ---------------------------------------------------------------------------
-- They read as the caller, under row level security. The answer to one who may not ask is the same for a
-- user who exists and for one who does not.

create or replace function momentum.refuse(target uuid) returns void
language plpgsql
set search_path = ''
as $$
begin
    raise exception 'not allowed to read the data of user %', coalesce(target::text, 'null')
        using errcode = 'insufficient_privilege';
end;
$$;
revoke all on function momentum.refuse(uuid) from public;
grant execute on function momentum.refuse(uuid) to authenticated, service_role;

create or replace function public.get_realtime_momentum_state(target_user_id uuid) returns jsonb
language plpgsql
stable
set search_path = ''
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
            'last_updated', momentum.rfc3339(score.updated_at),
            'timestamp', momentum.rfc3339(now()));
    elsif not momentum.may_act_for(target_user_id) then
        perform momentum.refuse(target_user_id);
    end if;
    return jsonb_build_object(
        'user_id', target_user_id,
        'has_data', false,
        'message', 'No momentum data available for user',
        'timestamp', momentum.rfc3339(now()));
end;
$$;

create or replace function public.get_realtime_interventions(target_user_id uuid) returns jsonb
language plpgsql
stable
set search_path = ''
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
            'created_at', momentum.rfc3339(i.created_at))
        order by i.scheduled_date nulls last, i.created_at, i.id)
    into found_interventions
    from public.coach_interventions i
    where i.user_id = target_user_id and i.status in ('scheduled', 'in_progress');

    if found_interventions is null
        and not momentum.may_act_for(target_user_id)
        and not exists (select from public.coach_interventions i where i.user_id = target_user_id) then
        perform momentum.refuse(target_user_id);
    end if;
    return jsonb_build_object(
        'user_id', target_user_id,
        'interventions', coalesce(found_interventions, '[]'),
        'timestamp', momentum.rfc3339(now()));
end;
$$;

create or replace function public.subscribe_to_momentum_channels(target_user_id uuid) returns jsonb
language plpgsql
stable
set search_path = ''
as $$
begin
    if not momentum.may_act_for(target_user_id) then
        perform momentum.refuse(target_user_id);
    end if;
    return jsonb_build_object(
        'channels', jsonb_build_array(
            'momentum_updates:' || target_user_id,
            'interventions:' || target_user_id,
            'notifications:' || target_user_id,
            'cache_invalidation'),
        'user_id', target_user_id,
        'timestamp', momentum.rfc3339(now()));
end;
$$;

revoke all on function
    public.get_realtime_momentum_state(uuid), public.get_realtime_interventions(uuid),
    public.subscribe_to_momentum_channels(uuid)
    from public, anon;
grant execute on function
    public.get_realtime_momentum_state(uuid), public.get_realtime_interventions(uuid),
    public.subscribe_to_momentum_channels(uuid)
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
grant all on public.realtime_event_metrics to service_role;
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
set search_path = ''
as $$
    insert into public.realtime_event_metrics (
        event_type, channel_name, user_id, payload_size, processing_time_ms, success, error_message)
    values (
        p_event_type, p_channel_name, p_user_id, p_payload_size, p_processing_time_ms, p_success, p_error_message)
$$;

-- The switch `metrics`, for a row of metrics an event and channel.
-- Whatever is wrong with the metrics, the writer's transaction goes on.
create or replace function momentum.measure(channels text[], event jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
    channel text;
    began timestamptz := clock_timestamp();
begin
    foreach channel in array channels loop
        perform public.log_realtime_event(
            coalesce(event ->> 'event_type', 'unknown'),
            channel,
            (substring(event ->> 'user_id' from '^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$'))::uuid,
            octet_length(event::text),
            (extract(epoch from clock_timestamp() - began) * 1000)::integer);
    end loop;
exception when others then
    raise warning 'momentum.measure: %', sqlerrm;
end;
$$;

-- Deletes what is older than the setting `metrics_retention`; returns how many rows that was.
create or replace function public.cleanup_realtime_metrics() returns integer
language plpgsql
set search_path = ''
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
revoke all on function momentum.measure(text[], jsonb) from public;
grant execute on function momentum.measure(text[], jsonb) to service_role;


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

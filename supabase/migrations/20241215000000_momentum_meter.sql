-- The three tables of the momentum meter: daily scores, notifications, coach interventions.
--
-- Creates: those of the three tables that are missing, with constraints, indexes, policies, grants, and `updated_at`
--   kept by the function public.momentum_set_updated_at().
-- Changes in your tables: none. Existing tables stay as they are, with their policies and grants; if one lacks a needed
-- column, this file fails and changes nothing.
-- Locks: none on existing tables; auth.users while a table that references it is created.
-- Needs: auth.users (id uuid), auth.uid(), auth.jwt(), roles anon, authenticated, service_role; the role that owns
--   schema public.
-- Undo: `drop table`, which drops the data. `momentum-sync uninstall` leaves the tables.

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

create or replace function public.momentum_set_updated_at() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.updated_at := pg_catalog.now();
    return new;
end;
$$;
comment on function public.momentum_set_updated_at() is 'Trigger function: set `updated_at` to the time of the transaction.';
revoke all on function public.momentum_set_updated_at() from public, anon, authenticated;

-- Each table is created completely or not at all. Supabase grants everything in public to every role by default; here
-- callers without a token may read nothing, and others only the rows that the policies allow. A trigger runs with the
-- privileges of the writer, even a superuser's, so service_role may not create triggers. auth.uid() and
-- auth.jwt() are in sub-selects, so that they are evaluated once a query and not once a row. The coach's role is in
-- app_metadata, which only the service can write; users can edit user_metadata, so it proves nothing.

-- A user's score of one day.
do $$
begin
    if to_regclass('public.daily_engagement_scores') is not null then
        return;
    end if;
    create table public.daily_engagement_scores (
        id uuid primary key default gen_random_uuid(),
        user_id uuid not null references auth.users (id) on delete cascade,
        score_date date not null check (score_date <= current_date),
        raw_score numeric(10, 2) not null default 0 check (raw_score >= 0),
        normalized_score numeric(5, 2) not null default 0 check (normalized_score between 0 and 100),
        final_score numeric(5, 2) not null default 0 check (final_score between 0 and 100),
        momentum_state text not null check (momentum_state in ('Rising', 'Steady', 'NeedsCare')),
        breakdown jsonb not null default '{}',
        algorithm_version text not null default 'v1.0',
        events_count integer not null default 0,
        calculation_metadata jsonb not null default '{}',
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now(),
        unique (user_id, score_date)
    );
    create trigger daily_engagement_scores_updated_at before update on public.daily_engagement_scores
        for each row execute function public.momentum_set_updated_at();

    alter table public.daily_engagement_scores enable row level security;
    revoke all on public.daily_engagement_scores from anon, authenticated;
    grant select on public.daily_engagement_scores to authenticated;
    grant select, insert, update, delete, truncate on public.daily_engagement_scores to service_role;
    revoke trigger, references on public.daily_engagement_scores from service_role;

    create policy "Users can view own momentum scores" on public.daily_engagement_scores
        for select to authenticated using ((select auth.uid()) = user_id);
    create policy "Service role manages momentum scores" on public.daily_engagement_scores
        for all to service_role using (true) with check (true);
end;
$$;

-- Notifications to a user.
do $$
begin
    if to_regclass('public.momentum_notifications') is not null then
        return;
    end if;
    create table public.momentum_notifications (
        id uuid primary key default gen_random_uuid(),
        user_id uuid not null references auth.users (id) on delete cascade,
        notification_type text not null check (notification_type in (
            'momentum_drop', 'needs_care_consecutive', 'celebration', 'consistency_reminder',
            'coach_intervention', 'custom')),
        trigger_date date not null,
        trigger_score numeric(5, 2),
        trigger_state text check (trigger_state in ('Rising', 'Steady', 'NeedsCare')),
        trigger_metadata jsonb not null default '{}',
        title text not null,
        message text not null,
        action_type text check (action_type in (
            'open_app', 'complete_lesson', 'schedule_call', 'view_momentum', 'journal_entry', 'none')),
        action_data jsonb not null default '{}',
        status text not null default 'pending' check (status in (
            'pending', 'sent', 'delivered', 'opened', 'clicked', 'failed')),
        sent_at timestamptz,
        delivered_at timestamptz,
        opened_at timestamptz,
        clicked_at timestamptz,
        platform text check (platform in ('ios', 'android', 'web')),
        fcm_token text,
        fcm_message_id text,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
    );
    create index momentum_notifications_user_created_idx
        on public.momentum_notifications (user_id, created_at desc);
    create trigger momentum_notifications_updated_at before update on public.momentum_notifications
        for each row execute function public.momentum_set_updated_at();

    alter table public.momentum_notifications enable row level security;
    revoke all on public.momentum_notifications from anon, authenticated;
    grant select on public.momentum_notifications to authenticated;
    grant select, insert, update, delete, truncate on public.momentum_notifications to service_role;
    revoke trigger, references on public.momentum_notifications from service_role;
    grant update (status, opened_at, clicked_at) on public.momentum_notifications to authenticated;

    create policy "Users can view own notifications" on public.momentum_notifications
        for select to authenticated using ((select auth.uid()) = user_id);
    create policy "Service role manages notifications" on public.momentum_notifications
        for all to service_role using (true) with check (true);
    create policy "Users can update own notifications" on public.momentum_notifications
        for update to authenticated
        using ((select auth.uid()) = user_id) with check ((select auth.uid()) = user_id);
end;
$$;

-- A coach's work for a user.
do $$
begin
    if to_regclass('public.coach_interventions') is not null then
        return;
    end if;
    create table public.coach_interventions (
        id uuid primary key default gen_random_uuid(),
        user_id uuid not null references auth.users (id) on delete cascade,
        intervention_type text not null check (intervention_type in (
            'automated_call_schedule', 'manual_outreach', 'escalation', 'check_in', 'celebration_call',
            'crisis_intervention')),
        trigger_date date not null,
        trigger_reason text not null,
        trigger_momentum_state text check (trigger_momentum_state in ('Rising', 'Steady', 'NeedsCare')),
        trigger_score numeric(5, 2),
        trigger_pattern jsonb not null default '{}',
        status text not null default 'scheduled' check (status in (
            'scheduled', 'in_progress', 'completed', 'cancelled', 'no_response')),
        assigned_coach_id uuid references auth.users (id) on delete set null,
        assigned_at timestamptz,
        scheduled_date date,
        scheduled_time time,
        actual_date date,
        actual_time time,
        duration_minutes integer,
        intervention_notes text,
        outcome_summary text,
        follow_up_required boolean not null default false,
        follow_up_date date,
        pre_intervention_score numeric(5, 2),
        post_intervention_score numeric(5, 2),
        effectiveness_rating integer check (effectiveness_rating between 1 and 5),
        completed_at timestamptz,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
    );
    create index coach_interventions_user_scheduled_idx on public.coach_interventions (user_id, scheduled_date);
    create index coach_interventions_coach_user_idx on public.coach_interventions (assigned_coach_id, user_id);
    create trigger coach_interventions_updated_at before update on public.coach_interventions
        for each row execute function public.momentum_set_updated_at();

    alter table public.coach_interventions enable row level security;
    revoke all on public.coach_interventions from anon, authenticated;
    grant select on public.coach_interventions to authenticated;
    grant select, insert, update, delete, truncate on public.coach_interventions to service_role;
    revoke trigger, references on public.coach_interventions from service_role;
    grant update (status, scheduled_date, scheduled_time, actual_date, actual_time, duration_minutes,
        intervention_notes, outcome_summary, follow_up_required, follow_up_date, post_intervention_score,
        effectiveness_rating, completed_at) on public.coach_interventions to authenticated;

    create policy "Users can view own interventions" on public.coach_interventions
        for select to authenticated using ((select auth.uid()) = user_id);
    create policy "Service role manages interventions" on public.coach_interventions
        for all to service_role using (true) with check (true);
    create policy "Coaches can update assigned interventions" on public.coach_interventions
        for update to authenticated
        using (((select auth.jwt()) -> 'app_metadata' ->> 'role') = 'coach' and (select auth.uid()) = assigned_coach_id)
        with check (((select auth.jwt()) -> 'app_metadata' ->> 'role') = 'coach' and (select auth.uid()) = assigned_coach_id);
end;
$$;

reset client_min_messages;
reset search_path;

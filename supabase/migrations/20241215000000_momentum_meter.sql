-- The three tables of the momentum meter: daily scores, notifications, coach interventions.
-- Who may read and write which row is settled here too; everything that publishes is in the next migration.

set search_path = pg_catalog, pg_temp;

create or replace function public.momentum_set_updated_at() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.updated_at := pg_catalog.now();
    return new;
end;
$$;

-- Who the caller is within the coaching organisation. It is read from app_metadata, which only the service
-- can write; user_metadata can be edited by the user and proves nothing.
create or replace function public.momentum_caller_role() returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select auth.jwt() -> 'app_metadata' ->> 'role'
$$;


create table if not exists public.daily_engagement_scores (
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

create table if not exists public.momentum_notifications (
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

create table if not exists public.coach_interventions (
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

create index if not exists momentum_notifications_user_created_idx
    on public.momentum_notifications (user_id, created_at desc);
create index if not exists coach_interventions_user_scheduled_idx
    on public.coach_interventions (user_id, scheduled_date);
create index if not exists coach_interventions_coach_user_idx
    on public.coach_interventions (assigned_coach_id, user_id);

create or replace trigger daily_engagement_scores_updated_at
    before update on public.daily_engagement_scores
    for each row execute function public.momentum_set_updated_at();
create or replace trigger momentum_notifications_updated_at
    before update on public.momentum_notifications
    for each row execute function public.momentum_set_updated_at();
create or replace trigger coach_interventions_updated_at
    before update on public.coach_interventions
    for each row execute function public.momentum_set_updated_at();


alter table public.daily_engagement_scores enable row level security;
alter table public.momentum_notifications enable row level security;
alter table public.coach_interventions enable row level security;

-- Supabase grants everything in public to every role by default. Nobody reads without a token, and those
-- with one get what the policies below speak of.
revoke all on public.daily_engagement_scores, public.momentum_notifications, public.coach_interventions
    from anon, authenticated;
grant select on public.daily_engagement_scores, public.momentum_notifications, public.coach_interventions
    to authenticated;
grant update (status, opened_at, clicked_at) on public.momentum_notifications to authenticated;
grant update (status, scheduled_date, scheduled_time, actual_date, actual_time, duration_minutes,
    intervention_notes, outcome_summary, follow_up_required, follow_up_date, post_intervention_score,
    effectiveness_rating, completed_at) on public.coach_interventions to authenticated;
grant select, insert, update, delete, truncate
    on public.daily_engagement_scores, public.momentum_notifications, public.coach_interventions
    to service_role;
-- Whoever may put a trigger on a table has everybody who writes there run it, a superuser, too. The server's role is a
-- member of service_role.
revoke trigger, references
    on public.daily_engagement_scores, public.momentum_notifications, public.coach_interventions
    from service_role;

revoke all on function public.momentum_set_updated_at() from public, anon, authenticated;
revoke all on function public.momentum_caller_role() from public, anon;
grant execute on function public.momentum_caller_role() to authenticated, service_role;

-- auth.uid() and momentum_caller_role() stand in sub-selects so that they are asked once a query and not
-- once a row.
drop policy if exists "Users can view own momentum scores" on public.daily_engagement_scores;
create policy "Users can view own momentum scores" on public.daily_engagement_scores
    for select to authenticated using ((select auth.uid()) = user_id);

drop policy if exists "Users can view own notifications" on public.momentum_notifications;
create policy "Users can view own notifications" on public.momentum_notifications
    for select to authenticated using ((select auth.uid()) = user_id);

drop policy if exists "Users can update own notifications" on public.momentum_notifications;
create policy "Users can update own notifications" on public.momentum_notifications
    for update to authenticated
    using ((select auth.uid()) = user_id) with check ((select auth.uid()) = user_id);

drop policy if exists "Users can view own interventions" on public.coach_interventions;
create policy "Users can view own interventions" on public.coach_interventions
    for select to authenticated using ((select auth.uid()) = user_id);

drop policy if exists "Coaches can update assigned interventions" on public.coach_interventions;
create policy "Coaches can update assigned interventions" on public.coach_interventions
    for update to authenticated
    using ((select public.momentum_caller_role()) = 'coach' and (select auth.uid()) = assigned_coach_id)
    with check ((select public.momentum_caller_role()) = 'coach' and (select auth.uid()) = assigned_coach_id);

drop policy if exists "Service role manages momentum scores" on public.daily_engagement_scores;
create policy "Service role manages momentum scores" on public.daily_engagement_scores
    for all to service_role using (true) with check (true);
drop policy if exists "Service role manages notifications" on public.momentum_notifications;
create policy "Service role manages notifications" on public.momentum_notifications
    for all to service_role using (true) with check (true);
drop policy if exists "Service role manages interventions" on public.coach_interventions;
create policy "Service role manages interventions" on public.coach_interventions
    for all to service_role using (true) with check (true);

reset search_path;

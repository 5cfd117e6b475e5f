-- name: seen
-- The snapshot boundary: the snapshot, and an LSN above the commits of everything that it sees.
select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text

-- name: snapshot
-- As `seen`, with the snapshot of a user's connection; null or empty if the caller may not act for the user. Only
-- user-facing notifications: no event would report a change of the others. The newest 200, up to 16 MiB: clients accept
-- messages of 64 MiB, and one that refuses its snapshot could only ask for it again.
select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text,
    case when mine then public.get_realtime_momentum_state(%(user_id)s)::text end,
    case when mine then public.get_realtime_interventions(%(user_id)s)::text end,
    (
        select coalesce(json_agg(n.notification order by n.notification ->> 'created_at' desc, n.id), '[]')::text
        from (
            select r.id, r.notification,
                sum(octet_length(r.notification::text)) over (order by r.created_at desc, r.id) as bytes_so_far
            from (
                select m.created_at, m.id, jsonb_build_object(
                    'id', m.id, 'notification_type', m.notification_type, 'title', m.title, 'message', m.message,
                    'action_type', m.action_type, 'action_data', m.action_data, 'status', m.status,
                    'created_at', public.momentum_rfc3339(m.created_at),
                    'opened_at', public.momentum_rfc3339(m.opened_at)) as notification
                from public.momentum_notifications m
                where m.user_id = %(user_id)s
                  and m.status in ('pending', 'sent', 'delivered')
                  and m.notification_type in (
                      'momentum_drop', 'needs_care_consecutive', 'celebration', 'consistency_reminder')
                order by m.created_at desc, m.id
                limit 200
            ) as r
        ) as n
        where n.bytes_so_far <= 16777216
    )
from public.momentum_may_act_for(%(user_id)s) as mine

-- name: momentum
select public.get_realtime_momentum_state(%(user_id)s)::text

-- name: interventions
select public.get_realtime_interventions(%(user_id)s)::text

-- name: notifications
select coalesce(json_agg(n.notification order by n.created_at desc, n.id), '[]')::text, count(*) > 0
from (
    select m.created_at, m.id, jsonb_build_object(
        'id', m.id, 'notification_type', m.notification_type, 'title', m.title, 'message', m.message,
        'action_type', m.action_type, 'action_data', m.action_data, 'status', m.status,
        'created_at', public.momentum_rfc3339(m.created_at),
        'opened_at', public.momentum_rfc3339(m.opened_at)) as notification
    from public.momentum_notifications m
    where m.user_id = %(user_id)s
    order by m.created_at desc, m.id
    limit %(limit)s
) as n

-- name: history
-- The user's scores, oldest first.
select coalesce(json_agg(d.day order by d.score_date), '[]')::text,
    exists (select from public.daily_engagement_scores s where s.user_id = %(user_id)s)
from (
    select s.score_date, jsonb_build_object(
        'score_date', s.score_date, 'momentum_state', s.momentum_state, 'final_score', s.final_score,
        'events_count', s.events_count) as day
    from public.daily_engagement_scores s
    where s.user_id = %(user_id)s and s.score_date > current_date - %(days)s::int
    order by s.score_date
) as d

-- name: names
-- Display names by the operator's own function, as the caller, without users for whom it returns null.
select coalesce(jsonb_object_agg(n.user_id, n.name) filter (where n.name is not null), '{}')::text
from (
    select wanted.user_id, public.momentum_display_name(wanted.user_id) as name
    from unnest(%(user_ids)s::uuid[]) as wanted (user_id)
) as n

-- name: overview_users
-- The users with scores that the shipped policies let the caller see (null: all, or the policies have changed), and
-- whether the caller sees all interventions.
select
    case
        when public.momentum_is_unbound() or r.role = 'admin'
            or 'daily_engagement_scores' = any (r.changed) or 'coach_interventions' = any (r.changed) then null
        when r.role = 'coach' then array(
            select distinct i.user_id from public.coach_interventions i where i.assigned_coach_id = auth.uid()
            union select auth.uid())
        else array[auth.uid()]
    end,
    coalesce(r.role = 'coach', false)
from (
    select public.momentum_caller_role() as role, string_to_array(current_setting('momentum.changed'), ',') as changed
) as r

-- name: overview
-- Everything that the caller may see of these days, of all users or, by index, of some: the latest score of each user,
-- lowest first; the number of users in each state on each day; and all open interventions.
with scores as materialized (
    select s.user_id, s.score_date, s.momentum_state, s.final_score
    from public.daily_engagement_scores s
    where {scores} and s.score_date > current_date - %(days)s::int
),
latest as (
    select distinct on (s.user_id) s.user_id, s.score_date, s.momentum_state, s.final_score
    from scores s
    order by s.user_id, s.score_date desc
),
people as (
    select l.user_id, l.score_date, l.momentum_state, l.final_score
    from latest l
    order by l.final_score, l.user_id
    limit %(people)s
),
days as (
    select s.score_date,
        count(*) filter (where s.momentum_state = 'Rising') as rising,
        count(*) filter (where s.momentum_state = 'Steady') as steady,
        count(*) filter (where s.momentum_state = 'NeedsCare') as needs_care
    from scores s
    group by s.score_date
),
contacts as (
    select i.user_id, left(max(coalesce(to_jsonb(i) ->> 'completed_at', to_jsonb(i) ->> 'actual_date')), 10) as last_contact
    from public.coach_interventions i
    where {interventions} and i.status = 'completed' and i.user_id in (select p.user_id from people p)
    group by i.user_id
),
open_ones as (
    select i.id, i.user_id, i.intervention_type, i.status, i.scheduled_date, i.trigger_reason, i.created_at,
        to_jsonb(i) ->> 'scheduled_time' as scheduled_time  -- an adopted table may lack this column
    from public.coach_interventions i
    where {interventions} and i.status in ('scheduled', 'in_progress')
    order by i.scheduled_date nulls last, i.created_at, i.id
    limit %(interventions)s
)
select jsonb_build_object(
    'people', coalesce((
        select jsonb_agg(jsonb_build_object(
            'user_id', p.user_id, 'score_date', p.score_date, 'momentum_state', p.momentum_state,
            'final_score', p.final_score, 'last_contact', c.last_contact) order by p.final_score, p.user_id)
        from people p left join contacts c using (user_id)), '[]'),
    'days', coalesce((
        select jsonb_agg(jsonb_build_object(
            'score_date', d.score_date, 'Rising', d.rising, 'Steady', d.steady, 'NeedsCare', d.needs_care)
            order by d.score_date)
        from days d), '[]'),
    'interventions', coalesce((
        select jsonb_agg(jsonb_build_object(
            'id', o.id, 'user_id', o.user_id, 'intervention_type', o.intervention_type, 'status', o.status,
            'scheduled_date', o.scheduled_date, 'trigger_reason', o.trigger_reason,
            'created_at', public.momentum_rfc3339(o.created_at))
            order by o.scheduled_date nulls last, o.created_at, o.id)
        from open_ones o), '[]'))::text

-- name: mark_read
-- A clicked notification stays clicked, and the first time of opening stays.
update public.momentum_notifications m
set status = 'opened', opened_at = coalesce(m.opened_at, now())
where m.id = %(notification_id)s and m.user_id = %(user_id)s and m.status not in ('opened', 'clicked')

-- name: is_read
select m.status in ('opened', 'clicked')
from public.momentum_notifications m
where m.id = %(notification_id)s and m.user_id = %(user_id)s

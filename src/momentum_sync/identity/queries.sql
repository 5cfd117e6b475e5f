-- name: rights
-- Asked as the caller: whether it may act for a user, which of the channels it may have, and what this statement saw.
select
    %(user_id)s::uuid is null or public.momentum_may_act_for(%(user_id)s::uuid),
    coalesce(array_agg(channel order by place) filter (where granted is not null), '{}'),
    coalesce(array_agg(channel) filter (where granted = 'asked'), '{}'),
    pg_current_snapshot()::text
from (
    select channel, place, public.momentum_grant(channel) as granted
    from unnest(%(channels)s::text[]) with ordinality as wanted (channel, place)
) as answered

-- name: may_act_for
select public.momentum_may_act_for(%(user_id)s)

-- The statements below are asked as the caller, too. They take events as JSON, and answer with the numbers of those of
-- which the caller may SELECT the row, with every column that goes out, and with what the statement saw. Where the
-- policies of the table are changed, the row must be the version that the event tells of.

-- name: sees_daily_engagement_scores
select
    array(
        select e.number
        from unnest(%(numbers)s::bigint[], %(bodies)s::jsonb[]) as e (number, body)
        where exists (
            select from public.daily_engagement_scores s
            where s.user_id = (e.body ->> 'user_id')::uuid and s.score_date = (e.body ->> 'score_date')::date
                and (
                    'daily_engagement_scores' <> all (string_to_array(current_setting('momentum.changed'), ','))
                    or (s.momentum_state, s.final_score)
                        = (e.body ->> 'momentum_state', (e.body ->> 'final_score')::numeric)))),
    pg_current_snapshot()::text

-- name: sees_coach_interventions
select
    array(
        select e.number
        from unnest(%(numbers)s::bigint[], %(bodies)s::jsonb[]) as e (number, body)
        where exists (
            select from public.coach_interventions i
            where i.user_id = (e.body ->> 'user_id')::uuid and i.id = (e.body ->> 'intervention_id')::uuid
                and (
                    'coach_interventions' <> all (string_to_array(current_setting('momentum.changed'), ','))
                    or (i.intervention_type, i.trigger_reason, i.status, i.scheduled_date) is not distinct from (
                        e.body ->> 'intervention_type', e.body ->> 'trigger_reason', e.body ->> 'status',
                        (e.body ->> 'scheduled_date')::date)))),
    pg_current_snapshot()::text

-- name: sees_momentum_notifications
select
    array(
        select e.number
        from unnest(%(numbers)s::bigint[], %(bodies)s::jsonb[]) as e (number, body)
        where exists (
            select from public.momentum_notifications n
            where n.user_id = (e.body ->> 'user_id')::uuid and n.id = (e.body ->> 'notification_id')::uuid
                and (
                    'momentum_notifications' <> all (string_to_array(current_setting('momentum.changed'), ','))
                    or (n.notification_type, n.title, n.message, n.action_type, n.action_data, n.status)
                        is not distinct from (
                        e.body ->> 'notification_type', e.body ->> 'title', e.body ->> 'message',
                        e.body ->> 'action_type', e.body -> 'action_data', e.body ->> 'status')))),
    pg_current_snapshot()::text

-- name: sees_cache_invalidation
-- Keys of scores, whose events they come with: for whoever sees any score of the user.
select
    array(
        select e.number
        from unnest(%(numbers)s::bigint[], %(bodies)s::jsonb[]) as e (number, body)
        where exists (
            select from public.daily_engagement_scores s where s.user_id = (e.body ->> 'user_id')::uuid)),
    pg_current_snapshot()::text

-- name: allowed
-- Which of the rows that are given the caller's policies allow, what the statement saw, and the policies that hold for
-- the caller's SELECTs as they are: one of the permissive ones must be true, and all of the restrictive ones; null where
-- nothing may be SELECTed, or not every column.
select
    array(
        select e.number
        from unnest(%(numbers)s::bigint[], %(rows)s::jsonb[]) as e (number, version)
        cross join lateral jsonb_populate_record(null::{type}, e.version) as {row}
        where ({permissive}) and ({restrictive})),
    pg_current_snapshot()::text,
    (
        select case when row_security_active(c.oid) then array[
            coalesce(string_agg('(' || pg_get_expr(p.polqual, p.polrelid) || ')', ' or ')
                filter (where p.polpermissive), 'false'),
            coalesce(string_agg('(' || pg_get_expr(p.polqual, p.polrelid) || ')', ' and ')
                filter (where not p.polpermissive), 'true')
        ] else array['true', 'true'] end
        from pg_catalog.pg_class c
        left join pg_catalog.pg_policy p on p.polrelid = c.oid and p.polcmd in ('r', '*') and exists (
            select from unnest(p.polroles) as to_role (oid)
            where to_role.oid = 0 or pg_has_role(current_user, to_role.oid, 'usage'))
        where c.oid = to_regclass('public.' || %(table)s) and has_table_privilege(c.oid, 'select')
        group by c.oid
    ),
    %(table)s = any (string_to_array(current_setting('momentum.changed'), ','))

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

-- The statements below are asked as the caller, too: of which of these events the caller may SELECT the row, with every
-- column that goes out, and what the statement saw.

-- name: sees_daily_engagement_scores
select
    array(
        select e.number
        from unnest(%(numbers)s::bigint[], %(users)s::uuid[], %(days)s::date[]) as e (number, user_id, score_date)
        where exists (
            select s.user_id, s.score_date, s.momentum_state, s.final_score
            from public.daily_engagement_scores s
            where s.user_id = e.user_id and s.score_date = e.score_date)),
    pg_current_snapshot()::text

-- name: sees_coach_interventions
select
    array(
        select e.number
        from unnest(%(numbers)s::bigint[], %(users)s::uuid[], %(ids)s::uuid[]) as e (number, user_id, id)
        where exists (
            select i.intervention_type, i.trigger_reason, i.status, i.scheduled_date
            from public.coach_interventions i
            where i.user_id = e.user_id and i.id = e.id)),
    pg_current_snapshot()::text

-- name: sees_momentum_notifications
select
    array(
        select e.number
        from unnest(%(numbers)s::bigint[], %(users)s::uuid[], %(ids)s::uuid[]) as e (number, user_id, id)
        where exists (
            select n.notification_type, n.title, n.message, n.action_type, n.action_data, n.status
            from public.momentum_notifications n
            where n.user_id = e.user_id and n.id = e.id)),
    pg_current_snapshot()::text

-- name: policy
-- The policies that hold for the caller's SELECTs of a table, as expressions: one of the permissive ones must be true,
-- and all of the restrictive ones. Null where nothing may be SELECTed, or not every column.
select
    case when row_security_active(c.oid) then coalesce(
        string_agg('(' || pg_get_expr(p.polqual, p.polrelid) || ')', ' or ') filter (where p.polpermissive), 'false')
        else 'true' end,
    case when row_security_active(c.oid) then coalesce(
        string_agg('(' || pg_get_expr(p.polqual, p.polrelid) || ')', ' and ') filter (where not p.polpermissive), 'true')
        else 'true' end
from pg_catalog.pg_class c
left join pg_catalog.pg_policy p on p.polrelid = c.oid and p.polcmd in ('r', '*') and exists (
    select from unnest(p.polroles) as to_role (oid)
    where to_role.oid = 0 or pg_has_role(current_user, to_role.oid, 'usage'))
where c.oid = to_regclass(format('public.%%I', %(table)s::text)) and has_table_privilege(c.oid, 'select')
group by c.oid

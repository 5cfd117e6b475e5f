-- name: seen
-- What this transaction sees, and a place in the WAL behind the commits of all that it sees.
select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text

-- name: momentum
select public.get_realtime_momentum_state(%(user_id)s)::text

-- name: interventions
select public.get_realtime_interventions(%(user_id)s)::text

-- name: unread
-- Only what events speak of: a notification that is not user-facing would never be seen to change.
select coalesce(json_agg(n.notification order by n.created_at desc, n.id), '[]')::text
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
) as n

-- name: notifications
select coalesce(json_agg(n.notification order by n.created_at desc, n.id), '[]')::text, count(*)
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

-- name: mark_read
-- Clicked is further than opened, and the first opening is the one that counts.
update public.momentum_notifications m
set status = 'opened', opened_at = coalesce(m.opened_at, now())
where m.id = %(notification_id)s and m.user_id = %(user_id)s and m.status not in ('opened', 'clicked')

-- name: is_read
select m.status in ('opened', 'clicked')
from public.momentum_notifications m
where m.id = %(notification_id)s and m.user_id = %(user_id)s

-- name: names
-- Display names: users see their own, coaches everybody's. A real app has a table of profiles.
create table if not exists public.demo_people (user_id uuid primary key, name text not null);
alter table public.demo_people enable row level security;
revoke all on public.demo_people from anon, authenticated;
grant select on public.demo_people to authenticated, service_role;
drop policy if exists "Own names, and all for coaches" on public.demo_people;
create policy "Own names, and all for coaches" on public.demo_people for select to authenticated
    using (user_id = (select auth.uid()) or (select public.momentum_caller_role()) = 'coach');
create or replace function public.momentum_display_name(target uuid) returns text
language sql stable set search_path = pg_catalog, pg_temp
as 'select p.name from public.demo_people p where p.user_id = target'

-- name: publish
-- For Supabase's clients. At Supabase, each table is published by its owner.
do $$ begin
    if not exists (
        select from pg_catalog.pg_publication_tables
        where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = 'daily_engagement_scores')
    then
        alter publication supabase_realtime add table public.daily_engagement_scores;
    end if;
end $$

-- name: name
insert into public.demo_people (user_id, name) values (%(id)s, %(name)s)
on conflict (user_id) do update set name = excluded.name

-- name: person
insert into auth.users (id, email, raw_app_meta_data)
values (%(id)s, %(email)s, %(app_metadata)s)
on conflict (id) do nothing

-- name: score
-- Today's score, moved by a step; the state follows from it.
insert into public.daily_engagement_scores as s (
    user_id, score_date, raw_score, normalized_score, final_score, momentum_state, events_count, breakdown)
select %(user_id)s, current_date, score, score, score,
    case when score >= 66 then 'Rising' when score >= 40 then 'Steady' else 'NeedsCare' end,
    1, jsonb_build_object('lessons', round(score * 0.6), 'journal', round(score * 0.4))
from (select %(start)s::numeric as score) as started
on conflict (user_id, score_date) do update set
    (raw_score, normalized_score, final_score, momentum_state, events_count, breakdown) = (
        select score, score, score,
            case when score >= 66 then 'Rising' when score >= 40 then 'Steady' else 'NeedsCare' end,
            s.events_count + 1,
            jsonb_build_object('lessons', round(score * 0.6), 'journal', round(score * 0.4))
        from (select least(98, greatest(4, s.final_score + %(step)s)) as score) as moved)
returning momentum_state

-- name: past
-- A month of generated scores.
insert into public.daily_engagement_scores (
    user_id, score_date, raw_score, normalized_score, final_score, momentum_state, events_count, breakdown)
select %(user_id)s, current_date - d.ago::int, d.score, d.score, d.score,
    case when d.score >= 66 then 'Rising' when d.score >= 40 then 'Steady' else 'NeedsCare' end,
    1, jsonb_build_object('lessons', round(d.score * 0.6), 'journal', round(d.score * 0.4))
from unnest(%(scores)s::numeric[]) with ordinality as d (score, ago)
on conflict (user_id, score_date) do nothing

-- name: intervention
insert into public.coach_interventions (
    user_id, intervention_type, trigger_date, trigger_reason, trigger_momentum_state, assigned_coach_id, assigned_at,
    scheduled_date)
values (
    %(user_id)s, %(intervention_type)s, current_date, %(trigger_reason)s, 'NeedsCare', %(coach_id)s, now(),
    current_date + %(in_days)s::int)

-- name: advance_intervention
-- The intervention that has waited longest advances.
update public.coach_interventions
set status = case status when 'scheduled' then 'in_progress' else 'completed' end,
    completed_at = case status when 'in_progress' then now() end
where id = (
    select id from public.coach_interventions
    where status in ('scheduled', 'in_progress') and assigned_coach_id = %(coach_id)s
    order by updated_at limit 1 for update skip locked)

-- name: open_interventions
select count(*) from public.coach_interventions where status in ('scheduled', 'in_progress')

-- name: notification
insert into public.momentum_notifications (
    user_id, notification_type, trigger_date, title, message, action_type, status, sent_at)
values (%(user_id)s, %(notification_type)s, current_date, %(title)s, %(message)s, %(action_type)s, 'sent', now())

-- name: forget
-- A demo that runs for days keeps as much as its pages show. Unread notifications are marked as read before they are
-- deleted.
with old_interventions as (
    delete from public.coach_interventions where status = 'completed' and completed_at < now() - interval '2 minutes'
),
read_by_time as (
    update public.momentum_notifications set status = 'opened', opened_at = now()
    where status = 'sent' and created_at < now() - interval '10 minutes'
)
delete from public.momentum_notifications where status = 'opened' and opened_at < now() - interval '2 minutes'

-- name: receipts
-- The newest notifications of the first people, and how many of their devices have each.
select split_part(u.email, '@', 1), n.title, to_char(n.created_at, 'HH24:MI:SS'),
    coalesce(count(r.device) filter (where r.has_event), 0), count(r.device)
from public.momentum_notifications n
join auth.users u on u.id = n.user_id
left join lateral (
    -- `receipts` refuses null, so it must not be called for a notification whose event is not in the log.
    select r.device, r.has_event
    from (
        select e.event_id
        from momentum.event_ids('notifications:' || n.user_id, jsonb_build_object('notification_id', n.id)) as e
        limit 1
    ) as e
    cross join lateral momentum.receipts(n.user_id, e.event_id) as r
) as r on true
where n.user_id = any (%(people)s)
group by n.id, u.email, n.title, n.created_at
order by n.created_at desc
limit 20

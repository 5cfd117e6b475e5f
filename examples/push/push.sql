-- Pushes each notification that no device has received within a time. Apply it once, as the owner of the tables:
--
--   psql "$DATABASE_URL" -f push.sql
--
-- worker.py calls the app's function for what `public.due_pushes` returns; it connects as the owner or as a role in
-- service_role. Before `momentum-sync uninstall`: drop function public.due_pushes, public.plan_push cascade;

-- Notifications that may have to be pushed; each is settled once.
create table if not exists public.push_outbox (
    notification_id uuid primary key references public.momentum_notifications on delete cascade,
    user_id uuid not null,
    planned_at timestamptz not null default now(),
    due_at timestamptz not null,
    attempts integer not null default 0,
    settled_as text check (settled_as in ('received', 'pushed', 'given up'))
);
create index if not exists push_outbox_due_idx on public.push_outbox (due_at) where settled_as is null;
alter table public.push_outbox enable row level security;  -- no policy: only the owner and service_role
revoke all on public.push_outbox from anon, authenticated;
grant select, update on public.push_outbox to service_role;

create or replace function public.plan_push() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if not momentum.is_user_facing(new.notification_type) then  -- no event, and nothing to show
        return null;
    end if;
    -- Devices need time to confirm: MOMENTUM_RECEIPTS or the ping interval, plus a few seconds.
    insert into public.push_outbox (notification_id, user_id, due_at) values (new.id, new.user_id, now() + interval '30 seconds');
    return null;
end;
$$;
create or replace trigger z_plan_push after insert on public.momentum_notifications
for each row execute function public.plan_push();

-- Claim due notifications. Settle those that a device has received; return the others, which become due again later.
create or replace function public.due_pushes(most integer, again_after interval)
returns table (notification_id uuid, user_id uuid, attempts integer)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        with due as (
            select o.notification_id, o.user_id, o.planned_at
            from public.push_outbox o
            where o.settled_as is null and o.due_at <= now()
            order by o.due_at
            limit most
            for update of o skip locked  -- another worker has those
        ),
        known as (
            select d.*, exists (
                select
                from momentum.event_ids(
                    'notifications:' || d.user_id, jsonb_build_object('notification_id', d.notification_id),
                    d.planned_at - interval '1 minute') as e
                cross join lateral momentum.receipts(d.user_id, e.event_id) as r
                where r.has_event
            ) as is_received
            from due d
        ),
        taken as (
            update public.push_outbox o
            set settled_as = case when k.is_received then 'received' end,
                attempts = o.attempts + case when k.is_received then 0 else 1 end,
                due_at = now() + again_after * power(2, least(o.attempts, 6))
            from known k
            where o.notification_id = k.notification_id
            returning o.notification_id, o.user_id, o.attempts, o.settled_as
        )
        select t.notification_id, t.user_id, t.attempts from taken t where t.settled_as is null;
end;
$$;
revoke all on function public.due_pushes(integer, interval) from public;
grant execute on function public.due_pushes(integer, interval) to service_role;

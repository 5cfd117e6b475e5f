-- The channels of the momentum app: the rights to join them, and the messages of the database. Apply it once, as the
-- owner of the tables:
--
--   psql "$DATABASE_URL" -f channels.sql

-- Each user has a private channel, momentum_updates:<user>.
create policy "users get their own momentum updates" on realtime.messages for select to authenticated
using (extension = 'broadcast' and realtime.topic() = 'momentum_updates:' || (select auth.uid()));

-- On the private channel coaches, coaches see who else is online.
create policy "coaches see each other" on realtime.messages for select to authenticated
using (realtime.topic() = 'coaches' and (select auth.jwt()) -> 'app_metadata' ->> 'role' = 'coach');

create policy "coaches are present" on realtime.messages for insert to authenticated
with check (
    extension = 'presence' and realtime.topic() = 'coaches'
    and (select auth.jwt()) -> 'app_metadata' ->> 'role' = 'coach');

-- A message to the user when the state of a score changes. It leaves with the commit.
create function public.tell_momentum() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform realtime.send(
        jsonb_build_object('from', old.momentum_state, 'to', new.momentum_state),
        'state_changed', 'momentum_updates:' || new.user_id);
    return null;
end;
$$;

create trigger z_tell_momentum after update on public.daily_engagement_scores
for each row when (old.momentum_state is distinct from new.momentum_state)
execute function public.tell_momentum();

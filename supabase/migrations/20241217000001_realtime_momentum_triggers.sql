-- Replica identity and publication of the three tables, as Supabase's own clients need them.
--
-- Creates: nothing.
-- Changes in your tables: replica identity full, so that the WAL has the whole old row of an update or a delete;
--   membership in the publication supabase_realtime.
-- Locks: each table for a moment, exclusively, unless it is so already.
-- Needs: the three tables, the publication supabase_realtime; their owner.
-- Undo: `alter table … replica identity default`; `alter publication supabase_realtime drop table …`. `momentum-sync
--   uninstall` leaves both, because the app's own clients may need them.

-- pg_temp comes last in search_path, so that no object of a session can replace one of PostgreSQL while this file runs.
-- Notices about existing objects are suppressed.
set search_path = pg_catalog, pg_temp;
set client_min_messages = warning;


do $$
declare
    wanted text;
begin
    foreach wanted in array array['daily_engagement_scores', 'momentum_notifications', 'coach_interventions'] loop
        if (select c.relreplident from pg_class c where c.oid = to_regclass('public.' || wanted)) <> 'f' then
            execute format('alter table public.%I replica identity full', wanted);
        end if;
        if not exists (
            select from pg_publication p
            where p.pubname = 'supabase_realtime' and (
                p.puballtables
                or exists (
                    select from pg_publication_rel r
                    where r.prpubid = p.oid and r.prrelid = to_regclass('public.' || wanted))
                or exists (
                    select from pg_publication_namespace n
                    where n.pnpubid = p.oid and n.pnnspid = 'public'::regnamespace))
        ) then
            execute format('alter publication supabase_realtime add table public.%I', wanted);
        end if;
    end loop;
end;
$$;

reset client_min_messages;
reset search_path;

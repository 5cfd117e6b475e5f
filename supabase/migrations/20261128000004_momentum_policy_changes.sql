-- Changed policies are noticed in the transaction that changes them. Optional: without it, within a second.
--
-- Creates: the event trigger momentum_policies with its function.
-- Changes in your tables: none.
-- Locks: none.
-- Needs: 20261128000003_momentum_authorization; a superuser, or Supabase's role postgres. For another role the event
--   trigger is left out.
-- Undo: `drop event trigger momentum_policies`, or `momentum-sync uninstall`.

-- PostgreSQL's own names come first and the session's temporary schema last, so that nobody's objects stand in for them
-- while this file runs. What is there already is no news.
set search_path = pg_catalog, pg_temp;
set client_min_messages = warning;


-- The same at once, in the transaction that changes a policy: so the word of it stands in the WAL before any event
-- that the new policy is for. Whatever is wrong with it, the operator's statement goes on. What was dropped, and on what
-- rights were granted, an event trigger is not told; of all else only what is ours is looked at.
create or replace function momentum.policies_may_have_changed() returns event_trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
begin
    if tg_tag in (
        'CREATE POLICY', 'ALTER POLICY', 'ALTER TABLE', 'CREATE FUNCTION', 'ALTER FUNCTION', 'ALTER ROUTINE'
    ) and not exists (
        select from pg_event_trigger_ddl_commands() as done
        where done.objid in (
                to_regclass('public.daily_engagement_scores')::oid, to_regclass('public.coach_interventions')::oid,
                to_regclass('public.momentum_notifications')::oid)
            or done.object_identity = 'public.momentum_caller_role()'
            or done.object_identity like '% on public.daily_engagement_scores'
            or done.object_identity like '% on public.coach_interventions'
            or done.object_identity like '% on public.momentum_notifications'
    ) then
        return;
    end if;
    perform momentum.note_policies();
exception when others then
    raise warning 'momentum: changed policies are noticed within a second, not at once: %', sqlerrm;
end;
$$;

do $$
begin
    if exists (
        select from pg_event_trigger t join pg_proc p on p.oid = t.evtfoid
        where t.evtname = 'momentum_policies' and p.pronamespace = 'momentum'::regnamespace
    ) then
        drop event trigger momentum_policies;
    end if;
    create event trigger momentum_policies on ddl_command_end
        when tag in (
            'CREATE POLICY', 'ALTER POLICY', 'DROP POLICY', 'ALTER TABLE', 'DROP TABLE', 'DROP OWNED', 'GRANT',
            'REVOKE', 'CREATE FUNCTION', 'ALTER FUNCTION', 'ALTER ROUTINE', 'DROP FUNCTION', 'DROP ROUTINE')
        execute function momentum.policies_may_have_changed();
exception when insufficient_privilege then
    null;  -- it takes a superuser; without it changed policies are noticed within a second, as `migrate` says
end;
$$;


select momentum.settle();

reset client_min_messages;
reset search_path;

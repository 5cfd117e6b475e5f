-- Detection of changed policies in the transaction that changes them. Optional: without it they are detected within a
-- second.
--
-- Creates: the event trigger momentum_policies with its function.
-- Changes in your tables: none.
-- Locks: none.
-- Needs: 20261128000003_momentum_authorization; a superuser, or Supabase's role postgres. For another role the event
--   trigger is left out.
-- Undo: `drop event trigger momentum_policies`, or `momentum-sync uninstall`.

-- pg_temp comes last in search_path, so that no object of a session can replace one of PostgreSQL while this file runs.
-- Notices about existing objects are suppressed.
set search_path = pg_catalog, pg_temp;
set client_min_messages = warning;


-- Check the policies in the transaction that changes one, so that the notice precedes, in the WAL, every event that the
-- new policy applies to. An error here never fails the operator's statement. Event triggers do not see the objects of
-- DROP and GRANT; of other statements only those on the app's tables are checked. Changes of rows of all tables, which
-- only Supabase's protocol delivers, get a notice of their own.
create or replace function momentum.policies_may_have_changed() returns event_trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
begin
    -- Rights on rows of any table may depend on any of these statements: gateways read them again.
    perform momentum.publish(
        array['momentum:control'], jsonb_build_object('event_type', 'row_rights_changed'), null::jsonb);
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
    alter event trigger momentum_policies enable always;  -- also for sessions in the role of a replica
exception when insufficient_privilege then
    null;  -- it needs a superuser; without it changed policies are detected within a second, as `migrate` reports
end;
$$;


select momentum.settle();

reset client_min_messages;
reset search_path;

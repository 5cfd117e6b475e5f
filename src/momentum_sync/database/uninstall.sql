-- Removes the objects that the migrations created. The app's tables stay with their data, policies, grants and the
-- trigger of
-- `updated_at`. Only partitions of the log are dropped with CASCADE: if an object of the operator depends on something
-- here, the error names it.

do $$
begin
    if exists (
        select from pg_event_trigger t join pg_proc p on p.oid = t.evtfoid
        where t.evtname = 'momentum_policies' and p.pronamespace = to_regnamespace('momentum')
    ) then
        drop event trigger momentum_policies;
    end if;
    if exists (
        select from pg_publication p
        where p.pubname = 'momentum_sync' and not p.puballtables
            and not exists (select from pg_publication_tables t where t.pubname = p.pubname)
    ) then
        drop publication momentum_sync;
    end if;
end;
$$;

do $$
declare
    made record;
    tables regclass[] := array_remove(array[
        to_regclass('public.daily_engagement_scores'), to_regclass('public.momentum_notifications'),
        to_regclass('public.coach_interventions')], null);
    functions text;
begin
    for made in
        select t.tgname as name, t.tgrelid::regclass as of_table
        from pg_trigger t
        where t.tgrelid = any (tables) and t.tgname in (
            'momentum_score_realtime_trigger', 'momentum_cache_invalidation_trigger', 'intervention_realtime_trigger',
            'notification_realtime_trigger', 'momentum_score_truncate_trigger', 'intervention_truncate_trigger',
            'notification_truncate_trigger')
    loop
        execute format('drop trigger %I on %s', made.name, made.of_table);
    end loop;
    -- The shipped policies call a function of the product; an app's own policy of the same name does not.
    for made in
        select p.polname as name, p.polrelid::regclass as of_table
        from pg_policy p
        where p.polrelid = any (tables)
            and p.polname in (
                'Coaches can view all interventions', 'Coaches can view scores of assigned users',
                'Admins can view all scores', 'Admins can view all notifications', 'Admins can view all interventions')
            and pg_get_expr(p.polqual, p.polrelid) like '%momentum_caller_role()%'
    loop
        execute format('drop policy %I on %s', made.name, made.of_table);
    end loop;
    if obj_description(to_regclass('public.realtime_event_metrics'), 'pg_class') like '%Made by Momentum Sync.' then
        drop table public.realtime_event_metrics;
    end if;
    for made in
        select c.oid::regclass as name from pg_class c
        where c.relnamespace = to_regnamespace('momentum') and c.relkind in ('r', 'p')
            and c.relname in (
                'settings', 'policies', 'revocations', 'installed', 'event_log', 'stream', 'followed_tables',
                'realtime_sessions', 'devices')
    loop
        execute format('drop table %s', made.name);
    end loop;
    select string_agg(p.oid::regprocedure::text, ', ') into functions
    from pg_proc p
    where p.pronamespace = to_regnamespace('momentum')
            and p.proname = any (string_to_array(current_setting('momentum.uninstall_functions'), ','))
        or p.pronamespace = 'public'::regnamespace and p.proname in (
            'publish_momentum_update', 'publish_intervention_notification', 'publish_push_notification',
            'invalidate_momentum_cache', 'get_realtime_momentum_state', 'get_realtime_interventions',
            'subscribe_to_momentum_channels', 'log_realtime_event', 'cleanup_realtime_metrics', 'momentum_rfc3339',
            'momentum_caller_role', 'momentum_is_unbound', 'momentum_may_act_for', 'momentum_must_act_for',
            'momentum_grant')
        -- A function that the operator replaced belongs to the operator.
        or p.oid = to_regprocedure('public.momentum_display_name(uuid)') and p.prosrc = 'select null::text'
        or p.oid = to_regprocedure('public.momentum_set_updated_at()')
            and not exists (select from pg_trigger t where t.tgfoid = p.oid);
    if functions is not null then
        execute 'drop function ' || functions;
    end if;
end;
$$;

-- Broadcasts from the database, unless they are Supabase's.
do $$
declare
    mark constant text := '%Made by Momentum Sync.';
    schema_id oid := to_regnamespace('realtime');
    made record;
begin
    if current_setting('momentum.uninstall_realtime') = 'no' then  -- functions of the app use it
        return;
    end if;
    if obj_description((
        select c.oid from pg_class c where c.relnamespace = schema_id and c.relname = 'messages'), 'pg_class') like mark
    then
        drop publication if exists supabase_realtime_messages_publication;
        drop table realtime.messages;
    else
        -- Of Supabase's table only the partitions are ours.
        for made in
            select c.oid::regclass as name from pg_class c
            where c.relnamespace = schema_id and obj_description(c.oid, 'pg_class') like mark
        loop
            execute format('drop table %s', made.name);
        end loop;
    end if;
    for made in
        select p.oid::regprocedure as name from pg_proc p
        where p.pronamespace = schema_id and obj_description(p.oid, 'pg_proc') like mark
    loop
        execute format('drop function %s', made.name);
    end loop;
    if obj_description(schema_id, 'pg_namespace') like mark then
        drop schema realtime;
    end if;
end;
$$;

drop sequence if exists momentum.realtime_session_numbers;
drop schema if exists momentum_log cascade;
drop schema if exists momentum;

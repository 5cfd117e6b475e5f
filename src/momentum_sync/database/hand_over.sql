-- Gives a role the product's objects that belong to a superuser, and no others, so that the role can migrate. ALTER …
-- OWNER and GRANT run no code of the role. The settings `momentum.hand_over_…` of the transaction have its name, and
-- the names of the product's tables and functions in schema public.

do $$
declare
    owner name := current_setting('momentum.hand_over_owner');
    tables text[] := string_to_array(current_setting('momentum.hand_over_tables'), ',');
    functions text[] := string_to_array(current_setting('momentum.hand_over_functions'), ',');
    ours oid[] := array(
        select n.oid from pg_namespace n
        where n.nspname in ('momentum', 'momentum_log', 'supabase_migrations')
            or n.nspname = 'realtime' and obj_description(n.oid, 'pg_namespace') like '%Made by Momentum Sync.');
    made text;
begin
    execute format('grant create on database %I to %I', current_database(), owner);
    execute format('grant create on schema public to %I', owner);
    execute format('grant usage on schema auth to %I', owner);
    execute format('grant references on auth.users to %I', owner);
    for made in
        select quote_ident(p.pubname) from pg_publication p join pg_roles r on r.oid = p.pubowner
        where p.pubname in ('supabase_realtime', 'momentum_sync', 'supabase_realtime_messages_publication')
            and r.rolsuper
    loop
        execute format('alter publication %s owner to %I', made, owner);
    end loop;
    -- Otherwise a superuser's DDL would run a function that the role can replace.
    if exists (
        select from pg_event_trigger t join pg_proc p on p.oid = t.evtfoid
        where t.evtname = 'momentum_policies' and p.pronamespace = any (ours)
    ) then
        drop event trigger momentum_policies;
    end if;
    for made in
        select 'schema ' || quote_ident(n.nspname) from pg_namespace n join pg_roles r on r.oid = n.nspowner
        where n.oid = any(ours) and r.rolsuper
        union all
        select 'table ' || c.oid::regclass from pg_class c join pg_roles r on r.oid = c.relowner
        where (c.relkind in ('r', 'p') or c.oid = to_regclass('momentum.realtime_session_numbers')) and r.rolsuper
            and (c.relnamespace = any(ours) or c.relnamespace = 'public'::regnamespace and c.relname = any(tables))
        union all
        select 'function ' || p.oid::regprocedure from pg_proc p join pg_roles r on r.oid = p.proowner
        where p.prokind = 'f' and r.rolsuper
            and (p.pronamespace = any(ours) or p.pronamespace = 'public'::regnamespace and p.proname = any(functions))
    loop
        execute format('alter %s owner to %I', made, owner);
    end loop;
end;
$$;

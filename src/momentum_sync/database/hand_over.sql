-- Gives a role what is ours and belongs to a superuser, so that the role can migrate. ALTER … OWNER and GRANT run none
-- of the role's code. Settings `momentum.hand_over_…` of the transaction have its name, and the names of our tables and
-- functions in schema public.

do $$
declare
    owner name := current_setting('momentum.hand_over_owner');
    tables text[] := string_to_array(current_setting('momentum.hand_over_tables'), ',');
    functions text[] := string_to_array(current_setting('momentum.hand_over_functions'), ',');
    ours oid[] := array(
        select n.oid from pg_namespace n where n.nspname in ('momentum', 'momentum_log', 'supabase_migrations'));
    made text;
begin
    execute format('grant create on database %I to %I', current_database(), owner);
    execute format('grant create on schema public to %I', owner);
    execute format('grant usage on schema auth to %I', owner);
    execute format('grant references on auth.users to %I', owner);
    execute format('alter publication supabase_realtime owner to %I', owner);
    -- It would have a superuser's DDL run a function that the role may replace.
    drop event trigger if exists momentum_policies;
    for made in
        select 'schema ' || quote_ident(n.nspname) from pg_namespace n where n.oid = any(ours)
        union all
        select 'table ' || c.oid::regclass from pg_class c
        where c.relkind in ('r', 'p')
            and (c.relnamespace = any(ours) or c.relnamespace = 'public'::regnamespace and c.relname = any(tables))
        union all
        select 'function ' || p.oid::regprocedure from pg_proc p
        where p.prokind = 'f'
            and (p.pronamespace = any(ours) or p.pronamespace = 'public'::regnamespace and p.proname = any(functions))
    loop
        execute format('alter %s owner to %I', made, owner);
    end loop;
end;
$$;

-- What a role needs to be the server's: no SUPERUSER, no BYPASSRLS, no REPLICATION, and none of the app's tables. It becomes
-- its callers, asks the functions of `momentum` that are made for it, and owns the log. `%1$I` is the role.
--
-- As a member of `authenticated` and `service_role` it has their rights only where it has become them, so make it with
-- `noinherit`.
grant authenticated, service_role to %1$I;
grant usage, create on schema momentum to %1$I;
grant execute on function momentum.become(text, text), momentum.admit(jsonb), momentum.check_policies() to %1$I;

do $$
declare
    part regclass;
begin
    for part in
        select 'momentum.stream'::regclass union all select relid from pg_partition_tree('momentum.event_log')
    loop
        execute format('alter table %%s owner to %%I', part, %1$L);
    end loop;
end;
$$;

-- What a role needs to be the server's: no SUPERUSER, no BYPASSRLS, no REPLICATION, and none of the app's tables. It becomes
-- its callers, asks the functions of `momentum` that are made for it, and owns the log. `%1$I` is the role; `%2$s` has it
-- have the rights of its callers only where it has become them.
grant authenticated, service_role to %1$I %2$s;
grant usage on schema momentum to %1$I;
grant usage, create on schema momentum_log to %1$I;
grant execute on function momentum.become(text, text), momentum.admit(jsonb), momentum.check_policies() to %1$I;

-- Who gets a table must be able to make one where it stands, for the moment.
grant create on schema momentum to %1$I;
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
revoke create on schema momentum from %1$I;

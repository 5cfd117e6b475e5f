-- What a role needs to be the server's: no SUPERUSER, no BYPASSRLS, no REPLICATION, and none of the app's tables. It becomes
-- its callers, calls the functions of `momentum` that are made for it, and appends to the log. `%1$I` is the role; `%2$s` has
-- it have the rights of its callers only where it has become them.
grant authenticated, service_role to %1$I %2$s;
grant usage on schema momentum to %1$I;
revoke all on schema momentum_log from %1$I;
grant execute on function
    momentum.become(text, text), momentum.admit(jsonb), momentum.check_policies(), momentum.keep_partitions(interval),
    momentum.check_publishing(), momentum.mark(pg_lsn, timestamptz)
    to %1$I;
grant select, insert on momentum.event_log to %1$I;
grant select, insert, update on momentum.stream to %1$I;

-- A policy without a condition costs a query nothing, and leaves its indexes in use.
do $$
declare
    log regclass;
begin
    foreach log in array array['momentum.event_log', 'momentum.stream']::regclass[] loop
        execute format('drop policy if exists %%I on %%s', 'The server keeps the log: ' || %1$L, log);
        execute format('create policy %%I on %%s for all to %%I using (true) with check (true)',
            'The server keeps the log: ' || %1$L, log, %1$L);
    end loop;
end;
$$;

-- The privileges of the server's role: no SUPERUSER, BYPASSRLS or REPLICATION, and no privilege on the app's tables. It
-- may SET ROLE to its callers' roles, call its functions in `momentum`, and append to the log. `%1$I` is the role;
-- `%2$s` makes the memberships not inherit.
grant anon, authenticated, service_role to %1$I %2$s;
grant usage on schema momentum to %1$I;
revoke all on schema momentum_log from %1$I;
grant execute on function
    momentum.become(text, text), momentum.admit(jsonb), momentum.check_policies(),
    momentum.accept_policies(text, text, text), momentum.keep_partitions(interval), momentum.check_publishing(),
    momentum.keep_message_partitions(), momentum.place_messages(text),
    momentum.mark(pg_lsn, timestamptz)
    to %1$I;
grant select, insert on momentum.event_log to %1$I;
grant select, insert, update on momentum.stream to %1$I;
grant select, insert, update, delete
    on momentum.followed_tables, momentum.realtime_sessions, momentum.devices to %1$I;
grant select on momentum.policies to %1$I;
grant usage on sequence momentum.realtime_session_numbers to %1$I;

-- A policy without a condition costs nothing, and does not prevent index scans.
do $$
declare
    log regclass;
begin
    foreach log in array array[
        'momentum.event_log', 'momentum.stream', 'momentum.followed_tables', 'momentum.realtime_sessions',
        'momentum.devices', 'momentum.policies']::regclass[]
    loop
        execute format('drop policy if exists %%I on %%s', 'The server keeps the log: ' || %1$L, log);
        execute format('create policy %%I on %%s for all to %%I using (true) with check (true)',
            'The server keeps the log: ' || %1$L, log, %1$L);
    end loop;
end;
$$;

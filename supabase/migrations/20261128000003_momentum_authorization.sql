-- Authorization: policies for coaches and admins, grants of channels, revocation, and knowledge of changed policies.
--
-- Creates: functions public.momentum_caller_role(), momentum_is_unbound(), momentum_may_act_for(uuid),
--   momentum_must_act_for(uuid), momentum_grant(text); tables momentum.policies and momentum.revocations with their
--   functions.
-- Changes in your tables: adds policies by which coaches see interventions and their users' scores, and admins see
--   everything, unless there are policies of these names. No policy is dropped and no grant is changed, but for a
--   policy "Coaches can view all interventions" that takes a coach's role from user_metadata, which users can edit
--   themselves: it takes it from app_metadata now.
-- Locks: each of the three tables for a moment, exclusively, where a policy is added.
-- Needs: 20261128000002_momentum_triggers; the tables' owner.
-- Undo: `momentum-sync uninstall`, which keeps tables and data.

-- pg_temp comes last in search_path, so that no object of a session can replace one of PostgreSQL while this file runs.
-- Notices about existing objects are suppressed.
set search_path = pg_catalog, pg_temp;
set client_min_messages = warning;


-- The caller ----------------------------------------------------------------------------------------------------------

-- Only the service can write app_metadata. Users can edit user_metadata, so it proves nothing.
create or replace function public.momentum_caller_role() returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select auth.jwt() -> 'app_metadata' ->> 'role'
$$;
comment on function public.momentum_caller_role() is 'Return the caller''s role in the coaching organisation, `coach`, `admin` or null, from the token''s `app_metadata`.

Example:
    select public.momentum_caller_role()';
revoke all on function public.momentum_caller_role() from public, anon;
grant execute on function public.momentum_caller_role() to authenticated, service_role;

create or replace function public.momentum_is_unbound() returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select from pg_catalog.pg_roles r
        where r.rolname = current_user and (r.rolbypassrls or r.rolsuper)
    ) or exists (
        select from pg_catalog.pg_class c
        where c.oid = 'public.daily_engagement_scores'::regclass and pg_has_role(current_user, c.relowner, 'usage'))
$$;
comment on function public.momentum_is_unbound() is 'Return whether the caller is exempt from row level security: service_role, and the owner of the tables.

Example:
    select public.momentum_is_unbound()';

create or replace function public.momentum_may_act_for(target uuid) returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select target is not null and (
        coalesce(target = auth.uid(), false)
        or coalesce(public.momentum_caller_role() = 'admin', false)
        or public.momentum_is_unbound())
$$;
comment on function public.momentum_may_act_for(uuid) is 'Return whether the caller may act for a user: the user, an admin, and callers exempt from row level security.

Args:
    target: the user; null is nobody.
Example:
    select public.momentum_may_act_for(''11111111-1111-4111-8111-111111111111'')';

create or replace function public.momentum_must_act_for(target uuid) returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if not public.momentum_may_act_for(target) then
        raise exception 'not allowed to read the data of user %', coalesce(target::text, 'null')
            using errcode = 'insufficient_privilege';
    end if;
end;
$$;
comment on function public.momentum_must_act_for(uuid) is 'Raise an error unless the caller may act for a user.

Args:
    target: the user.
Raises:
    insufficient_privilege: the caller may not.
Example:
    select public.momentum_must_act_for(''11111111-1111-4111-8111-111111111111'')';

revoke all on function
    public.momentum_may_act_for(uuid), public.momentum_is_unbound(), public.momentum_must_act_for(uuid)
    from public, anon;
grant execute on function
    public.momentum_may_act_for(uuid), public.momentum_is_unbound(), public.momentum_must_act_for(uuid)
    to authenticated, service_role;

-- Display names -----------------------------------------------------------------------------------------------

-- It runs under the caller's role, so row level security applies. These files never replace it again.
do $$
begin
    if to_regprocedure('public.momentum_display_name(uuid)') is null then
        create function public.momentum_display_name(target uuid) returns text
        language sql
        stable
        set search_path = pg_catalog, pg_temp
        as 'select null::text';
        comment on function public.momentum_display_name(uuid) is 'Return the display name of a user, as far as the
caller may know it; null otherwise. As installed, it returns null: replace it with a function that reads the app''s
profiles.

Args:
    target: the user.
Example:
    select public.momentum_display_name(''11111111-1111-4111-8111-111111111111'')';
        revoke all on function public.momentum_display_name(uuid) from public, anon;
        grant execute on function public.momentum_display_name(uuid) to authenticated, service_role;
    end if;
end;
$$;


-- Policies for coaches and admins -------------------------------------------------------------------------------------

-- An app that has policies of these names keeps them.
do $$
declare
    has text[] := array(
        select c.relname || ': ' || p.polname from pg_policy p join pg_class c on c.oid = p.polrelid
        where c.relnamespace = 'public'::regnamespace);
begin
    if 'coach_interventions: Coaches can view all interventions' <> all (has) then
        create policy "Coaches can view all interventions" on public.coach_interventions
            for select to authenticated using ((select public.momentum_caller_role()) = 'coach');
    end if;
    if 'daily_engagement_scores: Coaches can view scores of assigned users' <> all (has) then
        create policy "Coaches can view scores of assigned users" on public.daily_engagement_scores
            for select to authenticated using (
                (select public.momentum_caller_role()) = 'coach'
                and user_id in (
                    select i.user_id from public.coach_interventions i
                    where i.assigned_coach_id = (select auth.uid())));
    end if;
    if 'daily_engagement_scores: Admins can view all scores' <> all (has) then
        create policy "Admins can view all scores" on public.daily_engagement_scores
            for select to authenticated using ((select public.momentum_caller_role()) = 'admin');
    end if;
    if 'momentum_notifications: Admins can view all notifications' <> all (has) then
        create policy "Admins can view all notifications" on public.momentum_notifications
            for select to authenticated using ((select public.momentum_caller_role()) = 'admin');
    end if;
    if 'coach_interventions: Admins can view all interventions' <> all (has) then
        create policy "Admins can view all interventions" on public.coach_interventions
            for select to authenticated using ((select public.momentum_caller_role()) = 'admin');
    end if;
    -- The seed's form reads the role from user_metadata, which users can edit. The policy stays the app's and calls no
    -- function of these migrations. A modified one is reported and kept.
    if exists (
        select from pg_policy p
        where p.polrelid = 'public.coach_interventions'::regclass and p.polname = 'Coaches can view all interventions'
            and regexp_replace(pg_get_expr(p.polqual, p.polrelid), '\s+', ' ', 'g') ~ (
                '^\(EXISTS \( SELECT( 1)? FROM auth\.users( \w+)? WHERE \(\(\w+\.id = auth\.uid\(\)\) AND '
                '\(\(\w+\.raw_user_meta_data ->> ''role''::text\) = ''coach''::text\)\)\)\)$')
    ) then
        alter policy "Coaches can view all interventions" on public.coach_interventions
            using (((select auth.jwt()) -> 'app_metadata' ->> 'role') = 'coach');
    end if;
    -- As an earlier version of these migrations created it, with a function that `uninstall` removes.
    if exists (
        select from pg_policy p
        where p.polrelid = 'public.coach_interventions'::regclass
            and p.polname = 'Coaches can update assigned interventions'
            and pg_get_expr(p.polqual, p.polrelid) like '%momentum_caller_role()%'
            and regexp_replace(pg_get_expr(p.polqual, p.polrelid), '\( SELECT (\S+\(\)) AS \w+\)', '\1', 'g') in (
                '((public.momentum_caller_role() = ''coach''::text) AND (auth.uid() = assigned_coach_id))',
                '((public.momentum_caller_role() = ''coach''::text) AND (assigned_coach_id = auth.uid()))')
            and pg_get_expr(p.polwithcheck, p.polrelid) = pg_get_expr(p.polqual, p.polrelid)
    ) then
        alter policy "Coaches can update assigned interventions" on public.coach_interventions
            using (((select auth.jwt()) -> 'app_metadata' ->> 'role') = 'coach'
                and (select auth.uid()) = assigned_coach_id)
            with check (((select auth.jwt()) -> 'app_metadata' ->> 'role') = 'coach'
                and (select auth.uid()) = assigned_coach_id);
    end if;
end;
$$;

-- Policies: as shipped, or changed since ----------------------------------------------------------------------------

-- The policies decide the receivers of each event. What is known of them lets the server serve most events without a
-- query for each. The text of policies is compared here, in the transaction that changes one. If it differs, the
-- policies count as changed until `migrate` or the server has compared their meaning: policies of other names or
-- spellings may allow the same rows (src/momentum_sync/identity/policy_equality.py).
--
-- As shipped, they grant rows by the token alone, with one exception: a coach sees the scores of assigned users, and
-- assignments are rows. So a channel is *granted* if the token alone grants it, and *checked* if rows or an operator's
-- own policies decide; on a checked channel the server has the database check each event, as the caller, before it is
-- delivered.

-- The policies that apply to SELECTs of an authenticated caller, without their names.
create or replace function momentum.policies_of(target regclass) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
set quote_all_identifiers = off
as $$
    select string_agg(distinct concat_ws(' ', p.kind, p.expression), E'\n' order by concat_ws(' ', p.kind, p.expression))
    from (
        select case when p.polpermissive then 'permissive' else 'restrictive' end as kind,
            coalesce(pg_get_expr(p.polqual, p.polrelid), 'true') as expression
        from pg_policy p
        where p.polrelid = target and p.polcmd in ('r', '*') and exists (
            select from unnest(p.polroles) as to_role (oid)
            where to_role.oid = 0 or pg_has_role('authenticated', to_role.oid, 'usage'))
    ) as p
$$;

-- The present policies and privileges that decide which rows and columns of a table an authenticated caller may select.
create or replace function momentum.describe_policies(target text) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select concat_ws(E'\n',
        'row level security ' || c.relrowsecurity,
        'readable ' || (has_table_privilege('authenticated', c.oid, 'select')
            and has_schema_privilege('authenticated', 'public', 'usage')),
        -- A policy of the scores reads assignments; if callers may not read those, no score can be selected.
        'assignments ' || (
            select count(*) = 2 and bool_and(has_column_privilege('authenticated', a.attrelid, a.attnum, 'select'))
            from pg_catalog.pg_attribute a
            where target = 'daily_engagement_scores' and a.attrelid = to_regclass('public.coach_interventions')
                and a.attname in ('user_id', 'assigned_coach_id')
            having target = 'daily_engagement_scores'),
        'role ' || (
            select md5(concat_ws(' ', p.prosrc, p.proconfig::text, p.prosecdef)) from pg_catalog.pg_proc p
            where p.oid = to_regprocedure('public.momentum_caller_role()')),
        momentum.policies_of(c.oid::regclass))
    from pg_catalog.pg_class c
    where c.oid = to_regclass(format('public.%I', target))
$$;

-- The same as shipped, in the spelling of this PostgreSQL: read from policies created on an empty table, because those
-- on the real table may have been altered.
create or replace function momentum.shipped_policies(target text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    ours record;
    described text;
begin
    create temporary table momentum_shipped (user_id uuid);
    for ours in
        select name, expression
        from (values
            ('daily_engagement_scores', 'Users can view own momentum scores', '(select auth.uid()) = user_id'),
            ('momentum_notifications', 'Users can view own notifications', '(select auth.uid()) = user_id'),
            ('coach_interventions', 'Users can view own interventions', '(select auth.uid()) = user_id'),
            ('daily_engagement_scores', 'Admins can view all scores',
                '(select public.momentum_caller_role()) = ''admin'''),
            ('momentum_notifications', 'Admins can view all notifications',
                '(select public.momentum_caller_role()) = ''admin'''),
            ('coach_interventions', 'Admins can view all interventions',
                '(select public.momentum_caller_role()) = ''admin'''),
            ('coach_interventions', 'Coaches can view all interventions',
                '(select public.momentum_caller_role()) = ''coach'''),
            ('daily_engagement_scores', 'Coaches can view scores of assigned users',
                '(select public.momentum_caller_role()) = ''coach'' and user_id in ('
                'select i.user_id from public.coach_interventions i where i.assigned_coach_id = (select auth.uid()))')
        ) as made (table_name, name, expression)
        where made.table_name = target
    loop
        execute format(
            'create policy %I on pg_temp.momentum_shipped for select to authenticated using (%s)',
            ours.name, ours.expression);
    end loop;
    described := concat_ws(E'\n',
        'row level security true',
        'readable true',
        case when target = 'daily_engagement_scores' then 'assignments true' end,
        'role ' || md5(concat_ws(' ', E'\n    select auth.jwt() -> ''app_metadata'' ->> ''role''\n',
            '{"search_path=pg_catalog, pg_temp"}', 'f')),
        momentum.policies_of('pg_temp.momentum_shipped'::regclass));
    drop table pg_temp.momentum_shipped;
    return described;
end;
$$;

-- An earlier version had no equal_to_shipped. All rows are written again below; until then the event trigger of the next file
-- would warn that it does not find the table.
set client_min_messages = error;
do $$
begin
    if to_regclass('momentum.policies') is not null and not exists (
        select from pg_attribute a
        where a.attrelid = to_regclass('momentum.policies') and a.attname = 'equal_to_shipped'
    ) then
        drop table momentum.policies;
    end if;
end;
$$;
set client_min_messages = warning;

-- equal_to_shipped: policies that were proved to allow the same rows as the shipped ones.
create table if not exists momentum.policies (
    table_name text primary key,
    shipped text not null,
    current text not null,
    equal_to_shipped text,
    changed boolean not null
        generated always as (current <> shipped and current is distinct from equal_to_shipped) stored
);
alter table momentum.policies enable row level security;

create or replace trigger momentum_policies_constants
    after insert or update or delete on momentum.policies
    for each statement execute function momentum.constants_may_have_changed();

-- Record the present and the shipped policies. One statement for each table, the shipped ones first: reading them drops
-- a table, which fires the event trigger of the next file, too.
create or replace function momentum.reset_policies() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    name text;
    wanted text;
begin
    foreach name in array array['daily_engagement_scores', 'coach_interventions', 'momentum_notifications'] loop
        wanted := momentum.shipped_policies(name);
        insert into momentum.policies (table_name, shipped, current)
        values (name, wanted, coalesce(momentum.describe_policies(name), 'no such table'))
        on conflict (table_name) do update set
            shipped = excluded.shipped,
            current = excluded.current,
            equal_to_shipped = null;  -- another version may compare in another way
    end loop;
end;
$$;
comment on function momentum.reset_policies() is 'Record the present policies, and those that the migrations create, anew. The migrations call it.

Example:
    select momentum.reset_policies()';
select momentum.reset_policies();

-- Record the present policies, and notify every gateway if they differ. If that cannot be determined, they count as
-- changed.
create or replace function momentum.note_policies() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    known momentum.policies;
    described text;
    is_new boolean := false;
begin
    for known in select p.* from momentum.policies p order by p.table_name loop
        begin
            described := coalesce(momentum.describe_policies(known.table_name), 'no such table');
        exception
            when lock_not_available then
                raise;
            when others then
                described := 'unknown: ' || sqlstate;
        end;
        if described <> known.current then
            update momentum.policies p set current = described where p.table_name = known.table_name;
            is_new := true;
        end if;
    end loop;
    if exists (
        select from momentum.policies p where p.changed <> momentum.has_changed_policies(p.table_name)
    ) then
        perform momentum.keep_constants();  -- a table was restored without its triggers, or emptied
    end if;
    if is_new then
        perform momentum.publish(
            array['momentum:control'], jsonb_build_object('event_type', 'policies_changed'), null::jsonb);
    end if;
end;
$$;

create or replace function momentum.check_policies() returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
    perform momentum.note_policies();
end;
$$;
comment on function momentum.check_policies() is 'Record changed policies, and have every gateway ask for the grants of its callers again. The server calls it once a
second. A table that is locked is checked at the next call.

Example:
    select momentum.check_policies()';

create or replace function momentum.accept_policies(target text, compared text, described text) returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
    update momentum.policies p set equal_to_shipped = described
    where p.table_name = target and p.shipped = compared and p.current = described and p.changed;
    if found then
        perform momentum.publish(
            array['momentum:control'], jsonb_build_object('event_type', 'policies_changed'), null::jsonb);
    end if;
end;
$$;
comment on function momentum.accept_policies(text, text, text) is 'Record that the present policies of a table allow the same rows as the shipped ones, and notify every gateway. The
server calls it once it has proved that. Nothing happens if the policies have changed since.

Args:
    target: the table.
    compared: the shipped policies, as in `momentum.policies.shipped`.
    described: the present ones, as in `momentum.policies.current`.
Example:
    select momentum.accept_policies(''coach_interventions'', ''row level security true …'', ''…'')';

-- The grant of a channel ----------------------------------------------------------------------------------------------

create or replace function public.momentum_grant(channel text) returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    caller_role text := coalesce(public.momentum_caller_role(), '');
    kind text := split_part(channel, ':', 1);
    subject text := substr(channel, length(kind) + 2);
    source text := case kind
        when 'momentum_updates' then 'daily_engagement_scores'
        when 'cache_invalidation' then 'daily_engagement_scores'
        when 'interventions' then 'coach_interventions'
        when 'notifications' then 'momentum_notifications' end;
    tables text := coalesce(nullif(current_setting('momentum.changed', true), ''), '*');
    changed boolean := tables = '*' or source = any (string_to_array(tables, ','));
    by_token text := case when changed then 'checked' else 'granted' end;
    visible boolean;
begin
    if public.momentum_is_unbound() then
        return 'granted';  -- also an operator's own channels
    elsif channel = 'cache_invalidation' then
        return by_token;  -- the gateway delivers the keys of the connection's own user only
    elsif source is null then
        return null;
    elsif channel = 'interventions:coaches' then
        return case when caller_role in ('coach', 'admin') then by_token end;
    elsif channel = 'momentum_updates:all' then
        return case when caller_role = 'admin' then by_token end;
    elsif subject !~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then
        return null;
    elsif public.momentum_may_act_for(subject::uuid) then
        return by_token;
    elsif caller_role <> 'coach' and not changed then
        return null;
    end if;
    execute format('select exists (select from public.%I t where t.user_id = $1)', source)
        into visible using subject::uuid;
    return case when visible then case when kind = 'interventions' then by_token else 'checked' end end;
exception when insufficient_privilege then
    return null;
end;
$$;
comment on function public.momentum_grant(text) is 'Return whether the caller may have a channel, under the caller''s role, claims and policies.

The server lists the tables with changed policies in `momentum.changed`; without it the more careful answer is returned.

Args:
    channel: the channel.
Returns:
    `granted`; `checked`, if the database must decide each event; null, if the caller may not have it.
Example:
    select public.momentum_grant(''interventions:coaches'')';

revoke all on function public.momentum_grant(text) from public, anon;
grant execute on function public.momentum_grant(text) to authenticated, service_role;

-- Acting as a caller, and revocation ---------------------------------------------------------------------------

create table if not exists momentum.revocations (
    user_id uuid primary key,
    revoked_at timestamptz not null
);
alter table momentum.revocations enable row level security;
grant select, insert, update on momentum.revocations to service_role;

create or replace function momentum.revoke(target uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if target is null then
        raise exception 'momentum.revoke needs a user' using errcode = 'null_value_not_allowed';
    end if;
    insert into momentum.revocations as r (user_id, revoked_at) values (target, clock_timestamp())
    on conflict (user_id) do update set revoked_at = greatest(r.revoked_at, excluded.revoked_at);
    perform momentum.publish(
        array['momentum:control'], jsonb_build_object('event_type', 'revoked', 'user_id', target), null::jsonb);
end;
$$;
comment on function momentum.revoke(uuid) is 'Revoke a user''s tokens. Every gateway closes the user''s connections when it reads this in the log, and tokens issued
until now are refused. Later ones are accepted, so ban the user at the issuer, too.

Args:
    target: the user.
Raises:
    null_value_not_allowed: no user.
Example:
    select momentum.revoke(''11111111-1111-4111-8111-111111111111'')';

-- `iat` has whole seconds, so a token of the second of the revocation is refused.
create or replace function momentum.admit(claims jsonb) returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (
        select from momentum.revocations r
        where r.user_id = (
                substring(lower(claims ->> 'sub') from '^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$'))::uuid
          and coalesce((claims ->> 'iat')::numeric, 0) <= extract(epoch from r.revoked_at)
    ) then
        raise exception 'the token was revoked' using errcode = 'invalid_authorization_specification';
    end if;
    return (select coalesce(string_agg(p.table_name, ','), 'none') from momentum.policies p where p.changed);
end;
$$;
comment on function momentum.admit(jsonb) is 'Return the names of the tables with changed policies, comma-separated, or `none`. The server calls it for each caller.

Args:
    claims: the token''s claims. One without `iat` counts as issued in 1970.
Raises:
    invalid_authorization_specification: the token was revoked.
Example:
    select momentum.admit(''{"sub": "11111111-1111-4111-8111-111111111111", "iat": 1}'')';

create or replace function momentum.become(caller_role text, claims text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform set_config('momentum.changed', momentum.admit(claims::jsonb), true);
    perform set_config('request.jwt.claims', claims, true);
    perform set_config('role', caller_role, true);
end;
$$;
comment on function momentum.become(text, text) is 'Run the rest of the transaction under a caller''s role and claims, as PostgREST does.

Args:
    caller_role: `authenticated` or `service_role`.
    claims: the token''s claims as JSON.
Raises:
    invalid_authorization_specification: the token was revoked.
Example:
    select momentum.become(''authenticated'', ''{"sub": "11111111-1111-4111-8111-111111111111"}'')';

grant execute on function momentum.revoke(uuid) to service_role;


select momentum.settle();

reset client_min_messages;
reset search_path;

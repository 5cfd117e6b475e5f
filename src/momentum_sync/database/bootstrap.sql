-- Roles, schema auth and publication, as Supabase has them. Each is created only if it is missing, so on Supabase this
-- changes nothing.

do $$
declare
    wanted text;
begin
    foreach wanted in array array['anon', 'authenticated', 'service_role'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = wanted) then
            execute format(
                'create role %I nologin noinherit %s', wanted,
                case when wanted = 'service_role' then 'bypassrls' end);
            execute format('grant %I to current_user', wanted);
            execute format('grant usage on schema public to %I', wanted);
        end if;
    end loop;

    if to_regnamespace('auth') is null then
        create schema auth;
        grant usage on schema auth to anon, authenticated, service_role;
    end if;

    if to_regclass('auth.users') is null then
        create table auth.users (
            id uuid primary key,
            email text,
            raw_app_meta_data jsonb default '{}',
            raw_user_meta_data jsonb default '{}',
            created_at timestamptz default now()
        );
        alter table auth.users enable row level security;
        grant select, insert, update, delete on auth.users to service_role;
    end if;

    -- The claims of the caller's token, as the gateway (or PostgREST) has set them for the transaction.
    if to_regprocedure('auth.jwt()') is null then
        create function auth.jwt() returns jsonb
        language sql stable set search_path = pg_catalog, pg_temp
        as 'select nullif(current_setting(''request.jwt.claims'', true), '''')::jsonb';
    end if;
    if to_regprocedure('auth.uid()') is null then
        create function auth.uid() returns uuid
        language sql stable set search_path = pg_catalog, pg_temp
        as 'select nullif(auth.jwt() ->> ''sub'', '''')::uuid';
    end if;
    if to_regprocedure('auth.role()') is null then
        create function auth.role() returns text
        language sql stable set search_path = pg_catalog, pg_temp
        as 'select auth.jwt() ->> ''role''';
    end if;

    if not exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime') then
        create publication supabase_realtime;
    end if;
end;
$$;

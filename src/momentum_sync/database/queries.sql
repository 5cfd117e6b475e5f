-- name: applied
-- Versions, and the file's text if it is recorded as one statement, as `migrate` does. The Supabase CLI records each
-- statement of a file.
select version, case when cardinality(statements) = 1 then statements[1] end
from supabase_migrations.schema_migrations

-- name: there
-- Which parts of a migrated database exist: the bookkeeping, the product's tables, the event trigger, the app's tables.
select
    to_regclass('supabase_migrations.schema_migrations') is not null as bookkeeping,
    to_regprocedure('momentum.settle()') is not null as momentum,
    exists (select from pg_event_trigger where evtname = 'momentum_policies') as event_trigger,
    array(
        select wanted
        from unnest(array['daily_engagement_scores', 'momentum_notifications', 'coach_interventions']) as wanted
        where to_regclass('public.' || wanted) is not null) as tables,
    array(
        select 'role ' || wanted from unnest(array['anon', 'authenticated', 'service_role']) as wanted
        where not exists (select from pg_roles where rolname = wanted)
        union all
        select wanted from unnest(array['auth.users', 'auth.jwt()', 'auth.uid()', 'auth.role()']) as wanted
        where case when wanted like '%()' then to_regprocedure(wanted) is null else to_regclass(wanted) is null end
        union all
        select 'publication supabase_realtime'
        where not exists (select from pg_publication where pubname = 'supabase_realtime')) as missing

-- name: has_own_tables
-- By the newest of them; a column of it, as far as it was there before.
select 1
from pg_attribute a
join pg_class c on c.oid = a.attrelid and c.relname = 'devices'
join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'momentum'
where a.attname = 'keys' and not a.attisdropped

-- name: event_trigger
select exists (select from pg_event_trigger where evtname = 'momentum_policies')

-- name: not_full
-- Tables of which Supabase's clients do not get changes, or not the complete old row.
select found.name, found.lacks_old_row, found.lacks_publication
from (
    select c.relname::text as name, c.relreplident <> 'f' as lacks_old_row, not exists (
        select from pg_publication p
        where p.pubname = 'supabase_realtime' and (
            p.puballtables
            or exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid)
            or exists (
                select from pg_publication_namespace n
                where n.pnpubid = p.oid and n.pnnspid = 'public'::regnamespace))) as lacks_publication
    from pg_class c
    where c.oid in (
        'public.daily_engagement_scores'::regclass, 'public.momentum_notifications'::regclass,
        'public.coach_interventions'::regclass)
) as found
where found.lacks_old_row or found.lacks_publication
order by 1

-- name: policies
select p.table_name, p.shipped, p.current from momentum.policies p where p.changed order by p.table_name

-- name: accept_policies
select momentum.accept_policies(%(table)s, %(shipped)s, %(described)s)

-- name: policy_names
-- Policies of the tables, with their lines in `momentum.policies`.
select c.relname::text, p.polname::text,
    case when p.polpermissive then 'permissive ' else 'restrictive ' end
        || coalesce(pg_get_expr(p.polqual, p.polrelid), 'true')
from pg_policy p
join pg_class c on c.oid = p.polrelid
where c.oid in (
    'public.daily_engagement_scores'::regclass, 'public.momentum_notifications'::regclass,
    'public.coach_interventions'::regclass)
order by 1, 2

-- name: user_metadata
-- Policies that trust user_metadata, which users can edit.
select c.relname::text, p.polname::text
from pg_policy p
join pg_class c on c.oid = p.polrelid
where c.oid in (
        'public.daily_engagement_scores'::regclass, 'public.momentum_notifications'::regclass,
        'public.coach_interventions'::regclass)
    and concat(pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) ~ 'user_meta_?data'
order by 1, 2

-- name: may_add_triggers
select c.relname::text
from pg_class c
where c.oid in (
        'public.daily_engagement_scores'::regclass, 'public.momentum_notifications'::regclass,
        'public.coach_interventions'::regclass, to_regclass('public.realtime_event_metrics'))
    and has_table_privilege('service_role', c.oid, 'trigger')
order by 1

-- name: running
-- Whether a server is connected: each keeps a connection of its log open.
select 1 from pg_catalog.pg_stat_activity where datname = current_database() and application_name like 'momentum-sync log%'

-- name: slots
-- The product's slots in this database: the log's, and the configured one.
select r.slot_name::text, r.active
from pg_replication_slots r
where r.database = current_database() and r.plugin = 'pgoutput' and r.slot_name = any (%(names)s)

-- name: log_slot
select s.slot from momentum.stream s

-- name: users_of_realtime
-- Functions and policies of the app that need schema realtime, if `migrate` has made it. PostgreSQL does not know what
-- the body of a function needs.
select 'function ' || p.oid::regprocedure
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
where n.nspname not in ('momentum', 'realtime', 'pg_catalog', 'information_schema')
    and p.prosrc ~ '\mrealtime\s*\.\s*(send|send_binary|broadcast_changes|topic|messages)\M'
    and obj_description(to_regnamespace('realtime'), 'pg_namespace') like '%Made by Momentum Sync.'
union all
select format('policy %I on realtime.messages', p.polname)
from pg_policy p
join pg_class c on c.oid = p.polrelid and c.relname = 'messages'
join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'realtime'
where obj_description(n.oid, 'pg_namespace') like '%Made by Momentum Sync.'
order by 1

-- name: users_of_momentum
-- Functions of the app that call the product's.
select p.oid::regprocedure::text
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
where n.nspname not in ('momentum', 'realtime', 'pg_catalog', 'information_schema')
    and p.prosrc ~ '\mmomentum\s*\.\s*\w+\s*\('
    and not (n.nspname = 'public' and p.proname = any (%(ours)s))
order by 1

-- name: drop_slot
select pg_drop_replication_slot(%(slot)s)

-- name: servers
-- Roles that were given the privileges of a server, and whether they own anything. Members of such a role are none.
select r.rolname::text, exists (
    select from pg_shdepend d where d.refclassid = 'pg_authid'::regclass and d.refobjid = r.oid and d.deptype = 'o')
from pg_proc p
cross join lateral aclexplode(p.proacl) a
join pg_roles r on r.oid = a.grantee
where p.oid = 'momentum.become(text, text)'::regprocedure and a.privilege_type = 'EXECUTE'
    and not r.rolsuper and r.oid <> p.proowner
order by 1

-- name: left_behind
-- Objects that `uninstall` leaves besides the tables, because the app may use or have replaced them. A schema `auth` of
-- the owner of the app's tables was made by `migrate`, not by Supabase.
select 'schema auth with auth.users, and the roles anon, authenticated and service_role'
from pg_namespace n
join pg_class c on c.oid = to_regclass('public.daily_engagement_scores') and c.relowner = n.nspowner
where n.nspname = 'auth'
union all
select 'function ' || p.oid::regprocedure
from pg_proc p
where p.pronamespace = 'public'::regnamespace and p.proname in ('momentum_set_updated_at', 'momentum_display_name')

-- name: forget
delete from supabase_migrations.schema_migrations
where version = any (%(versions)s) or (version, coalesce(statements[1], '')) in (
    select given.version, given.sql from unnest(%(seed_versions)s::text[], %(texts)s::text[]) as given (version, sql))

-- name: lesser_owner
select pg_get_userbyid(c.relowner)::text
from pg_class c
join pg_roles owner on owner.oid = c.relowner
join pg_roles me on me.rolname = current_user
where c.relnamespace = 'public'::regnamespace and c.relname = any (%(tables)s) and me.rolsuper and not owner.rolsuper
order by c.relname <> 'daily_engagement_scores'
limit 1

-- name: foreign
-- Objects with the product's names, owned by a role that is neither a superuser, nor the present role, nor a role that
-- it is a member of.
select o.kind || ' ' || o.name, pg_get_userbyid(o.owner)::text
from (
    select 'schema' as kind, n.nspname::text as name, n.nspowner as owner
    from pg_namespace n where n.nspname in ('momentum', 'supabase_migrations')
    union all
    select 'relation', c.oid::regclass::text, c.relowner
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and (
        n.nspname = 'momentum' and c.relname in ('settings', 'policies', 'revocations', 'installed')
        or n.nspname = 'supabase_migrations' and c.relname = 'schema_migrations'
        or n.nspname = 'public' and c.relname = any (%(tables)s))
    union all
    select 'function', p.oid::regprocedure::text, p.proowner
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'momentum' and p.proname = any (%(own)s)
        or n.nspname = 'public' and p.proname = any (%(functions)s)
) as o
join pg_roles owner on owner.oid = o.owner
join pg_roles me on me.rolname = current_user
where not owner.rolsuper and (me.rolsuper or not pg_has_role(me.oid, owner.oid, 'member'))
order by 1
limit 1

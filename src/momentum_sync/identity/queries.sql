-- name: grants
-- Asked as the caller: whether it may act for a user, which of the channels it may have, and the snapshot of this
-- statement.
select
    %(user_id)s::uuid is null or public.{may_act_for}(%(user_id)s::uuid),
    coalesce(array_agg(channel order by place) filter (where granted is not null), '{{}}'),
    coalesce(array_agg(channel) filter (where granted = 'checked'), '{{}}'),
    pg_current_snapshot()::text
from (
    select channel, place, public.{grant}(channel) as granted
    from unnest(%(channels)s::text[]) with ordinality as wanted (channel, place)
) as answered

-- name: may_act_for
select public.{may_act_for}(%(user_id)s)

-- name: visible_rows
-- The offsets of the events about a row that the caller may select, with every column that the event carries. Where the
-- policies of the table have changed, the row must be the version that the event describes.
select
    array(
        select e."offset"
        from unnest(%(offsets)s::bigint[], %(bodies)s::jsonb[]) as e ("offset", body)
        where exists (
            select from public.{table} t
            where ({key}) = ({key_values})
                and (
                    {name} <> all (string_to_array(current_setting('momentum.changed'), ','))
                    or ({version}) is not distinct from ({version_values})))),
    pg_current_snapshot()::text

-- name: visible_derived
-- The offsets of those events for which the caller may select some row with their key.
select
    array(
        select e."offset"
        from unnest(%(offsets)s::bigint[], %(bodies)s::jsonb[]) as e ("offset", body)
        where exists (select from public.{table} t where ({key}) = ({key_values}))),
    pg_current_snapshot()::text

-- name: allowed_versions
-- Which of the given row versions the caller's policies allow, the statement's snapshot, and the policies that apply to
-- the caller's SELECTs now: one of the permissive ones must be true, and all of the restrictive ones; null where the
-- caller may not select from the table, or not every column.
select
    array(
        select e.version_id
        from unnest(%(version_ids)s::bigint[], %(rows)s::jsonb[]) as e (version_id, version)
        cross join lateral jsonb_populate_record(null::{type}, e.version) as {row}
        where ({permissive}) and ({restrictive})),
    pg_current_snapshot()::text,
    (
        select case when row_security_active(c.oid) then array[
            coalesce(string_agg('(' || pg_get_expr(p.polqual, p.polrelid) || ')', ' or ')
                filter (where p.polpermissive), 'false'),
            coalesce(string_agg('(' || pg_get_expr(p.polqual, p.polrelid) || ')', ' and ')
                filter (where not p.polpermissive), 'true')
        ] else array['true', 'true'] end
        from pg_catalog.pg_class c
        left join pg_catalog.pg_policy p on p.polrelid = c.oid and p.polcmd in ('r', '*') and exists (
            select from unnest(p.polroles) as to_role (oid)
            where to_role.oid = 0 or pg_has_role(current_user, to_role.oid, 'usage'))
        where c.oid = to_regclass('public.' || %(table)s) and has_table_privilege(c.oid, 'select')
        group by c.oid
    ),
    %(table)s = any (string_to_array(current_setting('momentum.changed'), ','))

-- name: row_tables
-- Asked as the caller: tables with what decides about their rows. Those with the given ids or, if null, all that are in
-- the publication and that the caller may select from. A caller without privileges on a table gets no row of it.
-- `needed` are the columns that the policies read; null where one reads the row as a whole.
select
    c.oid::bigint,
    n.nspname::text,
    c.relname::text,
    row_security_active(c.oid),
    coalesce(policies.permissive, 'false'),
    coalesce(policies.restrictive, 'true'),
    case when not coalesce(policies.reads_row, false) then array(
        select distinct a.attname::text
        from pg_catalog.pg_depend d
        join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where d.classid = 'pg_catalog.pg_policy'::regclass and d.objid = any (policies.ids)
            and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = c.oid) end,
    (
        select jsonb_agg(jsonb_build_array(
            a.attname,
            -- Equal texts of such a column may have different bytes, and no filter may be decided on those.
            t.typname || case when n.collisdeterministic is false then ' (nondeterministic)' else '' end,
            named.type_sql,
            named.type_sql || case when a.attcollation <> t.typcollation
                then ' collate ' || a.attcollation::regcollation::text else '' end,
            has_column_privilege(c.oid, a.attnum, 'select'),
            a.attnum = any (coalesce(k.conkey, '{}'))) order by a.attnum)::text
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = a.atttypid
        left join pg_catalog.pg_collation n on n.oid = a.attcollation
        left join pg_catalog.pg_constraint k on k.conrelid = c.oid and k.contype = 'p'
        -- `character` and `bit` alone mean one of them.
        cross join lateral (select case a.atttypid
            when 'bpchar'::regtype then 'bpchar' when 'bpchar[]'::regtype then 'bpchar[]'
            when 'bit'::regtype then 'bit varying' when 'bit[]'::regtype then 'bit varying[]'
            else format_type(a.atttypid, null) end) as named (type_sql)
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    ),
    array(
        select a.attname::text from pg_catalog.pg_attribute a
        -- The stream leaves generated columns out.
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and (
            c.relreplident = 'f'
            or exists (
                select from pg_catalog.pg_index i
                where i.indrelid = c.oid and a.attnum = any (i.indkey)
                    and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end))),
    pg_current_snapshot()::text
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join lateral (
    select
        array_agg(p.oid) as ids,
        string_agg('(' || pg_get_expr(p.polqual, p.polrelid) || ')', ' or ') filter (where p.polpermissive)
            as permissive,
        string_agg('(' || pg_get_expr(p.polqual, p.polrelid) || ')', ' and ') filter (where not p.polpermissive)
            as restrictive,
        -- A reference to the whole row is no dependency on any of its columns.
        bool_or(p.polqual::text like '%%:varattno 0 %%') as reads_row
    from pg_catalog.pg_policy p
    where p.polrelid = c.oid and p.polcmd in ('r', '*') and exists (
        select from unnest(p.polroles) as to_role (oid)
        where to_role.oid = 0 or pg_has_role(current_user, to_role.oid, 'usage'))
) policies on true
where has_schema_privilege(n.oid, 'usage') and has_any_column_privilege(c.oid, 'select')
    and n.nspname not in ('momentum', 'momentum_log')
    -- Clients get these messages on their topics.
    and not (n.nspname = 'realtime' and c.relname ~ '^messages(_|$)')
    and case when %(relations)s::bigint[] is null then exists (
        select from pg_catalog.pg_publication_tables p
        where p.pubname = %(publication)s and p.schemaname = n.nspname and p.tablename = c.relname)
    else c.oid::bigint = any (%(relations)s) end
order by c.oid

-- name: snapshot
select pg_current_snapshot()::text

-- name: revocations
-- All of them, up to a number of users; null where row level security would hide some.
select pg_current_snapshot()::text,
    case when not row_security_active('momentum.revocations') then (
        select coalesce(jsonb_object_agg(r.user_id, extract(epoch from r.revoked_at)), '{}')::text
        from (select x.user_id, x.revoked_at from momentum.revocations x limit %(most)s) r) end

-- name: tells_policies
-- Whether the transaction that changes a policy tells every gateway.
select exists (
    select from pg_catalog.pg_event_trigger t where t.evtname = 'momentum_policies' and t.evtenabled = 'A'),
    (
        -- What the compiler takes these functions for.
        select coalesce(jsonb_object_agg(p.proname, case when l.lanname = 'sql' then p.prosrc else '' end), '{}')::text
        from pg_catalog.pg_proc p
        join pg_catalog.pg_language l on l.oid = p.prolang
        join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'auth' and p.proname in ('uid', 'role', 'jwt') and p.pronargs = 0 and p.proconfig is null)

-- name: allowed_rows
-- Asked as the caller: the places of the given rows that the policies allow, from 0. The rows have the columns that the
-- policies read. The policies stand in a scope of their own, in which a name can mean nothing but a column of the row.
-- A subquery in FROM and not in EXISTS: there the planner cannot make a join of a policy's own EXISTS, and looks its
-- table up for each row. The limit, at or above the number of rows, tells the planner how many there are: for a few it
-- uses an index where there is one, as it would for a SELECT by key.
select array(
    select e.place - 1
    from (
        select * from jsonb_array_elements(%(versions)s::jsonb) with ordinality limit {most}) as e (version, place)
    cross join lateral (select from {row} where ({permissive}) and ({restrictive})) as allowed),
    pg_current_snapshot()::text

-- name: selected_rows
-- Asked as the caller: the places of the given rows that it may select now, with the values that the policies read.
select array(
    select e.place - 1
    from (
        select * from jsonb_array_elements(%(versions)s::jsonb) with ordinality limit {most}) as e (version, place)
    cross join lateral jsonb_to_record(e.version) as v ({definitions})
    where exists (select from {table} t where {same})), pg_current_snapshot()::text

-- name: operand
-- The values of a condition as `to_jsonb` makes them of the column's type.
select array(
    select to_jsonb(o.text::{type})::text from unnest(%(values)s::text[]) with ordinality as o (text, place)
    order by o.place)

-- name: tested
-- Whether a condition is true for a value. The value has the JSON that a change has, and the column's own type.
select ({condition}) is true from jsonb_to_record(%(row)s::jsonb) as t (value {type})

-- name: message_policies
-- Asked as the caller: the conditions under which it may select from realtime.messages and insert into it, and the
-- snapshot. No row if it has no privilege on the schema.
select
    case
        when not has_table_privilege(c.oid, 'select') then 'false'
        when not row_security_active(c.oid) then 'true'
        else coalesce(string_agg('(' || pg_get_expr(p.polqual, p.polrelid) || ')', ' or ')
            filter (where p.polpermissive and p.polcmd in ('r', '*')), 'false')
    end,
    case when not row_security_active(c.oid) then 'true'
        else coalesce(string_agg('(' || pg_get_expr(p.polqual, p.polrelid) || ')', ' and ')
            filter (where not p.polpermissive and p.polcmd in ('r', '*')), 'true')
    end,
    case
        when not has_table_privilege(c.oid, 'insert') then 'false'
        when not row_security_active(c.oid) then 'true'
        else coalesce(string_agg('(' || pg_get_expr(coalesce(p.polwithcheck, p.polqual), p.polrelid) || ')', ' or ')
            filter (where p.polpermissive and p.polcmd in ('a', '*')), 'false')
    end,
    case when not row_security_active(c.oid) then 'true'
        else coalesce(string_agg('(' || pg_get_expr(coalesce(p.polwithcheck, p.polqual), p.polrelid) || ')', ' and ')
            filter (where not p.polpermissive and p.polcmd in ('a', '*')), 'true')
    end,
    pg_current_snapshot()::text
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join pg_catalog.pg_policy p on p.polrelid = c.oid and exists (
    select from unnest(p.polroles) as to_role (oid)
    where to_role.oid = 0 or pg_has_role(current_user, to_role.oid, 'usage'))
where n.nspname = 'realtime' and c.relname = 'messages' and has_schema_privilege(n.oid, 'usage')
group by c.oid

-- name: topic_access
-- Asked as the caller: for which extensions the policies allow a message of a private topic.
select array(
    select e.extension
    from unnest(array['broadcast', 'presence']) as e (extension)
    where exists (
        select from jsonb_populate_record(null::realtime.messages, jsonb_build_object(
            'topic', %(topic)s::text, 'extension', e.extension, 'private', true, 'id', gen_random_uuid(),
            'inserted_at', localtimestamp, 'updated_at', localtimestamp)) as messages
        where ({permissive}) and ({restrictive})))

-- name: try_messages
-- Asked as the caller, in a transaction that is rolled back: insert a message of each extension.
do $$
declare
    tried text;
    inserted text[] := '{}';
begin
    foreach tried in array array['broadcast', 'presence'] loop
        begin
            insert into realtime.messages (topic, extension, private)
            values (current_setting('realtime.topic'), tried, true);
            inserted := inserted || tried;
        exception when others then
            null;  -- the policies do not allow it, or one of them fails
        end;
    end loop;
    perform set_config('momentum.tried', inserted::text, true);
end;
$$

-- name: tried_messages
select current_setting('momentum.tried')::text[]

-- name: place_messages
-- Asked as the server, in the same transaction.
select momentum.place_messages(%(topic)s)::text[]

-- name: become
select momentum.become(%(role)s, %(claims)s)

-- name: placed_messages
select array(
    select m.extension from realtime.messages m where m.topic = %(topic)s and m.id = any (%(ids)s::uuid[]))

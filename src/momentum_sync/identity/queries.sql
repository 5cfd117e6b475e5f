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

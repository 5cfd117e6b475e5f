"""The installed schema against rules of Supabase's database advisor, as queries written here.

The numbers are the advisor's names of its rules. Its exposed schema is `public`, which everybody with the public API
key can reach.
"""

from __future__ import annotations

import pytest

from tests.fixtures.postgres import Sql

FUNCTIONS = """
select p.oid::regprocedure::text
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where n.nspname in ('public', 'momentum')
    and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
    and {}
order by 1
"""
POLICIES = "select tablename || ': ' || policyname from pg_policies where schemaname = 'public' and {} order by 1"
TABLES = """
select n.nspname || '.' || c.relname
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname in ('public', 'momentum') and {}
order by 1
"""
# Match a call of an identity function outside of `( SELECT …)`, which PostgreSQL evaluates once per row.
BARE_CALL = (
    "regexp_replace({}, '\\( SELECT [^()]*(\\([^()]*\\)[^()]*)* AS [^()]*\\)', '', 'g') ~ '(auth\\.|momentum_)\\w+\\('"
)


@pytest.mark.parametrize(
    ("rule", "query"),
    [
        ("0002 auth users exposed", TABLES.format(
            "c.relkind in ('v', 'm') and pg_get_viewdef(c.oid) like '%auth.users%'")),
        ("0003 auth rls initplan", POLICIES.format(
            f"({BARE_CALL.format('coalesce(qual, $$$$)')} or {BARE_CALL.format('coalesce(with_check, $$$$)')})")),
        ("0007 policy exists rls disabled", TABLES.format(
            "not c.relrowsecurity and exists (select from pg_policy p where p.polrelid = c.oid)")),
        ("0008 rls enabled no policy", TABLES.format(
            "n.nspname = 'public' and c.relrowsecurity"
            " and not exists (select from pg_policy p where p.polrelid = c.oid)")),
        ("0010 security definer view", TABLES.format(
            "c.relkind = 'v' and not coalesce(c.reloptions::text like '%security_invoker=%', false)")),
        ("0011 function search path mutable", FUNCTIONS.format(
            # A function with a parsed body does not use search_path.
            "p.prosqlbody is null and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)")),
        ("0013 rls disabled in public", TABLES.format(
            "c.relkind in ('r', 'p') and not c.relrowsecurity and not c.relispartition")),
        ("0015 rls references user metadata", POLICIES.format(
            "coalesce(qual, '') || coalesce(with_check, '') ~ 'user_meta_?data'")),
        ("0015 the same in functions", FUNCTIONS.format("p.prosrc ~ 'user_meta_?data'")),
        ("0016 materialized view in api", TABLES.format("c.relkind = 'm'")),
        ("0017 foreign table in api", TABLES.format("c.relkind = 'f'")),
        ("0023 sensitive columns exposed", TABLES.format(
            "c.relkind = 'r' and not c.relrowsecurity and exists (select from pg_attribute a where a.attrelid = c.oid"
            " and a.attname ~ 'token|password|secret|key|ssn')")),
        ("0024 permissive rls policy", POLICIES.format(
            "roles <> '{service_role}' and (qual = 'true' or with_check = 'true')")),
        ("0026 table exposed to anon", TABLES.format(
            "c.relkind in ('r', 'p', 'v') and has_any_column_privilege('anon', c.oid, 'select, insert, update')")),
        ("0028 security definer function executable by anon", FUNCTIONS.format(
            "p.prosecdef and has_function_privilege('anon', p.oid, 'execute')")),
        ("0029 security definer function executable by authenticated", FUNCTIONS.format(
            "p.prosecdef and has_function_privilege('authenticated', p.oid, 'execute')")),
        ("functions that anon may call", FUNCTIONS.format("has_function_privilege('anon', p.oid, 'execute')")),
        ("functions of momentum that a client may call", FUNCTIONS.format(
            "n.nspname = 'momentum' and has_function_privilege('authenticated', p.oid, 'execute')")),
        ("functions that anybody may call", FUNCTIONS.format(
            "exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0)")),
        ("tables of momentum that a client may use", TABLES.format(
            "n.nspname = 'momentum' and c.relkind in ('r', 'p') and (has_table_privilege('authenticated', c.oid,"
            " 'select, insert, update, delete, truncate, references, trigger')"
            " or has_any_column_privilege('authenticated', c.oid, 'select, insert, update, references'))")),
        ("tables of public that a client may write whole", TABLES.format(
            "n.nspname = 'public' and c.relkind = 'r'"
            " and has_table_privilege('authenticated', c.oid, 'insert, update, delete, truncate')")),
    ],
    ids=lambda value: value if len(value) < 80 else "",
)  # fmt: skip
def test_the_advisor_finds_nothing(db: Sql, rule: str, query: str) -> None:
    assert db.execute(query.encode()).fetchall() == [], rule


def test_each_rule_finds_what_it_looks_for(db: Sql) -> None:
    """Each query finds a deliberate violation of its rule."""
    db.execute(
        "create table public.open (user_id uuid, password text); grant select on public.open to anon;"
        "create function public.loose() returns int language sql security definer as 'select 1';"
        "create view public.all_users as select id from auth.users;"
        "create policy bare on daily_engagement_scores for select to authenticated using (auth.uid() = user_id);"
        "create policy everybody on daily_engagement_scores for select to authenticated using (true);"
        "create policy editable on daily_engagement_scores for select to authenticated"
        " using (((select auth.jwt()) -> 'user_metadata' ->> 'role') = 'coach')"
    )
    marks = test_the_advisor_finds_nothing.pytestmark  # type: ignore[attr-defined]
    found = {rule for rule, query in marks[0].args[1] if db.execute(query.encode()).fetchall()}
    assert found == {
        "0002 auth users exposed", "0003 auth rls initplan", "0010 security definer view",
        "0011 function search path mutable", "0013 rls disabled in public", "0015 rls references user metadata",
        "0023 sensitive columns exposed", "0024 permissive rls policy", "0026 table exposed to anon",
        "0028 security definer function executable by anon",
        "0029 security definer function executable by authenticated", "functions that anon may call",
        "functions that anybody may call",
    }  # fmt: skip


def test_clients_cannot_look_into_momentum(db: Sql) -> None:
    for role in ("anon", "authenticated"):
        for right in ("usage", "create"):
            assert db.execute("select has_schema_privilege(%s, 'momentum', %s)", (role, right)).fetchone() == (False,)


def test_more_than_one_permissive_policy_stands_only_where_each_is_a_rule_of_its_own(db: Sql) -> None:
    """Rule 0006 warns of several per role and action, for speed; here an operator can drop each one separately."""
    rows = db.execute(
        "select tablename, cmd, count(*) from pg_policies"
        " where schemaname = 'public' and permissive = 'PERMISSIVE' and 'authenticated' = any(roles)"
        " group by 1, 2 having count(*) > 1 order by 1, 2"
    ).fetchall()
    assert rows == [
        ("coach_interventions", "SELECT", 3),
        ("daily_engagement_scores", "SELECT", 3),
        ("momentum_notifications", "SELECT", 2),
    ]


BACKENDS = {"momentum.event_ids(text,jsonb,timestamp with time zone)", "momentum.receipts(uuid,text)"}


def test_definers_check_their_caller_or_have_none(db: Sql) -> None:
    """A function that runs as its owner is a trigger, or only backends and the server's role may call it."""
    rows = db.execute(
        FUNCTIONS.format("p.prosecdef and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)").encode()
    ).fetchall()
    assert rows == [
        ("momentum.accept_policies(text,text,text)",), ("momentum.admit(jsonb)",), ("momentum.check_policies()",),
        ("momentum.check_publishing()",), ("momentum.event_ids(text,jsonb,timestamp with time zone)",),
        ("momentum.keep_message_partitions()",), ("momentum.keep_partitions(interval)",),
        ("momentum.place_messages(text)",), ("momentum.receipts(uuid,text)",),
    ]  # fmt: skip
    for (name,) in rows:
        holders = db.execute(
            "select a.grantee::regrole::text from pg_proc p, aclexplode(p.proacl) a"
            " where p.oid = %s::regprocedure and a.grantee <> p.proowner",
            (name,),
        ).fetchall()
        assert holders == ([("service_role",)] if name in BACKENDS else [("momentum_server",)]), name


# Functions that a client, an operator or the server calls, and those of the seed.
DESCRIBED = """
select p.oid::regprocedure::text, obj_description(p.oid, 'pg_proc'), p.pronargs > 0, p.prosrc ~ 'raise exception',
    p.prorettype in ('trigger'::regtype, 'event_trigger'::regtype)
from pg_proc p
where not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
    and (p.pronamespace = 'public'::regnamespace
        or p.pronamespace = 'momentum'::regnamespace and p.proname in (
            'publish', 'keep_partitions', 'check_publishing', 'check_policies', 'accept_policies', 'reset_policies',
            'revoke', 'admit', 'become', 'keep_message_partitions', 'place_messages', 'event_ids', 'receipts'))
order by 1
"""


def test_every_public_function_is_described_and_its_example_runs(db: Sql) -> None:
    found = db.execute(DESCRIBED.encode()).fetchall()
    assert len(found) == 30
    for name, text, takes_arguments, raises, is_trigger in found:
        assert text, name
        assert ("\nArgs:\n" in text) == takes_arguments, name
        assert not raises or "\nRaises:\n" in text, name
        summary, _, example = text.partition("\nExample:\n")
        assert summary[0].isupper(), name
        assert bool(example) != is_trigger, name
        if example:
            db.execute(f"begin; {example}; rollback".encode())

"""Policies with other names and spellings are equal to the shipped ones, and no others are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momentum_sync.domain.tables import SCHEMA
from momentum_sync.identity.policy_equality import are_equal, read_description

FACTS = "row level security true\nreadable true\nassignments true\nrole 0123"
OWN = "(( SELECT auth.uid() AS uid) = user_id)"
ROLE = "( SELECT public.momentum_caller_role() AS momentum_caller_role)"
INLINE = "((auth.jwt() -> 'app_metadata'::text) ->> 'role'::text)"
ADMIN = f"({ROLE} = 'admin'::text)"
UUID_TEXT = "5f0c7a52-0000-4000-8000-00000000000a"
ASSIGNED = """(({role} = 'coach'::text) AND (user_id IN ( SELECT i.user_id
   FROM public.coach_interventions i
  WHERE (i.assigned_coach_id = ( SELECT auth.uid() AS uid)))))""".replace("{role}", ROLE)


def described(*policies: str, facts: str = FACTS) -> str:
    lines = [policy if policy.startswith("restrictive ") else f"permissive {policy}" for policy in policies]
    return "\n".join([facts, *lines])


SHIPPED = described(OWN, ADMIN, ASSIGNED)


def equals_shipped(*policies: str, facts: str = FACTS) -> bool:
    return are_equal(SHIPPED, described(*policies, facts=facts), SCHEMA, "daily_engagement_scores")


@pytest.mark.parametrize(
    "policies",
    [
        (ASSIGNED, ADMIN, OWN),
        ("(user_id = auth.uid())", ADMIN, ASSIGNED),
        (OWN, f"({INLINE} = 'admin'::text)", ASSIGNED),
        (OWN, f"('admin'::text = ( SELECT {INLINE} AS r))", ASSIGNED),
        (OWN, ADMIN, ASSIGNED.replace(" i\n", " assigned\n").replace("i.", "assigned.")),
        (OWN, ADMIN, ASSIGNED.replace("coach_interventions i\n", "coach_interventions\n").replace(
            "i.", "coach_interventions.")),
        (OWN, ADMIN, ASSIGNED.replace(
            "(i.assigned_coach_id = ( SELECT auth.uid() AS uid))", "(auth.uid() = i.assigned_coach_id)")),
        (f"({OWN} OR {ADMIN} OR {ASSIGNED})",),
        (f"({OWN} OR {ADMIN})", f"({ASSIGNED} OR {OWN})"),
        (OWN, ADMIN, ASSIGNED, "false", "(auth.role() = 'service_role'::text)"),
        (OWN, ADMIN, ASSIGNED, "((auth.jwt() ->> 'role'::text) = 'service_role'::text)"),
        (OWN, ADMIN, ASSIGNED, "restrictive true"),
        (f"(NOT (NOT {OWN}))", ADMIN, ASSIGNED),
        (OWN, ADMIN, ASSIGNED, f"({OWN} AND (NOT {OWN}))"),
        (OWN, ADMIN, ASSIGNED.replace("(user_id IN", "(NOT (NOT (user_id IN") + "))"),
        (OWN, ADMIN, ASSIGNED, f"restrictive ({OWN} OR {ADMIN} OR {ASSIGNED})"),
    ],
)  # fmt: skip
def test_equal(policies: tuple[str, ...]) -> None:
    assert equals_shipped(*policies)


@pytest.mark.parametrize(
    "policies",
    [
        (),
        (OWN, ADMIN),
        (OWN, ADMIN, ASSIGNED, "true"),
        (OWN, ADMIN, ASSIGNED, "restrictive false"),
        (OWN, ADMIN, ASSIGNED, f"restrictive {OWN}"),
        (OWN, ADMIN, ASSIGNED, "(auth.role() = 'authenticated'::text)"),
        (OWN, ADMIN.replace("admin", "coach"), ASSIGNED),
        (OWN, ADMIN, ASSIGNED.replace("'coach'", "'admin'")),
        (OWN, ADMIN, ASSIGNED.replace(" AND ", " OR ")),
        (OWN, ADMIN, ASSIGNED.replace("i.assigned_coach_id", "i.user_id")),
        (OWN, ADMIN, ASSIGNED.replace("public.coach", "other.coach")),
        (OWN, ADMIN, ASSIGNED.replace("FROM public", "FROM ONLY public")),
        (OWN, ADMIN, ASSIGNED.replace("user_id IN", "user_id NOT IN")),
        (f"(NOT {OWN})", ADMIN, ASSIGNED),
        (OWN, ADMIN, ASSIGNED, f"(NOT {OWN})"),
        (OWN, ADMIN, ASSIGNED, f"({OWN} OR (NOT {OWN}))"),
        ("(auth.uid() <> user_id)", ADMIN, ASSIGNED),
        ("(auth.uid() IS NULL)", ADMIN, ASSIGNED),
        ("(auth.uid() = id)", ADMIN, ASSIGNED),
        ("(user_id = other.uid())", ADMIN, ASSIGNED),
        ("(user_id OPERATOR(public.=) auth.uid())", ADMIN, ASSIGNED),
        (OWN, "((auth.jwt() -> 'user_metadata'::text) ->> 'role'::text) = 'admin'::text", ASSIGNED),
        (OWN, ADMIN, ASSIGNED, "this is no SQL ((("),
        # The column list of an alias renames by position: here the relation is inverted.
        (
            OWN,
            ADMIN,
            ASSIGNED.replace("coach_interventions i\n", "coach_interventions i(id, assigned_coach_id, user_id)\n"),
        ),
        (OWN, ADMIN, ASSIGNED.replace("coach_interventions i\n", "coach_interventions i TABLESAMPLE system (1)\n")),
        (OWN, ADMIN, ASSIGNED.replace("SELECT i.user_id", "SELECT DISTINCT i.user_id").replace("))))", ") LIMIT 0)))")),
        (OWN, ADMIN, ASSIGNED, "(EXISTS ( SELECT 1\n   FROM ( SELECT) x))"),
        (OWN, ADMIN, ASSIGNED, "(public.volatile() AND (NOT public.volatile()))"),
        (OWN, ADMIN, ASSIGNED, "(f('a\rb'::text) AND (NOT f('a\nb'::text)))"),
        (" OR ".join([OWN] * 2_000), ADMIN, ASSIGNED),
    ],
)
def test_not_equal(policies: tuple[str, ...]) -> None:
    assert not equals_shipped(*policies)


@pytest.mark.parametrize(
    "facts",
    [
        FACTS.replace("security true", "security false"), FACTS.replace("readable true", "readable false"),
        FACTS.replace("assignments true", "assignments false"), FACTS.replace("role 0123", "role 4567"),
        "no such table", "unknown: 42P01",
    ],
)  # fmt: skip
def test_what_the_policies_depend_on_counts(facts: str) -> None:
    assert not equals_shipped(OWN, ADMIN, ASSIGNED, facts=facts)


def test_a_policy_that_is_not_read_is_equal_to_itself_alone() -> None:
    unknown = "(something(user_id) @@ 'x'::text)"
    one, other = described(OWN, unknown), described(unknown, "(user_id = auth.uid())")
    assert are_equal(one, other, SCHEMA, "daily_engagement_scores")
    assert not are_equal(one, other.replace("'x'", "'y'"), SCHEMA, "daily_engagement_scores")


def test_an_alias_is_not_taken_for_the_table_outside() -> None:
    inner = "(EXISTS ( SELECT 1 FROM public.coach_interventions {0} WHERE ({0}.user_id = {1}.user_id)))"
    table = "coach_interventions"
    related, always = (described(inner.format("i", outside)) for outside in (table, "i"))
    assert not are_equal(related, always, SCHEMA, table)
    assert are_equal(related, described(inner.format("j", table)), SCHEMA, table)


MANY = [f"(user_id = '00000000-0000-4000-8000-{number:012}'::uuid)" for number in range(8)]


@pytest.mark.parametrize(
    ("policies", "is_compared"),
    [
        (MANY, True),
        (MANY * 5, False),
        ([f"(NOT {policy})" for policy in MANY], False),
        ([" AND ".join(MANY)], False),
        ([" AND ".join(MANY[:4]), *MANY[4:]], True),
    ],
)
def test_a_comparison_that_takes_long_is_not_made(policies: list[str], is_compared: bool) -> None:
    """With 8 atoms, 30 conditions in both are the most."""
    one, other = described(*policies), described(*reversed(policies), "false")
    assert are_equal(one, one, SCHEMA, "daily_engagement_scores")
    assert are_equal(one, other, SCHEMA, "daily_engagement_scores") is is_compared


def test_columns_are_read_as_the_table_has_them() -> None:
    """Literals are compared as values of the column's type, not as text."""
    one, other = (described(f"(user_id = '{text}'::uuid)") for text in (UUID_TEXT, UUID_TEXT.upper()))
    assert are_equal(one, other, SCHEMA, "daily_engagement_scores")
    assert not are_equal(one, other, SCHEMA, "another")


def test_more_conditions_than_are_tried_are_not_equal() -> None:
    many = [f"(user_id = '00000000-0000-4000-8000-{number:012}'::uuid)" for number in range(9)]
    assert are_equal(described(*many[:8]), described(*reversed(many[:8])), SCHEMA, "daily_engagement_scores")
    assert not are_equal(described(*many), described(*reversed(many)), SCHEMA, "daily_engagement_scores")


def test_an_expression_may_span_lines() -> None:
    found = read_description(SHIPPED)
    assert found.facts == FACTS.splitlines()
    assert found.policies == [f"permissive {OWN}", f"permissive {ADMIN}", f"permissive {ASSIGNED}"]


ATOMS = ["(a.x = 1)", OWN, ADMIN, "(f(user_id) > 3)"]
EXPRESSIONS = st.recursive(
    st.sampled_from([*ATOMS, "true", "false", "NULL::boolean"]),
    lambda inner: (
        st.tuples(inner, inner).map(lambda two: f"({two[0]} AND {two[1]})")
        | st.tuples(inner, inner).map(lambda two: f"({two[0]} OR {two[1]})")
        | inner.map(lambda one: f"(NOT {one})")
    ),
    max_leaves=5,
)


@settings(max_examples=200)
@given(st.lists(EXPRESSIONS, max_size=3), st.lists(EXPRESSIONS, max_size=2))
def test_order_and_repetition_do_not_count(permissive: list[str], restrictive: list[str]) -> None:
    lines = [*permissive, *(f"restrictive {text}" for text in restrictive)]
    again = [*reversed(lines), *lines[:1]]
    assert are_equal(described(*lines), described(*again), SCHEMA, "daily_engagement_scores")

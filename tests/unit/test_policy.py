"""Policies that are decided without the database: which are read, and their meaning."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.identity.decider import Decider, Undecided, seen_change
from momentum_sync.identity.policy import (
    All,
    Claim,
    Column,
    Condition,
    Constant,
    Equal,
    Holds,
    IsNull,
    Kind,
    Not,
    NotDecidable,
    bind,
    columns,
    decide,
    keys,
    simplified,
)
from momentum_sync.identity.policy import Any as AnyOf
from momentum_sync.identity.policy_parser import parse_policies
from momentum_sync.identity.row_tables import RowTable, SeenChange
from momentum_sync.wire.row_change import Change, ChangedColumn

USER = "00000000-0000-4000-8000-00000000000a"
OTHER = "00000000-0000-4000-8000-00000000000b"
KINDS = {
    "owner": Kind.UUID, "title": Kind.TEXT, "size": Kind.INTEGER, "open": Kind.BOOLEAN, "shut": Kind.BOOLEAN,
}  # fmt: skip
A, B = Column("owner", Kind.UUID), Column("size", Kind.INTEGER)


def parse(text: str, restrictive: str = "true") -> Condition:
    return parse_policies(text, restrictive, "todos", KINDS)


def truth(text: str, row: dict[str, Any], claims: dict[str, object] | None = None) -> bool | None:
    return decide(bind(parse(text), claims or {"sub": USER, "role": "authenticated"}), row)


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("true", {}, True),
        ("false", {}, False),
        ("(auth.uid() = owner)", {"owner": USER}, True),
        ("(owner = auth.uid())", {"owner": OTHER}, False),
        ("(owner = auth.uid())", {"owner": None}, None),
        ("(( SELECT auth.uid() AS uid) = owner)", {"owner": USER}, True),
        ("((todos.owner = auth.uid()))", {"owner": USER}, True),
        ("(owner <> auth.uid())", {"owner": OTHER}, True),
        ("(owner <> auth.uid())", {"owner": USER}, False),
        ("(owner <> auth.uid())", {"owner": None}, None),
        ("((owner)::text = (auth.uid())::text)", {"owner": USER}, True),
        ("(owner = '00000000-0000-4000-8000-00000000000A'::uuid)", {"owner": USER}, True),
        ("(owner IS NULL)", {"owner": None}, True),
        ("(owner IS NOT NULL)", {"owner": None}, False),
        ("(open AND (NOT shut))", {"open": True, "shut": False}, True),
        ("(open AND (NOT shut))", {"open": True, "shut": None}, None),
        ("(open AND (NOT shut))", {"open": False, "shut": None}, False),
        ("(open OR shut)", {"open": None, "shut": True}, True),
        ("(open OR shut)", {"open": None, "shut": False}, None),
        ("(open = true)", {"open": True}, True),
        ("(size = 7)", {"size": 7}, True),
        ("(title = ANY (ARRAY['a'::text, 'b'::text]))", {"title": "b"}, True),
        ("(title = ANY (ARRAY['a'::text, 'b'::text]))", {"title": "c"}, False),
        ("((title)::text = 'a'::text)", {"title": "a"}, True),
        ("(auth.role() = 'authenticated'::text)", {}, True),
        ("((auth.jwt() ->> 'role'::text) = 'admin'::text)", {}, False),
        ("((auth.jwt() ->> 'nothing'::text) = 'admin'::text)", {}, None),
    ],
)
def test_what_a_policy_says_of_a_row(text: str, row: dict[str, Any], expected: bool | None) -> None:
    assert truth(text, row) is expected


@pytest.mark.parametrize(
    "text",
    [
        "(EXISTS ( SELECT 1 FROM members m WHERE (m.user_id = auth.uid())))",
        "(owner IN ( SELECT members.user_id FROM members))",
        "(( SELECT auth.uid() AS uid FROM members) = owner)",
        "(( SELECT auth.uid() AS uid WHERE open) = owner)",
        "(lower(title) = 'a'::text)",
        "is_coach()",
        "(auth.uid(1) = owner)",
        "(public.uid() = owner)",
        "(size > 3)",
        "(size = 1.5)",
        "(size = '-7'::integer)",
        "(size = 'a'::text)",
        "(owner = title)",
        "(title)::uuid = owner",
        "(title = 'a'::character varying(1))",
        "(title ~~ 'a%'::text)",
        "(unknown = 'a'::text)",
        "(other.owner = auth.uid())",
        "(title IS DISTINCT FROM 'a'::text)",
        "(open IS TRUE)",
        "title",
        "'a'::text",
        "(title COLLATE \"C\" = 'a'::text)",
        "((auth.jwt() -> 'a'::text) = 'x'::text)",
        "((auth.jwt() ->> 0) = 'x'::text)",
        "((auth.jwt() ->> '-1'::integer) = 'x'::text)",
        "(size = ((auth.jwt() ->> 'size'::text))::smallint)",
        "(title = ALL (ARRAY['a'::text]))",
        "(title = ANY (names))",
        "(",
    ],
)
def test_other_forms_are_left_to_the_database(text: str) -> None:
    with pytest.raises(NotDecidable):
        parse(text)


def test_all_restrictive_policies_must_be_true_too() -> None:
    condition = bind(parse("(open) OR (shut)", "(size = 1)"), {})
    assert decide(condition, {"open": True, "shut": False, "size": 1}) is True
    assert decide(condition, {"open": True, "shut": False, "size": 2}) is False


@pytest.mark.parametrize(
    ("claim", "value", "expected"),
    [
        (Claim(("sub",), Kind.UUID), USER.upper(), USER),
        (Claim(("a", "b"), Kind.TEXT), {"b": "x"}, "x"),
        (Claim(("a", "b"), Kind.TEXT), {"c": "x"}, None),
        (Claim(("a",), Kind.TEXT), None, None),
        (Claim(("a",), Kind.INTEGER), "-12", -12),
        (Claim(("a",), Kind.TEXT, is_uuid=True), USER.upper(), USER),
    ],
)
def test_claims_become_values(claim: Claim, value: object, expected: object) -> None:
    bound = bind(IsNull(claim), {claim.path[0]: value})
    assert bound == IsNull(Constant(expected, claim.kind))  # type: ignore[arg-type]


def test_every_part_that_is_not_compiled_is_named_once() -> None:
    with pytest.raises(NotDecidable) as caught:
        parse("((size > 3) OR (owner = auth.uid()) OR (size > 3) OR (title ~~ 'a%'::text))", "is_coach()")
    assert [reason.rpartition(": ")[2] for reason in caught.value.reasons] == [
        "size > 3", "title LIKE CAST('a%' AS TEXT)", "is_coach()",
    ]  # fmt: skip


def test_a_policy_may_have_thousands_of_alternatives() -> None:
    text = " OR ".join(f"(size = {number})" for number in range(3_000))
    assert truth(f"({text})", {"size": 2_999}) is True
    assert truth(f"({text})", {"size": 3_000}) is False


def test_a_policy_that_is_nested_too_deeply_is_not_compiled() -> None:
    with pytest.raises(NotDecidable):
        parse("(NOT " * 2_000 + "open" + ")" * 2_000)


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        (Claim(("a",), Kind.UUID), "no uuid"),
        (Claim(("a",), Kind.UUID), f"urn:uuid:{USER}"),
        (Claim(("a",), Kind.UUID), USER.replace("-", "")),
        (Claim(("a",), Kind.UUID), ""),
        (Claim(("a",), Kind.TEXT, is_uuid=True), "no uuid"),
        (Claim(("a",), Kind.TEXT), 7),
        (Claim(("a",), Kind.TEXT), True),
        (Claim(("a",), Kind.TEXT), {"b": "x"}),
        (Claim(("a", "b"), Kind.TEXT), "x"),
        (Claim(("a",), Kind.INTEGER), "1.0"),
        (Claim(("a",), Kind.INTEGER), " 1"),
        (Claim(("a",), Kind.INTEGER), "99999999999"),
        (Claim(("a",), Kind.BOOLEAN), "true"),
    ],
)
def test_claims_that_postgresql_would_cast_or_refuse_are_left_to_it(claim: Claim, value: object) -> None:
    with pytest.raises(NotDecidable):
        bind(IsNull(claim), {"a": value})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(owner = auth.uid())", {("owner", USER)}),
        ("(auth.uid() = owner)", {("owner", USER)}),
        ("((owner = auth.uid()) OR open)", {("owner", USER), ("open", True)}),
        ("((owner = auth.uid()) AND (title = ANY (ARRAY['a'::text, 'b'::text])))", {("owner", USER)}),
        ("((title = ANY (ARRAY['a'::text, 'b'::text])) AND open)", {("open", True)}),
        ("((owner = auth.uid()) OR (NOT open))", None),
        ("true", None),
        ("false", set()),
        ("(owner = ((auth.jwt() ->> 'nothing'::text))::uuid)", set()),
        ("((owner = auth.uid()) AND false)", set()),
        ("((owner = auth.uid()) OR false)", {("owner", USER)}),
        ("(auth.role() = 'authenticated'::text)", None),
        ("(auth.role() = 'other'::text)", set()),
        ("((owner = auth.uid()) OR (auth.role() = 'other'::text))", {("owner", USER)}),
        ("(owner IS NULL)", None),
    ],
)
def test_keys_are_values_of_which_every_visible_row_has_one(
    text: str, expected: set[tuple[str, object]] | None
) -> None:
    assert keys(bind(parse(text), {"sub": USER, "role": "authenticated"})) == expected


VALUES: dict[str, list[Any]] = {"owner": [USER, OTHER, None], "size": [0, 1, None], "open": [True, False, None]}
LEAVES: st.SearchStrategy[Condition] = st.sampled_from(
    [
        Equal(A, Constant(USER, Kind.UUID)),
        Equal(Constant(1, Kind.INTEGER), B),
        Equal(B, Constant(None, Kind.INTEGER)),
        Equal(Constant("a", Kind.TEXT), Constant("a", Kind.TEXT)),
        Holds(Column("open", Kind.BOOLEAN)),
        IsNull(A),
        All(()),
        AnyOf(()),
    ]
)
CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.lists(inner, max_size=3).map(lambda parts: All(tuple(parts))),
        st.lists(inner, max_size=3).map(lambda parts: AnyOf(tuple(parts))),
    ),
    max_leaves=6,
)


@given(CONDITIONS)
def test_no_row_that_is_visible_is_missed_by_the_keys(condition: Condition) -> None:
    found = keys(condition)
    names = sorted(VALUES)
    for values in itertools.product(*[VALUES[name] for name in names]):
        row = dict(zip(names, values, strict=True))
        if found is not None and decide(condition, row) is True:
            assert any(row[name] == value and type(row[name]) is type(value) for name, value in found)
    assert columns(condition) <= set(names)


# The part of a change that a caller sees


@given(CONDITIONS)
def test_a_simplified_condition_says_the_same_of_every_row(condition: Condition) -> None:
    simple = simplified(condition)
    names = sorted(VALUES)
    for values in itertools.product(*[VALUES[name] for name in names]):
        row = dict(zip(names, values, strict=True))
        assert decide(simple, row) == decide(condition, row)
    assert columns(simple) == columns(condition)


def test_a_condition_of_one_part_is_that_part() -> None:
    part = Equal(A, Constant(USER, Kind.UUID))
    assert simplified(All((AnyOf((part,)), All(())))) == part
    assert simplified(Not(All((part,)))) == Not(part)
    assert simplified(AnyOf((AnyOf((part, IsNull(A))),))) == AnyOf((part, IsNull(A)))
    assert simplified(All(())) == All(())


def table(*, secured: bool = True) -> RowTable:
    return RowTable.build(
        1, "public", "todos", secured=secured, policies=("(auth.uid() = owner)", "true"), needed=frozenset({"owner"}),
        columns=[
            ("id", "int4", "integer", "integer", True, True), ("owner", "uuid", "uuid", "uuid", True, False),
        ],
        identity=frozenset({"id"}),
    )  # fmt: skip


def change(kind: str, new: dict[str, object] | None, old: dict[str, object] | None, owner: str = "uuid") -> Change:
    def raw(row: dict[str, object] | None) -> dict[str, msgspec.Raw] | None:
        return None if row is None else {name: msgspec.Raw(msgspec.json.encode(row[name])) for name in row}

    return Change(
        schema="public", table="todos", type=kind, commit_timestamp=msgspec.Raw(b'""'), errors=msgspec.Raw(b"null"),
        columns=(ChangedColumn("id", "int4"), ChangedColumn("owner", owner)), record=raw(new), old_record=raw(old),
    )  # fmt: skip


def mine(number: int, owner: str | None = USER) -> dict[str, object]:
    return {"id": number, "owner": owner}


DECIDER = Decider(table(), bind(parse("(auth.uid() = owner)"), {"sub": USER}))


SEEN, KEY = SeenChange(DECIDER.table), frozenset({"id"})


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (change("INSERT", mine(1), None), SEEN),
        (change("INSERT", mine(1, OTHER), None), None),
        (change("INSERT", mine(1, None), None), None),
        (change("UPDATE", mine(1), {"id": 1}), SEEN),
        (change("UPDATE", mine(1), mine(1)), SEEN),
        # The row's values before it came into sight are not shown.
        (change("UPDATE", mine(1), mine(1, OTHER)), SEEN._replace(old_columns=KEY)),
        (change("UPDATE", mine(1, OTHER), mine(1)), SEEN._replace(is_gone=True, old_columns=KEY)),
        (change("UPDATE", mine(1, OTHER), mine(1, OTHER)), None),
        (change("UPDATE", mine(1, OTHER), {"id": 1}), None),
        (change("DELETE", None, mine(1)), SEEN),
        (change("DELETE", None, mine(1, OTHER)), None),
        (change("TRUNCATE", {}, {}), SEEN),
    ],
)
def test_what_a_caller_sees_of_a_change(given_: Change, expected: SeenChange | None) -> None:
    assert DECIDER.seen(given_) == expected


def test_a_table_without_a_key_has_the_whole_old_row_deleted_for_those_who_saw_it() -> None:
    keyless = msgspec.structs.replace(DECIDER.table, key=frozenset())
    assert seen_change(keyless, is_seen=False, was_seen=True) == SeenChange(keyless, True, None)
    assert seen_change(keyless, is_seen=True, was_seen=False) == SeenChange(keyless, False, frozenset())


@pytest.mark.parametrize(
    "given_",
    [
        change("DELETE", None, {"id": 1}),
        change("UPDATE", {"id": 1}, {"id": 1}),
        change("INSERT", mine(1), None, "text"),
    ],
)
def test_a_change_without_the_column_or_with_another_type_is_left_to_the_database(given_: Change) -> None:
    with pytest.raises(Undecided):
        DECIDER.seen(given_)


def test_without_row_level_security_all_is_seen() -> None:
    decider = Decider(table(secured=False), All(()))
    assert decider.seen(change("DELETE", None, {"id": 1})) == SeenChange(decider.table)
    assert decider.keys is None


def test_a_table_says_whether_it_can_check_deleted_rows() -> None:
    assert not table().checks_deletes
    assert table(secured=False).checks_deletes
    assert msgspec.structs.replace(table(), identity=frozenset({"id", "owner"})).checks_deletes
    assert msgspec.structs.replace(table(), needed=None, identity=frozenset({"id", "owner"})).checks_deletes
    assert not msgspec.structs.replace(table(), needed=None).checks_deletes

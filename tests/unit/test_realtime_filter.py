"""The grammar of filters, and their truth where it is known without the database."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.wire.realtime_filter import (
    MOST_VALUES,
    Condition,
    MalformedFilter,
    Operator,
    holds,
    parse_filter,
)


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("", []),
        ("id=eq.1", [("id", "eq", False, ("1",))]),
        ("id=not.eq.1", [("id", "eq", True, ("1",))]),
        ("not=eq.1", [("not", "eq", False, ("1",))]),
        ("id=eq.", [("id", "eq", False, ("",))]),
        ("id=eq.not.1", [("id", "eq", False, ("not.1",))]),
        ("a=gt.1.5,b=lte.2", [("a", "gt", False, ("1.5",)), ("b", "lte", False, ("2",))]),
        ("id=in.(1,2,3)", [("id", "in", False, ("1", "2", "3"))]),
        ("id=in.(1),b=eq.2", [("id", "in", False, ("1",)), ("b", "eq", False, ("2",))]),
        ('id=in.("a,b","c)\\"",d)', [("id", "in", False, ("a,b", 'c)"', "d"))]),
        ('name=eq."a,b=eq.c",x=neq.y', [("name", "eq", False, ("a,b=eq.c",)), ("x", "neq", False, ("y",))]),
        ("a=is.NULL", [("a", "is", False, ("null",))]),
        ("a=not.is.true", [("a", "is", True, ("true",))]),
        (" a =like.%x%", [("a", "like", False, ("%x%",))]),
        ("a=eq.(1)", [("a", "eq", False, ("(1)",))]),
        ("a=imatch.^x,b=isdistinct.1", [("a", "imatch", False, ("^x",)), ("b", "isdistinct", False, ("1",))]),
    ],
)
def test_filters(text: str, conditions: list[tuple[str, str, bool, tuple[str, ...]]]) -> None:
    expected = tuple(
        Condition(column, Operator(operator), negated, values) for column, operator, negated, values in conditions
    )
    assert parse_filter(text) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("foo=hey", ["foo", "hey"]),
        ("foo", ["foo"]),
        ("=eq.1", ["", "eq.1"]),
        ("a=eq", ["a", "eq"]),
        ("a=not.eq", ["a", "not.eq"]),
        ("a=xx.1", ["a", "xx.1"]),
        ("a=in.1", ["a", "in.1"]),
        ("a=in.()", ["a", "in.()"]),
        ("a=in.(1", ["a", "in.(1"]),
        ("a=in.(1,", ["a", "in.(1,"]),
        ('a=in.("1"2)', ["a", 'in.("1"2)']),
        ("a=is.maybe", ["a", "is.maybe"]),
        ("a=eq.1,", ["a", "eq.1,"]),
        ("a=eq.1,b", ["b"]),
        ('a=eq."1"2', ["a", 'eq."1"2']),
        ("a=in.(1)x", ["a", "in.(1)x"]),
    ],
)
def test_what_is_no_filter_is_told_in_supabases_words(text: str, parts: list[str]) -> None:
    with pytest.raises(MalformedFilter) as malformed:
        parse_filter(text)
    assert str(malformed.value) == f"Error parsing `filter` params: {json.dumps(parts, separators=(',', ':'))}"


def test_an_in_has_at_most_a_hundred_values() -> None:
    (condition,) = parse_filter(f"a=in.({','.join(['1'] * MOST_VALUES)})")
    assert len(condition.values) == MOST_VALUES == 100
    with pytest.raises(MalformedFilter):
        parse_filter(f"a=in.({','.join(['1'] * (MOST_VALUES + 1))})")


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_filter(text)
    except MalformedFilter as error:
        assert str(error).startswith("Error parsing `filter` params: [")


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_any_value_can_be_quoted(values: list[str]) -> None:
    quoted = ['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]
    (condition,) = parse_filter(f"a=in.({','.join(quoted)})")
    assert condition.values == tuple(values)


def truth(text: str, kind: str, operands: list[str], value: str) -> bool | None:
    (condition,) = parse_filter(text)
    return holds(condition, kind, [operand.encode() for operand in operands], value.encode())


@pytest.mark.parametrize(
    ("text", "kind", "operands", "value", "expected"),
    [
        ("a=eq.1", "int4", ["1"], "1", True),
        ("a=eq.1", "int4", ["1"], "2", False),
        ("a=not.eq.1", "int4", ["1"], "2", True),
        ("a=not.eq.1", "int4", ["1"], "null", False),
        ("a=eq.1", "int4", ["1"], "null", False),
        ("a=neq.1", "int4", ["1"], "2", True),
        ("a=neq.1", "int4", ["1"], "null", False),
        ("a=isdistinct.1", "int4", ["1"], "null", True),
        ("a=isdistinct.1", "int4", ["1"], "1", False),
        ("a=not.isdistinct.1", "int4", ["1"], "1", True),
        ("a=not.isdistinct.1", "int4", ["1"], "null", False),
        ("a=eq.1.0", "numeric", ["1.0"], "1.00", True),
        ("a=eq.NaN", "numeric", ['"NaN"'], "1", None),
        ("a=gt.1", "numeric", ["1"], '"Infinity"', None),
        ("a=lt.9007199254740993", "int8", ["9007199254740993"], "9007199254740992", True),
        ("a=lt.2", "int4", ["2"], "2", False),
        ("a=lte.2", "int4", ["2"], "2", True),
        ("a=lte.2", "int4", ["2"], "3", False),
        ("a=gt.2", "int4", ["2"], "2", False),
        ("a=gt.2", "int4", ["2"], "3", True),
        ("a=gte.2", "int4", ["2"], "2", True),
        ("a=gte.2", "int4", ["2"], "1", False),
        ("a=gte.2", "int4", ["2"], "null", False),
        ("a=gt.b", "text", ['"b"'], '"c"', None),
        ("a=gt.1", "float8", ["1"], "2", None),
        ("a=eq.ü", "text", ['"ü"'], '"\\u00fc"', True),
        ("a=eq.x", "text", ['"x"'], '"X"', False),
        ("a=eq.x", "bpchar", ['"x "'], '"x"', None),
        ("a=eq.x", "citext", ['"x"'], '"X"', None),
        ("a=eq.t", "bool", ["true"], "true", True),
        ("a=eq.t", "bool", ["true"], "false", False),
        ("a=in.(1,2)", "int4", ["1", "2"], "2", True),
        ("a=in.(1,2)", "int4", ["1", "2"], "3", False),
        ("a=not.in.(1,2)", "int4", ["1", "2"], "3", True),
        ("a=in.(1,NaN)", "numeric", ["1", '"NaN"'], "3", None),
        ("a=in.(1,NaN)", "numeric", ["1", '"NaN"'], "1", True),
        ("a=in.(1)", "int4", ["1"], "null", False),
        ("a=is.null", "int4", [], "null", True),
        ("a=is.null", "int4", [], "1", False),
        ("a=is.null", "text", [], '"null"', False),
        ("a=is.null", "bool", [], "true", False),
        ("a=not.is.null", "int4", [], "1", True),
        ("a=is.null", "pair", [], '{"a":null}', None),
        ("a=is.null", "pair", [], "null", True),
        ("a=is.null", "jsonb", [], "null", None),
        ("a=is.true", "bool", [], "true", True),
        ("a=is.true", "bool", [], "null", False),
        ("a=is.false", "bool", [], "false", True),
        ("a=is.unknown", "bool", [], "null", True),
        ("a=is.unknown", "bool", [], "true", False),
        ("a=like.x%", "text", ['"x%"'], '"xy"', None),
        ("a=ilike.x%", "text", ['"x%"'], '"xy"', None),
        ("a=match.x", "text", ['"x"'], '"xy"', None),
        ("a=imatch.x", "text", ['"x"'], '"xy"', None),
        ("a=not.like.x%", "text", ['"x%"'], '"xy"', None),
        ("a=like.x%", "text", ['"x%"'], "null", False),
        ("a=not.like.x%", "text", ['"x%"'], "null", False),
    ],
)
def test_conditions(text: str, kind: str, operands: list[str], value: str, expected: bool | None) -> None:
    assert truth(text, kind, operands, value) is expected

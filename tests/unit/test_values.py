"""Malformed text of values. tests/postgres/test_values.py compares well-formed text with the database."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.capture.catalog import TypeRow, resolve
from momentum_sync.capture.values import ColumnType, Kind, MalformedValue, to_json

TEXT = ColumnType(name="text", kind=Kind.TEXT)
NUMBER = ColumnType(name="int4", kind=Kind.NUMBER)
PAIR = ColumnType(name="pair", kind=Kind.COMPOSITE, fields=(("a", NUMBER), ("b", TEXT)))
ARRAYS = {kind.name: ColumnType(name=f"_{kind.name}", kind=Kind.ARRAY, element=kind) for kind in (TEXT, NUMBER, PAIR)}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("true", ColumnType(name="bool", kind=Kind.BOOLEAN)),
        ("", ARRAYS["text"]),
        ("1", ARRAYS["int4"]),
        ("{1", ARRAYS["int4"]),
        ("{1}}", ARRAYS["int4"]),
        ("{1,}", ARRAYS["int4"]),
        ("{,1}", ARRAYS["int4"]),
        ('{"a', ARRAYS["text"]),
        ('{"a"b}', ARRAYS["text"]),
        ("(1,a", PAIR),
        ("1,a)", PAIR),
        ("(1)", PAIR),
        ("(1,a,b)", PAIR),
        ('(1,"a)', PAIR),
        ("{" * 300 + "}" * 300, ARRAYS["int4"]),
    ],
)
def test_text_that_is_no_value_of_its_type_is_refused(text: str, kind: ColumnType) -> None:
    with pytest.raises(MalformedValue):
        to_json(text, kind)


@given(st.sampled_from([*ARRAYS.values(), PAIR]), st.text('{}(),;"\\ N1a', max_size=12))
def test_any_text_becomes_json_or_is_refused(kind: ColumnType, text: str) -> None:
    try:
        made = to_json(text, kind)
    except MalformedValue:
        return
    json.loads(made)


def test_a_json_document_with_a_character_that_jsonb_cannot_store_is_a_string() -> None:
    document = ColumnType(name="json", kind=Kind.JSON)
    assert json.loads(to_json('{"a":"\\u0000"}', document)) == '{"a":"\\u0000"}'
    assert json.loads(to_json('{"a":"\\\\u0000"}', document)) == {"a": "\\u0000"}


def test_a_type_has_its_parts() -> None:
    rows = [
        TypeRow(23, "int4", 0, 0, ",", [], [], is_composite=False),
        TypeRow(50_000, "positive", 23, 0, ",", [], [], is_composite=False),
        TypeRow(50_001, "_positive", 0, 50_000, ",", [], [], is_composite=False),
        TypeRow(50_002, "owner", 0, 0, ",", ["ids"], [50_001], is_composite=True),
    ]
    made = resolve(rows)
    positive = ColumnType(name="positive", kind=Kind.NUMBER)
    ids = ColumnType(name="_positive", kind=Kind.ARRAY, element=positive)
    assert made[50_002] == ColumnType(name="owner", kind=Kind.COMPOSITE, fields=(("ids", ids),))
    assert to_json("({1})", made[50_002]) == b'{"ids":[1]}'


def test_a_type_chooses_its_delimiter() -> None:
    points = ColumnType(name="_geometry", kind=Kind.ARRAY, element=TEXT, delimiter=":")
    assert json.loads(to_json('{a,b:"c:d":NULL}', points)) == ["a,b", "c:d", None]


@pytest.mark.parametrize("kind", [ARRAYS["text"], PAIR])
def test_a_long_text_without_its_closing_quote_is_refused_at_once(kind: ColumnType) -> None:
    begin = '{"' if kind.kind is Kind.ARRAY else '(1,"'
    with pytest.raises(MalformedValue):
        to_json(begin + "a" * 100_000 + ("}" if begin == '{"' else ")"), kind)


@pytest.mark.parametrize(
    ("text", "is_document"),
    [
        ('{"a":[1]}', True),
        ('"\\ud83d\\ude00"', True),
        ('"\\ud83d"', False),
        ('"\\uDE00"', False),
        ("[" * 256 + "]" * 256, True),
        ("[" * 257 + "]" * 257, False),
        ('"\\u0000"', False),
        ('"\\\\u0000"', True),
    ],
)
def test_a_document_that_not_every_reader_can_take_is_a_string(text: str, is_document: bool) -> None:
    found = to_json(text, ColumnType(name="json", kind=Kind.JSON))
    assert (found == text.encode()) is is_document
    if not is_document:
        assert json.loads(found) == text


BOOLEAN = ColumnType(name="bool", kind=Kind.BOOLEAN)
TIMESTAMP = ColumnType(name="timestamp", kind=Kind.TIMESTAMP)
TIMESTAMPTZ = ColumnType(name="timestamptz", kind=Kind.TIMESTAMPTZ)
VECTOR = ColumnType(name="int2vector", kind=Kind.ARRAY, element=NUMBER, delimiter=" ")
NOTHING = ColumnType(name="nothing", kind=Kind.COMPOSITE)
PAIRS = ColumnType(name="pairs", kind=Kind.COMPOSITE, fields=(("first", PAIR), ("all", ARRAYS["pair"])))


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("t", BOOLEAN, b"true"),
        ("f", BOOLEAN, b"false"),
        ("-0.50", NUMBER, b"-0.50"),
        ("1e+20", NUMBER, b"1e+20"),
        ("1.5E-7", NUMBER, b"1.5E-7"),
        ("NaN", NUMBER, b'"NaN"'),
        ("-Infinity", NUMBER, b'"-Infinity"'),
        ("01", NUMBER, b'"01"'),
        ("1x", NUMBER, b'"1x"'),
        ('a "b"', TEXT, b'"a \\"b\\""'),
        ("2026-11-30 08:27:36.5", TIMESTAMP, b'"2026-11-30T08:27:36.5"'),
        ("0044-03-15 12:00:00 BC", TIMESTAMP, b'"0044-03-15T12:00:00 BC"'),
        ("infinity", TIMESTAMP, b'"infinity"'),
        ("in finity", TIMESTAMP, b'"in finity"'),
        ("2026-11-30 08:27:36.5+00", TIMESTAMPTZ, b'"2026-11-30T08:27:36.5+00:00"'),
        ("2026-11-30 08:27:36-05", TIMESTAMPTZ, b'"2026-11-30T08:27:36-05:00"'),
        ("2026-11-30 08:27:36+05:30", TIMESTAMPTZ, b'"2026-11-30T08:27:36+05:30"'),
        ("0044-03-15 12:00:00+00 BC", TIMESTAMPTZ, b'"0044-03-15T12:00:00+00:00 BC"'),
        ("-infinity", TIMESTAMPTZ, b'"-infinity"'),
        ("- infinity", TIMESTAMPTZ, b'"- infinity"'),
        ("{}", ARRAYS["int4"], b"[]"),
        ("{1,NULL,3}", ARRAYS["int4"], b"[1,null,3]"),
        ("{{1,2},{3,4}}", ARRAYS["int4"], b"[[1,2],[3,4]]"),
        ("{{{1}},{{2}}}", ARRAYS["int4"], b"[[[1]],[[2]]]"),
        ("[0:1]={7,8}", ARRAYS["int4"], b"[7,8]"),
        ("[-1:0][+5:6]={{1,2},{3,4}}", ARRAYS["int4"], b"[[1,2],[3,4]]"),
        ('{a,"NULL","b,c","d\\"e","f\\\\g","",null}', ARRAYS["text"], b'["a","NULL","b,c","d\\"e","f\\\\g","","null"]'),
        ('{"a\nb","\\\nc"}', ARRAYS["text"], b'["a\\nb","\\nc"]'),
        ('{"(1,a)","(,)"}', ARRAYS["pair"], b'[{"a":1,"b":"a"},{"a":null,"b":null}]'),
        ("1 2 3", VECTOR, b"[1,2,3]"),
        ("", VECTOR, b"[]"),
        ("()", NOTHING, b"{}"),
        ("(1,a)", PAIR, b'{"a":1,"b":"a"}'),
        ("(,)", PAIR, b'{"a":null,"b":null}'),
        ('(1,"")', PAIR, b'{"a":1,"b":""}'),
        ('(1,"a ""b"", (c)\\\\ \\"d")', PAIR, b'{"a":1,"b":"a \\"b\\", (c)\\\\ \\"d"}'),
        ('(1,a"b,c"\\,d)', PAIR, b'{"a":1,"b":"ab,c,d"}'),
        ('(1,"a\n\\\nb")', PAIR, b'{"a":1,"b":"a\\n\\nb"}'),
        (
            '("(1,a)","{""(2,\\\\""b c\\\\"")""}")', PAIRS,
            b'{"first":{"a":1,"b":"a"},"all":[{"a":2,"b":"b c"}]}',
        ),
        ('{"\\ud83d":1}', ColumnType(name="json", kind=Kind.JSON), b'"{\\"\\\\ud83d\\":1}"'),
        ('[1, {"a" : null}]', ColumnType(name="jsonb", kind=Kind.JSON), b'[1, {"a" : null}]'),
    ],
)  # fmt: skip
def test_a_value_becomes_the_json_that_to_jsonb_makes_of_it(text: str, kind: ColumnType, expected: bytes) -> None:
    assert to_json(text, kind) == expected


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("x", BOOLEAN, "a boolean is neither t nor f"),
        ("", BOOLEAN, "a boolean is neither t nor f"),
        ("1", ARRAYS["int4"], "an array of _int4 does not begin with a brace"),
        ("{1}{2}", ARRAYS["int4"], "text follows an array of _int4"),
        ("{1", ARRAYS["int4"], "an array of _int4 is truncated"),
        ("{1,", ARRAYS["int4"], "an array of _int4 has a malformed element"),
        ("{1}x", ARRAYS["int4"], "text follows an array of _int4"),
        ("1,a)", PAIR, "a value of pair is not in parentheses"),
        ("(1,a", PAIR, "a value of pair is not in parentheses"),
        ("()", PAIR, "a value of pair has 1 attributes, not 2"),
        ("(1,a,b)", PAIR, "a value of pair has 3 attributes, not 2"),
        ('(1,"a)', PAIR, "a value of pair has a malformed attribute"),
        ("{" * 258 + "}" * 258, ARRAYS["int4"], "a value of _int4 is nested too deep"),
    ],
)
def test_text_that_is_no_value_is_refused_with_a_reason(text: str, kind: ColumnType, said: str) -> None:
    with pytest.raises(MalformedValue) as refused:
        to_json(text, kind)
    assert str(refused.value) == said


def test_values_are_nested_up_to_a_limit() -> None:
    deep = ARRAYS["int4"]
    assert to_json("{" * 255 + "1" + "}" * 255, deep) == b"[" * 255 + b"1" + b"]" * 255
    with pytest.raises(MalformedValue):
        to_json("{" * 257 + "1" + "}" * 257, deep)
    one = ColumnType(name="one", kind=Kind.COMPOSITE, fields=(("n", NUMBER),))
    assert to_json("(1)", one, 2) == b'{"n":1}'
    assert to_json("{1}", deep, 2) == b"[1]"
    assert to_json("1 2", VECTOR, 2) == b"[1,2]"
    for text, kind in (("(1)", one), ("{1}", deep), ('{"1"}', deep), ("1 2", VECTOR)):
        with pytest.raises(MalformedValue, match="a value of int4 is nested too deep"):
            to_json(text, kind, 1)

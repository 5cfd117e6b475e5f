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

"""Changes of rows as the JSON that Supabase's clients get."""

from __future__ import annotations

import json
from typing import Any

import pytest

from momentum_sync.capture.row_changes import RowChanges, UnknownRelation
from momentum_sync.capture.row_messages import (
    UNCHANGED,
    Delete,
    Identity,
    Insert,
    Relation,
    RelationColumn,
    RowMessage,
    Truncate,
    Update,
)
from momentum_sync.capture.values import ColumnType, Kind

TEXT, NUMBER, PAIR = 25, 23, 99
TYPES = {
    TEXT: ColumnType(name="text", kind=Kind.TEXT),
    NUMBER: ColumnType(name="int4", kind=Kind.NUMBER),
    PAIR: ColumnType(name="pair", kind=Kind.COMPOSITE, fields=(("a", ColumnType(name="int4", kind=Kind.NUMBER)),)),
}
COLUMNS = (RelationColumn("id", NUMBER, True), RelationColumn("text", TEXT, False))


def rows(identity: Identity = Identity.DEFAULT, columns: tuple[RelationColumn, ...] = COLUMNS) -> RowChanges:
    changes = RowChanges()
    changes.learn(TYPES, TYPES)
    changes.describe(Relation(1, "public", "notes", identity, columns))
    return changes


def encoded(changes: RowChanges, message: RowMessage, at: float = 0.0) -> dict[str, Any]:
    body = json.loads(changes.encode(message, 1, at))
    assert isinstance(body, dict)
    return body


def test_an_insert() -> None:
    assert encoded(rows(), Insert(1, ("1", None)), 1_763_511_760.877) == {
        "schema": "public", "table": "notes", "commit_timestamp": "2025-11-19T00:22:40.877Z", "type": "INSERT",
        "columns": [{"name": "id", "type": "int4"}, {"name": "text", "type": "text"}],
        "record": {"id": 1, "text": None}, "errors": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("identity", "old", "new", "record", "old_record"),
    [
        (Identity.DEFAULT, None, ("1", "b"), {"id": 1, "text": "b"}, {"id": 1}),
        (Identity.DEFAULT, ("1", None), ("2", "b"), {"id": 2, "text": "b"}, {"id": 1}),
        (Identity.DEFAULT, None, ("1", UNCHANGED), {"id": 1}, {"id": 1}),
        (Identity.DEFAULT, ("1", None), ("2", UNCHANGED), {"id": 2}, {"id": 1}),
        (Identity.INDEX, None, ("1", "b"), {"id": 1, "text": "b"}, {"id": 1}),
        (Identity.FULL, ("1", "a"), ("1", "b"), {"id": 1, "text": "b"}, {"id": 1, "text": "a"}),
        (Identity.FULL, ("1", "a"), ("1", UNCHANGED), {"id": 1, "text": "a"}, {"id": 1, "text": "a"}),
        (Identity.FULL, ("1", None), ("1", "b"), {"id": 1, "text": "b"}, {"id": 1, "text": None}),
    ],
)
def test_an_update_has_of_the_old_row_what_the_replica_identity_has(
    identity: Identity, old: Any, new: Any, record: dict[str, object], old_record: dict[str, object]
) -> None:
    body = encoded(rows(identity), Update(1, old, new))
    assert (body["type"], body["record"], body["old_record"]) == ("UPDATE", record, old_record)


def test_a_delete_has_no_record() -> None:
    body = encoded(rows(), Delete(1, ("1", None)))
    assert (body["type"], body["old_record"], "record" in body) == ("DELETE", {"id": 1}, False)
    assert encoded(rows(Identity.FULL), Delete(1, ("1", None)))["old_record"] == {"id": 1, "text": None}


def test_a_truncate_has_no_values() -> None:
    body = encoded(rows(), Truncate((1,)))
    assert (body["type"], body["record"], body["old_record"]) == ("TRUNCATE", {}, {})


def test_a_relation_must_be_described_and_the_last_description_holds() -> None:
    changes = rows()
    with pytest.raises(UnknownRelation, match="relation 2"):
        changes.encode(Insert(2, ("1",)), 2, 0.0)
    changes.describe(Relation(1, "public", "renamed", Identity.DEFAULT, COLUMNS[:1]))
    body = encoded(changes, Insert(1, ("1",)))
    assert (body["table"], body["record"]) == ("renamed", {"id": 1})


def test_types_are_asked_for_once_and_a_dropped_one_has_text() -> None:
    changes = RowChanges()
    relation = Relation(1, "public", "notes", Identity.DEFAULT, (*COLUMNS, RelationColumn("gone", 7, False)))
    assert changes.missing_types(relation) == {TEXT, NUMBER, 7}
    changes.learn({TEXT, NUMBER, 7}, {TEXT: TYPES[TEXT], NUMBER: TYPES[NUMBER]})
    assert changes.missing_types(relation) == set()
    changes.describe(relation)
    body = encoded(changes, Insert(1, ("1", "a", "{x}")))
    assert body["columns"][2] == {"name": "gone", "type": "unknown"}
    assert body["record"]["gone"] == "{x}"


def test_a_value_of_a_type_that_has_changed_since_is_text_and_told() -> None:
    body = encoded(rows(columns=(RelationColumn("pair", PAIR, True),)), Insert(1, ("(1,2)",)))
    assert body["record"] == {"pair": "(1,2)"}
    assert body["errors"] == [
        "the value of pair is text, because its type has changed: a value of pair has 2 attributes, not 1"
    ]


def test_a_change_of_more_than_a_mebibyte_has_its_values_of_at_most_64_bytes() -> None:
    columns = (*COLUMNS, RelationColumn("large", TEXT, False))
    fits, exceeds = "x" * 62, "x" * 63  # with two quotation marks
    body = encoded(rows(columns=columns), Insert(1, ("1", fits, "y" * 1024 * 1024)))
    assert (body["record"], body["errors"]) == ({"id": 1, "text": fits}, ["Error 413: Payload Too Large"])
    assert len(body["columns"]) == 3
    body = encoded(rows(columns=columns), Insert(1, ("1", exceeds, "y" * 1024 * 1024)))
    assert body["record"] == {"id": 1}
    whole = len(rows(columns=columns).encode(Insert(1, ("1", "", "")), 1, 0.0))
    largest = "y" * (1024 * 1024 - whole)
    assert encoded(rows(columns=columns), Insert(1, ("1", "", largest)))["errors"] is None
    assert encoded(rows(columns=columns), Insert(1, ("1", "", largest + "y")))["errors"] is not None


def test_a_row_must_have_the_columns_of_its_description() -> None:
    for message, count in (
        (Insert(1, ("1",)), 1), (Delete(1, ("1",)), 1), (Update(1, None, ("1", "a", "b")), 3),
        (Update(1, ("1",), ("1", "a")), 1),
    ):  # fmt: skip
        with pytest.raises(UnknownRelation, match=f"{count} values, not 2"):
            rows().encode(message, 1, 0.0)

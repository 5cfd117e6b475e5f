"""The part of a change that a caller sees."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from momentum_sync.identity.row_tables import RowTable
from momentum_sync.wire.row_change import ChangedColumn, as_delete, encode_change, parse_change

UPDATE: dict[str, Any] = {
    "schema": "public", "table": "t", "commit_timestamp": "2026-11-28T00:00:00.000Z", "type": "UPDATE",
    "columns": [{"name": "id", "type": "int4"}, {"name": "a", "type": "text"}],
    "record": {"id": 1, "a": "new"}, "old_record": {"id": 1, "a": "old"}, "errors": None,
}  # fmt: skip


def body(**more: Any) -> bytes:
    return json.dumps({name: value for name, value in {**UPDATE, **more}.items() if value != "absent"}).encode()


def test_a_change_has_what_the_body_has() -> None:
    given = body()
    change = parse_change(given)
    assert (change.schema, change.table, change.type) == ("public", "t", "UPDATE")
    assert change.columns == (ChangedColumn("id", "int4"), ChangedColumn("a", "text"))
    assert bytes(change.row["a"]) == b'"new"'
    assert parse_change(given) is change  # the events of a batch are parsed once


def test_the_row_of_a_delete_is_the_old_one() -> None:
    change = parse_change(body(type="DELETE", record="absent"))
    assert bytes(change.row["a"]) == b'"old"'
    assert change.has_whole_old_row
    assert not parse_change(body(old_record={"id": 1})).has_whole_old_row
    assert not parse_change(body(type="INSERT", old_record="absent")).has_whole_old_row
    assert parse_change(body(type="DELETE", record="absent", old_record="absent")).row == {}
    assert parse_change(body(type="INSERT", record="absent", old_record="absent")).row == {}


@pytest.mark.parametrize(
    ("columns", "record", "old", "names"),
    [
        (None, {"id": 1, "a": "new"}, {"id": 1, "a": "old"}, ["id", "a"]),
        ({"a"}, {"a": "new"}, {"a": "old"}, ["a"]),
        (set(), {}, {}, []),
    ],
)
def test_only_some_columns(
    columns: set[str] | None, record: dict[str, Any], old: dict[str, Any], names: list[str]
) -> None:
    shown = json.loads(encode_change(parse_change(body()), columns))
    assert shown == {
        **UPDATE, "record": record, "old_record": old,
        "columns": [column for column in UPDATE["columns"] if column["name"] in names],
    }  # fmt: skip


def test_what_a_change_does_not_have_is_not_sent() -> None:
    inserted = json.loads(encode_change(parse_change(body(type="INSERT", old_record="absent")), None))
    assert "old_record" not in inserted
    assert inserted["type"] == "INSERT"


def test_a_row_out_of_sight_is_deleted_by_its_key() -> None:
    gone = json.loads(encode_change(as_delete(parse_change(body())), None, {"id"}))
    kept = {name: value for name, value in UPDATE.items() if name != "record"}
    assert gone == {**kept, "type": "DELETE", "old_record": {"id": 1}}
    assert as_delete(parse_change(body())).old_record == parse_change(body()).old_record
    assert as_delete(parse_change(body(old_record="absent"))).old_record == {}
    shown = json.loads(encode_change(parse_change(body()), {"a"}, {"id"}))
    assert (shown["record"], shown["old_record"]) == ({"a": "new"}, {})


def test_columns_that_the_table_has_no_longer_are_not_shown() -> None:
    change = parse_change(body())
    assert table(True, True).shown_of(change) is None
    assert table(True, False).shown_of(change) == frozenset({"id"})
    older = parse_change(body(columns=[*UPDATE["columns"], {"name": "gone", "type": "text"}]))
    assert table(True, True).shown_of(older) == frozenset({"id", "a"})
    assert table(True, False).shown_of(older) == frozenset({"id"}), "a column that the role may not select is not shown"
    assert table(False, True).shown_of(older) == frozenset({"a"})
    retyped = parse_change(body(columns=[{"name": "id", "type": "int8"}, {"name": "a", "type": "text"}]))
    assert table(True, True).shown_of(retyped) == frozenset({"a"})


def test_no_change_of_a_row() -> None:
    for wrong in (b"{}", b"[]", b"", body(columns=7)):
        with pytest.raises(msgspec.MsgspecError):
            parse_change(wrong)


def table(*selectable: bool) -> RowTable:
    return RowTable.build(
        1, "public", "t", secured=True, policies=("true", "true"), needed=frozenset({"a"}),
        columns=[
            ("id", "int4", "integer", "integer", selectable[0], True),
            ("a", "text", "text", "text", selectable[1], False),
        ],
        identity=frozenset({"id"}),
    )  # fmt: skip


def test_columns_of_a_table() -> None:
    whole = table(True, True)
    assert (whole.oid, whole.schema, whole.name) == (1, "public", "t")
    assert (whole.secured, whole.policies, whole.identity) == (True, ("true", "true"), frozenset({"id"}))
    assert table(True, True).shown is None
    assert table(True, False).shown == frozenset({"id"})
    assert table(True, True).key == {"id"}
    assert table(True, False).column("a") is None
    assert table(True, False).column("b") is None
    found = table(True, True).column("a")
    assert found is not None
    assert (found.type_name, found.type_sql, found.is_key) == ("text", "text", False)


def test_a_delete_can_be_checked_if_the_identity_has_what_the_policies_read() -> None:
    keyed = table(True, True)
    assert not keyed.checks_deletes
    assert msgspec.structs.replace(keyed, secured=False).checks_deletes
    assert msgspec.structs.replace(keyed, needed=frozenset({"id"})).checks_deletes
    assert msgspec.structs.replace(keyed, identity=frozenset({"id", "a"})).checks_deletes
    row = msgspec.structs.replace(keyed, needed=None)
    assert not row.checks_deletes
    assert msgspec.structs.replace(row, identity=frozenset({"id", "a"})).checks_deletes


def test_a_row_can_be_checked_if_it_has_what_the_policies_read() -> None:
    change = parse_change(body())
    assert change.record is not None
    some = {"a": change.record["a"]}
    assert table(True, True).can_check(some)
    assert not table(True, True).can_check({"id": change.record["id"]})
    whole = msgspec.structs.replace(table(True, True), needed=None)
    assert whole.can_check(change.record)
    assert not whole.can_check(some)

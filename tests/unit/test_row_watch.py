"""Which changes a binding gets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from momentum_sync.wire import row_watch
from momentum_sync.wire.realtime_filter import Condition, Operator
from momentum_sync.wire.row_change import Change, parse_change
from momentum_sync.wire.row_watch import Watch, is_typed_as_before, matches


def change(kind: str = "INSERT", **more: Any) -> Change:
    return parse_change(
        json.dumps({
            "schema": "public", "table": "t", "commit_timestamp": "", "type": kind, "errors": None,
            "columns": [{"name": "id", "type": "int4"}, {"name": "a", "type": "text"}], **more,
        }).encode()
    )  # fmt: skip


def condition(operator: Operator, *values: str, column: str = "id", kind: str = "int4") -> row_watch.Test:
    operands = tuple(value.encode() for value in values)
    return row_watch.Test(Condition(column, operator, False, values), kind, kind, kind, operands)


ONE, LIKE = condition(Operator.EQ, "1"), condition(Operator.LIKE, "x%", column="a", kind="text")


def unknown(test: row_watch.Test, value: bytes) -> bool | None:
    return None


def watch(*tests: row_watch.Test, event: str = "*", relation: int = 7) -> Watch:
    return Watch(id=1, event=event, relations=frozenset({relation}), tests=tests)


@pytest.mark.parametrize(
    ("watching", "given", "expected"),
    [
        (watch(), change(record={"id": 1}), True),
        (watch(event="INSERT"), change(record={"id": 1}), True),
        (watch(event="UPDATE"), change(record={"id": 1}), False),
        (watch(relation=8), change(record={"id": 1}), False),
        (watch(ONE), change(record={"id": 1}), True),
        (watch(ONE), change(record={"id": 2}), False),
        (watch(ONE), change(record={}), False),
        (watch(ONE), change("TRUNCATE", record={}, old_record={}), False),
        (watch(), change("TRUNCATE", record={}, old_record={}), True),
        (watch(ONE), change("DELETE", old_record={"id": 1}), True),
        (watch(ONE), change("UPDATE", record={"id": 2}, old_record={"id": 1}), False),
        (watch(LIKE), change(record={"id": 1, "a": "xy"}), None),
        (watch(ONE, LIKE), change(record={"id": 1, "a": "xy"}), None),
        (watch(LIKE, ONE), change(record={"id": 2, "a": "xy"}), False),
        (watch(LIKE, ONE), change(record={"id": 1}), False),
    ],
)
def test_a_watch_gets_a_change(watching: Watch, given: Change, expected: bool | None) -> None:
    assert matches(watching, 7, given, unknown) is expected


@pytest.mark.parametrize("answer", [True, False, None])
def test_what_the_database_said_counts(answer: bool | None) -> None:
    given = change(record={"id": 1, "a": "xy"})
    asked: list[tuple[row_watch.Test, bytes]] = []

    def ask(test: row_watch.Test, value: bytes) -> bool | None:
        asked.append((test, value))
        return answer

    assert matches(watch(LIKE), 7, given, ask) is answer
    assert asked == [(LIKE, b'"xy"')]
    asked.clear()
    assert matches(watch(ONE), 7, given, ask) is True
    assert asked == []  # it is decided here


def test_a_column_of_another_type_by_now_is_left_to_the_database() -> None:
    given = change(record={"id": 1}, columns=[{"name": "id", "type": "text"}])
    assert not is_typed_as_before(ONE, given)
    assert is_typed_as_before(ONE, change())
    assert matches(watch(ONE), 7, given, unknown) is None


def test_the_values_that_are_tested() -> None:
    assert row_watch.tested(watch(ONE, LIKE), change(record={"id": 5})) == [(ONE, b"5"), (LIKE, None)]

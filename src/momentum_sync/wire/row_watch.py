"""Watches: bindings of `postgres_changes` whose tables and filters the database has confirmed."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from momentum_sync.wire.realtime_filter import Condition, holds
from momentum_sync.wire.row_change import Change


class Test(msgspec.Struct, frozen=True):
    """A condition on a column of a known type.

    Attributes:
        condition: the condition.
        type_name: `pg_type.typname` of the column.
        type_sql: the type in SQL.
        definition: the type with the column's collation.
        operands: the JSON of the condition's values, as `to_jsonb` makes it of the column's type.
    """

    condition: Condition
    type_name: str
    type_sql: str
    definition: str
    operands: tuple[bytes, ...]


class Watch(msgspec.Struct, frozen=True):
    """A binding, as it is matched with changes.

    Attributes:
        id: its number, which events name.
        event: `INSERT`, `UPDATE`, `DELETE` or `*`.
        relations: ids of its tables.
        tests: the filter: all of them must hold.
        select: columns of the rows that are sent; None for all of them.
    """

    id: int
    event: str
    relations: frozenset[int]
    tests: tuple[Test, ...] = ()
    select: frozenset[str] | None = None


Ask = Callable[[Test, bytes], bool | None]
"""Returns what the database has said of a test and a value; None if it has to be asked."""


def matches(watch: Watch, relation: int, change: Change, ask: Ask) -> bool | None:
    """Return whether a watch gets a change; None if that depends on a test that only the database can decide.

    As at Supabase, a filter on a column that the change does not have is not fulfilled, and a `TRUNCATE` has no
    columns.
    """
    if relation not in watch.relations or watch.event not in ("*", change.type):
        return False
    if not watch.tests:
        return True
    decided: bool | None = True
    for test, value in tested(watch, change):
        held = None if value is None else _held(test, value, change, ask)
        if value is None or held is False:
            return False
        if held is None:
            decided = None
    return decided


def tested(watch: Watch, change: Change) -> list[tuple[Test, bytes | None]]:
    """Return the watch's tests, each with the value of its column; None where the change does not have it."""
    row = change.row
    found = [(test, row.get(test.condition.column)) for test in watch.tests]
    return [(test, None if value is None else bytes(value)) for test, value in found]


def is_typed_as_before(test: Test, change: Change) -> bool:
    """Return whether the column still had, in this change, the type that the test was made for."""
    name = test.condition.column
    return any(column.name == name and column.type == test.type_name for column in change.columns)


def _held(test: Test, value: bytes, change: Change, ask: Ask) -> bool | None:
    decided = None
    if is_typed_as_before(test, change):
        decided = holds(test.condition, test.type_name, test.operands, value)
    return ask(test, value) if decided is None else decided

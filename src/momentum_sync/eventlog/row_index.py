"""The window's index of changes of rows by the values in a column.

A client whose policy or filter allows certain values of a column alone, such as its user's id, gets the changes with
those from here. So what it costs to catch up depends on its own changes, not on all of the table's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from momentum_sync.eventlog.event import Event
from momentum_sync.identity.policy import Value
from momentum_sync.wire.row_change import parse_change

Route = tuple[str, str, Value]
"""A channel, a column, and its value."""

Held = tuple[Event, int]
"""An event in the window, and the highest transaction id up to it."""

# A client may filter by any column. The least recently used index is dropped, and made again when it is asked.
_MOST_COLUMNS = 8
_decode = msgspec.json.decode


def values_of(event: Event, column: str) -> list[Value] | None:
    """Return the values of a column in the new and in the old row of a change; None if they may be any.

    That is so for a `TRUNCATE`, and for an `UPDATE` without the column.
    """
    change = parse_change(event.body)
    record, old = change.record, change.old_record
    if change.type == "TRUNCATE" or (record is not None and column not in record):
        return None
    new = None if record is None else record[column]
    before = None if old is None else old.get(column)
    values = [_decode(each) for each in (new, before) if each is not None]
    if any(isinstance(value, list | dict) for value in values):
        return None  # the column has another type by now
    return values if len(values) < 2 or values[0] != values[1] else values[:1]


class _Column:
    """The changes of one table by the value of one column; `any` has those that may have any value."""

    __slots__ = ("any", "by_value")

    def __init__(self) -> None:
        self.any: deque[Held] = deque()
        self.by_value: dict[Value, deque[Held]] = {}


class RowIndex:
    """The indexed columns of the window. `add` and `evict` are called in the order of the events."""

    def __init__(self) -> None:
        self._columns: dict[str, dict[str, _Column]] = {}

    def clear(self) -> None:
        """Forget all columns."""
        self._columns.clear()

    def add(self, channel: str, entry: Held) -> None:
        """Take in the newest change of a table."""
        for name, column in self._columns.get(channel, {}).items():
            _append(column, name, entry)

    def evict(self, channel: str, event: Event) -> None:
        """Drop the oldest change of a table."""
        for name, column in self._columns.get(channel, {}).items():
            values = values_of(event, name)
            if values is None:
                column.any.popleft()
                continue
            for value in values:
                held = column.by_value[value]
                held.popleft()
                if not held:
                    del column.by_value[value]

    def lists(self, route: Route, held: Iterable[Held]) -> list[deque[Held]]:
        """Return lists that together have the changes with a value.

        Args:
            route: table, column and value.
            held: all changes of the table, for a column that is not indexed yet.
        """
        channel, name, value = route
        columns = self._columns.setdefault(channel, {})
        column = columns.pop(name, None)
        if column is None:
            column = _Column()
            for entry in held:
                _append(column, name, entry)
            if len(columns) >= _MOST_COLUMNS:
                del columns[next(iter(columns))]
        columns[name] = column  # the last one used
        found = column.by_value.get(value)
        return [each for each in (found, column.any) if each]


def _append(column: _Column, name: str, entry: Held) -> None:
    values = values_of(entry[0], name)
    if values is None:
        column.any.append(entry)
        return
    for value in values:
        held = column.by_value.get(value)
        if held is None:
            held = column.by_value[value] = deque()
        held.append(entry)

"""The window's index of changes of rows by the values in a column.

A client whose policy or filter allows certain values of a column alone, such as its user's id, gets the changes with
those from here. So the cost of a catch-up depends on its own changes, not on all of the table's.

A column is indexed from its first look-up on, and backwards a slice at each further one, because a table may have tens
of thousands of changes in the window. Changes that are not indexed yet are found in the table's own list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from momentum_sync.eventlog.event import Event
from momentum_sync.identity.policy import Value
from momentum_sync.wire.row_change import ChangedColumn, parse_change


class Route(NamedTuple):
    """Changes of a table's rows with a value in a column.

    Attributes:
        channel: the table's channel.
        column: the column.
        type_name: `pg_type.typname` of the column's type. In a change from before the type was another one, the column
            may have any value.
        value: the value.
    """

    channel: str
    column: str
    type_name: str
    value: Value


Held = tuple[Event, int]
"""An event in the window, and the highest transaction id up to it."""

_MOST_COLUMNS = 4  # of one table: a client may filter by any
_LONGEST = 100  # characters of a value that is a key of its own
_NESTED = (list, dict)
_decode = msgspec.json.decode


def values_of(event: Event, column: str, type_name: str) -> list[Value] | None:
    """Return the values of a column in the new and in the old row of a change; None if they may be any.

    That is so for a `TRUNCATE`, for an `UPDATE` without the column, and where the column had another type.
    """
    change = parse_change(event.body)
    record, old = change.record, change.old_record
    if change.type == "TRUNCATE" or (record is not None and column not in record):
        return None
    if ChangedColumn(column, type_name) not in change.columns:
        return None
    new = None if record is None else record[column]
    before = None if old is None else old.get(column)
    try:
        values = [_decode(each) for each in (new, before) if each is not None]
    except msgspec.MsgspecError:  # a number that Python does not have
        return None
    for value in values:
        if isinstance(value, _NESTED):
            return None
    return values if len(values) < 2 or values[0] != values[1] else values[:1]


class _Column:
    """The changes of one table by the value of one column.

    Attributes:
        any: those that may have any value.
        by_value: those with a value; an only one without a list.
        covered: how many of the table's newest changes are indexed.
        used: the number of changes of the table at the last look-up.
    """

    __slots__ = ("any", "by_value", "covered", "name", "type_name", "used")

    def __init__(self, name: str, type_name: str, used: int) -> None:
        self.name = name
        self.type_name = type_name
        self.any: deque[Held] = deque()
        self.by_value: dict[Value, Held | deque[Held]] = {}
        self.covered = 0
        self.used = used

    def values(self, event: Event) -> list[Value] | None:
        values = values_of(event, self.name, self.type_name)
        if values is not None and any(isinstance(value, str) and len(value) > _LONGEST for value in values):
            return None
        return values

    def add(self, entry: Held, *, newest: bool) -> None:
        """Take in a change behind those that are indexed, or before them."""
        values = self.values(entry[0])
        lists = [self.any] if values is None else [self._list(value, entry) for value in values]
        for held in lists:
            if held is None:
                continue
            if newest:
                held.append(entry)
            else:
                held.appendleft(entry)
        self.covered += 1

    def _list(self, value: Value, entry: Held) -> deque[Held] | None:
        held = self.by_value.get(value)
        if held is None:
            self.by_value[value] = entry
            return None
        if not isinstance(held, deque):
            held = self.by_value[value] = deque((held,))
        return held

    def evict(self, event: Event) -> None:
        """Drop the oldest change, which is indexed."""
        values = self.values(event)
        if values is None:
            self.any.popleft()
        for value in values or ():
            held = self.by_value[value]
            if isinstance(held, deque):
                held.popleft()
            if not held or not isinstance(held, deque):
                del self.by_value[value]
        self.covered -= 1

    def held(self, value: Value) -> Sequence[Held]:
        """Return the changes with a value."""
        if isinstance(value, str) and len(value) > _LONGEST:
            return ()  # they are in `any`
        held = self.by_value.get(value, ())
        return held if isinstance(held, deque) else (held,) if held else ()


class _Table:
    """The indexed columns of one table, and the number of its changes so far."""

    __slots__ = ("columns", "count")

    def __init__(self) -> None:
        self.columns: dict[tuple[str, str], _Column] = {}
        self.count = 0


class Found(NamedTuple):
    """The changes that a route finds.

    Attributes:
        lists: those that are indexed.
        covered: how many of the table's newest changes those stand for; the others are in the table's own list.
    """

    lists: list[Sequence[Held]]
    covered: int


class RowIndex:
    """The indexed columns of the window. `add` and `evict` are called in the order of the events.

    Args:
        at_once: changes that one look-up indexes; 2,000 take about 10 ms.
        idle: changes after which a column that was not looked up gives up its place.
    """

    def __init__(self, *, at_once: int = 2_000, idle: int = 20_000) -> None:
        self._at_once = at_once
        self._idle = idle
        self._tables: dict[str, _Table] = {}

    def clear(self) -> None:
        """Forget all columns."""
        self._tables.clear()

    def add(self, channel: str, entry: Held) -> None:
        """Take in the newest change of a table."""
        table = self._tables.get(channel)
        if table is not None:
            table.count += 1
            for column in table.columns.values():
                column.add(entry, newest=True)

    def evict(self, channel: str, event: Event, left: int) -> None:
        """Drop the oldest change of a table, of which this many are left."""
        table = self._tables.get(channel)
        if table is not None:
            for column in table.columns.values():
                if column.covered > left:
                    column.evict(event)

    def find(self, route: Route, held: deque[Held]) -> Found:
        """Return the changes that a route finds. Index the column a bit further.

        Args:
            route: the route.
            held: all changes of the table.
        """
        table = self._tables.setdefault(route.channel, _Table())
        key = (route.column, route.type_name)
        column = table.columns.get(key)
        if column is None:
            for other, unused in list(table.columns.items()):
                if table.count - unused.used > self._idle:
                    del table.columns[other]
            if len(table.columns) >= _MOST_COLUMNS:
                return Found([], 0)
            column = table.columns[key] = _Column(*key, table.count)
        column.used = table.count
        if column.covered < len(held):
            for entry in list(islice(reversed(held), column.covered, column.covered + self._at_once)):
                column.add(entry, newest=False)
        return Found([each for each in (column.held(route.value), column.any) if each], column.covered)

"""Routes of changes of rows: from the values in a row to the subscribers that may see it.

A subscriber that can only get rows with a certain value in a column, such as its user's id, is found by that value. So
a change costs what its receivers cost, however many subscribers the table has.
"""

from __future__ import annotations

import msgspec

from momentum_sync.eventlog.event import Event
from momentum_sync.identity.policy import Value
from momentum_sync.wire.row_change import parse_change

Route = tuple[str, str, Value]
"""A channel, a column, and its value."""

_decode = msgspec.json.decode


class Routes:
    """The routes that have subscribers."""

    def __init__(self) -> None:
        self._columns: dict[str, dict[str, dict[Route, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._columns)

    def add(self, route: Route) -> None:
        """Know a route."""
        channel, column, _ = route
        routes = self._columns.setdefault(channel, {}).setdefault(column, {})
        routes[route] = routes.get(route, 0) + 1

    def remove(self, route: Route) -> None:
        """Forget a route that was added once."""
        channel, column, _ = route
        columns = self._columns[channel]
        routes = columns[column]
        routes[route] -= 1
        if routes[route]:
            return
        del routes[route]
        if not routes:
            del columns[column]
        if not columns:
            del self._columns[channel]

    def of(self, event: Event) -> list[Route]:
        """Return the routes of a change. It is a list because subscribers leave their routes while they get it."""
        columns = self._columns.get(event.channels[0])
        if columns is None:
            return []
        found: list[Route] = []
        for column, routes in columns.items():
            values = values_of(event, column)
            if values is None:
                found += routes
            else:
                found += [route for value in values if (route := (event.channels[0], column, value)) in routes]
        return found


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

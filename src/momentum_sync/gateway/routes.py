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
        """Return the routes of a change: those of the values in its new and in its old row.

        A `TRUNCATE`, and an `UPDATE` without the column, concern all routes. It is a list because subscribers leave
        their routes while they get the change.
        """
        channel = event.channels[0]
        columns = self._columns.get(channel)
        if columns is None:
            return []
        change = parse_change(event.body)
        rows = [row for row in (change.record, change.old_record) if row is not None]
        found: list[Route] = []
        for column, routes in columns.items():
            if change.type == "TRUNCATE" or (change.record is not None and column not in change.record):
                found += routes
                continue
            for value in dict.fromkeys(bytes(row[column]) for row in rows if column in row):
                route = (channel, column, _decode(value))
                if route in routes:
                    found.append(route)
        return found

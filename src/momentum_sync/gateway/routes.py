"""Routes of changes of rows: from the values in a row to the subscribers that may see it.

A subscriber that can only get rows with a certain value in a column, such as its user's id, is found by that value. So
the cost of a change grows with its receivers, and not with the subscribers of the table.
"""

from __future__ import annotations

from typing import NamedTuple

from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.row_index import Route, values_of
from momentum_sync.identity.policy import Value


class _Known(NamedTuple):
    route: Route
    times: int


class Routes:
    """The routes that have subscribers."""

    def __init__(self) -> None:
        # By the table's channel, then by column and type, then by value, each with the number of times it was added.
        self._columns: dict[str, dict[tuple[str, str], dict[Value, _Known]]] = {}

    def __bool__(self) -> bool:
        return bool(self._columns)

    def add(self, route: Route) -> None:
        """Know a route."""
        columns = self._columns.setdefault(route.channel, {})
        routes = columns.setdefault((route.column, route.type_name), {})
        known = routes.get(route.value)
        routes[route.value] = _Known(route, 1) if known is None else _Known(route, known.times + 1)

    def remove(self, route: Route) -> None:
        """Forget a route that was added once."""
        columns = self._columns[route.channel]
        routes = columns[route.column, route.type_name]
        left = routes[route.value].times - 1
        if left:
            routes[route.value] = _Known(route, left)
            return
        del routes[route.value]
        if not routes:
            del columns[route.column, route.type_name]
        if not columns:
            del self._columns[route.channel]

    def of(self, event: Event) -> list[Route]:
        """Return the routes of a change. It is a list because subscribers leave their routes while they get it."""
        columns = self._columns.get(event.channels[0])
        if columns is None:
            return []
        found: list[Route] = []
        for (column, type_name), routes in columns.items():
            values = values_of(event, column, type_name)
            if values is None:
                found += [known.route for known in routes.values()]
            else:
                # Looked up by their value: making a route of each costs more.
                found += [known.route for value in values if (known := routes.get(value)) is not None]
        return found

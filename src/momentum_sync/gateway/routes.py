"""Routes of changes of rows: from the values in a row to the subscribers that may see it.

A subscriber that can only get rows with a certain value in a column, such as its user's id, is found by that value. So
a change costs what its receivers cost, however many subscribers the table has.
"""

from __future__ import annotations

from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.row_index import Route, values_of


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

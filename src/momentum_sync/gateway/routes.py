"""Routes of changes of rows: from the values in a row to the subscribers that may see it.

A subscriber that can only get rows with a certain value in a column, such as its user's id, is found by that value. So
the cost of a change grows with its receivers, and not with the subscribers of the table.
"""

from __future__ import annotations

from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.row_index import Route, values_of


class Routes:
    """The routes that have subscribers."""

    def __init__(self) -> None:
        self._columns: dict[str, dict[tuple[str, str], dict[Route, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._columns)

    def add(self, route: Route) -> None:
        """Know a route."""
        columns = self._columns.setdefault(route.channel, {})
        routes = columns.setdefault((route.column, route.type_name), {})
        routes[route] = routes.get(route, 0) + 1

    def remove(self, route: Route) -> None:
        """Forget a route that was added once."""
        columns = self._columns[route.channel]
        routes = columns[route.column, route.type_name]
        routes[route] -= 1
        if routes[route]:
            return
        del routes[route]
        if not routes:
            del columns[route.column, route.type_name]
        if not columns:
            del self._columns[route.channel]

    def of(self, event: Event) -> list[Route]:
        """Return the routes of a change. It is a list because subscribers leave their routes while they get it."""
        channel = event.channels[0]
        columns = self._columns.get(channel)
        if columns is None:
            return []
        found: list[Route] = []
        for (column, type_name), routes in columns.items():
            values = values_of(event, column, type_name)
            if values is None:
                found += routes
            else:
                made = [Route(channel, column, type_name, value) for value in values]
                found += [route for route in made if route in routes]
        return found

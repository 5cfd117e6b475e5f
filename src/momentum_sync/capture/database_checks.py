"""Checks of triggers, functions and policies, and probes of the stream, in the database while capture runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from psycopg import errors
from psycopg.rows import TupleRow

from momentum_sync import observe
from momentum_sync.capture.catalog import load_types
from momentum_sync.capture.values import ColumnType
from momentum_sync.database import queries
from momentum_sync.database.connection import fetch_one
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.status import Triggers
from momentum_sync.identity.policy_equality import are_equal
from momentum_sync.limits import CaptureLimits
from momentum_sync.schema import Schema

_SQL = queries.load(__package__)
_MOST_UNEQUAL = 100


class DatabaseChecks:
    """Checks on the server's own connections. They raise psycopg.Error, or PoolTimeout without a connection."""

    def __init__(self, connections: LogConnections, schema: Schema, limits: CaptureLimits) -> None:
        self._connections = connections
        self._schema = schema
        self._limits = limits
        self._unequal: set[tuple[str, str, str]] = set()  # policies that were compared

    async def write_probe(self, prefix: str, content: str) -> None:
        """Write a lag probe into the WAL, in a transaction of its own, as events are written."""
        async with self._connections.writing() as connection:
            await fetch_one(connection, _SQL["probe"], {"prefix": prefix, "content": content})

    async def watch_policies(self) -> None:
        """Let the database compare its policies with those it knows, at intervals. It publishes a change itself.

        Where the text differs, the meaning is compared here.
        """
        failed = 0
        while True:
            try:
                async with self._connections.writing() as connection:
                    await fetch_one(connection, _SQL["check_policies"])
                    changed = await (await connection.execute(_SQL["changed_policies"])).fetchall()
                await self._accept_equal(changed)
                failed = 0
            except (errors.LockNotAvailable, errors.QueryCanceled) as error:  # a table is locked: try at the next turn
                failed += 1
                if failed % self._limits.policy_check_failures == 0:
                    observe.policies_unwatched(error, failed)
            await asyncio.sleep(self._limits.policy_check_interval_s)

    async def _accept_equal(self, changed: Sequence[TupleRow]) -> None:
        for table, shipped, current in changed:
            if (table, shipped, current) in self._unequal:
                continue
            # Before the comparison: a defect in it must not repeat.
            self._unequal = {*list(self._unequal)[-_MOST_UNEQUAL:], (table, shipped, current)}
            try:
                equal = await asyncio.to_thread(are_equal, shipped, current, self._schema, table)
            except Exception as error:  # the policies count as changed, which is right, only slower
                observe.failed(f"comparing the policies of {table}", error)
                continue
            if equal:
                self._unequal.discard((table, shipped, current))  # if the table is locked now, the next turn accepts it
                parameters = {"table": table, "shipped": shipped, "described": current}
                async with self._connections.writing() as connection:
                    await fetch_one(connection, _SQL["accept_policies"], parameters)

    async def load_types(self, oids: set[int]) -> dict[int, ColumnType]:
        """Return column types by their ids."""
        async with self._connections.writing() as connection:
            return await load_types(connection, oids)

    async def check_triggers(self) -> Triggers:
        """Return the state of the triggers and functions that publish."""
        async with self._connections.writing() as connection:
            row = await fetch_one(connection, _SQL["check_triggers"])
        return Triggers(list(row[0]), list(row[1]))

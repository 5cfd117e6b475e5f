"""Checks of triggers, functions and policies, and probes of the stream, in the database while capture runs."""

from __future__ import annotations

import asyncio

from psycopg import errors

from momentum_sync import observe
from momentum_sync.capture.catalog import load_types
from momentum_sync.capture.values import ColumnType
from momentum_sync.database import queries
from momentum_sync.database.connection import fetch_one
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.status import Triggers
from momentum_sync.limits import CaptureLimits

_SQL = queries.load(__package__)


class DatabaseChecks:
    """Checks on the server's own connections. They raise psycopg.Error, or PoolTimeout without a connection."""

    def __init__(self, connections: LogConnections, limits: CaptureLimits) -> None:
        self._connections = connections
        self._limits = limits

    async def write_probe(self, prefix: str, content: str) -> None:
        """Write a lag probe into the WAL, in a transaction of its own, as events are written."""
        async with self._connections.writing() as connection:
            await fetch_one(connection, _SQL["probe"], {"prefix": prefix, "content": content})

    async def watch_policies(self) -> None:
        """Let the database compare its policies with those it knows, at intervals. It publishes a change itself."""
        failed = 0
        while True:
            try:
                async with self._connections.writing() as connection:
                    await fetch_one(connection, _SQL["check_policies"])
                failed = 0
            except (errors.LockNotAvailable, errors.QueryCanceled) as error:  # a table is locked: try at the next turn
                failed += 1
                if failed % self._limits.policy_check_failures == 0:
                    observe.policies_unwatched(error, failed)
            await asyncio.sleep(self._limits.policy_check_interval_s)

    async def load_types(self, oids: set[int]) -> dict[int, ColumnType]:
        """Return column types by their ids."""
        async with self._connections.writing() as connection:
            return await load_types(connection, oids)

    async def check_triggers(self) -> Triggers:
        """Return the state of the triggers and functions that publish."""
        async with self._connections.writing() as connection:
            row = await fetch_one(connection, _SQL["check_triggers"])
        return Triggers(list(row[0]), list(row[1]))

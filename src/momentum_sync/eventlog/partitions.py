"""Partitions of the log and of `realtime.messages`, one a UTC day by PostgreSQL's clock."""

from __future__ import annotations

from datetime import timedelta

from momentum_sync.database import queries
from momentum_sync.database.connection import fetch_one
from momentum_sync.eventlog.connections import LogConnections

_SQL = queries.load(__package__)


async def keep_partitions(connections: LogConnections, *, retention: timedelta | None) -> list[str]:
    """Create the partitions of the coming days and drop those wholly older than `retention` (None: drop none).

    Two instances may do it at once.

    Returns:
        The names of the dropped partitions.

    Raises:
        psycopg.errors.LockNotAvailable: another session holds a lock on the log for long; nothing has changed.
    """
    async with connections.writing() as connection:
        row = await fetch_one(connection, _SQL["keep_partitions"], {"retention": retention})
    return list(row[0])


async def keep_message_partitions(connections: LogConnections) -> list[str]:
    """Create the partitions of `realtime.messages`, as far as the database has the table, and drop old ones.

    Returns:
        The names of those that could not be created: the table is Supabase's, and its owner has to.
    """
    async with connections.writing() as connection:
        row = await fetch_one(connection, _SQL["keep_message_partitions"], {})
    return list(row[0])

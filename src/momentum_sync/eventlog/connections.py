"""The server's own connections to the log. A pool for reads apart, so that a client's read never delays an append."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from psycopg import AsyncConnection, IsolationLevel
from psycopg.rows import TupleRow

from momentum_sync.database.connection import make_pool, using
from momentum_sync.limits import LogLimits
from momentum_sync.version import __version__

# Never off: a crash could take back an append while the slot has moved on, and events would be lost. Never on: the
# append would wait for standbys, and their WAL senders wait for the slot to be confirmed.
_WRITES = {"synchronous_commit": "local", "statement_timeout": "20s"}
# Shorter than `LogLimits.read_s`: `History` answers QueryCanceled with a snapshot, and a cut connection only with a
# retry.
_READS = {"statement_timeout": "5s"}


class LogConnections:
    """Two pools of connections under the server's role."""

    def __init__(self, conninfo: str, limits: LogLimits) -> None:
        self._limits = limits
        # `until_ended` keeps one connection. The append, the probe and the checks of policies, triggers and log use one
        # each.
        # The version is for `momentum-sync doctor`, which finds all servers by these connections.
        self._writes = make_pool(conninfo, f"log {__version__}", size=6, wait=limits.pool_wait_s, settings=_WRITES)
        self._reads = make_pool(conninfo, "log reads", size=2, wait=limits.pool_wait_s, settings=_READS)

    async def open(self) -> None:
        """Start connecting in the background."""
        await self._writes.open(wait=False)
        await self._reads.open(wait=False)

    async def renew(self) -> None:
        """Replace all connections: the network or the database has failed, and others may be dead, too."""
        await self._reads.drain()
        await self._writes.drain()

    async def close(self) -> None:
        """Close all connections."""
        await self._reads.close(timeout=5.0)
        await self._writes.close(timeout=5.0)

    def writing(self) -> AbstractAsyncContextManager[AsyncConnection[TupleRow]]:
        """Lend a connection for writes, in autocommit. Raises psycopg.Error, or PoolTimeout without a connection."""
        return using(self._writes, self._limits.work_s)

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection[TupleRow]]:
        """Lend a connection for reads, in autocommit. Raises as `writing`."""
        return using(self._reads, self._limits.read_s)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """Lend a connection on which all statements see the same log."""
        async with using(self._reads, self._limits.read_s) as connection:
            # The pooled connection keeps this level. `reading` opens no transaction, so the level does not affect it.
            await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
            async with connection.transaction():
                yield connection

    async def until_ended(self) -> None:
        """Hold a connection until the database ends it, then raise psycopg.OperationalError.

        A PostgreSQL that shuts down ends sessions first and then waits until its WAL senders are confirmed. Capture
        must let go of the slot when the log can no longer be written, or the shutdown hangs.
        """
        async with self._writes.connection() as connection:
            async for _ in connection.notifies():
                pass

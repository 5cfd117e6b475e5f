"""Reads for clients beside the stream: as the caller, and no older than the events sent to the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from momentum_sync.database.connection import fetch_one
from momentum_sync.database.pool import CallerPool
from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.tokens import Identity


class CallerReads:
    """Transactions under a caller's role."""

    def __init__(self, pool: CallerPool, authorizer: Authorizer, feed: LocalFeed) -> None:
        self._pool = pool
        self._authorizer = authorizer
        self._feed = feed

    @asynccontextmanager
    async def consistent(self, identity: Identity, user_id: UUID | None) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """Open a transaction that sees every event already sent to the user (None: to anybody).

        A client that receives an event and reads would otherwise get the state before it, and keep that.
        """
        # Only events sent before the request count; with later ones a busy feed could delay the read without end.
        sent = self._feed.recent(None if user_id is None else str(user_id))
        async for _ in self._pool.until_visible():
            # REPEATABLE READ makes the caller's queries use the snapshot that is checked here.
            async with self._pool.as_caller(identity, frozen=bool(sent)) as connection:
                if sent:
                    (text,) = await fetch_one(connection, "select pg_current_snapshot()::text")
                    snapshot = Snapshot.parse(text)
                    self._feed.seen(snapshot)
                    if not all(snapshot.sees(xid) for xid in sent):
                        continue
                yield connection
                return

    @asynccontextmanager
    async def plain(self, identity: Identity) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """Open a transaction for writes, and for reads that need not be newer than the caller's events."""
        async with self._pool.as_caller(identity) as connection:
            yield connection

    async def may_act_for(self, connection: AsyncConnection[TupleRow], user_id: UUID) -> bool:
        """Return whether the connection's caller may act for a user."""
        return await self._authorizer.may_act_for(connection, user_id)

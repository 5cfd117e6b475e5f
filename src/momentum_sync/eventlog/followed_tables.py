"""The tables whose changed rows are events, as a gateway sees them: capture in another process follows them.

A gateway asks by a message in the WAL, which reaches the instance that reads the slot, now or after a take-over. The
answer is the row that the instance writes into `momentum.followed_tables`: changes that commit after it are events.
"""

from __future__ import annotations

import asyncio

import psycopg
from psycopg_pool import PoolTimeout

from momentum_sync.database import queries
from momentum_sync.database.connection import fetch_one
from momentum_sync.errors import CaptureError, Unavailable
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.limits import CaptureLimits

FOLLOW = "momentum_sync.follow"
"""The prefix of the message. Its content is the id of the relation."""

_SQL = queries.load(__package__)
_MESSAGES = 0
_LOOK_S = 0.05


class FollowedTables:
    """Asks capture to follow tables. A `RowSource` of gateways.

    Args:
        connections: connections to the log.
        feed: the gateway's feed: with an epoch that ends, tables may not be followed any longer.
        limits: bounds of capture.
    """

    def __init__(self, connections: LogConnections, feed: LocalFeed, limits: CaptureLimits) -> None:
        self._connections = connections
        self._feed = feed
        self._limits = limits
        self._known: set[tuple[str, int]] = set()  # by epoch

    async def follow(self, relation: int) -> None:
        """Wait until the changes of a relation's rows are events.

        Raises:
            Unavailable: capture or the database does not answer.
            CaptureError: it cannot be followed.
        """
        await self._until(relation, self._limits.follow_s)

    async def follow_messages(self) -> bool:
        """Return whether the messages in `realtime.messages` are events, or there is no such table.

        Raises:
            Unavailable: the database does not answer.
        """
        if (self._feed.epoch, _MESSAGES) in self._known:
            return True
        try:
            _, exists = await self._state(_MESSAGES)
        except (psycopg.Error, PoolTimeout) as error:
            raise Unavailable("The database does not answer; try again in a moment.") from error
        if not exists:
            return True
        try:
            await self._until(_MESSAGES, self._limits.messages_wait_s)
        except Unavailable:
            return False
        return True

    async def _until(self, relation: int, patience_s: float) -> None:
        """Wait until a relation is followed, and ask for it as long as it is not."""
        try:
            async with asyncio.timeout(patience_s):
                asked_at: float | None = None
                while (self._feed.epoch, relation) not in self._known:
                    epoch = self._feed.epoch
                    is_followed, can_be = await self._state(relation)
                    if is_followed:
                        self._known = {each for each in self._known if each[0] == epoch} | {(epoch, relation)}
                        return
                    if not can_be:
                        raise CaptureError(
                            "the table is not in a publication that can be followed; see: momentum-sync migrate --again"
                        )
                    now = asyncio.get_running_loop().time()
                    if relation != _MESSAGES and (asked_at is None or now - asked_at > self._limits.follow_again_s):
                        # Again now and then: an instance that is being replaced may not have heard it.
                        asked_at = now
                        await self._ask(relation)
                    await asyncio.sleep(_LOOK_S)
        except (TimeoutError, PoolTimeout, psycopg.Error) as error:
            raise Unavailable("The event stream cannot take up this table now; try again in a moment.") from error

    async def _state(self, relation: int) -> tuple[bool, bool]:
        """Return whether a relation is followed, and whether it can be."""
        async with self._connections.reading() as connection:
            is_followed, can_be = await fetch_one(connection, _SQL["followed_state"], {"relation": relation})
        return bool(is_followed), bool(can_be)

    async def _ask(self, relation: int) -> None:
        async with self._connections.writing() as connection:
            await fetch_one(connection, _SQL["ask_to_follow"], {"prefix": FOLLOW, "relation": str(relation)})

"""What a caller may have: asked of the database, as the caller."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from momentum_sync.database import queries
from momentum_sync.database.pool import CallerPool, Params
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Forbidden, Unavailable
from momentum_sync.eventlog.event import CACHE_INVALIDATION
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity

_SQL = queries.load(__package__)
_REMEMBERED = 100  # changes; whatever is older than so many has long been seen
_PAUSES_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.0, 1.0, 1.0)


async def until_visible() -> AsyncIterator[None]:
    """One turn at a time for what must wait until a commit that the WAL tells of can be seen; then Unavailable.

    A commit is in the WAL before others see it: for less than a millisecond, or for as long as it waits for a standby.
    """
    yield
    for pause in _PAUSES_S:
        await asyncio.sleep(pause)
        yield
    raise Unavailable("A change is not visible yet; try again in a moment.")


class Rights:
    """Asks which channels callers may have. No answer is older than the last change of rights that it was told of."""

    def __init__(self, pool: CallerPool) -> None:
        self._pool = pool
        self._changes: deque[tuple[int, UUID | None]] = deque(maxlen=_REMEMBERED)

    def changed(self, xid: int, user: UUID | None = None) -> None:
        """The transaction `xid` changed policies, or revoked a user's tokens: what did not see it says nothing."""
        self._changes.append((xid, user))

    def are_those_of(self, snapshot: Snapshot, identity: Identity) -> bool:
        """Whether rights of the caller that were read in a snapshot are up to date."""
        return all(snapshot.sees(xid) for xid, user in self._changes if user is None or user == identity.subject)

    async def granted(self, identity: Identity, user_id: UUID | None, channels: Sequence[str]) -> Granted:
        """Those of the channels that the caller may have.

        `user_id` is the user whose connection it is: Forbidden if the caller may not act for that user. Without one
        there are no cache keys to hear of. Unavailable if the database does not answer.
        """
        async for _ in until_visible():
            (row,) = await self._pool.ask(identity, _SQL["rights"], _parameters(user_id, channels))
            if self.are_those_of(Snapshot.parse(row[3]), identity):
                break
        return _granted(row)


async def granted_within(
    connection: AsyncConnection[TupleRow], user_id: UUID | None, channels: Sequence[str]
) -> Granted:  # fmt: skip
    """As `Rights.granted`, within a transaction that is the caller's."""
    row = await (await connection.execute(_SQL["rights"], _parameters(user_id, channels))).fetchone()
    assert row is not None
    return _granted(row)


async def may_act_for(connection: AsyncConnection[TupleRow], user_id: UUID) -> bool:
    """Whether the connection's caller may do for this user what the user may."""
    row = await (await connection.execute(_SQL["may_act_for"], {"user_id": user_id})).fetchone()
    return row is not None and bool(row[0])


def _parameters(user_id: UUID | None, channels: Sequence[str]) -> Params:
    wanted = [channel for channel in channels if user_id is not None or channel != CACHE_INVALIDATION]
    return {"user_id": user_id, "channels": wanted}


def _granted(row: TupleRow) -> Granted:
    acts, channels, asked, _ = row
    if not acts:
        raise Forbidden("This token does not allow acting for that user.")
    return Granted(list(channels), frozenset(asked))

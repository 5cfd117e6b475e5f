"""What a caller may have: asked of the database, as the caller."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from momentum_sync.database import queries
from momentum_sync.database.pool import CallerPool, Lane, Params, Query
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Forbidden, Unavailable
from momentum_sync.eventlog.event import CACHE_INVALIDATION
from momentum_sync.identity.channels import Granted, own_channels
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


class _Own(NamedTuple):
    """What a token gives its user, on the user's own channels."""

    subject: UUID
    granted: Granted


class Authorizer:
    """Asks which channels callers may have. No answer is older than the last change of rights that it was told of.

    What a token alone gives its user, on the user's own channels, is asked once and remembered, as a connection that is
    open keeps it: until it is told of a change. So who comes back with the token of before asks the database nothing,
    while `hears`: while changes are told of as they happen. The answers to so many as `most` are remembered.
    """

    def __init__(self, pool: CallerPool, *, most: int, hears: Callable[[], bool]) -> None:
        self._pool = pool
        self._most = most
        self._hears = hears
        self._changes: deque[tuple[int, UUID | None]] = deque(maxlen=_REMEMBERED)
        # By a digest of the token's claims, which say whose it is: claims may have 16 KiB, and there may be 20,000.
        self._own: dict[bytes, _Own] = {}

    def changed(self, xid: int, user: UUID | None = None) -> None:
        """The transaction `xid` changed policies, or revoked a user's tokens: what did not see it says nothing."""
        self._changes.append((xid, user))
        self._own = {} if user is None else {by: own for by, own in self._own.items() if own.subject != user}

    def missed(self) -> None:
        """Forget all cached rights and pending changes, because changes may have been missed and their ids may not
        count here.

        A database that took over may give lower transaction ids than the one before.
        """
        self._own = {}
        self._changes.clear()

    def are_those_of(self, snapshot: Snapshot, identity: Identity) -> bool:
        """Whether rights of the caller that were read in a snapshot are up to date."""
        return all(snapshot.sees(xid) for xid, user in self._changes if user is None or user == identity.subject)

    async def granted(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], *, lane: Lane = Lane.EVENTS
    ) -> Granted:
        """Those of the channels that the caller may have.

        `user_id` is the user whose connection it is: Forbidden if the caller may not act for that user. Without one
        there are no cache keys to hear of. Unavailable if the database does not answer.
        """
        key = _digest(identity)
        own = self._own.get(key)
        if own is not None and own.subject == user_id and own.granted.channels == list(channels) and self._hears():
            self._remember(self._own, key, own)
            return own.granted
        granted, _ = await self._ask(identity, user_id, channels, lane=lane)
        return granted

    async def granted_with(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], query: Query
    ) -> tuple[Granted, TupleRow]:
        """As `granted`, with the row of a query about the user that saw the same."""
        asked = (query, {"user_id": user_id})
        granted, ((row,),) = await self._ask(identity, user_id, channels, asked, lane=Lane.CONNECT)
        return granted, row

    async def _ask(
        self,
        identity: Identity,
        user_id: UUID | None,
        channels: Sequence[str],
        *more: tuple[Query, Params],
        lane: Lane,
    ) -> tuple[Granted, list[list[TupleRow]]]:
        wanted = [channel for channel in channels if user_id is not None or channel != CACHE_INVALIDATION]
        asked = (_SQL["rights"], {"user_id": user_id, "channels": wanted})
        async for _ in until_visible():
            remembered = self._own  # another one after a change, and what was asked before it is forgotten with this
            (rights,), *others = await self._pool.ask(identity, asked, *more, lane=lane)
            acts, may_have, to_be_asked, snapshot = rights
            if self.are_those_of(Snapshot.parse(snapshot), identity):
                break
        if not acts:
            raise Forbidden("This token does not allow acting for that user.")
        granted = Granted(list(may_have), frozenset(to_be_asked))
        # Of others' channels rows have a say, and nobody tells us of those.
        if (
            user_id is not None and identity.subject == user_id and set(wanted).issubset(own_channels(user_id))
            and granted == Granted(wanted)
        ):  # fmt: skip
            self._remember(remembered, _digest(identity), _Own(user_id, granted))
        return granted, others

    def _remember(self, remembered: dict[bytes, _Own], key: bytes, own: _Own) -> None:
        """As the last to be forgotten."""
        remembered.pop(key, None)
        remembered[key] = own
        if len(remembered) > self._most:
            del remembered[next(iter(remembered))]


def _digest(identity: Identity) -> bytes:
    return hashlib.sha256(identity.claims.encode()).digest()


async def may_act_for(connection: AsyncConnection[TupleRow], user_id: UUID) -> bool:
    """Whether the connection's caller may do for this user what the user may."""
    row = await (await connection.execute(_SQL["may_act_for"], {"user_id": user_id})).fetchone()
    return row is not None and bool(row[0])

"""The authorizer: which channels a caller may have, decided by the database as the caller."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from momentum_sync.database import queries
from momentum_sync.database.connection import Query, fetch_one
from momentum_sync.database.pool import CallerPool, Lane, Params
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Forbidden
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.schema import Schema

_SQL = queries.load(__package__)
_REMEMBERED = 100  # changes; every snapshot has long seen older ones


class _OwnGrants(NamedTuple):
    """Grants of a token for its user's own channels."""

    subject: UUID
    granted: Granted


class _Grants(NamedTuple):
    """A row of the statement `grants`."""

    may_act: bool
    channels: list[str]
    checked: list[str]
    snapshot: str


class Authorizer:
    """Asks which channels callers may have. No answer is older than the last known change of grants.

    Own-channel grants are cached per token until grants change, so a reconnect needs no query.

    Args:
        pool: asks as the caller.
        schema: the application's channels.
        most: answers that are cached.
        up_to_date: returns whether changes arrive as they happen; while they do not, the cache is not used.
    """

    def __init__(self, pool: CallerPool, schema: Schema, *, most: int, up_to_date: Callable[[], bool]) -> None:
        self._pool = pool
        self._schema = schema
        self._most = most
        self._up_to_date = up_to_date
        self._changes: deque[tuple[int, UUID | None]] = deque(maxlen=_REMEMBERED)
        # By a digest of the token's claims, which name the user: claims may have 16 KiB, and there may be 20,000 users.
        self._own: dict[bytes, _OwnGrants] = {}
        names = {"may_act_for": sql.Identifier(schema.may_act_for), "grant": sql.Identifier(schema.grant)}
        self._grants_query = sql.SQL(_SQL["grants"]).format(**names).as_bytes()
        self._may_act_for_query = sql.SQL(_SQL["may_act_for"]).format(**names).as_bytes()

    def changed(self, xid: int, user: UUID | None = None) -> None:
        """Note that a transaction changed policies, or revoked a user's tokens. Older answers do not count."""
        self._changes.append((xid, user))
        self._own = {} if user is None else {by: own for by, own in self._own.items() if own.subject != user}

    def missed(self) -> None:
        """Forget all cached grants and pending changes, because changes may have been missed.

        After a failover, transaction ids of the previous primary mean nothing.
        """
        self._own = {}
        self._changes.clear()

    def is_current(self, snapshot: Snapshot, identity: Identity) -> bool:
        """Return whether grants that were read in a snapshot are up to date for a caller."""
        return all(snapshot.sees(xid) for xid, user in self._changes if user is None or user == identity.subject)

    async def granted(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], *, lane: Lane = Lane.EVENTS
    ) -> Granted:
        """Return those of the channels that the caller may have.

        Args:
            identity: the caller.
            user_id: the user of the connection. Without one there are no channels that are delivered per user.
            channels: the requested channels.
            lane: the lane of the question.

        Raises:
            Forbidden: the caller may not act for the user.
            Unavailable: the database does not answer.
        """
        key = _digest(identity)
        own = self._own.get(key)
        if own is not None and own.subject == user_id and own.granted.channels == list(channels) and self._up_to_date():
            self._cache(self._own, key, own)
            return own.granted
        granted, _ = await self._ask(identity, user_id, channels, lane=lane)
        return granted

    async def granted_with(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], query: Query
    ) -> tuple[Granted, TupleRow]:
        """Return the granted channels, and the row of a query about the user, read in the same snapshot."""
        question = (query, {"user_id": user_id})
        granted, ((row,),) = await self._ask(identity, user_id, channels, question, lane=Lane.CONNECT)
        return granted, row

    async def may_act_for(self, connection: AsyncConnection[TupleRow], user_id: UUID) -> bool:
        """Return whether the connection's caller may act for a user."""
        return bool((await fetch_one(connection, self._may_act_for_query, {"user_id": user_id}))[0])

    async def _ask(
        self,
        identity: Identity,
        user_id: UUID | None,
        channels: Sequence[str],
        *more: tuple[Query, Params],
        lane: Lane,
    ) -> tuple[Granted, list[list[TupleRow]]]:
        per_user = self._schema.per_user_channels
        wanted = [channel for channel in channels if user_id is not None or channel not in per_user]
        question = (self._grants_query, {"user_id": user_id, "channels": wanted})
        async for _ in self._pool.until_visible():
            cache = self._own  # replaced by a change: an answer to a question before it is not cached
            (row,), *others = await self._pool.ask(identity, question, *more, lane=lane)
            grants = _Grants(*row)
            # A revocation is in the WAL before snapshots see it; an answer from between the two would grant what it
            # took away.
            if self.is_current(Snapshot.parse(grants.snapshot), identity):
                break
        if not grants.may_act:
            raise Forbidden("This token does not allow acting for that user.")
        granted = Granted(list(grants.channels), frozenset(grants.checked))
        # Rows decide about other users' channels, and nothing reports when those change.
        if (
            user_id is not None
            and identity.subject == user_id
            and set(wanted).issubset(self._schema.own(user_id))
            and granted == Granted(wanted)
        ):
            self._cache(cache, _digest(identity), _OwnGrants(user_id, granted))
        return granted, others

    def _cache(self, cache: dict[bytes, _OwnGrants], key: bytes, own: _OwnGrants) -> None:
        """Keep an answer as the most recently used one."""
        cache.pop(key, None)
        cache[key] = own
        if len(cache) > self._most:
            del cache[next(iter(cache))]


def _digest(identity: Identity) -> bytes:
    return hashlib.sha256(identity.claims.encode()).digest()

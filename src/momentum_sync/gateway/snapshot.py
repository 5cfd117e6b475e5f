"""What the gateway reads and writes for clients: always as the caller, under row level security."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from momentum_sync.database import lsn, queries
from momentum_sync.database.pool import CallerPool
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Forbidden, NotFound, Unavailable
from momentum_sync.eventlog.event import Event, Seen, route
from momentum_sync.eventlog.feed import Feed
from momentum_sync.eventlog.resume import refusal
from momentum_sync.eventlog.table import EventLog
from momentum_sync.gateway.session import Greeting
from momentum_sync.gateway.stitch import missed, place
from momentum_sync.identity import rights
from momentum_sync.identity.tokens import Identity

_SQL = queries.load(__package__)
_NULL = msgspec.Raw(b"null")
_EMPTY = msgspec.Raw(b"[]")
_LOG_READS = 5


class Desk:
    """The verbs of the gateway's work with the database. All raise RequestError for what cannot be done."""

    def __init__(self, pool: CallerPool, feed: Feed, log: EventLog) -> None:
        self._pool = pool
        self._feed = feed
        self._log = log

    async def greet(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], *, last_event_id: str | None
    ) -> Greeting:
        """A snapshot with its stitch: channels, state, and the events after it. Forbidden if not for this user.

        From the return to the moment when the caller follows the feed nothing may be awaited.
        """
        epoch = self._feed.epoch
        async with self._pool.as_caller(identity, frozen=True) as connection:
            snapshot, upto = await _row(connection, "seen")
            seen = Seen(Snapshot.parse(snapshot), lsn.parse(upto))
            own = [] if user_id is None else rights.own_channels(user_id)
            if user_id is not None and not await rights.may_act_for(connection, user_id):
                raise Forbidden("This token does not allow acting for that user.")
            asked = list(dict.fromkeys([*own, *channels]))
            granted = await rights.granted(connection, asked, user_id)
            momentum, interventions, notifications = _NULL, _NULL, _EMPTY
            if user_id is not None:
                momentum = await _json(connection, "momentum", user_id)
                interventions = await _json(connection, "interventions", user_id)
                notifications = await _json(connection, "unread", user_id)
        keys = [route(channel, None if user_id is None else str(user_id)) for channel in granted]
        older = await self._older(seen, granted, keys)
        if self._feed.epoch != epoch:
            raise Unavailable("The history of events has just begun anew; try again.")
        after = missed(self._feed.window, older, seen, keys)
        return Greeting(
            granted=granted,
            refused=[channel for channel in asked if channel not in granted],
            momentum=momentum,
            interventions=interventions,
            notifications=notifications,
            seen=seen,
            last_id=place(epoch, self._feed.number, seen, after),
            missed=after,
            reason=None if last_event_id is None else refusal(last_event_id, epoch),
        )

    async def _older(self, seen: Seen, channels: Sequence[str], keys: Sequence[str]) -> list[Event]:
        """Events after the snapshot that have left the window; on return the window has all after the last of them."""
        window = self._feed.window
        for _ in range(_LOG_READS):
            if window.reaches(seen.snapshot):
                return []
            below = window.first
            found = await self._log.unseen(seen.snapshot, channels, below=below)
            if window.first == below:
                wanted = set(keys)
                return [event for event in found if wanted.intersection(event.keys)]
        raise Unavailable("More is happening than a snapshot can keep up with; try again in a moment.")

    async def grant(self, identity: Identity, user_id: UUID | None, channels: Sequence[str]) -> list[str]:
        """Those of the channels that the caller may have."""
        async with self._pool.as_caller(identity) as connection:
            return await rights.granted(connection, channels, user_id)

    async def regrant(self, identity: Identity, user_id: UUID | None, channels: Sequence[str]) -> list[str]:
        """As `grant`, for a new token. Forbidden if it may no longer act for the connection's user."""
        async with self._pool.as_caller(identity) as connection:
            if user_id is not None and not await rights.may_act_for(connection, user_id):
                raise Forbidden("The new token is not for this connection's user.")
            return await rights.granted(connection, channels, user_id)

    async def momentum(self, identity: Identity, user_id: UUID) -> msgspec.Raw:
        """`get_realtime_momentum_state`, as JSON."""
        async with self._pool.as_caller(identity) as connection:
            return await _json(connection, "momentum", user_id)

    async def interventions(self, identity: Identity, user_id: UUID) -> msgspec.Raw:
        """`get_realtime_interventions`, as JSON."""
        async with self._pool.as_caller(identity) as connection:
            return await _json(connection, "interventions", user_id)

    async def notifications(self, identity: Identity, user_id: UUID, limit: int) -> msgspec.Raw:
        """At most `limit` notifications of a user, newest first, as a JSON array."""
        async with self._pool.as_caller(identity) as connection:
            text, count = await _row(connection, "notifications", user_id=user_id, limit=limit)
            if count == 0 and not await rights.may_act_for(connection, user_id):
                raise Forbidden("This token does not allow that.")
            return msgspec.Raw(str(text).encode())

    async def mark_read(self, identity: Identity, user_id: UUID, notification_id: UUID) -> None:
        """Marks a notification of the user's as opened.

        NotFound if there is none that the caller may see, Forbidden if the caller may see it and not change it.
        """
        asked = {"user_id": user_id, "notification_id": notification_id}
        async with self._pool.as_caller(identity) as connection:
            await connection.execute(_SQL["mark_read"], asked)
            row = await (await connection.execute(_SQL["is_read"], asked)).fetchone()
        if row is None:
            raise NotFound("There is no such notification.")
        if not row[0]:
            raise Forbidden("This token does not allow changing that notification.")


async def _row(connection: AsyncConnection[TupleRow], name: str, **parameters: object) -> TupleRow:
    row = await (await connection.execute(_SQL[name], parameters)).fetchone()
    assert row is not None
    return row


async def _json(connection: AsyncConnection[TupleRow], name: str, user_id: UUID) -> msgspec.Raw:
    (text,) = await _row(connection, name, user_id=user_id)
    return msgspec.Raw(str(text).encode())

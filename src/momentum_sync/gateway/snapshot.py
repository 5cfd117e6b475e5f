"""What the gateway reads and writes for clients: always as the caller, under row level security."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import msgspec
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from momentum_sync.database import lsn, queries
from momentum_sync.database.pool import CallerPool, Lane, Params, Query
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Forbidden, NotFound, Unavailable
from momentum_sync.eventlog import resume
from momentum_sync.eventlog.event import Event, Position, SnapshotBoundary, route
from momentum_sync.eventlog.feed import Feed
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.resume import Refused
from momentum_sync.gateway.session import Opening, Session, State
from momentum_sync.identity.authorizer import Authorizer, may_act_for, until_visible
from momentum_sync.identity.channels import Granted, is_shared, own_channels
from momentum_sync.identity.event_filter import EventFilter
from momentum_sync.identity.tokens import Identity

_SQL = queries.load(__package__)
_NOBODYS = ("null", "null", "[]")
_MOST_PEOPLE = 500
_MOST_INTERVENTIONS = 1_000


class Desk:
    """The verbs of the gateway's work with the database. All raise RequestError for what cannot be done."""

    def __init__(self, pool: CallerPool, rights: Authorizer, feed: Feed, history: History) -> None:
        self._pool = pool
        self._feed = feed
        self._history = history
        self._rights = rights
        self._sight = EventFilter(pool)

    async def greet(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], *, last_event_id: str | None
    ) -> Opening:
        """A resume from the last event id, or else a snapshot. Forbidden if it is not for this user."""
        reason = None
        if last_event_id is not None:
            try:
                return await self.resume(identity, user_id, channels, last_event_id, counted=True)
            except Refused as refused:
                reason = refused.reason
        return await self._snapshot(identity, user_id, channels, reason)

    async def resume(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], last_event_id: str, *, counted: bool
    ) -> Opening:
        """The place that the client brought, with the channels it may have now and, `counted`, how many events follow.

        Raises Refused when not all that follows can be had; uncounted, reading on from the place may.
        """
        place = resume.place(last_event_id, self._feed.last_id, self._feed.incarnation)
        await self._history.verify(place)
        asked = _asked(user_id, channels)
        granted = await self._rights.granted(identity, user_id, asked, lane=Lane.CONNECT)
        replayed = await self._history.count(place, keys_of(granted.channels, user_id)) if counted else 0
        return Opening(granted, _refused(asked, granted), place, None, replayed)

    async def _snapshot(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], reason: str | None
    ) -> Opening:
        epoch, incarnation = self._feed.epoch, self._feed.incarnation
        asked = _asked(user_id, channels)
        query = _SQL["seen" if user_id is None else "snapshot"]
        granted, (snapshot, upto, *texts) = await self._rights.granted_with(identity, user_id, asked, query)
        seen = SnapshotBoundary(Snapshot.parse(snapshot), lsn.parse(upto), incarnation)
        state = State(*[msgspec.Raw(text.encode()) for text in texts or _NOBODYS])
        offset = await self._history.before_unseen(epoch, seen.snapshot, keys_of(granted.channels, user_id))
        place = Position(epoch, offset, await self._mark(epoch, offset), seen)
        return Opening(granted, _refused(asked, granted), place, state, reason=reason)

    async def _mark(self, epoch: str, offset: int) -> int:
        try:
            return await self._history.mark(epoch, offset)
        except Refused as refused:  # the history ended meanwhile, or retention has come this far
            raise Unavailable("The event log moved past the snapshot; try again in a moment.") from refused

    async def grant(self, identity: Identity, user_id: UUID | None, channels: Sequence[str]) -> Granted:
        """Those of the channels that the caller may have. Forbidden if it may not, or no longer, act for the user."""
        return await self._rights.granted(identity, user_id, channels)

    async def sight(self, session: Session, events: Sequence[Event]) -> tuple[set[int], list[str]]:
        """The offsets of those events that the session's caller may see, each on a channel that the session asks about.

        With them come the channels of one user that the caller cannot have any longer, where nothing of them was seen.
        """
        channels = {event.offset: channel for event in events if (channel := session.channel_of(event)) is not None}
        seen = await self._sight.of(session.identity, [event for event in events if event.table is not None])
        doubtful = {
            channel
            for event in events
            if event.offset not in seen and (channel := channels.get(event.offset)) is not None
            and (event.table is None or not is_shared(channel))
        }  # fmt: skip
        if not doubtful:
            return seen, []
        granted = await self._rights.granted(session.identity, None, sorted(doubtful))
        free = {
            event.offset for event in events if event.table is None and channels.get(event.offset) in granted.channels
        }
        lost = [channel for channel in sorted(doubtful) if channel not in granted.channels]
        return seen | free, lost

    @asynccontextmanager
    async def _reading(self, identity: Identity, user_id: UUID | None) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A transaction that is the caller's, and sees all of the user's events (or all) that were told of before.

        A client that hears of a change and asks would else be given what was before it, and keep it.
        """
        told = self._feed.recent(None if user_id is None else str(user_id))
        async for _ in until_visible():
            async with self._pool.as_caller(identity, frozen=bool(told)) as connection:
                if told:
                    snapshot = Snapshot.parse((await _row(connection, "seen"))[0])
                    self._feed.seen(snapshot)
                    if not all(snapshot.sees(xid) for xid in told):
                        continue
                yield connection
                return

    async def momentum(self, identity: Identity, user_id: UUID) -> msgspec.Raw:
        """`get_realtime_momentum_state`, as JSON."""
        async with self._reading(identity, user_id) as connection:
            return await _json(connection, "momentum", user_id)

    async def interventions(self, identity: Identity, user_id: UUID) -> msgspec.Raw:
        """`get_realtime_interventions`, as JSON."""
        async with self._reading(identity, user_id) as connection:
            return await _json(connection, "interventions", user_id)

    async def notifications(self, identity: Identity, user_id: UUID, limit: int) -> msgspec.Raw:
        """At most `limit` notifications of a user, newest first, as a JSON array."""
        async with self._reading(identity, user_id) as connection:
            text, count = await _row(connection, "notifications", user_id=user_id, limit=limit)
            if count == 0 and not await may_act_for(connection, user_id):
                raise Forbidden("This token does not allow that.")
            return msgspec.Raw(str(text).encode())

    async def history(self, identity: Identity, user_id: UUID, days: int) -> msgspec.Raw:
        """A user's scores of the last days, oldest first, as a JSON array."""
        async with self._reading(identity, user_id) as connection:
            text, known = await _row(connection, "history", user_id=user_id, days=days)
            if not known and not await may_act_for(connection, user_id):
                raise Forbidden("This token does not allow that.")
            return msgspec.Raw(str(text).encode())

    async def overview(self, identity: Identity, days: int) -> msgspec.Raw:
        """Whatever the caller may see of everybody: `people`, `days` and `interventions`, as a JSON object.

        Where the policies are as shipped, they leave a caller its own rows, or those of assigned users, or all; only
        these are read, and not all of a table to leave nearly all of it out.
        """
        async with self._reading(identity, None) as connection:
            users, all_interventions = await _row(connection, "overview_users")
            asked = {"days": days, "people": _MOST_PEOPLE, "interventions": _MOST_INTERVENTIONS, "users": users}
            query = overview_query(some=users is not None, all_interventions=all_interventions)
            (text,) = await _only(connection, query, asked)
            return msgspec.Raw(str(text).encode())

    async def names(self, identity: Identity, user_ids: Sequence[UUID]) -> msgspec.Raw:
        """What users are called, as a JSON object by id; those whom the caller is not to know by name are left out."""
        async with self._pool.as_caller(identity) as connection:
            (text,) = await _row(connection, "names", user_ids=list(user_ids))
            return msgspec.Raw(str(text).encode())

    async def mark_read(self, identity: Identity, user_id: UUID, notification_id: UUID) -> None:
        """Marks a notification of the user's as opened.

        NotFound if there is none that the caller may see, Forbidden if the caller may see it and not change it.
        """
        asked = {"user_id": user_id, "notification_id": notification_id}
        async with self._reading(identity, user_id):
            pass  # what the client was told of can be seen from now on
        async with self._pool.as_caller(identity) as connection:
            await connection.execute(_SQL["mark_read"], asked)
            row = await (await connection.execute(_SQL["is_read"], asked)).fetchone()
        if row is None:
            raise NotFound("There is no such notification.")
        if not row[0]:
            raise Forbidden("This token does not allow changing that notification.")


def keys_of(channels: Sequence[str], user_id: UUID | None) -> list[str]:
    """Where the events of the channels stand, for a connection of this user's."""
    return [route(channel, None if user_id is None else str(user_id)) for channel in channels]


def _asked(user_id: UUID | None, channels: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*own_channels(user_id), *channels]))


def _refused(asked: Sequence[str], granted: Granted) -> list[str]:
    return [channel for channel in asked if channel not in granted.channels]


def overview_query(*, some: bool, all_interventions: bool) -> sql.Composed:
    """Return the query `overview`: of `some` users or of all, with or without everybody's interventions."""
    return sql.SQL(_SQL["overview"]).format(
        scores=sql.SQL("s.user_id = any (%(users)s::uuid[])" if some else "true"),
        interventions=sql.SQL("i.user_id = any (%(users)s::uuid[])" if some and not all_interventions else "true"),
    )


async def _row(connection: AsyncConnection[TupleRow], name: str, **parameters: object) -> TupleRow:
    return await _only(connection, _SQL[name], parameters)


async def _only(connection: AsyncConnection[TupleRow], query: Query, parameters: Params) -> TupleRow:
    row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None
    return row


async def _json(connection: AsyncConnection[TupleRow], name: str, user_id: UUID) -> msgspec.Raw:
    (text,) = await _row(connection, name, user_id=user_id)
    return msgspec.Raw(str(text).encode())

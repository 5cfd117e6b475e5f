"""The opening of a connection: resumed after the client's position, or with a snapshot."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from uuid import UUID

import msgspec

from momentum_sync.database import lsn
from momentum_sync.database.pool import Lane
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Unavailable
from momentum_sync.eventlog.event import key_of
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.position import Position, SnapshotBoundary
from momentum_sync.eventlog.resume import ResumeRefused, check_position, parse_position
from momentum_sync.gateway.application import SnapshotQuery
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.schema import Schema


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a connection.

    Attributes:
        granted: its channels.
        refused: channels that it asked for and does not get.
        position: everything after this position follows.
        state: the snapshot, by field; None for a resume.
        replayed: events that follow the position already.
        reason: why there was no resume where one was asked for.
    """

    granted: Granted
    refused: list[str]
    position: Position
    state: dict[str, msgspec.Raw] | None
    replayed: int = 0
    reason: str | None = None


class Opener:
    """Opens connections. Its methods raise RequestError if the connection cannot be opened."""

    def __init__(
        self, authorizer: Authorizer, feed: LocalFeed, history: History, schema: Schema, snapshot: SnapshotQuery
    ) -> None:
        self._authorizer = authorizer
        self._feed = feed
        self._history = history
        self._schema = schema
        self._snapshot_query = snapshot

    async def open(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], *, last_event_id: str | None
    ) -> Opening:
        """Resume after the last event id, or else take a snapshot.

        Raises:
            Forbidden: the caller may not act for the user.
        """
        reason = None
        if last_event_id is not None:
            try:
                return await self.resume(identity, user_id, channels, last_event_id, counted=True)
            except ResumeRefused as refused:
                reason = refused.reason
        return await self._snapshot(identity, user_id, channels, reason)

    async def resume(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], last_event_id: str, *, counted: bool
    ) -> Opening:
        """Resume after the position that the client brought.

        With `counted`, the events that follow are counted, which also shows that they still exist.

        Raises:
            ResumeRefused: not everything that follows is available.
        """
        position = parse_position(last_event_id)
        await self._history.reach(position)
        check_position(position, self._feed.position, self._feed.incarnation)
        await self._history.verify(position)
        wanted = self._wanted(user_id, channels)
        # A lane of its own keeps a storm of reconnects from delaying the checks of events.
        granted = await self._authorizer.granted(identity, user_id, wanted, lane=Lane.CONNECT)
        keys = keys_of(granted.channels, user_id, self._schema.per_user_channels)
        replayed = await self._history.count(position, keys) if counted else 0
        return Opening(granted, _refused(wanted, granted), position, None, replayed)

    async def _snapshot(
        self, identity: Identity, user_id: UUID | None, channels: Sequence[str], reason: str | None
    ) -> Opening:
        # Read before the query, so that a restart of PostgreSQL or a new epoch during it invalidates the snapshot.
        epoch, incarnation, generation = self._feed.epoch, self._feed.incarnation, self._feed.generation
        wanted = self._wanted(user_id, channels)
        queries = self._snapshot_query
        query = queries.without_user if user_id is None else queries.of_user
        granted, (text, end, *values) = await self._authorizer.granted_with(identity, user_id, wanted, query)
        await self._history.confirm(generation)
        boundary = SnapshotBoundary(Snapshot.parse(text), lsn.parse(end), incarnation)
        fields = zip(queries.fields, values or queries.fields.values(), strict=True)
        state = {name: msgspec.Raw(value.encode()) for name, value in fields}
        keys = keys_of(granted.channels, user_id, self._schema.per_user_channels)
        offset = await self._history.before_unseen(epoch, boundary.snapshot, keys)
        position = Position(epoch, offset, await self._mark(epoch, offset), boundary)
        return Opening(granted, _refused(wanted, granted), position, state, reason=reason)

    async def _mark(self, epoch: str, offset: int) -> int:
        try:
            return await self._history.mark(epoch, offset)
        except ResumeRefused as refused:  # the epoch ended meanwhile, or retention has come this far
            raise Unavailable("The event log moved past the snapshot; try again in a moment.") from refused

    def _wanted(self, user_id: UUID | None, channels: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([*self._schema.own(user_id), *channels]))


def keys_of(channels: Sequence[str], user_id: UUID | None, per_user: Set[str]) -> list[str]:
    """Return the keys of channels for a connection of a user."""
    user = None if user_id is None else str(user_id)
    return [key_of(channel, user, per_user) for channel in channels]


def _refused(wanted: Sequence[str], granted: Granted) -> list[str]:
    return [channel for channel in wanted if channel not in granted.channels]

"""One history, wherever its events are: what follows a place, from the window or else from the log.

Both hold events without a gap, and the window lets go only of what the log has. So what follows a offset is in the
window as a whole, or begins in the log and ends at the window's first event.

A snapshot is stitched to it by transaction ids alone. It and the stream know nothing of each other: an event may have
come before the snapshot was read and still not be in it, because a commit is in the WAL before it is visible; and
it may come long after and be in it. An event belongs after a snapshot exactly when the snapshot does not see its
transaction. Once the stream has passed the place behind which the snapshot can hold nothing, all that comes is new.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import psycopg
from psycopg_pool import PoolTimeout

from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Unavailable
from momentum_sync.eventlog.event import Event, Position
from momentum_sync.eventlog.feed import Feed
from momentum_sync.eventlog.resume import Refused
from momentum_sync.eventlog.table import EventLog

_LOOKS = 5


class History:
    """The feed's history and its past. Everything that asks the log raises Unavailable when the log does not answer."""

    def __init__(self, feed: Feed, log: EventLog) -> None:
        self._feed = feed
        self._log = log

    @property
    def offset(self) -> int:
        """The offset of the last event."""
        return self._feed.offset

    @property
    def position(self) -> int:
        """The place in the WAL up to which everything has been published."""
        return self._feed.position

    @property
    def reached(self) -> Position:
        """The position of the last event."""
        return self._feed.last_id

    def is_current(self, place: Position) -> bool:
        """Whether a position is of this history, and its snapshot of this run of PostgreSQL."""
        feed, seen = self._feed, place.seen
        return place.epoch == feed.epoch and (seen is None or seen.incarnation == feed.incarnation)

    async def mark(self, epoch: str, offset: int) -> int:
        """The mark of the event with this offset. Refused (`expired`) if neither window nor log know it any longer."""
        mark = self._feed.mark_of(offset) if self._feed.epoch == epoch else None
        if mark is None:
            async with _answering():
                mark = await self._log.mark_of(epoch, offset)
        if mark is None:
            raise Refused("expired")
        return mark

    async def verify(self, place: Position) -> None:
        """Refused (`history_changed`) if the event at a client's position is not the one that the client had."""
        if await self.mark(place.epoch, place.offset) != place.mark:
            raise Refused("history_changed")

    def at_hand(self, offset: int, keys: Sequence[str], *, most: int) -> tuple[list[Event], int] | None:
        """Events on any of the keys after `offset`, in order, as far as `most` bytes go; None if the log must be asked.

        With them comes the offset up to which that is all.
        """
        window = self._feed.window
        return window.after(offset, keys, most=most) if window.holds_after(offset) else None

    async def after(self, epoch: str, offset: int, keys: Sequence[str], *, most: int) -> tuple[list[Event], int]:
        """The same of the epoch's events wherever they are. Refused (`expired`) if they can no longer be had."""
        found = self.at_hand(offset, keys, most=most)
        if found is None:
            async with _answering(costs="expired"):
                found = await self._log.after(epoch, offset, keys, below=self._feed.window.first, most=most)
        if found is None:
            raise Refused("expired")
        if self._feed.epoch != epoch:
            raise Refused("history_changed")
        return found

    async def count(self, place: Position, keys: Sequence[str]) -> int:
        """How many events on any of the keys follow a place now, 100,000 of the log at most. Refused as in `after`."""
        window = self._feed.window
        snapshot = None if place.seen is None else place.seen.snapshot
        counted, offset = 0, place.offset
        while not window.holds_after(offset):
            below = window.first
            async with _answering(costs="expired"):
                found = await self._log.count_after(place.epoch, offset, keys, snapshot, below=below)
            if found is None:
                raise Refused("expired")
            counted, offset = counted + found, below - 1
        if self._feed.epoch != place.epoch:
            raise Refused("history_changed")
        return counted + window.count_after(offset, keys, snapshot)

    async def before_unseen(self, epoch: str, snapshot: Snapshot, keys: Sequence[str]) -> int:
        """The offset after which everything on the keys comes that the snapshot has not seen.

        Unavailable if more happens than can be kept up with, or another history begins meanwhile.
        """
        window = self._feed.window
        for _ in range(_LOOKS):
            older, below = None, window.first
            if not window.reaches(snapshot):
                async with _answering():
                    older = await self._log.first_unseen(snapshot, keys, below=below)
            if self._feed.epoch != epoch:
                break
            if window.reaches(snapshot) or window.first == below:
                first = older if older is not None else window.first_unseen(snapshot, keys)
                return self._feed.offset if first is None else first - 1
        raise Unavailable("More is happening than a snapshot can keep up with; try again in a moment.")


@asynccontextmanager
async def _answering(costs: str | None = None) -> AsyncIterator[None]:
    """Raises Unavailable if the log does not answer, or Refused for the reason `costs` if it takes too long over it.

    Retrying a resume that exceeds the query timeout cannot succeed; a snapshot is cheap.
    """
    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        if costs is not None:
            raise Refused(costs) from error
        raise Unavailable("The log of events took too long; try again in a moment.") from error
    except (psycopg.Error, PoolTimeout) as error:
        raise Unavailable("The log of events does not answer; try again in a moment.") from error

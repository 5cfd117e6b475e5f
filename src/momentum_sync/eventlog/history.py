"""The events that follow a position, from the window or else from the log.

Both hold events without a gap, and the window evicts only events that the log has. So the events after an offset are
all in the window, or begin in the log and end at the window's first event.

A snapshot is stitched to the stream by transaction ids alone. An event may arrive before the snapshot is read and not
be in it, because a commit is in the WAL before it is visible; and it may arrive long after and be in it. An event
belongs after a snapshot exactly when the snapshot does not see its transaction. Once the stream has passed the
snapshot's boundary, every further event is new.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import psycopg
from psycopg_pool import PoolTimeout

from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Unavailable
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.page import Newest, Page
from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.resume import ResumeRefused
from momentum_sync.eventlog.row_index import Route
from momentum_sync.limits import LogLimits

_ALL = 2**62  # bytes


class Reader(Protocol):
    """Moves the feed of a gateway, behind a capture in another process. Its methods raise Unavailable."""

    async def reach(self, epoch: str, offset: int) -> None:
        """Wait until the feed has come to an offset of an epoch, if it can."""

    async def confirm(self) -> None:
        """Compare the feed with the log, by a read that begins now."""


class History:
    """The feed's history and its past. Methods that ask the log raise Unavailable when it does not answer.

    Args:
        feed: the feed.
        log: the log.
        limits: bounds.
        reader: moves the feed, where capture is in another process.
    """

    def __init__(self, feed: LocalFeed, log: EventLog, limits: LogLimits, reader: Reader | None = None) -> None:
        self._feed = feed
        self._log = log
        self._limits = limits
        self._reader = reader

    @property
    def offset(self) -> int:
        """Return the offset of the last event."""
        return self._feed.offset

    @property
    def lsn(self) -> int:
        """Return the LSN below which every event has been published."""
        return self._feed.lsn

    @property
    def position(self) -> Position:
        """Return the position of the last event."""
        return self._feed.position

    async def reach(self, position: Position) -> None:
        """Wait for the position of a client that may come from another gateway. Without others do nothing.

        Raises:
            Unavailable: the feed does not get there in time, and it is not certain that it never will.
        """
        feed, boundary = self._feed, position.boundary
        if self._reader is None:
            return
        same_run = boundary is None or boundary.incarnation == feed.incarnation
        if position.epoch == feed.epoch and position.offset <= feed.offset and same_run:
            return
        await self._reader.reach(position.epoch, position.offset)

    async def confirm(self, generation: int) -> None:
        """Check that the feed's history is still the database's, since a time at which it had this generation.

        A database that was restored from a copy, or has failed over, answers queries before the feed knows of that.

        Raises:
            Unavailable: it is not, or the log does not answer.
        """
        if self._reader is not None:
            await self._reader.confirm()
        if self._feed.generation != generation:
            raise Unavailable("Another history has begun; try again in a moment.")

    def is_current(self, position: Position) -> bool:
        """Return whether a position is of this epoch, and its snapshot of this run of PostgreSQL."""
        feed, boundary = self._feed, position.boundary
        return position.epoch == feed.epoch and (boundary is None or boundary.incarnation == feed.incarnation)

    def known_mark(self, offset: int) -> int | None:
        """Return the mark of the event at an offset of this epoch; None if only the log knows it."""
        return self._feed.mark_of(offset)

    async def mark(self, epoch: str, offset: int) -> int:
        """Return the mark of the event at an offset.

        Raises:
            ResumeRefused: neither window nor log have the event any longer (`expired`).
        """
        mark = self._feed.mark_of(offset) if self._feed.epoch == epoch else None
        if mark is None:
            async with _answering():
                mark = await self._log.mark_of(epoch, offset)
        if mark is None:
            raise ResumeRefused("expired")
        return mark

    async def verify(self, position: Position) -> None:
        """Check that the event at a client's position is the one that the client had.

        Raises:
            ResumeRefused: it is another event (`history_changed`).
        """
        if await self.mark(position.epoch, position.offset) != position.mark:
            raise ResumeRefused("history_changed")

    def in_window(self, offset: int, keys: Sequence[str | Route], *, most: int) -> Page | None:
        """Return events on keys or routes after `offset`, up to `most` bytes; None if the log must be asked."""
        window = self._feed.window
        return window.after(offset, keys, most=most) if window.holds_after(offset) else None

    async def after(self, epoch: str, offset: int, keys: Sequence[str], *, most: int) -> Page:
        """Return events on any of the keys after `offset`, up to `most` bytes, wherever they are.

        Raises:
            ResumeRefused: they have expired (`expired`), or the epoch has ended (`history_changed`).
        """
        page = self.in_window(offset, keys, most=most)
        if page is None:
            async with _answering(or_refuse="expired"):
                page = await self._log.after(epoch, offset, keys, below=self._feed.window.first, most=most)
        if page is None:
            raise ResumeRefused("expired")
        # `in_window` does not know epochs, and one may end while the log answers.
        if self._feed.epoch != epoch:
            raise ResumeRefused("history_changed")
        return page

    async def count(self, position: Position, keys: Sequence[str]) -> int:
        """Count the events on any of the keys after a position, at most `LogLimits.count_rows` of them in the log.

        Raises:
            ResumeRefused: as `after`.
        """
        window = self._feed.window
        snapshot = None if position.boundary is None else position.boundary.snapshot
        counted, offset = 0, position.offset
        while not window.holds_after(offset):
            below = window.first
            async with _answering(or_refuse="expired"):
                found = await self._log.count_after(position.epoch, offset, keys, snapshot, below=below)
            if found is None:
                raise ResumeRefused("expired")
            counted, offset = counted + found, below - 1
        if self._feed.epoch != position.epoch:
            raise ResumeRefused("history_changed")
        return counted + window.count_after(offset, keys, snapshot)

    async def newest(self, key: str, offset: int, *, since: float, most: int, most_bytes: int) -> Newest:
        """Return the newest events on a key up to an offset, of commits since a time.

        Args:
            key: the key.
            offset: the last one.
            since: seconds since 1970.
            most: events.
            most_bytes: bytes; the event that exceeds them is not returned.

        Raises:
            Unavailable: the log does not answer.
            ResumeRefused: the epoch has ended (`history_changed`).
        """
        epoch, below = self._feed.epoch, self._feed.window.first
        held = [
            event
            for event in self._feed.window.after(below - 1, [key], most=_ALL).events
            if event.offset <= offset and event.committed_at >= since
        ]
        fitting: list[Event] = []
        for event in reversed(held):
            most_bytes -= len(event.body)
            if most_bytes < 0 or len(fitting) == most:
                return Newest(fitting[::-1], is_whole=False)
            fitting.append(event)
        async with _answering():
            older = await self._log.newest_on(
                epoch, key, below=min(below, offset + 1), since=since, most=most - len(fitting), most_bytes=most_bytes
            )
        if self._feed.epoch != epoch or older is None:
            raise ResumeRefused("history_changed")
        return Newest([*older.events, *fitting[::-1]], older.is_whole)

    async def before_unseen(self, epoch: str, snapshot: Snapshot, keys: Sequence[str]) -> int:
        """Return the offset after which every event on the keys comes that the snapshot does not see.

        Raises:
            Unavailable: the window moves faster than the log can be searched, or the epoch ends meanwhile.
        """
        window = self._feed.window
        for _ in range(self._limits.snapshot_attempts):
            older, below = None, window.first
            if not window.reaches(snapshot):
                async with _answering():
                    older = await self._log.first_unseen(snapshot, keys, below=below)
            if self._feed.epoch != epoch:
                break
            # If the window has moved, neither search has covered the events evicted meanwhile.
            if window.reaches(snapshot) or window.first == below:
                first = older if older is not None else window.first_unseen(snapshot, keys)
                return self._feed.offset if first is None else first - 1
        raise Unavailable("Changes arrive faster than a snapshot can be taken; try again in a moment.")


@asynccontextmanager
async def _answering(or_refuse: str | None = None) -> AsyncIterator[None]:
    """Raise Unavailable if the log does not answer; ResumeRefused(`or_refuse`) if it exceeds the statement timeout.

    Repeating a resume that exceeds the timeout cannot succeed, and a snapshot is cheap.
    """
    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        if or_refuse is not None:
            raise ResumeRefused(or_refuse) from error
        raise Unavailable("The event log took too long; try again in a moment.") from error
    except (psycopg.Error, PoolTimeout) as error:
        raise Unavailable("The event log does not answer; try again in a moment.") from error

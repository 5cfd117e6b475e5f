"""The log in the database: `momentum.event_log`, appended to by the holder of the checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set
from uuid import UUID

import msgspec
from psycopg import AsyncConnection, errors
from psycopg.rows import TupleRow

from momentum_sync.database import lsn, queries
from momentum_sync.database.connection import fetch_one, fetch_optional
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import FencedOff
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import Beginning
from momentum_sync.eventlog.log_read import LogRead
from momentum_sync.eventlog.page import Newest, Page
from momentum_sync.eventlog.partitions import keep_partitions
from momentum_sync.eventlog.position import Position
from momentum_sync.limits import LogLimits

_SQL = queries.load(__package__)
_YEAR_9999 = 253_402_300_799  # the last second that every client can write


class _Row(msgspec.Struct, gc=False):
    """An event as a batch carries it into the log, as one JSON text: psycopg adapts lists one element at a time."""

    offset: int
    lsn: int
    index: int
    xid: int
    at: float
    channels: tuple[str, ...]
    keys: tuple[str, ...]
    event: msgspec.Raw
    rows: msgspec.Raw


class EventLog:
    """Appends events to the log and reads them back.

    Every method raises psycopg.Error, or PoolTimeout while there is no connection.
    """

    def __init__(self, connections: LogConnections, limits: LogLimits, per_user: Set[str]) -> None:
        self._connections = connections
        self._limits = limits
        self._per_user = per_user

    async def append(self, events: Sequence[Event], *, token: UUID, confirmed: int) -> None:
        """Make events durable, and with them that the log is complete below the LSN `confirmed`.

        Raises:
            FencedOff: another instance has taken over the checkpoint, so `token` is no longer its holder.
        """
        last = events[-1]
        parameters = {
            "holder": token,
            "confirmed_lsn": lsn.text(confirmed),
            "last_offset": last.offset,
            "last_lsn": lsn.text(last.commit_lsn),
            "last_index": last.commit_index,
            "last_mark": last.mark,
            "events": msgspec.json.encode([_row(event) for event in events]).decode(),
        }
        async with self._connections.writing() as connection:
            try:
                row = await fetch_one(connection, _SQL["append"], parameters)
            except errors.CheckViolation:  # today has no partition: the server slept over midnight, or is new
                await keep_partitions(self._connections, retention=None)
                row = await fetch_one(connection, _SQL["append"], parameters)
        if row[0] == 0:
            raise FencedOff("another instance has taken over the log")

    async def append_unstorable(self, event: Event, *, token: UUID, confirmed: int) -> None:
        """Record only the offset of an event that PostgreSQL cannot store, so that the log has no gap."""
        empty = msgspec.structs.replace(event, channels=(), keys=(), body=b"{}", rows=None)
        await self.append([empty], token=token, confirmed=confirmed)

    async def confirm(self, confirmed: int, *, token: UUID) -> None:
        """Make durable that the log is complete below an LSN with no event before it. Raises FencedOff as `append`."""
        parameters = {"holder": token, "confirmed_lsn": lsn.text(confirmed)}
        async with self._connections.writing() as connection:
            if await fetch_optional(connection, _SQL["confirm"], parameters) is None:
                raise FencedOff("another instance has taken over the log")

    async def first_unseen(self, snapshot: Snapshot, keys: Sequence[str], *, below: int) -> int | None:
        """Return the lowest offset below `below`, on any of the keys, of an event that the snapshot does not see."""
        parameters = {
            "xmax": snapshot.xmax,
            "under_way": sorted(snapshot.under_way),
            "below": below,
            "keys": list(keys),
        }
        async with self._connections.reading() as connection:
            row = await fetch_one(connection, _SQL["first_unseen"], parameters)
        return None if row[0] is None else int(row[0])

    async def mark_of(self, epoch: str, offset: int) -> int | None:
        """Return the mark of the event at an offset; None if the log no longer has it."""
        async with self._connections.reading() as connection:
            return await self.mark_at(connection, epoch, offset)

    async def mark_at(self, connection: AsyncConnection[TupleRow], epoch: str, offset: int) -> int | None:
        """Return the mark as `mark_of` does, read on a connection that the caller holds."""
        row = await fetch_optional(connection, _SQL["mark_of"], {"epoch": epoch, "offset": offset})
        return None if row is None or row[0] is None else int(row[0])

    async def after(self, epoch: str, offset: int, keys: Sequence[str], *, below: int, most: int) -> Page | None:
        """Return a page of events on any of the keys, in order.

        Args:
            epoch: the epoch that the offsets belong to.
            offset: the page begins after this offset.
            keys: keys of the events.
            below: the page ends before this offset.
            most: bytes after which the page ends.

        Returns:
            The page, or None if the log does not hold all events between `offset` and `below`.
        """
        limits = self._limits
        # One transaction: its locks and its snapshot keep retention from dropping events between the check and the
        # page.
        async with self._connections.snapshot() as connection:
            if not await _reaches(connection, epoch, offset, below):
                return None
            # A query covers a range of offsets, not all that follow: it is fast whichever index PostgreSQL chooses for
            # one client's events among millions. Where matches are rare, the ranges grow.
            clock = asyncio.get_running_loop().time
            span, ends = limits.first_span, clock() + limits.search_s
            while True:
                stop = min(offset + 1 + span, below)
                parameters = {
                    "offset": offset,
                    "below": stop,
                    "keys": list(keys),
                    "most": most,
                    "limit": limits.page_rows,
                }
                events = await self._events(connection, "after", parameters)
                if events or stop == below or clock() > ends:
                    break
                offset, span = stop - 1, span * 4
        # The query ends with the event that exceeds `most`, so a page that fits was not cut.
        whole = len(events) < limits.page_rows and sum(len(event.body) for event in events) <= most
        return Page(events, stop - 1 if whole else events[-1].offset)

    async def newest_on(
        self, epoch: str, key: str, *, below: int, since: float, most: int, most_bytes: int
    ) -> Newest | None:
        """Return the newest events on a key before an offset, as far as they can be found in a few seconds.

        Args:
            epoch: the epoch.
            key: the key.
            below: the events end before this offset.
            since: the first commit, in seconds since 1970.
            most: events.
            most_bytes: bytes; the event that exceeds them is not returned.

        Returns:
            The events; None if the epoch has ended.
        """
        limits, found, is_cut = self._limits, list[Event](), False
        since = min(since, _YEAR_9999)
        clock = asyncio.get_running_loop().time
        span, ends = limits.first_span, clock() + limits.search_s
        async with self._connections.snapshot() as connection:
            row = await fetch_optional(connection, _SQL["log_reaches_back"], {"epoch": epoch, "since": since})
            if row is None:
                return None
            first, reaches_back = int(row[0]), bool(row[1])
            # Backwards in ranges of offsets, which grow where matches are rare, as in `after`.
            while below > first and not is_cut:
                if clock() > ends:
                    is_cut = True
                    break
                start = max(first, below - span)
                parameters: dict[str, object] = {
                    "key": key, "first": start, "below": below, "since": since, "most": most_bytes,
                    "limit": min(most - len(found) + 1, limits.replay_rows),
                }  # fmt: skip
                events = await self._events(connection, "newest_on", parameters)
                for event in events:
                    most_bytes -= len(event.body)
                    is_cut = is_cut or most_bytes < 0 or len(found) == most
                    if not is_cut:
                        found.append(event)
                # A full page may have been cut within the range.
                full = len(events) == limits.replay_rows
                below, span = (events[-1].offset, span) if full else (start, span * 4)
        return Newest(found[::-1], is_whole=reaches_back and not is_cut)

    async def count_after(
        self, epoch: str, offset: int, keys: Sequence[str], snapshot: Snapshot | None, *, below: int
    ) -> int | None:
        """Count the events that all pages of `after` would return, without those that the snapshot sees.

        Returns:
            The number, up to `LogLimits.count_rows`; None as `after`.
        """
        async with self._connections.snapshot() as connection:
            if not await _reaches(connection, epoch, offset, below):
                return None
            text = None if snapshot is None else str(snapshot)
            parameters = {
                "offset": offset, "below": below, "keys": list(keys), "snapshot": text,
                "most": self._limits.count_rows,
            }  # fmt: skip
            row = await fetch_one(connection, _SQL["count_after"], parameters)
            return int(row[0])

    async def newest(self, connection: AsyncConnection[TupleRow], *, first: int, last: int) -> list[Event] | None:
        """Return the last events from `first` to `last`, as many as may be preloaded; None if one is missing."""
        parameters: dict[str, object] = {
            "offset": max(first - 1, last - self._limits.preload_rows), "last": last,
            "most": self._limits.preload_bytes,
        }  # fmt: skip
        events = await self._events(connection, "newest", parameters)
        expected = range(last - len(events) + 1, last + 1)
        # Retention moves `kept_from` with the rows that it drops, so a hole after it means lost rows.
        return events if [event.offset for event in events] == list(expected) else None

    async def identity(self) -> str:
        """Return a name that no other database has."""
        async with self._connections.reading() as connection:
            (name,) = await fetch_one(connection, _SQL["identity"])
        return str(name)

    async def written_up_to(self) -> int:
        """Return an LSN behind everything that has been committed: once the feed is there, it has all of it."""
        # Not of the pool for reads: clients that catch up would make the gateway look late.
        async with self._connections.writing() as connection:
            (written,) = await fetch_one(connection, _SQL["written_up_to"])
        return int(written)

    async def next_xid(self, connection: AsyncConnection[TupleRow]) -> tuple[int, int]:
        """Return an id above those of all transactions that have ended, and the run of PostgreSQL that assigns ids."""
        ceiling, incarnation = await fetch_one(connection, _SQL["next_xid"])
        return int(ceiling), int(incarnation)

    async def go_on(self, position: Position, logged: int) -> LogRead | None:
        """Return how far the log has come, and a page of all events after a position.

        Args:
            position: where a gateway is.
            logged: the log held everything up to this offset before. If it does not any longer, or if it has another
                event at the position, the database was restored from a copy, and the position is of a history that has
                ended without a new epoch.

        Returns:
            None before capture has begun.
        """
        epoch, offset = position.epoch, position.offset
        limits = self._limits
        async with self._connections.snapshot() as connection:
            row = await fetch_optional(connection, _SQL["head"])
            if row is None:
                return None
            now, fence, last, mark, confirmed, live, kept_from = row
            ceiling, incarnation = await self.next_xid(connection)
            beginning = Beginning(now, last, mark, confirmed, ceiling, incarnation, fence)
            goes_on = now == epoch and kept_from <= offset + 1 and last >= logged
            if goes_on and last >= offset:
                goes_on = await self.mark_at(connection, now, offset) == position.mark
            if goes_on:
                parameters: dict[str, object] = {"offset": offset, "most": limits.page_bytes, "limit": limits.page_rows}
                events = await self._events(connection, "following", parameters) if last > offset else []
                # A hole is for capture to detect, and an epoch ends with it.
                dense = [event for number, event in enumerate(events, offset + 1) if event.offset == number]
                return LogRead(beginning, live, dense)
            newest = await self.newest(connection, first=kept_from, last=last) or []
            before = await self.mark_at(connection, now, newest[0].offset - 1) if newest else None
            return LogRead(beginning._replace(newest=newest, before=before), live, None)

    async def _events(
        self, connection: AsyncConnection[TupleRow], name: str, parameters: dict[str, object]
    ) -> list[Event]:
        cursor = await connection.execute(_SQL[name], parameters)
        return [
            Event.build(
                offset=offset,
                place=(lsn.parse(commit_lsn), commit_index),
                xid=xid,
                committed_at=committed_at,
                channels=tuple(channels),
                body=body.encode(),
                rows=None if rows is None else rows.encode(),
                per_user=self._per_user,
                logged=True,
            )
            for offset, commit_lsn, commit_index, xid, committed_at, channels, body, rows in await cursor.fetchall()
        ]


async def _reaches(connection: AsyncConnection[TupleRow], epoch: str, offset: int, below: int) -> bool:
    row = await fetch_optional(connection, _SQL["reaches"], {"epoch": epoch, "offset": offset, "below": below})
    return row is not None and bool(row[0])


def _row(event: Event) -> _Row:
    return _Row(
        event.offset,
        event.commit_lsn,
        event.commit_index,
        event.xid,
        event.committed_at,
        event.channels,
        event.keys,
        msgspec.Raw(event.body),
        msgspec.Raw(event.rows or b"null"),
    )

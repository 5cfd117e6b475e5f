"""The checkpoint: how far capture has written and confirmed, and which instance may write.

`momentum.stream` has one row. Acquiring it gives this instance a new fencing token, which every append compares in the
same statement; and it decides whether the history goes on or an epoch begins.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from momentum_sync.capture.broadcasts import MESSAGES
from momentum_sync.capture.slot import BROADCASTS, ROWS, SlotFacts
from momentum_sync.database import lsn, queries
from momentum_sync.database.connection import fetch_one, fetch_optional
from momentum_sync.errors import CaptureError, FencedOff
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import FeedState
from momentum_sync.eventlog.log import EventLog
from momentum_sync.limits import CaptureLimits

_SQL = queries.load(__package__)
_TRUNCATED = "a table was truncated"
_MISSING = "events are missing from the log"


class LogBroken(CaptureError):
    """The log lacks events that it should hold, so a new epoch must begin."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An acquired history.

    Attributes:
        epoch: the epoch.
        offset: offset of the last logged event.
        place: LSN of its commit, and its index in the transaction.
        mark: its mark; 0 where the epoch begins.
        ceiling: a transaction id above those of all events so far.
        incarnation: the run of PostgreSQL that assigns transaction ids.
        token: the fencing token that appends must bring.
        fence: its place in the order of tokens.
        newest: the last events, unless the feed has them already.
        before: mark of the event before those, if it is known.
        followed: by the id of each followed relation, the LSN after which its changes are events.
        live: whether snapshots see everything from before the epoch, so that it can be served.
        broke: why the history before this epoch does not go on, if it begins here.
        unsettled: transactions that a snapshot must see before this epoch can be served; None: all below `ceiling`.
    """

    epoch: str
    offset: int
    place: tuple[int, int]
    mark: int
    ceiling: int
    incarnation: int
    token: uuid.UUID
    fence: int
    newest: list[Event] = field(default_factory=list)
    before: int | None = None
    followed: Mapping[int, int] = field(default_factory=dict)
    live: bool = False
    broke: str | None = None
    unsettled: list[int] | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the statement `checkpoint`."""

    slot: str
    epoch: str
    system_identifier: str
    timeline: int
    confirmed_lsn: str
    kept_from: int
    kept_mark: int
    last_number: int
    last_lsn: str
    last_index: int
    last_mark: int
    live: bool
    slot_exists: bool
    whole: bool
    truncated: bool

    @property
    def mark(self) -> int:
        """Return the mark of the last event."""
        return self.kept_mark if self.last_number < self.kept_from else self.last_mark


class _Followed(NamedTuple):
    """The followed tables.

    Attributes:
        after: by relation, the LSN after which its changes are events.
        streamable: publications that a stream may name.
        messages: id of the publication of `realtime.messages`; None without such a table or publication.
        by_name: a stream finds publications as they are now, not as of the change that it decodes.
    """

    after: dict[int, int]
    streamable: frozenset[str]
    messages: int | None
    by_name: bool

    @property
    def publications(self) -> frozenset[str]:
        """Return the publications that the followed tables come with."""
        return frozenset(publication_of(relation) for relation in self.after)


def publication_of(relation: int) -> str:
    """Return the publication that a followed table's rows come with."""
    return BROADCASTS if relation == MESSAGES else ROWS


async def _followed(connection: AsyncConnection[TupleRow]) -> _Followed:
    parameters = {"publications": [ROWS, BROADCASTS], "broadcasts": BROADCASTS}
    relations, after, streamable, *facts = await fetch_one(connection, _SQL["followed"], parameters)
    return _Followed(dict(zip(relations, after, strict=True)), frozenset(streamable), *facts)


async def _unfollow(connection: AsyncConnection[TupleRow], followed: _Followed, missing: Set[str]) -> str:
    """Follow nothing any longer, because the stream lacks a publication. Return why the history ends with that.

    Raises:
        CaptureError: it could have it, and was opened before the first table was followed.
    """
    if missing & followed.streamable:
        raise CaptureError("a table is followed since the stream was opened; opening it again")
    # Their changes had offsets, and the stream no longer has them.
    await connection.execute(_SQL["unfollow_all"])
    return f"the publication {min(missing)} was dropped"


class Checkpoints:
    """Acquires the checkpoint of one slot's log, and checks that the log still holds the events that it records."""

    def __init__(self, connections: LogConnections, log: EventLog, slot: str, limits: CaptureLimits) -> None:
        self._connections = connections
        self._log = log
        self._slot = slot
        self._limits = limits

    async def publications(self, *, is_new: bool) -> frozenset[str]:
        """Return the publications that the stream should carry: those of followed tables, and of messages to topics.

        `is_new` tells whether the slot has just been created. Before PostgreSQL 18 only a new slot can be read with a
        publication that may be younger than itself.
        """
        async with self._connections.writing() as connection:
            followed = await _followed(connection)
        wanted = followed.publications
        if followed.messages is not None and (is_new or followed.by_name):
            wanted |= {BROADCASTS}
        return wanted & followed.streamable

    async def messages(self) -> int | None:
        """Return the id of the publication of `realtime.messages`; None without such a table or publication."""
        async with self._connections.writing() as connection:
            return (await _followed(connection)).messages

    async def publication_lsn(self, publication: str) -> int:
        """Return an LSN behind the creation of a publication. Raise CaptureError if it does not exist.

        Every transaction that began before the creation has ended: decoding would look for the publication as of then.
        """
        ceiling: int | None = None
        while True:
            async with self._connections.writing() as connection:
                exists, at, next_xid = await fetch_one(connection, _SQL["published"], {"publication": publication})
                if not exists:
                    raise CaptureError(
                        f"the publication {publication} is missing; create it with: momentum-sync migrate --again"
                    )
                ceiling = next_xid if ceiling is None else ceiling
                (ended,) = await fetch_one(connection, _SQL["have_ended"], {"ceiling": ceiling})
            if ended:
                return int(at)
            await asyncio.sleep(self._limits.settle_interval_s)

    async def check_followable(self, relation: int) -> None:
        """Raise CaptureError for the server's own tables, of which each append makes an event, and for messages."""
        async with self._connections.writing() as connection:
            (ours,) = await fetch_one(connection, _SQL["is_our_own"], {"relation": relation})
        if ours:
            raise CaptureError("the server's own tables and realtime.messages cannot be followed as rows")

    async def follow(self, relation: int, after: int, *, token: uuid.UUID) -> None:
        """Record that a relation's changes become events after an LSN. Raise FencedOff if another instance writes."""
        async with self._connections.writing() as connection:
            parameters = {"relation": relation, "after_lsn": lsn.text(after), "holder": token}
            if await fetch_optional(connection, _SQL["follow"], parameters) is None:
                raise FencedOff("another instance has taken over the event log")

    async def acquire(
        self,
        facts: SlotFacts,
        *,
        known: FeedState | None = None,
        seen: FeedState | None = None,
        broke: str | None = None,
        publications: Set[str] = frozenset(),
    ) -> Checkpoint:
        """Make this instance the writer of the log, and return where the history stands.

        The history goes on if the slot belongs to the same WAL as before, was confirmed no further than the log is
        complete, and the log still holds all of its events. Otherwise an epoch begins.

        Args:
            facts: the state of the slot; the caller holds the slot.
            known: how far the feed of this process has followed the history. Events up to there need not be loaded,
                and a log without events that the feed saw logged was restored from a copy.
            seen: the log as it was while another instance wrote it; see `last_logged`.
            broke: why the history ends here regardless of the log, if the stream has shown it.
            publications: those of the rows in the stream.

        Raises:
            FencedOff: the log belongs to another slot that still exists.
            CaptureError: tables are followed since the stream was opened.
        """
        token = uuid.uuid4()
        async with self._connections.writing() as connection, connection.transaction():
            await connection.execute(_SQL["lock_checkpoint"])
            cursor = connection.cursor(row_factory=class_row(_Row))
            row = await (await cursor.execute(_SQL["checkpoint"])).fetchone()
            # Read after the row lock, when no append is running: the id is then above the transactions of all logged
            # events.
            ceiling, incarnation = await self._log.next_xid(connection)
            if row is not None:
                # Servers with two slots would take the log from each other, each time with a new epoch.
                if row.slot != self._slot and row.slot_exists:
                    raise FencedOff(
                        f"the event log of this database belongs to the replication slot {row.slot}; drop it, or set"
                        f" MOMENTUM_SLOT={row.slot}"
                    )
                followed = await _followed(connection)
                if missing := followed.publications - publications:
                    broke = await _unfollow(connection, followed, missing)
                broke = broke or await self._break(connection, row, facts, (known, seen))
                newest: list[Event] | None = []
                if broke is None and (known is None or known.epoch != row.epoch or known.offset < row.last_number):
                    newest = await self._log.newest(connection, first=row.kept_from, last=row.last_number)
                    broke = _MISSING if newest is None else None
                if broke is None:
                    (fence,) = await fetch_one(connection, _SQL["hold_checkpoint"], {"holder": token})
                    before = None
                    if newest:
                        # Without this mark, each resume from the event before the window would query the log.
                        before = await self._log.mark_at(connection, row.epoch, newest[0].offset - 1)
                    return Checkpoint(
                        row.epoch, row.last_number, (lsn.parse(row.last_lsn), row.last_index), row.mark, ceiling,
                        incarnation, token, fence, newest=newest or [], before=before, followed=followed.after,
                        live=row.live,
                    )  # fmt: skip
            checkpoint = await self._begin(connection, facts, row, (ceiling, incarnation), token, broke)
            if checkpoint.place != (0, 0):
                return checkpoint
            if BROADCASTS in publications:
                await connection.execute(_SQL["follow_messages"], {"messages": MESSAGES})
            await connection.execute(_SQL["follow_from_the_start"])
            return replace(checkpoint, followed=(await _followed(connection)).after)

    async def _begin(
        self,
        connection: AsyncConnection[TupleRow],
        facts: SlotFacts,
        row: _Row | None,
        xids: tuple[int, int],
        token: uuid.UUID,
        broke: str | None,
    ) -> Checkpoint:
        """Begin an epoch. After a TRUNCATE it continues at the same place of the same WAL."""
        # Offsets continue across epochs, because the log may still hold rows of earlier ones and `kept_from` tells them
        # apart.
        (offset,) = await fetch_one(connection, _SQL["last_offset"])
        place, last_lsn, unsettled = (0, 0), "0/0", None
        # The slot repeats the TRUNCATE, which is not confirmed: without its place it would end the new epoch, too.
        if row is not None and broke == _TRUNCATED:
            place, last_lsn = (lsn.parse(row.last_lsn), row.last_index), row.last_lsn
            # Transactions that are not in the log yet come as events of the new epoch, so it need not wait for them.
            (unsettled,) = await fetch_one(connection, _SQL["recent_xids"], {"offset": row.last_number})
        epoch = secrets.token_hex(4)
        (fence,) = await fetch_one(
            connection,
            _SQL["new_epoch"],
            {
                "slot": self._slot,
                "epoch": epoch,
                "system_identifier": facts.system_identifier,
                "timeline": facts.timeline,
                "offset": offset,
                "confirmed_lsn": lsn.text(facts.confirmed_lsn),
                "last_lsn": last_lsn,
                "last_index": place[1],
                "holder": token,
            },
        )
        ceiling, incarnation = xids
        return Checkpoint(
            epoch, offset, place, 0, ceiling, incarnation, token, fence, followed=(await _followed(connection)).after,
            broke=broke, unsettled=unsettled,
        )  # fmt: skip

    async def until_settled(self, checkpoint: Checkpoint) -> None:
        """Wait until snapshots see every transaction of the previous epoch, and record that.

        Raises:
            FencedOff: another instance has taken over.
        """
        while True:
            async with self._connections.writing() as connection:
                if checkpoint.unsettled is None:
                    (settled,) = await fetch_one(connection, _SQL["have_ended"], {"ceiling": checkpoint.ceiling})
                else:
                    (settled,) = await fetch_one(connection, _SQL["are_visible"], {"xids": checkpoint.unsettled})
            if settled:
                break
            await asyncio.sleep(self._limits.settle_interval_s)
        async with self._connections.writing() as connection:
            if await fetch_optional(connection, _SQL["set_live"], {"holder": checkpoint.token}) is None:
                raise FencedOff("another instance has taken over the event log")

    async def watch_log(self) -> None:
        """Check at intervals that the log holds its first and last event. Raise LogBroken when it does not."""
        while True:
            await asyncio.sleep(self._limits.log_check_interval_s)
            async with self._connections.writing() as connection:
                (whole,) = await fetch_one(connection, _SQL["log_is_whole"])
            if not whole:
                raise LogBroken(_MISSING)

    async def _break(
        self, connection: AsyncConnection[TupleRow], row: _Row, facts: SlotFacts, known: Sequence[FeedState | None]
    ) -> str | None:
        """Return why the history in the log does not go on with this slot; None if it does."""
        if row.system_identifier != facts.system_identifier:
            return "the database has another system identifier"
        if row.timeline != facts.timeline:
            return "the database is on another timeline"
        if row.slot != facts.slot:
            return "the replication slot has another name"
        # Capture records an LSN in the log before it confirms it, so a slot beyond the log may have skipped events.
        if facts.confirmed_lsn > lsn.parse(row.confirmed_lsn):
            return "the slot was recreated or advanced"
        if not row.whole:
            return _MISSING
        if row.truncated:
            return _TRUNCATED
        for each in known:
            # Retention may have dropped the event that this process knows, and then there is no mark to compare.
            if each is None or each.epoch != row.epoch or each.logged + 1 < row.kept_from:
                continue
            if await self._log.mark_at(connection, row.epoch, each.logged) != each.logged_mark:
                return "the log has lost events that it held before: it was restored from a copy"
        return None

    async def last_logged(self, seen: FeedState | None) -> FeedState | None:
        """Return the last event of the log, which another instance writes; `seen` if the log no longer holds that.

        So an instance that takes over knows whether the database has gone back to an earlier state meanwhile.
        """
        async with self._connections.writing() as connection:
            row = await fetch_optional(connection, _SQL["last_logged"], {})
            if row is None:
                return seen
            epoch, last, kept_from = row
            kept = seen if seen is not None and seen.epoch == epoch and seen.logged + 1 >= kept_from else None
            if kept is not None and await self._log.mark_at(connection, epoch, kept.logged) != kept.logged_mark:
                return seen
            mark = await self._log.mark_at(connection, epoch, last)
            return seen if mark is None else FeedState(epoch, last, last, mark)

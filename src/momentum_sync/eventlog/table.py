"""The log in the database: `momentum.event_log`, and where capture stands, `momentum.stream`."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec
from psycopg import AsyncConnection, IsolationLevel, errors
from psycopg.rows import TupleRow, class_row

from momentum_sync import observe
from momentum_sync.database import lsn, queries
from momentum_sync.database.connection import make_pool, using
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import CaptureError, FencedOff
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import FeedState

_SQL = queries.load(__package__)
_WAIT_S = 10.0
_WORK_S = 30.0  # the network, where PostgreSQL's own timeout does not answer
_READ_S = 10.0
_LOOK_EVERY_S = 2.0
_LOOK_AT_POLICIES_EVERY_S = 1.0
_FAILURES_TO_TELL = 5
_PAGE_ROWS = 1_000
_FIRST_SPAN = 20_000  # offsets that a page looks through at first; where it finds nothing, it goes further
_SEARCH_S = 2.0
_NEWEST_ROWS = 20_000
_NEWEST_BYTES = 16 * 1024 * 1024
_MOST_COUNTED = 100_000
_ENDED_EVERY_S = 0.1
# Never off: a log that a crash can take back, while the slot has moved on, would lose events. Not on either: it would
# wait for standbys, and what capture confirms to the WAL sender waits for it.
_WRITES = {"synchronous_commit": "local", "statement_timeout": "20s"}
_READS = {"statement_timeout": "5s"}
_TRUNCATED = "a table was truncated"


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """What the holder of a slot knows about the WAL it reads."""

    slot: str
    system_identifier: str
    timeline: int
    confirmed_lsn: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a history stands: the place of the last logged event, and a transaction id above all before it.

    `mark` is that of the last event, 0 where the history begins; `incarnation` names the run of PostgreSQL. `newest`
    are its last events, unless they are known already, and `before` is the mark of the event before those. A history
    that `begins` here may have had one before it, and `broke` says why that does not go on; `unsettled` are the
    transactions that a snapshot must see before it can be served, where they are known, else they are all below
    `ceiling`.
    """

    epoch: str
    offset: int
    place: tuple[int, int]
    mark: int
    ceiling: int
    incarnation: int
    newest: list[Event] = field(default_factory=list)
    before: int | None = None
    begins: bool = False
    broke: str | None = None
    unsettled: list[int] | None = None


@dataclass(frozen=True, slots=True)
class _Stream:
    """What the statement `stream` says."""

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
    slot_exists: bool
    whole: bool
    truncated: bool

    @property
    def mark(self) -> int:
        """The mark of the last event."""
        return self.kept_mark if self.last_number < self.kept_from else self.last_mark


class Publishing(msgspec.Struct, frozen=True):
    """Whether what publishes is in place.

    `problems` names triggers and functions that are not as `migrate` installed them, `foreign_triggers` those of
    others that run before ours on the same row.
    """

    problems: list[str] = []
    foreign_triggers: list[str] = []


class _Row(msgspec.Struct, gc=False):
    """An event on its way into the log. A batch goes as one JSON text: psycopg adapts lists an element at a time."""

    offset: int
    lsn: int
    index: int
    xid: int
    at: float
    channels: tuple[str, ...]
    keys: tuple[str, ...]
    event: msgspec.Raw
    rows: msgspec.Raw


class LogBroken(CaptureError):
    """Events that the log should hold are gone: a new history must begin."""


class EventLog:
    """The log's table. One holder at a time appends; others are fenced off."""

    def __init__(self, conninfo: str, slot: str) -> None:
        self._slot = slot
        self._holder = uuid.uuid4()
        # Apart, so that what clients ask for never keeps an append waiting.
        self._pool = make_pool(conninfo, "log", size=6, wait=_WAIT_S, settings=_WRITES)
        self._reads = make_pool(conninfo, "log reads", size=2, wait=_WAIT_S, settings=_READS)

    async def open(self) -> None:
        """Starts connecting in the background; work waits until there is a connection."""
        await self._pool.open(wait=False)
        await self._reads.open(wait=False)

    async def close(self) -> None:
        """Closes the connections."""
        await self._reads.close(timeout=5.0)
        await self._pool.close(timeout=5.0)

    def _work(self) -> AbstractAsyncContextManager[AsyncConnection[TupleRow]]:
        """A connection for the server's own work."""
        return using(self._pool, _WORK_S)

    async def take_over(
        self, facts: SlotFacts, *, known: FeedState | None = None, broke: str | None = None
    ) -> Checkpoint:
        """Makes this instance the one that appends, and says where the history stands.

        The history goes on if the slot belongs to the same WAL as before, was confirmed no further than the log is
        complete (a slot made anew is), and the log still holds what it should. Otherwise an epoch begins.

        Args:
            facts: what the slot says; call this while holding it.
            known: how far a feed of this process has followed the history. Events up to there need not be read, and a
            log
                that lacks what the feed knows to be logged was restored from a copy.
            broke: why the history ends here whatever the log holds, where the stream has shown it.
        """
        self._holder = uuid.uuid4()
        async with self._work() as connection, connection.transaction():
            row = await (await connection.cursor(row_factory=class_row(_Stream)).execute(_SQL["stream"])).fetchone()
            ceiling, incarnation = await _sure(connection, "now")
            if row is not None:
                if row.slot != self._slot and row.slot_exists:
                    raise FencedOff(
                        f"the log of this database belongs to the slot {row.slot}; drop that slot, or set"
                        f" MOMENTUM_SLOT={row.slot}"
                    )
                broke = broke or await _break(connection, row, facts, known)
                newest: list[Event] | None = []
                if broke is None and (known is None or known.epoch != row.epoch or known.offset < row.last_number):
                    newest = await _newest(connection, row.kept_from - 1, row.last_number)
                    broke = "events are missing from the log" if newest is None else None
                if broke is None:
                    await connection.execute(_SQL["keep_stream"], {"holder": self._holder})
                    before = None
                    if newest:
                        (before,) = await _sure(connection, "mark_of", epoch=row.epoch, offset=newest[0].offset - 1)
                    return Checkpoint(
                        row.epoch, row.last_number, (lsn.parse(row.last_lsn), row.last_index), row.mark, ceiling,
                        incarnation, newest=newest or [], before=before,
                    )  # fmt: skip
            return await self._begin(connection, facts, row, ceiling, incarnation, broke)

    async def _begin(
        self,
        connection: AsyncConnection[TupleRow],
        facts: SlotFacts,
        row: _Stream | None,
        ceiling: int,
        incarnation: int,
        broke: str | None,
    ) -> Checkpoint:
        """Begin an epoch. After a TRUNCATE it continues at the same position of the same WAL."""
        (offset,) = await _sure(connection, "last_number")
        place, last_lsn, unsettled = (0, 0), "0/0", None
        if row is not None and broke == _TRUNCATED:
            place, last_lsn = (lsn.parse(row.last_lsn), row.last_index), row.last_lsn
            (unsettled,) = await _sure(connection, "recent_xids", offset=row.last_number)
        epoch = secrets.token_hex(4)
        await connection.execute(
            _SQL["new_stream"],
            {
                "slot": self._slot,
                "epoch": epoch,
                "system_identifier": facts.system_identifier,
                "timeline": facts.timeline,
                "offset": offset,
                "confirmed_lsn": lsn.text(facts.confirmed_lsn),
                "last_lsn": last_lsn,
                "last_index": place[1],
                "holder": self._holder,
            },
        )
        return Checkpoint(epoch, offset, place, 0, ceiling, incarnation, begins=True, broke=broke, unsettled=unsettled)

    async def append(self, events: Sequence[Event], *, confirmed: int) -> None:
        """Makes events durable, and with them that the log is complete up to the place `confirmed`.

        FencedOff if another instance has taken over.
        """
        last = events[-1]
        parameters = {
            "holder": self._holder,
            "confirmed_lsn": lsn.text(confirmed),
            "last_number": last.offset,
            "last_lsn": lsn.text(last.commit_lsn),
            "last_index": last.commit_index,
            "last_mark": last.mark,
            "events": msgspec.json.encode([_row(event) for event in events]).decode(),
        }
        async with self._work() as connection:
            try:
                row = await _one(connection, "append", **parameters)
            except errors.CheckViolation:  # no partition for today: the server slept over midnight, or was never kept
                await self.keep_partitions(retention=None)
                row = await _one(connection, "append", **parameters)
        if row is None or row[0] == 0:
            raise FencedOff("another instance has taken over the log")

    async def confirm(self, confirmed: int) -> None:
        """Makes durable that the log is complete up to a place with no event before it. FencedOff as in `append`."""
        parameters = {"holder": self._holder, "confirmed_lsn": lsn.text(confirmed)}
        async with self._work() as connection:
            if await _one(connection, "confirm", **parameters) is None:
                raise FencedOff("another instance has taken over the log")

    async def append_unstorable(self, event: Event, *, confirmed: int) -> None:
        """Keeps the place of an event that PostgreSQL cannot store: its offset is taken, and the log has no hole."""
        await self.append(
            [msgspec.structs.replace(event, channels=(), keys=(), body=b"{}", rows=None)], confirmed=confirmed
        )

    async def first_unseen(self, snapshot: Snapshot, keys: Sequence[str], *, below: int) -> int | None:
        """The lowest offset below `below`, on any of the keys, of an event that the snapshot does not see."""
        asked = {"xmax": snapshot.xmax, "under_way": sorted(snapshot.under_way), "below": below, "keys": list(keys)}
        async with using(self._reads, _READ_S) as connection:
            row = await _sure(connection, "first_unseen", **asked)
        return None if row[0] is None else int(row[0])

    async def mark_of(self, epoch: str, offset: int) -> int | None:
        """The mark of the event with a offset in an epoch; None if the log does not know it any longer."""
        async with using(self._reads, _READ_S) as connection:
            row = await _one(connection, "mark_of", epoch=epoch, offset=offset)
        return None if row is None or row[0] is None else int(row[0])

    async def after(
        self, epoch: str, offset: int, keys: Sequence[str], *, below: int, most: int
    ) -> tuple[list[Event], int] | None:
        """Events on any of the keys, in order, numbered above `offset` and below `below`, as far as `most` bytes go.

        With them comes the offset up to which that is all. None if the log no longer holds what follows `offset`.
        """
        async with self._reading() as connection:
            if not await _reaches(connection, epoch, offset):
                return None
            # A page looks through so many offsets, not through all that follow: it is quick however PostgreSQL finds
            # one client's events among millions of others'. Where they are rare, it looks through more and more.
            clock = asyncio.get_running_loop().time
            span, ends = _FIRST_SPAN, clock() + _SEARCH_S
            while True:
                stop = min(offset + 1 + span, below)
                asked = {"offset": offset, "below": stop, "keys": list(keys), "most": most, "limit": _PAGE_ROWS}
                cursor = await connection.execute(_SQL["after"], asked)
                events = [_event(row) for row in await cursor.fetchall()]
                if events or stop == below or clock() > ends:
                    break
                offset, span = stop - 1, span * 4
        whole = len(events) < _PAGE_ROWS and sum(len(event.body) for event in events) <= most
        return events, stop - 1 if whole else events[-1].offset

    async def count_after(
        self, epoch: str, offset: int, keys: Sequence[str], snapshot: Snapshot | None, *, below: int
    ) -> int | None:
        """How many events `after` would bring on all its pages, those that the snapshot sees left out.

        No more than 100,000 are counted.
        """
        async with self._reading() as connection:
            if not await _reaches(connection, epoch, offset):
                return None
            text = None if snapshot is None else str(snapshot)
            asked = {
                "offset": offset, "below": below, "keys": list(keys), "snapshot": text, "most": _MOST_COUNTED,
            }  # fmt: skip
            row = await _sure(connection, "count_after", **asked)
            return int(row[0])

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection on which all statements see the same log: what is there when it begins stays until it ends."""
        async with using(self._reads, _READ_S) as connection:
            await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
            async with connection.transaction():
                yield connection

    async def until_settled(self, standing: Checkpoint) -> None:
        """Wait until snapshots see every transaction of the previous epoch."""
        while True:
            async with self._work() as connection:
                if standing.unsettled is None:
                    (settled,) = await _sure(connection, "ended", ceiling=standing.ceiling)
                else:
                    (settled,) = await _sure(connection, "visible", xids=standing.unsettled)
            if settled:
                return
            await asyncio.sleep(_ENDED_EVERY_S)

    async def watch_whole(self) -> None:
        """Looks again and again whether the log still holds what it should; raises LogBroken when it does not."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            async with self._work() as connection:
                (whole,) = await _sure(connection, "whole")
            if not whole:
                raise LogBroken("events are missing from the log")

    async def beat(self, prefix: str, content: str) -> None:
        """Writes a message of the server's own into the WAL, in a transaction, as an event comes."""
        async with self._work() as connection:
            await _sure(connection, "beat", prefix=prefix, content=content)

    async def watch_policies(self) -> None:
        """Has the database look, again and again, whether the policies are those it knows, and tell the log if not."""
        failed = 0
        while True:
            try:
                async with self._work() as connection:
                    await _sure(connection, "check_policies")
                failed = 0
            except (errors.LockNotAvailable, errors.QueryCanceled) as error:  # somebody holds a table: the next time
                failed += 1
                if failed % _FAILURES_TO_TELL == 0:
                    observe.policies_unwatched(error, failed)
            await asyncio.sleep(_LOOK_AT_POLICIES_EVERY_S)

    async def check_publishing(self) -> Publishing:
        """Asks whether the triggers and functions that publish are in place."""
        async with self._work() as connection:
            row = await _sure(connection, "check_publishing")
        return Publishing(list(row[0]), list(row[1]))

    async def keep_partitions(self, *, retention: timedelta | None) -> list[str]:
        """Makes the partitions of the coming days and drops those wholly older than `retention`, by PostgreSQL's clock.

        Returns the names of what it dropped. Two instances may do it at once. psycopg.errors.LockNotAvailable while
        somebody else uses the log for long; what is there stays.
        """
        async with self._work() as connection:
            (dropped,) = await _sure(connection, "keep_partitions", retention=retention)
        return list(dropped)

    async def watch(self) -> None:
        """Holds a connection until the database ends it, then raises psycopg.OperationalError.

        A PostgreSQL that shuts down ends sessions first and then waits for its WAL senders to be confirmed. Whoever
        reads the WAL must go when the log can no longer be written, or the shutdown hangs.
        """
        async with self._pool.connection() as connection:
            async for _ in connection.notifies():
                pass


async def _one(connection: AsyncConnection[TupleRow], name: str, **parameters: object) -> TupleRow | None:
    cursor = await connection.execute(_SQL[name], parameters)
    return await cursor.fetchone()


async def _sure(connection: AsyncConnection[TupleRow], name: str, **parameters: object) -> TupleRow:
    row = await _one(connection, name, **parameters)
    assert row is not None
    return row


async def _reaches(connection: AsyncConnection[TupleRow], epoch: str, offset: int) -> bool:
    row = await _one(connection, "reaches", epoch=epoch, offset=offset)
    return row is not None and bool(row[0])


async def _newest(connection: AsyncConnection[TupleRow], offset: int, last: int) -> list[Event] | None:
    """The last events up to `last`, within bounds of rows and bytes; None if there is a hole among them."""
    offset = max(offset, last - _NEWEST_ROWS)
    cursor = await connection.execute(_SQL["newest"], {"offset": offset, "last": last, "most": _NEWEST_BYTES})
    events = [_event(row) for row in await cursor.fetchall()]
    expected = range(last - len(events) + 1, last + 1)
    return events if [event.offset for event in events] == list(expected) else None


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


def _event(row: TupleRow) -> Event:
    offset, commit_lsn, commit_index, xid, committed_at, channels, body, rows = row[:8]
    return Event.build(
        offset=offset,
        place=(lsn.parse(commit_lsn), commit_index),
        xid=xid,
        committed_at=committed_at,
        channels=tuple(channels),
        body=body.encode(),
        rows=None if rows is None else rows.encode(),
        logged=True,
    )


async def _break(
    connection: AsyncConnection[TupleRow], row: _Stream, facts: SlotFacts, known: FeedState | None
) -> str | None:
    """Why the history that the log holds does not go on with this slot; None if it does."""
    if row.system_identifier != facts.system_identifier:
        return "the database is another system"
    if row.timeline != facts.timeline:
        return "the database is on another timeline"
    if row.slot != facts.slot:
        return "the slot is another"
    if facts.confirmed_lsn > lsn.parse(row.confirmed_lsn):
        return "the slot was made anew, or was moved on"
    if not row.whole:
        return "events are missing from the log"
    if row.truncated:
        return _TRUNCATED
    if known is not None and known.epoch == row.epoch and known.logged + 1 >= row.kept_from:
        logged = await _one(connection, "mark_of", epoch=row.epoch, offset=known.logged)
        if logged is None or logged[0] != known.logged_mark:
            return "the log does not hold what it held: it was restored from a copy"
    return None

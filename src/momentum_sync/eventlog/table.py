"""The log in the database: `momentum.event_log`, and where capture stands, `momentum.stream`."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import msgspec
from psycopg import AsyncConnection, IsolationLevel, errors, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from momentum_sync.database import lsn, queries
from momentum_sync.database.pool import alive
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import CaptureError, FencedOff
from momentum_sync.eventlog.event import Event, EventId
from momentum_sync.eventlog.samples import Sample

_SQL = queries.load(__package__)
_DAYS_AHEAD = 2
_LOOK_EVERY_S = 2.0
_LOOK_AT_POLICIES_EVERY_S = 1.0
_PAGE_ROWS = 1_000
_NEWEST_ROWS = 20_000
_NEWEST_BYTES = 16 * 1024 * 1024
_MOST_COUNTED = 100_000
_ENDED_EVERY_S = 0.1
# An append waits behind whoever waits for the table, so waiting must be short.
_PARTITION_LOCK_TIMEOUT = "500ms"
_PREFIX = "event_log_"


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """What the holder of a slot knows about the WAL it reads."""

    slot: str
    system_identifier: str
    timeline: int
    confirmed_lsn: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a history stands: the place of the last logged event, and a transaction id above all before it.

    `newest` are its last events, unless they are known already. A history that `begins` here may have had one before
    it, and `broke` says why that does not go on.
    """

    epoch: str
    number: int
    place: tuple[int, int]
    ceiling: int
    newest: list[Event] = field(default_factory=list)
    begins: bool = False
    broke: str | None = None


class _Row(msgspec.Struct, gc=False):
    """An event on its way into the log. A batch goes as one JSON text: psycopg adapts lists an element at a time."""

    number: int
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
        self._pool = _pool(conninfo, "log", size=6)
        self._reads = _pool(conninfo, "log reads", size=2)

    async def open(self) -> None:
        """Starts connecting in the background; work waits until there is a connection."""
        await self._pool.open(wait=False)
        await self._reads.open(wait=False)

    async def close(self) -> None:
        """Closes the connections."""
        await self._reads.close(timeout=5.0)
        await self._pool.close(timeout=5.0)

    async def take_over(self, facts: SlotFacts, *, known: EventId | None = None) -> Standing:
        """Makes this instance the one that appends, and says where the history stands.

        The history goes on if the slot belongs to the same WAL as before, was confirmed no further than the log is
        complete (a slot made anew is), and the log still holds what it should. Otherwise an epoch begins. Call it while
        holding the slot. `known` is a place up to which the newest events need not be read.
        """
        self._holder = uuid.uuid4()
        async with self._pool.connection() as connection, connection.transaction():
            row = await _one(connection, "stream")
            (ceiling,) = await _sure(connection, "next_xid")
            broke = None
            if row is not None:
                slot, epoch, system_identifier, timeline, confirmed, kept_from, number, last_lsn, last_index = row[:9]
                exists, whole = row[9:]
                if slot != self._slot and exists:
                    raise FencedOff(
                        f"the log of this database belongs to the slot {slot}; drop that, or set MOMENTUM_SLOT={slot}"
                    )
                newest: list[Event] | None = []
                if known is None or known.epoch != epoch or known.number < number:
                    newest = await _newest(connection, kept_from - 1, number)
                broke = _break(
                    facts,
                    slot=slot,
                    system_identifier=system_identifier,
                    timeline=timeline,
                    confirmed=lsn.parse(confirmed),
                    whole=whole and newest is not None,
                )
                if broke is None and newest is not None:
                    await connection.execute(_SQL["keep_stream"], {"holder": self._holder})
                    return Standing(epoch, number, (lsn.parse(last_lsn), last_index), ceiling, newest)
            (number,) = await _sure(connection, "last_number")
            epoch = secrets.token_hex(4)
            await connection.execute(
                _SQL["new_stream"],
                {
                    "slot": self._slot,
                    "epoch": epoch,
                    "system_identifier": facts.system_identifier,
                    "timeline": facts.timeline,
                    "number": number,
                    "confirmed_lsn": lsn.text(facts.confirmed_lsn),
                    "holder": self._holder,
                },
            )
            return Standing(epoch, number, (0, 0), ceiling, begins=True, broke=broke)

    async def append(self, events: Sequence[Event], *, confirmed: int) -> None:
        """Makes events durable, and with them that the log is complete up to the place `confirmed`.

        FencedOff if another instance has taken over.
        """
        last = events[-1]
        parameters = {
            "holder": self._holder,
            "confirmed_lsn": lsn.text(confirmed),
            "last_number": last.number,
            "last_lsn": lsn.text(last.commit_lsn),
            "last_index": last.commit_index,
            "events": msgspec.json.encode([_row(event) for event in events]).decode(),
        }
        async with self._pool.connection() as connection:
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
        async with self._pool.connection() as connection:
            if await _one(connection, "confirm", **parameters) is None:
                raise FencedOff("another instance has taken over the log")

    async def append_unstorable(self, event: Event, *, confirmed: int) -> None:
        """Keeps the place of an event that PostgreSQL cannot store: its number is taken, and the log has no hole."""
        await self.append(
            [msgspec.structs.replace(event, channels=(), keys=(), body=b"{}", rows=None)], confirmed=confirmed
        )

    async def first_unseen(self, snapshot: Snapshot, keys: Sequence[str], *, below: int) -> int | None:
        """The lowest number below `below`, on any of the keys, of an event that the snapshot does not see."""
        async with self._reads.connection() as connection:
            row = await _sure(
                connection,
                "first_unseen",
                snapshot=str(snapshot),
                xmin=snapshot.xmin,
                below=below,
                keys=list(keys),
            )
        return None if row[0] is None else int(row[0])

    async def after(
        self, epoch: str, number: int, keys: Sequence[str], *, below: int, most: int
    ) -> tuple[list[Event], int] | None:
        """Events on any of the keys, in order, numbered above `number` and below `below`, as far as `most` bytes go.

        With them comes the number up to which that is all. None if the log no longer holds what follows `number`.
        """
        async with self._reading() as connection:
            if not await _reaches(connection, epoch, number):
                return None
            asked = {"number": number, "below": below, "keys": list(keys), "most": most, "limit": _PAGE_ROWS}
            cursor = await connection.execute(_SQL["after"], asked)
            events = [_event(row) for row in await cursor.fetchall()]
        whole = len(events) < _PAGE_ROWS and sum(len(event.body) for event in events) <= most
        return events, below - 1 if whole else events[-1].number

    async def count_after(
        self, epoch: str, number: int, keys: Sequence[str], snapshot: Snapshot | None, *, below: int
    ) -> int | None:
        """How many events `after` would bring on all its pages, those that the snapshot sees left out.

        No more than 100,000 are counted.
        """
        async with self._reading() as connection:
            if not await _reaches(connection, epoch, number):
                return None
            text = None if snapshot is None else str(snapshot)
            asked = {
                "number": number, "below": below, "keys": list(keys), "snapshot": text, "most": _MOST_COUNTED,
            }  # fmt: skip
            row = await _sure(connection, "count_after", **asked)
            return int(row[0])

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection on which all statements see the same log: what is there when it begins stays until it ends."""
        async with self._reads.connection() as connection:
            await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
            async with connection.transaction():
                yield connection

    async def until_ended(self, ceiling: int) -> None:
        """Waits until every transaction below the id `ceiling` has ended and can be seen."""
        while True:
            async with self._pool.connection() as connection:
                (ended,) = await _sure(connection, "ended", ceiling=ceiling)
            if ended:
                return
            await asyncio.sleep(_ENDED_EVERY_S)

    async def watch_whole(self) -> None:
        """Looks again and again whether the log still holds what it should; raises LogBroken when it does not."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            async with self._pool.connection() as connection:
                (whole,) = await _sure(connection, "whole")
            if not whole:
                raise LogBroken("events are missing from the log")

    async def beat(self, prefix: str, content: str) -> None:
        """Writes a message of the server's own into the WAL, in a transaction, as an event comes."""
        async with self._pool.connection() as connection:
            await _sure(connection, "beat", prefix=prefix, content=content)

    async def watch_policies(self) -> None:
        """Has the database look, again and again, whether the policies are those it knows, and tell the log if not."""
        while True:
            async with self._pool.connection() as connection:
                with suppress(errors.LockNotAvailable, errors.QueryCanceled):  # somebody holds a table: the next time
                    await _sure(connection, "check_policies")
            await asyncio.sleep(_LOOK_AT_POLICIES_EVERY_S)

    async def keep_partitions(self, *, retention: timedelta | None) -> list[str]:
        """Makes the partitions of the coming days and drops those wholly older than `retention`.

        Returns the names of what it dropped. Two instances may do it at once. psycopg.errors.LockNotAvailable while
        somebody else uses the log for long; what is there stays.
        """
        now = datetime.now(UTC)
        today = now.date()
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(f"set local lock_timeout = '{_PARTITION_LOCK_TIMEOUT}'")
            await connection.execute(_SQL["lock_partitions"])
            cursor = await connection.execute(_SQL["partitions"])
            held = {str(name): str(schema) async for (schema, name) in cursor}
            for day in (today + timedelta(days=ahead) for ahead in range(-1, _DAYS_AHEAD + 1)):
                if _name(day) not in held:
                    for statement in _partition(day):
                        await connection.execute(statement)
            oldest = None if retention is None else (now - retention).date()
            expired = [name for name in sorted(held) if oldest is not None and _day(name) < oldest]
            if expired:  # as an append does: the table first, then the row of the stream
                await connection.execute("lock table momentum.event_log in access exclusive mode")
            for name in expired:
                first = datetime.combine(_day(name), datetime.min.time(), UTC)
                await connection.execute(
                    _SQL["expire_partition"], {"first": first, "end": first + timedelta(days=1)}
                )  # fmt: skip
                await connection.execute(sql.SQL("drop table {}").format(sql.Identifier(held[name], name)))
        return expired

    async def watch(self) -> None:
        """Holds a connection until the database ends it, then raises psycopg.OperationalError.

        A PostgreSQL that shuts down ends sessions first and then waits for its WAL senders to be confirmed. Whoever
        reads the WAL must go when the log can no longer be written, or the shutdown hangs.
        """
        async with self._pool.connection() as connection:
            async for _ in connection.notifies():
                pass

    async def write_metrics(self, samples: Sequence[Sample]) -> None:
        """Adds rows to `realtime_event_metrics`. It is the app's table, so service_role does it."""
        text = msgspec.json.encode([sample._asdict() for sample in samples]).decode()
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute("set local role service_role")
            await connection.execute(_SQL["write_metrics"], {"samples": text})

    async def clean_metrics(self) -> int:
        """Deletes old rows of `realtime_event_metrics`; returns how many."""
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute("set local role service_role")
            (deleted,) = await _sure(connection, "cleanup_metrics")
            return int(deleted)


def _pool(conninfo: str, name: str, *, size: int) -> AsyncConnectionPool[AsyncConnection[TupleRow]]:
    return AsyncConnectionPool(
        conninfo,
        min_size=1,
        max_size=size,
        timeout=10.0,
        open=False,
        configure=_configure,
        check=alive,
        reconnect_timeout=60.0,
        kwargs={"autocommit": True, "application_name": f"momentum-sync {name}", "connect_timeout": 5},
        name=name,
    )


async def _configure(connection: AsyncConnection[TupleRow]) -> None:
    # Never off: a log that a crash can take back, while the slot has moved on, would lose events. Not on either: it
    # would wait for standbys, and what capture confirms to the WAL sender waits for it.
    await connection.execute("set synchronous_commit = local")
    await connection.execute("set statement_timeout = '60s'")


async def _one(connection: AsyncConnection[TupleRow], name: str, **parameters: object) -> TupleRow | None:
    cursor = await connection.execute(_SQL[name], parameters)
    return await cursor.fetchone()


async def _sure(connection: AsyncConnection[TupleRow], name: str, **parameters: object) -> TupleRow:
    row = await _one(connection, name, **parameters)
    assert row is not None
    return row


async def _reaches(connection: AsyncConnection[TupleRow], epoch: str, number: int) -> bool:
    row = await _one(connection, "reaches", epoch=epoch, number=number)
    return row is not None and bool(row[0])


async def _newest(connection: AsyncConnection[TupleRow], number: int, last: int) -> list[Event] | None:
    """The last events up to `last`, within bounds of rows and bytes; None if there is a hole among them."""
    number = max(number, last - _NEWEST_ROWS)
    cursor = await connection.execute(_SQL["newest"], {"number": number, "last": last, "most": _NEWEST_BYTES})
    events = [_event(row) for row in await cursor.fetchall()]
    expected = range(last - len(events) + 1, last + 1)
    return events if [event.number for event in events] == list(expected) else None


def _row(event: Event) -> _Row:
    return _Row(
        event.number,
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
    number, commit_lsn, commit_index, xid, committed_at, channels, body, rows = row[:8]
    return Event.build(
        number=number,
        place=(lsn.parse(commit_lsn), commit_index),
        xid=xid,
        committed_at=committed_at,
        channels=tuple(channels),
        body=body.encode(),
        rows=None if rows is None else rows.encode(),
    )


def _break(
    facts: SlotFacts, *, slot: str, system_identifier: str, timeline: int, confirmed: int, whole: bool
) -> str | None:
    """Why the history that the log holds does not go on with this slot; None if it does."""
    if system_identifier != facts.system_identifier:
        return "the database is another system"
    if timeline != facts.timeline:
        return "the database is on another timeline"
    if slot != facts.slot:
        return "the slot is another"
    if facts.confirmed_lsn > confirmed:
        return "the slot was made anew, or was moved on"
    return None if whole else "events are missing from the log"


def _name(day: date) -> str:
    return f"{_PREFIX}{day:%Y%m%d}"


def _day(name: str) -> date:
    return datetime.strptime(name.removeprefix(_PREFIX), "%Y%m%d").replace(tzinfo=UTC).date()


def _partition(day: date) -> tuple[sql.Composed, sql.Composed]:
    """A table, then its attachment, which blocks no append as `create table … partition of` does."""
    name = sql.Identifier("momentum_log", _name(day))
    return (
        sql.SQL("create table {} (like momentum.event_log including defaults)").format(name),
        sql.SQL("alter table momentum.event_log attach partition {} for values from ({}) to ({})").format(
            name, sql.Literal(f"{day} 00:00:00+00"), sql.Literal(f"{day + timedelta(days=1)} 00:00:00+00")
        ),
    )

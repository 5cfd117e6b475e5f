"""The log in the database: `momentum.event_log`, and where capture stands, `momentum.stream`."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import msgspec
from psycopg import AsyncConnection, errors, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from momentum_sync.database import lsn, queries
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import FencedOff
from momentum_sync.eventlog.event import Event

_SQL = queries.load(__package__)
_DAYS_AHEAD = 2
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
    """Where a history stands: the place of the last logged event, and a transaction id above all before it."""

    epoch: str
    number: int
    place: tuple[int, int]
    ceiling: int


class EventLog:
    """The log's table. One holder at a time appends; others are fenced off."""

    def __init__(self, conninfo: str, slot: str) -> None:
        self._slot = slot
        self._holder = uuid.uuid4()
        self._pool: AsyncConnectionPool[AsyncConnection[TupleRow]] = AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=4,
            timeout=10.0,
            open=False,
            configure=_configure,
            check=AsyncConnectionPool.check_connection,
            reconnect_timeout=60.0,
            kwargs={"autocommit": True, "application_name": "momentum-sync log", "connect_timeout": 5},
            name="log",
        )

    async def open(self) -> None:
        """Starts connecting in the background; work waits until there is a connection."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Closes the connections."""
        await self._pool.close(timeout=5.0)

    async def take_over(self, facts: SlotFacts) -> Standing:
        """Makes this instance the one that appends, and says where the history stands.

        The history goes on if the slot belongs to the same WAL as before and was confirmed no further than the log
        is complete; a slot made anew is confirmed further. Otherwise an epoch begins. Call it while holding the slot.
        """
        self._holder = uuid.uuid4()
        async with self._pool.connection() as connection, connection.transaction():
            row = await _one(connection, "stream", slot=self._slot)
            (ceiling,) = await _sure(connection, "next_xid")
            if row is not None:
                epoch, system_identifier, timeline, confirmed, number, last_lsn, last_index = row
                same_wal = (system_identifier, timeline) == (facts.system_identifier, facts.timeline)
                if same_wal and facts.confirmed_lsn <= lsn.parse(confirmed):
                    await connection.execute(_SQL["keep_stream"], {"slot": self._slot, "holder": self._holder})
                    return Standing(epoch, number, (lsn.parse(last_lsn), last_index), ceiling)
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
            return Standing(epoch, number, (0, 0), ceiling)

    async def append(self, events: Sequence[Event], *, confirmed: int) -> None:
        """Makes events durable, and with them that the log is complete up to the place `confirmed`.

        FencedOff if another instance has taken over.
        """
        batch = msgspec.json.encode(
            [
                {
                    "number": event.number,
                    "commit_lsn": lsn.text(event.commit_lsn),
                    "commit_index": event.commit_index,
                    "xid": event.xid,
                    "committed_at": event.committed_at,
                    "channels": event.channels,
                    "event": msgspec.Raw(event.body),
                }
                for event in events
            ]
        )
        last = events[-1]
        parameters = {
            "slot": self._slot,
            "holder": self._holder,
            "confirmed_lsn": lsn.text(confirmed),
            "last_number": last.number,
            "last_lsn": lsn.text(last.commit_lsn),
            "last_index": last.commit_index,
            "events": batch.decode(),
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
        parameters = {"slot": self._slot, "holder": self._holder, "confirmed_lsn": lsn.text(confirmed)}
        async with self._pool.connection() as connection:
            if await _one(connection, "confirm", **parameters) is None:
                raise FencedOff("another instance has taken over the log")

    async def unseen(self, snapshot: Snapshot, channels: Sequence[str], *, below: int) -> list[Event]:
        """The logged events on any of the channels, numbered below `below`, that the snapshot does not see."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                _SQL["unseen"], {"xmin": snapshot.xmin, "below": below, "channels": list(channels)}
            )
            return [
                Event.build(
                    number=number,
                    place=(lsn.parse(commit_lsn), commit_index),
                    xid=xid,
                    committed_at=committed_at,
                    channels=tuple(held),
                    body=body.encode(),
                )
                async for number, commit_lsn, commit_index, xid, committed_at, held, body in cursor
                if not snapshot.sees(xid)
            ]

    async def keep_partitions(self, *, retention: timedelta | None) -> list[str]:
        """Makes the partitions of the coming days and drops those wholly older than `retention`.

        Returns the names of what it dropped. Two instances may do it at once.
        """
        today = datetime.now(UTC).date()
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(_SQL["lock_partitions"])
            cursor = await connection.execute(_SQL["partitions"])
            held = {str(name) async for (name,) in cursor}
            for day in (today + timedelta(days=ahead) for ahead in range(-1, _DAYS_AHEAD + 1)):
                if _name(day) not in held:
                    await connection.execute(_partition(day))
            expired = [name for name in sorted(held) if retention is not None and _day(name) < today - retention]
            for name in expired:
                await connection.execute(sql.SQL("drop table momentum.{}").format(sql.Identifier(name)))
        return expired

    async def watch(self) -> None:
        """Holds a connection until the database ends it, then raises psycopg.OperationalError.

        A PostgreSQL that shuts down ends sessions first and then waits for its WAL senders to be confirmed. Whoever
        reads the WAL must go when the log can no longer be written, or the shutdown hangs.
        """
        async with self._pool.connection() as connection:
            async for _ in connection.notifies():
                pass

    async def clean_metrics(self) -> int:
        """Deletes old rows of `realtime_event_metrics`; returns how many."""
        async with self._pool.connection() as connection:
            (deleted,) = await _sure(connection, "cleanup_metrics")
            return int(deleted)


async def _configure(connection: AsyncConnection[TupleRow]) -> None:
    # A log that a crash can take back while the slot has moved on would lose events, whatever the database's default.
    await connection.execute("set synchronous_commit = on")
    await connection.execute("set statement_timeout = '60s'")


async def _one(connection: AsyncConnection[TupleRow], name: str, **parameters: object) -> TupleRow | None:
    cursor = await connection.execute(_SQL[name], parameters)
    return await cursor.fetchone()


async def _sure(connection: AsyncConnection[TupleRow], name: str) -> TupleRow:
    row = await _one(connection, name)
    assert row is not None
    return row


def _name(day: date) -> str:
    return f"{_PREFIX}{day:%Y%m%d}"


def _day(name: str) -> date:
    return datetime.strptime(name.removeprefix(_PREFIX), "%Y%m%d").replace(tzinfo=UTC).date()


def _partition(day: date) -> sql.Composed:
    return sql.SQL(
        "create table if not exists momentum.{} partition of momentum.event_log for values from ({}) to ({})"
    ).format(
        sql.Identifier(_name(day)),
        sql.Literal(f"{day} 00:00:00+00"),
        sql.Literal(f"{day + timedelta(days=1)} 00:00:00+00"),
    )

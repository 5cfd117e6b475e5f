"""The replication slot, and the stream that reads it.

The stream is libpq's COPY BOTH, through `psycopg.pq`, because psycopg's high-level API has no replication. psycopg2
has, and needs a third of the CPU (0.1 core against 0.3 at 10,000 messages/s); one driver, one event loop and control
over reading and confirming are worth the difference.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import psycopg
from psycopg import AsyncConnection, errors, pq, sql
from psycopg.rows import TupleRow, class_row

from momentum_sync.capture.reader_watch import Process, ReaderWatch
from momentum_sync.database import lsn, queries
from momentum_sync.database.connection import bounded, cut, pinned, settle, summary
from momentum_sync.errors import CaptureError, SlotBusy
from momentum_sync.eventlog.status import SlotState
from momentum_sync.limits import CaptureLimits

_SQL = queries.load(__package__)
# PostgreSQL ends a stream without a reader after this time, regardless of the role's settings, and sends a keepalive
# after half of it.
_STREAM = {"wal_sender_timeout": "30s", "statement_timeout": "0"}
_FAILOVER = 17_00_00  # the server_version_num that first has such slots
# pgoutput requires a publication. This one has no table, because logical messages belong to no publication.
PUBLICATION = "momentum_sync"
# The tables that Supabase's clients may follow, and the messages that they get, as at Supabase.
ROWS = "supabase_realtime"
BROADCASTS = "supabase_realtime_messages_publication"
# PostgreSQL compares synchronous_standby_names with this name, so `preflight` looks for it there.
APPLICATION = "momentum-sync capture"


@dataclass(frozen=True, slots=True)
class Held:
    """A row of the statement `slot`."""

    database: str
    ours: bool
    plugin: str
    active_pid: int | None
    active_since: str | None
    last_reply: str | None
    wal_status: str
    confirmed_lsn: str
    invalidation_reason: str | None
    failover: bool | None

    @property
    def process(self) -> Process | None:
        """Return the WAL sender that reads the slot."""
        return None if self.active_pid is None or self.active_since is None else (self.active_pid, self.active_since)


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """Facts about the WAL that the holder of a slot reads."""

    slot: str
    system_identifier: str
    timeline: int
    confirmed_lsn: int


async def read_slot_state(conninfo: str, slot: str, limits: CaptureLimits) -> SlotState:
    """Return the state of the slot. Raise psycopg.Error."""
    async with _asking(conninfo, limits) as connection:
        row = await (await connection.execute(_SQL["look"], {"slot": slot})).fetchone()
    return SlotState("absent", None, None) if row is None else SlotState(*row)


class Ensured(NamedTuple):
    """The result of `ensure_slot`.

    Attributes:
        created: it has just been created.
        lost: why the one before could never be read again, if there was one.
    """

    created: bool
    lost: str | None


async def ensure_slot(
    conninfo: str,
    slot: str,
    limits: CaptureLimits,
    *,
    stuck: StreamRefused | None = None,
    before: Process | None = None,
    watch: ReaderWatch | None = None,
) -> Ensured:
    """Create the slot if it is missing or can never be read again.

    Args:
        conninfo: connection string of a role that may replicate.
        slot: name of the slot.
        limits: bounds.
        stuck: the error with which streaming from the slot has ended repeatedly.
        before: the WAL sender of the previous stream. After a network failure it does not know yet that its client has
            disconnected, and holds the slot.
        watch: notices that the WAL sender of another instance has lost its client.
    """
    lost, created = None, False
    async with _asking(conninfo, limits) as connection:
        held = await _slot(connection, slot)
        if held is not None and not held.ours:
            raise CaptureError(f"the slot {slot} belongs to the database {held.database}; set MOMENTUM_SLOT={slot}_2")
        if held is not None and held.process is not None:
            is_lost = watch is not None and watch.is_silent(held.process, held.last_reply, time.monotonic())
            if is_lost or held.process == before:
                # The process ends a moment later. Until then opening the stream raises SlotBusy, and capture tries
                # again. Without the privilege, that of another role ends by `wal_sender_timeout`.
                with suppress(errors.InsufficientPrivilege):
                    await connection.execute(_SQL["end_process"], {"pid": held.active_pid})
        # PostgreSQL does not drop a slot that a WAL sender holds.
        if held is not None and held.active_pid is None:
            if held.wal_status == "lost":
                lost = held.invalidation_reason or "the WAL it needs was removed"
            elif stuck is not None and await _is_stuck(connection, stuck):
                lost = str(stuck)
        if lost is not None:
            with suppress(errors.UndefinedObject):  # another instance was quicker
                await connection.execute(_SQL["drop_slot"], {"slot": slot})
            held = None
        if held is None:
            create = _SQL["create_slot_failover" if connection.info.server_version >= _FAILOVER else "create_slot"]
            with suppress(errors.DuplicateObject):  # another instance created the same slot
                await connection.execute(create, {"slot": slot})
                created = True
    return Ensured(created, lost)


async def _is_stuck(connection: AsyncConnection[TupleRow], error: StreamRefused) -> bool:
    """Return whether the slot can never get past the error.

    Before PostgreSQL 18 decoding looks the publication up as of each change. One that was dropped and recreated is
    missing for the changes in between, for ever.
    """
    if not error.names_publication:
        return True
    there = await (await connection.execute(_SQL["publication"], {"publication": PUBLICATION})).fetchone()
    if there is None:
        raise CaptureError(f"the publication {PUBLICATION} is missing; create it with: momentum-sync migrate")
    return True


@asynccontextmanager
async def _asking(conninfo: str, limits: CaptureLimits) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """Lend a connection for questions about the slot, for a bounded time."""
    async with asyncio.timeout(limits.connect_s):
        connection = await AsyncConnection.connect(
            pinned(conninfo, application_name="momentum-sync slot"), autocommit=True
        )
    async with connection, bounded(connection, limits.answer_s):
        await settle(connection)
        yield connection


async def _slot(connection: AsyncConnection[TupleRow], slot: str) -> Held | None:
    cursor = connection.cursor(row_factory=class_row(Held))
    return await (await cursor.execute(_SQL["slot"], {"slot": slot})).fetchone()


async def _held(conninfo: str, slot: str, limits: CaptureLimits) -> Held:
    async with _asking(conninfo, limits) as connection:
        held = await _slot(connection, slot)
    if held is None or not held.confirmed_lsn:
        raise CaptureError(f"the slot {slot} was dropped while it was opened")
    return held


# Classes of SQLSTATE: connection, authorization, transaction, resources, object state, operator, system.
# And insufficient_privilege.
_PASSING = ("08", "28", "25", "40", "53", "55", "57", "58", "42501")


class StreamRefused(CaptureError):
    """PostgreSQL refused or ended the stream with an error.

    `state` is its SQLSTATE, `began` whether the stream had begun.
    """

    def __init__(self, sentence: str, state: str, *, began: bool) -> None:
        super().__init__(sentence)
        self.state = state
        # Before the stream has begun, this SQLSTATE means that the slot does not exist.
        self.names_publication = began and state == errors.UndefinedObject.sqlstate
        # Another attempt may fail, too: something that the slot needs is missing, or its WAL is. Any file that
        # cannot be opened has this state, such as a library while packages are upgraded.
        self.is_final = self.names_publication or (state == errors.UndefinedFile.sqlstate and "WAL" in sentence)
        # A table was created while the slot was: its rows cannot be decoded from this slot.
        self.is_final |= state == errors.InternalError_.sqlstate and "could not map file" in sentence
        # Decoding can fail with all kinds of errors at the same place for ever, such as a division by zero in a row
        # filter. Those of _PASSING go away by themselves.
        self.repeats = self.is_final or (began and state != "" and not state.startswith(_PASSING))


Take = Callable[[Sequence[bytes | memoryview]], None]


class Stream:
    """A running replication stream. `facts` describe the slot as it holds it, `process` is the WAL sender."""

    def __init__(
        self,
        connection: AsyncConnection[TupleRow],
        facts: SlotFacts,
        limits: CaptureLimits,
        process: Process | None = None,
    ) -> None:
        self._connection = connection
        self._limits = limits
        self._pgconn = connection.pgconn
        self._socket = connection.pgconn.socket  # libpq drops it when the connection breaks
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.process = process
        self._take: Take | None = None
        self._reading = False
        self.facts = facts

    async def run(self, take: Take) -> None:
        """Pass every CopyData payload to `take`, all available ones together, until the stream ends.

        Raises:
            CaptureError: the stream ended.
            Exception: `take` raised it.
        """
        self._take = take
        self.resume()
        try:
            await self._ended
        finally:
            self.pause()

    def pause(self) -> None:
        """Stop reading; data wait in the socket."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        """Continue reading, beginning with the frames that libpq has buffered."""
        if not self._reading and not self._ended.done():
            self._reading = True
            self._loop.add_reader(self._socket, self._readable)
            # The event loop reports new bytes in the socket only, not frames that libpq has buffered.
            self._loop.call_soon(self._drain)

    @property
    def reading(self) -> bool:
        """Return whether the stream is not paused."""
        return self._reading

    def cut(self) -> None:
        """Drop the connection at once."""
        cut(self._pgconn)

    async def finish(self) -> None:
        """End the stream and wait for the server's end of it, after which the slot is free."""
        self._pgconn.put_copy_end()
        async with asyncio.timeout(self._limits.answer_s):
            while self._pgconn.flush():
                await _until_ready(self._loop.add_writer, self._loop.remove_writer, self._socket)
            # Frames that still arrive are discarded: they are not confirmed, so the slot repeats them.
            while (length := self._pgconn.get_copy_data(1)[0]) >= 0:
                if length == 0:
                    await _until_ready(self._loop.add_reader, self._loop.remove_reader, self._socket)
                    self._pgconn.consume_input()

    def send(self, payload: bytes) -> None:
        """Send a status. Raise CaptureError if the connection is lost."""
        try:
            self._pgconn.put_copy_data(payload)
            # Bytes that the socket does not take now leave with the next status, at most a second later.
            self._pgconn.flush()
        except psycopg.Error as error:
            raise CaptureError(f"the replication connection was lost: {summary(str(error))}") from error

    def _readable(self) -> None:
        try:
            self._pgconn.consume_input()
        except psycopg.Error as error:
            self._end(CaptureError(f"the replication connection broke: {summary(str(error))}"))
            return
        self._drain()

    def _drain(self) -> None:
        if not self._reading:
            return
        assert self._take is not None
        try:
            payloads, length = self._take_some()
            if payloads:
                self._take(payloads)
            if length < 0:
                raise _ended("the replication stream ended", self._pgconn)
        except Exception as error:
            self._end(error)
            return
        if length > 0:
            self._loop.call_soon(self._drain)  # other tasks run first

    def _take_some(self) -> tuple[list[bytes | memoryview], int]:
        """Return the payloads of one turn, and libpq's last result.

        The result is above 0 if there may be more, 0 if there are none now, below 0 if the stream has ended.
        """
        payloads: list[bytes | memoryview] = []
        size, length = 0, 1
        while length > 0 and len(payloads) < self._limits.frames_per_turn and size < self._limits.bytes_per_turn:
            length, data = self._pgconn.get_copy_data(1)
            if length > 0:
                payloads.append(data)
                size += length
        return payloads, length

    def _end(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
        self.pause()


@asynccontextmanager
async def open_stream(
    conninfo: str, slot: str, limits: CaptureLimits, *, publications: Collection[str] = ()
) -> AsyncIterator[Stream]:
    """Connect, acquire the slot and start the stream.

    Args:
        conninfo: connection string of a role that may replicate.
        slot: name of the slot.
        limits: bounds.
        publications: their rows come, too.

    Raises:
        SlotBusy: another instance holds the slot.
        CaptureError: anything else failed.
    """
    replication = pinned(conninfo, application_name=APPLICATION, settings=_STREAM, replication="database")
    try:
        async with asyncio.timeout(limits.connect_s):
            connection = await AsyncConnection.connect(replication, autocommit=True)
    except psycopg.Error as error:
        raise CaptureError(f"the database cannot be reached: {summary(str(error))}") from error
    try:
        async with bounded(connection, limits.answer_s):
            try:
                # Before START_REPLICATION, after which the connection takes no other command.
                cursor = await connection.execute("IDENTIFY_SYSTEM")
                row = await cursor.fetchone()
            except psycopg.Error as error:
                raise CaptureError(f"IDENTIFY_SYSTEM failed: {summary(str(error))}") from error
            assert row is not None
            if (await _held(conninfo, slot, limits)).failover is False:
                await _keep_through_failover(connection, slot)
            await settle(connection)
            await _start(connection.pgconn, slot, limits, publications)
        # Read while the stream holds the slot: before, another instance could still advance it.
        held = await _held(conninfo, slot, limits)
        confirmed = lsn.parse(held.confirmed_lsn)
        facts = SlotFacts(slot, str(row[0]), int(row[1]), confirmed)
        yield Stream(connection, facts, limits, held.process)
    finally:
        await connection.close()


async def _keep_through_failover(connection: AsyncConnection[TupleRow], slot: str) -> None:
    """Let standbys keep a copy of a slot that was created without. For PostgreSQL 17 and later."""
    try:
        await connection.execute(sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER true)").format(sql.Identifier(slot)))
    except errors.ObjectInUse as error:
        raise SlotBusy(str(error).strip()) from error


async def _start(pgconn: pq.abc.PGconn, slot: str, limits: CaptureLimits, publications: Collection[str]) -> None:
    names = ",".join([PUBLICATION, *sorted(publications)])
    # At 0/0 PostgreSQL begins at the slot's confirmed LSN.
    command = sql.SQL(
        "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}, messages 'true')"
    ).format(sql.Identifier(slot), sql.Literal(names))
    pgconn.send_query(command.as_bytes())
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(limits.answer_s):
        while pgconn.is_busy():
            await _until_ready(loop.add_reader, loop.remove_reader, pgconn.socket)
            pgconn.consume_input()
    result = pgconn.get_result()
    if result is None or result.status != pq.ExecStatus.COPY_BOTH:
        said, state = _error(result, pgconn)
        if state == errors.ObjectInUse.sqlstate:
            raise SlotBusy(said)
        raise StreamRefused(said, state, began=False)
    # Statuses are sent from the event loop, which a blocking PQputCopyData would stop while the socket is full.
    pgconn.nonblocking = 1


async def _until_ready(
    add: Callable[[int, Callable[[], None]], object], remove: Callable[[int], object], socket: int
) -> None:  # fmt: skip
    ready = asyncio.Event()
    add(socket, ready.set)
    try:
        await ready.wait()
    finally:
        remove(socket)


def _ended(what: str, pgconn: pq.abc.PGconn) -> StreamRefused:
    said, state = _error(pgconn.get_result(), pgconn)
    return StreamRefused(f"{what}: {said}", state, began=True)


def _error(result: pq.abc.PGresult | None, pgconn: pq.abc.PGconn) -> tuple[str, str]:
    """Return the error message of PostgreSQL, or else of libpq, and its SQLSTATE, empty if there is none."""
    said = result.error_message if result else pgconn.error_message
    state = result.error_field(pq.DiagnosticField.SQLSTATE) if result else None
    return (said or b"the server closed it").decode(errors="replace").strip(), (state or b"").decode()

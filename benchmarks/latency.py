"""Latency from the write to the client: 1,000 connections, 1,000 writes per second, beside a bare reader of the WAL.

Every write updates one user's score through the triggers and is timed from sending the statement, so the commit is part
of it, for the client and for the floor alike. The floor is a process that reads a second slot, decodes each message,
and
does nothing else. Server and reader share one core; PostgreSQL, clients and writer have the rest.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import LiteralString, Protocol, cast
from urllib.parse import urlsplit

import psycopg
import uvloop

from benchmarks.environment import environment, serving, token, user
from benchmarks.load_clients import CONNECTING_AT_ONCE, handshake, pong_to, row_join, row_request
from benchmarks.machine import SERVER_CORES, pin, prepare_process
from benchmarks.report import Bench, Line
from momentum_sync.capture.pgoutput import Change, Message, decode
from momentum_sync.capture.slot import ROWS, open_stream
from momentum_sync.limits import CaptureLimits

CONNECTIONS = 1000
RATE = 1000
SECONDS = 15.0
WARM_UP_S = 3.0
SETTLE_S = 2.0
WRITERS = 8
READER_SLOT = "bare_reader"
PERCENTILES = (50.0, 95.0, 99.0, 99.9)
AT_MOST = {50.0: 1.5, 99.0: 3.0}

# User and number identify a write everywhere.
Write = tuple[int, int]
Times = dict[Write, float]
_SCORE = re.compile(rb'"user_id" ?: ?"00000000-0000-4000-8000-([0-9a-f]{12})"[^{}]*"final_score" ?: ?(\d+)\.(\d\d)')
_ROW = re.compile(rb'w(\d+):(\d+)(?=["t])')  # in JSON, and in the stream, where the next column follows


class Kind(Protocol):
    """A kind of write, and its messages to clients."""

    publications: Sequence[str]
    live: bytes
    statement: LiteralString

    def request(self, url: str, index: int) -> bytes:
        """Return the request that opens a client's connection."""

    def first(self, index: int) -> bytes:
        """Return the frame that a client sends when it is open."""

    def values(self, index: int, number: int) -> tuple[object, ...]:
        """Return the parameters of a write."""

    def found(self, data: bytes) -> Iterator[Write]:
        """Yield the writes whose events are in these bytes."""


class Scores:
    """Scores by the native protocol."""

    publications: Sequence[str] = ()
    live = b'"initial_state"'
    statement: LiteralString = "update public.daily_engagement_scores set final_score = %s where user_id = %s"

    def request(self, url: str, index: int) -> bytes:
        """Return the request of a user."""
        return handshake(url, token(index))

    def first(self, index: int) -> bytes:
        """Return nothing."""
        return b""

    def values(self, index: int, number: int) -> tuple[object, ...]:
        """Return score and user."""
        return number / 100, user(index)

    def found(self, data: bytes) -> Iterator[Write]:
        """Yield users and hundredths of scores."""
        for index, whole, hundredths in _SCORE.findall(data):
            yield int(index, 16), int(whole) * 100 + int(hundredths)


class Rows:
    """Changes of rows by Supabase's protocol."""

    publications: Sequence[str] = (ROWS,)
    live = b"Subscribed to PostgreSQL"
    statement: LiteralString = "insert into public.rows (user_id, value, at) values (%s, %s, now())"

    def __init__(self, *, filtered: bool = False) -> None:
        self._filtered = filtered

    def request(self, url: str, index: int) -> bytes:
        """Return the request of a user."""
        return row_request(url, index)

    def first(self, index: int) -> bytes:
        """Return the join of a user."""
        return row_join(index, filtered=self._filtered)

    def values(self, index: int, number: int) -> tuple[object, ...]:
        """Return user and number."""
        return user(index), f"w{index}:{number}"

    def found(self, data: bytes) -> Iterator[Write]:
        """Yield users and numbers."""
        for index, number in _ROW.findall(data):
            yield int(index), int(number)


SCORES = Scores()


# The clients


class Client(asyncio.Protocol):
    """A socket that records the arrival time of each write. It parses frames only as far as necessary."""

    def __init__(self, kind: Kind, index: int, url: str, seen: Times) -> None:
        self.live: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._kind = kind
        self._request = kind.request(url, index)
        self._first = kind.first(index)
        self._seen = seen
        self._kept = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Request the upgrade."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one in all but its class
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take whole or partial frames: an event counts when its closing bytes are there."""
        now = time.monotonic()
        if self._first:
            self._transport.write(self._first)  # RFC 6455, section 4.1: after the response
            self._first = b""
        if (pong := pong_to(data)) is not None:
            self._transport.write(pong)
        data = self._kept + data
        end = data.rfind(b'"}')
        self._kept = data[end + 2 :] if end >= 0 else data
        for write in self._kind.found(data[: end + 2]):
            self._seen.setdefault(write, now)
        if not self.live.done() and self._kind.live in data:
            self.live.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the run: a lost client invalidates it."""
        if not self.live.done():
            self.live.set_exception(exc or ConnectionError("closed before it was live"))


async def _clients(kind: Kind, url: str, connections: int, pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    address = urlsplit(url)
    host, port = address.hostname or "127.0.0.1", address.port or 80
    seen: Times = {}
    gate = asyncio.Semaphore(CONNECTING_AT_ONCE)
    transports = []

    async def connect(index: int) -> None:
        async with gate:
            transport, client = await loop.create_connection(lambda: Client(kind, index, url, seen), host, port)
            transports.append(transport)
            await asyncio.wait_for(client.live, 60)

    began = time.monotonic()
    await asyncio.gather(*(connect(index) for index in range(connections)))
    pipe.send(time.monotonic() - began)
    await loop.run_in_executor(None, pipe.recv)
    lost = sum(transport.is_closing() for transport in transports)
    pipe.send((seen, lost))


def clients(kind: Kind, url: str, connections: int, pipe: Connection) -> None:
    """Run all clients in one process: send the connect time, then on request the arrival times and lost clients."""
    prepare_process()
    uvloop.run(_clients(kind, url, connections, pipe))


# The floor


async def _reader(kind: Kind, conninfo: str, pipe: Connection) -> None:
    seen: Times = {}

    def take(payloads: Sequence[bytes | memoryview]) -> None:
        for payload in payloads:
            frame = decode(payload)
            content = frame.content if isinstance(frame, Message) else payload if isinstance(frame, Change) else b""
            now = time.monotonic()
            for write in kind.found(bytes(content)):
                seen.setdefault(write, now)

    async with open_stream(conninfo, READER_SLOT, CaptureLimits(), publications=kind.publications) as stream:
        reading = asyncio.ensure_future(stream.run(take))
        pipe.send("live")
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        reading.cancel()
    pipe.send(seen)


def reader(kind: Kind, conninfo: str, pipe: Connection) -> None:
    """Run the bare replication reader on the core of the server."""
    pin(SERVER_CORES)
    prepare_process()
    uvloop.run(_reader(kind, conninfo, pipe))


# The writer


async def _writer(
    kind: Kind, conninfo: str, connections: int, rate: int, seconds: float, pipe: Connection
) -> None:  # fmt: skip
    sent: Times = {}
    total = int(rate * seconds)
    numbers = iter(range(total))
    began = time.monotonic() + 0.1

    async def write() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            for number in numbers:
                delay = began + number / rate - time.monotonic()
                if delay > 0:
                    await asyncio.sleep(delay)
                index, times = number % connections, 1 + number // connections
                sent[index, times] = time.monotonic()
                await connection.execute(kind.statement, kind.values(index, times))

    await asyncio.gather(*(write() for _ in range(WRITERS)))
    pipe.send((sent, time.monotonic() - began))


def writer(kind: Kind, conninfo: str, connections: int, rate: int, seconds: float, pipe: Connection) -> None:
    """Write at a steady rate and record the times."""
    prepare_process()
    uvloop.run(_writer(kind, conninfo, connections, rate, seconds, pipe))


# The run


def measure(bench: Bench) -> Iterator[Line]:
    """Measure percentiles of the client beside those of the floor."""
    (connections,) = bench.sizes(CONNECTIONS)
    rate, seconds = (RATE, SECONDS) if connections == CONNECTIONS else (connections, 2.0)
    runs = []
    with environment(connections) as (conninfo, folder):
        for _ in bench.rounds(f"{connections:,} connections, {rate:,} writes/s for {seconds:.0f} s"):
            with serving(conninfo, folder) as server:
                runs.append(run(conninfo, server.url, connections, rate, seconds))
    yield from lines("write → client", runs, f"{connections:,} connections, {rate:,} writes/s")


def lines(what: str, runs: list[tuple[list[float], list[float]]], load: str) -> Iterator[Line]:
    """Return a line for each percentile; a run has the times of floor and clients."""
    for percentile in PERCENTILES:
        floor = [percentile_of(at_reader, percentile) * 1000 for at_reader, _ in runs]
        ours = [percentile_of(at_client, percentile) * 1000 for _, at_client in runs]
        most = AT_MOST.get(percentile)
        yield Line(f"{what}, p{percentile:g} ({load})", "ms", ours, "bare reader", floor, most=most)


def run(
    conninfo: str, url: str, connections: int, rate: int, seconds: float, *, floor: bool = True, kind: Kind = SCORES
) -> tuple[list[float], list[float]]:
    """Return seconds from the write to the floor, and to its client, of each write after the warm-up.

    Without the `floor` there is no reader, and its list is empty.
    """
    with _slot(conninfo):
        context = multiprocessing.get_context("spawn")
        duration = WARM_UP_S + seconds
        parts: list[tuple[Callable[..., None], tuple[object, ...]]] = [
            (clients, (kind, url, connections)),
            (writer, (kind, conninfo, connections, rate, duration)),
        ]
        if floor:
            parts.append((reader, (kind, conninfo)))
        pipes, processes = [], []
        for work, arguments in parts:
            ours, theirs = context.Pipe()
            pipes.append(ours)
            processes.append(context.Process(target=work, args=(*arguments, theirs), daemon=True))
        for index in (0, 2, 1) if floor else (0, 1):
            processes[index].start()
            if index != 1:
                pipes[index].recv()  # the client is live
        sent, _ = pipes[1].recv()
        time.sleep(SETTLE_S)
        for index in (0, 2) if floor else (0,):
            pipes[index].send("end")
        at_client, lost = pipes[0].recv()
        at_reader = pipes[2].recv() if floor else {}
        for process in processes:
            process.join()
    missing = sum(write not in at_client for write in sent)
    unread = sum(write not in at_reader for write in sent) if floor else 0
    if missing or lost or unread:
        raise SystemExit(f"Writes not seen: {missing} by their client, {unread} by the reader; clients lost: {lost}.")
    begins = min(sent.values()) + WARM_UP_S
    measured = [write for write, at in sent.items() if at >= begins]
    return _took(measured, sent, at_reader), _took(measured, sent, at_client)


@contextmanager
def _slot(conninfo: str) -> Iterator[None]:
    """Create the reader's slot for the round, so that it has no backlog."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (READER_SLOT,))
    yield
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where slot_name = %s",
            (READER_SLOT,),
        )
        connection.execute("select pg_drop_replication_slot(%s)", (READER_SLOT,))


def _took(writes: list[Write], sent: Times, seen: Times) -> list[float]:
    return [seen[write] - sent[write] for write in writes if write in seen]


def percentile_of(values: list[float], percentile: float) -> float:
    """Return a percentile of values, in their unit."""
    return statistics.quantiles(values, n=1000)[round(percentile * 10) - 1]

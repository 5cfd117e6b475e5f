"""Topics of Supabase's protocol: rooms of 6 clients, broadcasts from the database, and many members in one presence.

Supabase publishes the latencies of the first two for its own clusters of 2 to 6 machines: 6, 28 and 213 ms in the
median, at p95 and p99 for rooms (32,000 clients), and 46, 132 and 159 ms for the database (10,000 inserts/s, 80,000
clients). The loads here are those that one core serves; the published figures stand beside them as an orientation.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import psycopg
import uvloop

from benchmarks.environment import environment, serving
from benchmarks.latency import percentile_of
from benchmarks.load_clients import CONNECTING_AT_ONCE, pong_to, row_request, text_frame
from benchmarks.machine import prepare_process, resident
from benchmarks.report import Bench, Line

CLIENTS = 1_000
SECONDS = 15.0
_WARM_UP_S = 3.0
_SETTLE_S = 2.0
_ROOM, _EACH = 6, 2.0  # members, and messages a second of each
_AUDIENCE, _INSERTS = 100, 1_000  # members of a topic, and messages a second of all topics
_PUBLISHED = {"room": (6.0, 28.0, 213.0), "database": (46.0, 132.0, 159.0)}
_PERCENTILES = (50.0, 95.0, 99.0)
_AT = re.compile(rb'"at": ?(\d+)[,}]')
_MEMBER = re.compile(rb"member-\d{6}")
_LONGEST = 64  # bytes that a cut-off mark may have


class Load(NamedTuple):
    """A load of broadcasts: who sends how many, and to topics of which size.

    Attributes:
        members: clients of a topic.
        is_private: whether the topics are.
        each: messages a second of each client; 0 if the database sends.
    """

    members: int
    is_private: bool
    each: float


def measure(bench: Bench) -> Iterator[Line]:
    """Measure rooms, messages from the database, and presence."""
    (clients,) = bench.sizes(CLIENTS)
    seconds = 2.0 if bench.quick else SECONDS
    prepare_process()
    with environment(clients) as (conninfo, folder), psycopg.connect(conninfo, autocommit=True) as writer:
        writer.execute("create policy everybody on realtime.messages for select to authenticated using (true)")
        for name, load, inserts in (
            ("room", Load(_ROOM, False, _EACH), 0),
            ("database", Load(min(_AUDIENCE, clients), True, 0.0), min(_INSERTS, 10 * clients)),
        ):
            runs = []
            told = f"{clients:,} clients in topics of {load.members}"
            for _ in bench.rounds(f"{name}: {told}, {inserts or clients * load.each:,.0f} messages/s"):
                with serving(conninfo, folder) as server:
                    runs.append(_latencies(server.url, conninfo, clients, load, inserts, seconds))
            for percentile, published in zip(_PERCENTILES, _PUBLISHED[name], strict=True):
                ours = [percentile_of(run, percentile) * 1000 for run in runs]
                what = f"message → client, {name}, p{percentile:g} ({told}, {inserts or clients * load.each:,.0f}/s)"
                yield Line(what, "ms", ours, "Supabase, published", [published], most=1)
        took, grown = [], []
        for _ in bench.rounds(f"{clients:,} members of one presence"):
            with serving(conninfo, folder) as server:
                found = uvloop.run(_presence(server.url, server.pid, clients))
                took.append(found[0])
                grown.append(found[1])
        yield Line(f"{clients:,} members join one presence: all see all after", "s", took, most=5)
        yield Line(f"{clients:,} members leave and come again: memory of the server", "MB", grown)


class _Client(asyncio.Protocol):
    """A socket that records how long each message took. It parses frames only as far as necessary."""

    def __init__(self, request: bytes, join: bytes, took: list[float]) -> None:
        self.live: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._join, self._took = request, join, took
        self._kept = b""
        self.transport: asyncio.WriteTransport
        self.names: set[bytes] = set()  # of members that are present
        self.wanted = 0
        self.sees_all = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Request the upgrade."""
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one in all but its class
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take whole or partial frames."""
        now = time.monotonic_ns()
        if self._join:
            self.transport.write(self._join)  # RFC 6455, section 4.1: after the response
            self._join = b""
        if (pong := pong_to(data)) is not None:
            self.transport.write(pong)
        if not self.live.done() and b"phx_reply" in data:
            self.live.set_result(None)
        if self.wanted:
            self._look(data)
            return
        data, last = self._kept + data, 0
        for mark in _AT.finditer(data):
            self._took.append((now - int(mark[1])) / 1e9)
            last = mark.end()
        self._kept = data[max(last, len(data) - _LONGEST) :]

    def _look(self, data: bytes) -> None:
        data = self._kept + data
        self.names.update(_MEMBER.findall(data))
        self._kept = data[-_LONGEST:]
        if len(self.names) == self.wanted:
            self.sees_all.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the run: a lost client invalidates it."""
        if not self.live.done():
            self.live.set_exception(exc or ConnectionError("closed before it was live"))


async def _connect(url: str, count: int, topic_of: list[str], config: dict[str, object]) -> tuple[
    list[_Client], list[float]
]:  # fmt: skip
    loop, address, took = asyncio.get_running_loop(), urlsplit(url), list[float]()
    gate = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def one(index: int) -> _Client:
        join = json.dumps(["1", "1", f"realtime:{topic_of[index]}", "phx_join", {"config": config}])
        async with gate:
            _, client = await loop.create_connection(
                lambda: _Client(row_request(url, index), text_frame(join.encode()), took),
                address.hostname or "127.0.0.1", address.port or 80,
            )  # fmt: skip
            await asyncio.wait_for(client.live, 60)
        return client

    return await asyncio.gather(*[one(index) for index in range(count)]), took


async def _clients(url: str, count: int, load: Load, seconds: float, pipe: Connection) -> None:
    topics = [f"room-{index // load.members}" for index in range(count)]
    config: dict[str, object] = {
        "private": load.is_private,
        "broadcast": {"self": True},
        "presence": {"enabled": False},
    }
    clients, took = await _connect(url, count, topics, config)
    loop = asyncio.get_running_loop()
    pipe.send("live")

    async def talk(index: int) -> int:
        began = loop.time() + index / count / load.each
        messages = int((_WARM_UP_S + seconds) * load.each)
        for number in range(messages):
            await asyncio.sleep(max(0.0, began + number / load.each - loop.time()))
            payload = {"type": "broadcast", "event": "moved", "payload": {"x": "y" * 40, "at": time.monotonic_ns()}}
            text = json.dumps(["1", str(number + 2), f"realtime:{topics[index]}", "broadcast", payload])
            clients[index].transport.write(text_frame(text.encode()))
        return messages

    if load.each:
        sent = sum(await asyncio.gather(*[talk(index) for index in range(count)]))
    else:
        sent = await loop.run_in_executor(None, pipe.recv)
    await asyncio.sleep(_SETTLE_S)
    if any(client.transport.is_closing() for client in clients):
        raise SystemExit("Clients were lost.")
    wanted = sent * load.members
    if count % load.members == 0 and len(took) != wanted:
        raise SystemExit(f"{len(took):,} messages came, {wanted:,} were sent.")
    pipe.send(took[len(took) * int(_WARM_UP_S * 100) // int((_WARM_UP_S + seconds) * 100) :])


def _run_clients(url: str, count: int, load: Load, seconds: float, pipe: Connection) -> None:
    prepare_process()
    uvloop.run(_clients(url, count, load, seconds, pipe))


def _latencies(
    url: str, conninfo: str, count: int, load: Load, inserts: int, seconds: float
) -> list[float]:  # fmt: skip
    """Return the seconds from sending a message to each of its receivers, after the warm-up."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run_clients, args=(url, count, load, seconds, theirs), daemon=True)
    process.start()
    assert ours.recv() == "live"
    if inserts:
        ours.send(uvloop.run(_insert(conninfo, max(1, count // load.members), inserts, _WARM_UP_S + seconds)))
    took: list[float] = ours.recv()
    process.join()
    return took


async def _insert(conninfo: str, topics: int, rate: int, seconds: float) -> int:
    """Send messages from the database at a steady rate. Return how many."""
    total = int(rate * seconds)
    numbers = iter(range(total))
    began = time.monotonic() + 0.1

    async def write() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            for number in numbers:
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                await connection.execute(
                    "select realtime.send(jsonb_build_object('x', %s::text, 'at', %s::bigint), 'moved', %s)",
                    ("y" * 40, time.monotonic_ns(), f"room-{number % topics}"),
                )

    await asyncio.gather(*[write() for _ in range(8)])
    return total


async def _presence(url: str, pid: int, count: int) -> tuple[float, float]:
    """Have everybody be present, go and come again.

    Return the seconds until the first time that all see all, and by how many MB the server has grown the second time.
    """
    config: dict[str, object] = {"presence": {"enabled": True}}
    took, sizes = [], []
    for _ in range(2):
        began = time.monotonic()
        clients, _ = await _connect(url, count, ["room"] * count, config)
        watching = (clients[0], clients[-1])
        for client in watching:
            client.wanted = count
        for index, client in enumerate(clients):
            track = {"type": "presence", "event": "track", "payload": {"name": f"member-{index:06}"}}
            client.transport.write(text_frame(json.dumps(["1", "2", "realtime:room", "presence", track]).encode()))
        async with asyncio.timeout(60):
            await asyncio.gather(*[client.sees_all.wait() for client in watching])
        took.append(time.monotonic() - began)
        await asyncio.sleep(1.0)
        sizes.append(resident(pid) / 1e6)
        for client in clients:
            client.transport.abort()
        await asyncio.sleep(2.0)
    return took[0], sizes[1] - sizes[0]

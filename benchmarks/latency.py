"""How long a change takes from the write to a client, beside the floor: a bare replication reader in the same run.

    python -m benchmarks.latency --connections 1000 --rate 1000 --seconds 15

Every write updates one user's score through the triggers, on a PostgreSQL of its own, and is timed from the moment
when the statement is sent, so the commit is in it, for the client and for the floor alike. The floor is a process that
reads a second slot and decodes each message, and does nothing else. Server, clients, writer and reader are processes of
their own and share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import jwt
import psycopg
import uvloop

from momentum_sync.capture.pgoutput import Message, decode
from momentum_sync.capture.slot import open_stream
from momentum_sync.database.embedded import Embedded, short_folder
from momentum_sync.database.migrate import migrate

SECRET = "a-secret-for-measuring-with-more-than-32-bytes"
PATH = "/functions/v1/realtime-momentum-sync"
WARM_UP_S = 3.0
SETTLE_S = 2.0
WRITERS = 8
CONNECTING_AT_ONCE = 32
READER_SLOT = "bare_reader"

# A write is known everywhere by its user and its score.
Write = tuple[int, int]
SCORE = re.compile(rb'"user_id" : "00000000-0000-4000-8000-([0-9a-f]{12})"[^{}]*"final_score" : (\d+)\.(\d\d)')


def user(index: int) -> UUID:
    """The user of a connection."""
    return UUID(f"00000000-0000-4000-8000-{index:012x}")


def found(data: bytes) -> Iterator[Write]:
    """The writes that the score events in these bytes are of."""
    for index, whole, hundredths in SCORE.findall(data):
        yield int(index, 16), int(whole) * 100 + int(hundredths)


def prepare_process() -> None:
    """Lets a measuring process have many sockets, and keeps it from pausing for garbage that it does not make."""
    gc.disable()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# The clients


class Client(asyncio.Protocol):
    """A socket that notes when it saw which write. It reads frames no further than it must."""

    def __init__(self, index: int, url: str, seen: dict[Write, float]) -> None:
        self.live: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._index = index
        self._address = urlsplit(url)
        self._seen = seen
        self._kept = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks for the upgrade."""
        claims = {"sub": str(user(self._index)), "role": "authenticated", "exp": int(time.time()) + 3600}
        token = jwt.encode(claims, SECRET, algorithm="HS256")
        transport.write(  # type: ignore[attr-defined]
            f"GET {PATH}?client_id=c HTTP/1.1\r\nHost: {self._address.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {token}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Frames, whole or in parts: an event counts when its closing bytes are there."""
        now = time.monotonic()
        data = self._kept + data
        end = data.rfind(b'"}')
        self._kept = data[end + 2 :] if end >= 0 else data
        for write in found(data[: end + 2]):
            self._seen.setdefault(write, now)
        if not self.live.done() and b'"initial_state"' in data:
            self.live.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """A client that is lost spoils the run."""
        if not self.live.done():
            self.live.set_exception(exc or ConnectionError("closed before it was live"))


async def _clients(url: str, connections: int, pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    address = urlsplit(url)
    host, port = address.hostname or "127.0.0.1", address.port or 80
    seen: dict[Write, float] = {}
    gate = asyncio.Semaphore(CONNECTING_AT_ONCE)
    transports = []

    async def connect(index: int) -> None:
        async with gate:
            transport, client = await loop.create_connection(lambda: Client(index, url, seen), host, port)
            transports.append(transport)
            await asyncio.wait_for(client.live, 60)

    began = time.monotonic()
    await asyncio.gather(*(connect(index) for index in range(connections)))
    pipe.send(time.monotonic() - began)
    await loop.run_in_executor(None, pipe.recv)
    lost = sum(transport.is_closing() for transport in transports)
    pipe.send((seen, lost))


def clients(url: str, connections: int, pipe: Connection) -> None:
    """The process of all clients: says when they are live, and, when told, what they saw."""
    prepare_process()
    uvloop.run(_clients(url, connections, pipe))


# The floor


async def _reader(conninfo: str, pipe: Connection) -> None:
    seen: dict[Write, float] = {}

    def take(data: bytes | memoryview) -> None:
        frame = decode(data)
        if isinstance(frame, Message):
            now = time.monotonic()
            for write in found(frame.content):
                seen.setdefault(write, now)

    async with open_stream(conninfo, READER_SLOT) as stream:
        reading = asyncio.ensure_future(stream.run(take))
        pipe.send("live")
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        reading.cancel()
    pipe.send(seen)


def reader(conninfo: str, pipe: Connection) -> None:
    """The process of the bare replication reader."""
    prepare_process()
    uvloop.run(_reader(conninfo, pipe))


# The writer


async def _writer(conninfo: str, connections: int, rate: int, seconds: float, pipe: Connection) -> None:
    sent: dict[Write, float] = {}
    committed: dict[Write, float] = {}
    statement = "update public.daily_engagement_scores set final_score = %s where user_id = %s"
    total = int(rate * seconds)
    numbers = iter(range(total))
    began = time.monotonic() + 0.1

    async def write() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            for number in numbers:
                delay = began + number / rate - time.monotonic()
                if delay > 0:
                    await asyncio.sleep(delay)
                index, score = number % connections, 1 + number // connections
                sent[index, score] = time.monotonic()
                await connection.execute(statement, (score / 100, user(index)))
                committed[index, score] = time.monotonic()

    await asyncio.gather(*(write() for _ in range(WRITERS)))
    pipe.send((sent, committed, time.monotonic() - began))


def writer(conninfo: str, connections: int, rate: int, seconds: float, pipe: Connection) -> None:
    """The process that writes at a steady rate and notes when it sent what."""
    prepare_process()
    uvloop.run(_writer(conninfo, connections, rate, seconds, pipe))


# The run


@contextmanager
def serving(conninfo: str, folder: Path) -> Iterator[tuple[str, int]]:
    """A server as anyone would run it; its URL and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "momentum_sync", "serve", "--port", "0", "--database-url", conninfo,
         "--jwt-secret", SECRET, "--data-dir", str(folder)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        url = ""
        while True:
            line = process.stderr.readline()
            if not line:
                raise SystemExit("The server did not start.")
            if '"listening"' in line:
                url = json.loads(line)["url"]
            if '"capture live"' in line:
                break
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a pipe that is full would stop it
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def prepare(conninfo: str, connections: int) -> None:
    """Users, each with a score of today."""
    migrate(conninfo, tell=lambda _: None)
    with psycopg.connect(conninfo, autocommit=True) as connection, connection.cursor() as cursor:
        with cursor.copy("copy auth.users (id) from stdin") as copy:
            for index in range(connections):
                copy.write_row((user(index),))
        cursor.execute(
            "insert into public.daily_engagement_scores (user_id, score_date, momentum_state)"
            " select id, current_date, 'Steady' from auth.users"
        )
        cursor.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (READER_SLOT,))


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """p50, p99 and the highest, in milliseconds."""
    cuts = statistics.quantiles(values, n=100)
    return cuts[49] * 1000, cuts[98] * 1000, max(values) * 1000


def report(
    sent: dict[Write, float],
    committed: dict[Write, float],
    at_reader: dict[Write, float],
    at_client: dict[Write, float],
) -> bool:
    """Prints what was measured; whether every write was seen."""
    begins = min(sent.values()) + WARM_UP_S
    measured = [write for write, at in sent.items() if at >= begins]
    rows = {
        "commit returned to the writer": committed,
        "floor: bare replication reader": at_reader,
        "client": at_client,
    }
    print(f"\n{len(measured):,} writes measured, from the statement sent; milliseconds\n")
    print(f"  {'':32}{'p50':>8}{'p99':>8}{'highest':>10}")
    medians = {}
    for name, seen in rows.items():
        medians[name], p99, highest = quantiles([seen[write] - sent[write] for write in measured if write in seen])
        print(f"  {name:32}{medians[name]:8.2f}{p99:8.2f}{highest:10.2f}")
    ratio = medians["client"] / medians["floor: bare replication reader"]
    print(f"\n  p50 of the client / p50 of the floor: {ratio:.2f} (aim: at most 2)")
    missing = [write for write in sent if write not in at_client]
    print(f"  writes not seen by their client: {len(missing)}")
    return not missing


def run(connections: int, rate: int, seconds: float, folder: Path) -> bool:
    """One run; whether every write was seen by its client."""
    context = multiprocessing.get_context("spawn")
    with Embedded(folder) as embedded:
        prepare(embedded.conninfo, connections)
        with serving(embedded.conninfo, folder) as (url, _):
            pipes = {name: context.Pipe() for name in ("clients", "reader", "writer")}
            processes = {
                "clients": context.Process(target=clients, args=(url, connections, pipes["clients"][1])),
                "reader": context.Process(target=reader, args=(embedded.conninfo, pipes["reader"][1])),
                "writer": context.Process(
                    target=writer,
                    args=(embedded.conninfo, connections, rate, WARM_UP_S + seconds, pipes["writer"][1]),
                ),
            }
            for name, process in processes.items():
                if name != "writer":
                    process.start()
                    pipes[name][1].close()
            pipes["reader"][0].recv()
            took = pipes["clients"][0].recv()
            print(
                f"{connections:,} clients live after {took:.1f} s; writing {rate:,}/s for {seconds:.0f} s …", flush=True
            )
            processes["writer"].start()
            pipes["writer"][1].close()
            sent, committed, took = pipes["writer"][0].recv()
            print(f"written: {len(sent) / took:,.0f}/s")
            time.sleep(SETTLE_S)
            for name in ("clients", "reader"):
                pipes[name][0].send("end")
            at_client, lost = pipes["clients"][0].recv()
            at_reader = pipes["reader"][0].recv()
            for process in processes.values():
                process.join()
            whole = report(sent, committed, at_reader, at_client)
            print(f"  clients lost: {lost}")
            return whole and not lost


def main() -> None:
    """Reads the command line, makes one run, and exits with 1 if a write was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=1000, help="clients, each of a user of its own (1000)")
    parser.add_argument("--rate", type=int, default=1000, help="writes a second (1000)")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long to measure, after warming up (15)")
    given = parser.parse_args()
    if (WARM_UP_S + given.seconds) * given.rate / given.connections > 9_000:
        parser.error("too many writes a user to tell them apart; take more --connections or fewer --seconds")
    with short_folder() as folder:
        whole = run(given.connections, given.rate, given.seconds, folder)
    raise SystemExit(0 if whole else 1)


if __name__ == "__main__":
    main()

"""Everybody comes back at once: how long until all have resumed, and what the database sees of it.

    python -m benchmarks.storm --connections 5000

All clients connect, the server ends, every user's score changes, the server starts again, and all clients come back in
the same moment with their last event id. A client counts as back when its resume is confirmed and its missed events
have come. Server, clients and PostgreSQL share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import psycopg
import uvloop

from benchmarks.latency import (
    CONNECTING_AT_ONCE,
    PATH,
    SECRET,
    prepare,
    prepare_process,
    quantiles,
    serving,
    user,
)
from momentum_sync.database.embedded import Embedded, short_folder

MISSED = 2  # a score's change and its cache invalidation
SAMPLE_S = 0.02
LAST_ID = re.compile(rb'"last_event_id":("[^"]+")')


class Client(asyncio.Protocol):
    """A socket until it has what it waits for. `last` is the id to come back with."""

    def __init__(self, request: bytes, events: int) -> None:
        self._request = request
        self._events = events
        self._data = b""
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks for the upgrade."""
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Counts events; the state counts as what a first connection waits for."""
        self._data += data
        if self.done.done():
            return
        came = self._data.count(b'"previous_id"')
        if came >= self._events if self._events else LAST_ID.search(self._data):
            self.done.set_result(self._data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ended before it had what it waits for."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError(self._data[:300]))


def request(url: str, index: int, last: str | None) -> bytes:
    """The handshake of one client."""
    claims = {"sub": str(user(index)), "role": "authenticated", "exp": int(time.time()) + 3600}
    resume = f"&last_event_id={last}" if last else ""
    return (
        f"GET {PATH}?client_id=c{resume} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {jwt.encode(claims, SECRET, algorithm='HS256')}\r\n\r\n"
    ).encode()


async def connect(url: str, last: Sequence[str | None], at_once: int) -> tuple[list[bytes], list[float], int]:
    """Connects everyone; what each was given, after how many seconds, and how often one had to try again."""
    loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(at_once)
    host, port = urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80
    requests = [request(url, index, place) for index, place in enumerate(last)]
    transports: list[asyncio.Transport] = []
    took = [0.0] * len(last)
    again = 0
    began = time.monotonic()

    async def one(index: int) -> bytes:
        nonlocal again
        async with gate:
            for _ in range(20):
                try:
                    transport, client = await loop.create_connection(
                        lambda: Client(requests[index], MISSED if last[index] else 0), host, port
                    )
                    transports.append(transport)
                    given = await asyncio.wait_for(client.done, 60)
                except OSError:
                    again += 1
                    await asyncio.sleep(0.2)
                    continue
                took[index] = time.monotonic() - began
                return given
            raise SystemExit("A client did not get back in twenty attempts.")

    given = await asyncio.gather(*(one(index) for index in range(len(last))))
    for transport in transports:
        transport.close()
    return given, took, again


class Watch:
    """Looks at the database's sessions of the server, again and again."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._ended = threading.Event()
        self.most = 0
        self.samples = 0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def end(self) -> None:
        """No more."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            while not self._ended.wait(SAMPLE_S):
                row = connection.execute(
                    "select count(*) from pg_stat_activity where application_name like 'momentum-sync%'"
                    " and state = 'active' and backend_type = 'client backend'"
                ).fetchone()
                assert row is not None
                self.most = max(self.most, int(row[0]))
                self.samples += 1


def transactions(conninfo: str) -> int:
    """Transactions of the database so far."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        row = connection.execute("select sum(xact_commit) from pg_stat_database").fetchone()
    assert row is not None
    return int(row[0])


def run(connections: int, folder: Path) -> bool:
    """One storm; whether everyone resumed."""
    prepare_process()
    with Embedded(folder) as embedded:
        prepare(embedded.conninfo, connections)
        with psycopg.connect(embedded.conninfo, autocommit=True) as connection:
            connection.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active")
        with serving(embedded.conninfo, folder) as (url, _):
            print(f"{connections:,} clients connect …", flush=True)
            given, took, _ = uvloop.run(connect(url, [None] * connections, CONNECTING_AT_ONCE))
            print(f"  with a snapshot each: {connections / max(took):,.0f}/s")
        last = [_last_id(data) for data in given]
        with psycopg.connect(embedded.conninfo, autocommit=True) as connection:
            connection.execute("update public.daily_engagement_scores set final_score = 42")
        with serving(embedded.conninfo, folder) as (url, _):
            before = transactions(embedded.conninfo)
            watch = Watch(embedded.conninfo)
            given, took, again = uvloop.run(connect(url, last, connections))
            watch.end()
            time.sleep(2)  # until the statistics have been told
            asked = transactions(embedded.conninfo) - before - watch.samples
        resumed = sum(b'"resumed":true' in data for data in given)
        p50, p99, highest = quantiles(took)
        print(f"{connections:,} clients come back in the same moment, each having missed {MISSED} events")
        print(f"  resumed: {resumed:,}, without a snapshot; connections that had to be tried again: {again:,}")
        print(f"  back after: p50 {p50:,.0f} ms, p99 {p99:,.0f} ms, all {highest:,.0f} ms")
        print(f"  resumes: {connections / max(took):,.0f}/s")
        print(f"  transactions of the database meanwhile: {asked:,}")
        print(f"  the server's queries at a time: at most {watch.most}")
        return resumed == connections


def _last_id(data: bytes) -> str:
    found = LAST_ID.search(data)
    assert found is not None
    text: str = json.loads(found[1])
    return text


def main() -> None:
    """Reads the command line, makes one run, and exits with 1 if somebody could not resume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000, help="clients, each of a user of its own (5000)")
    given = parser.parse_args()
    with short_folder() as folder:
        whole = run(given.connections, folder)
    raise SystemExit(0 if whole else 1)


if __name__ == "__main__":
    main()

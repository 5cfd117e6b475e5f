"""Supabase's protocol at a steady pace: latency, fan-out, broadcasts of clients, and many clients back at once.

Latency is taken as in `latency`, fan-out beside the C program of `fan_out`. After a restart of the server each client
joins again, and counts once it has the change that it missed.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import uvloop

from benchmarks.environment import Server, environment, serving
from benchmarks.fan_out import REST_S, TURNS, Floor
from benchmarks.latency import CONNECTIONS, RATE, SECONDS, Rows, percentile_of
from benchmarks.latency import run as latencies
from benchmarks.load_clients import LoadClients, connect, row_join, row_request, text_frame
from benchmarks.machine import cpu_seconds, prepare_process
from benchmarks.report import Bench, Line
from benchmarks.rows import POLICIES, connected, create_table

CLIENTS, MANY = 1_000, 5_000
CHECKED, CHECKED_RATE = 500, 200
EVENTS = 200  # in a turn
_VALUE = "x" * 40


def measure(bench: Bench) -> Iterator[Line]:
    """Measure with own rows, with rows that the database checks, and with rows that everybody sees."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("The floor is a C program, and there is no cc. On Debian: apt-get install gcc libc6-dev")
    prepare_process()
    (clients,), (many,) = bench.sizes(CLIENTS), bench.sizes(MANY)
    with environment(max(clients, many)) as (conninfo, folder), psycopg.connect(conninfo, autocommit=True) as writer:
        create_table(writer)
        yield from _latency(bench, conninfo, folder, writer, clients)
        writer.execute("alter table public.rows disable row level security")
        with serving(conninfo, folder) as server:
            with uvloop.run(connected(server, clients, filtered=False)) as sockets:
                change = lambda mark: _insert(writer, mark)  # noqa: E731
                yield _beside(bench, server, folder, compiler, sockets, change, "one change, without RLS", 0.7)
            with uvloop.run(_in_a_room(server, clients)) as sockets:
                room = _Sender(sockets)
                yield _beside(bench, server, folder, compiler, sockets, room.send, "one broadcast of a client", 0.7)
        writer.execute("alter table public.rows enable row level security")
        yield from _storm(bench, conninfo, folder, writer, many)


def _latency(
    bench: Bench, conninfo: str, folder: Path, writer: psycopg.Connection, clients: int
) -> Iterator[Line]:  # fmt: skip
    small = clients < CONNECTIONS
    checked = min(CHECKED, clients)
    for policy, kind, count, rate in (
        ("own", Rows(), clients, clients if small else RATE),
        ("assigned", Rows(filtered=True), checked, checked if small else CHECKED_RATE),
    ):
        writer.execute(f"alter policy rights on public.rows using ({POLICIES[policy]})".encode())
        runs = []
        for _ in bench.rounds(f"latency of {rate:,} changes/s to {count:,} clients, policy `{policy}`"):
            with serving(conninfo, folder) as server:
                runs.append(latencies(conninfo, server.url, count, rate, 2.0 if small else SECONDS, kind=kind))
        for percentile, most in ((50.0, 1.5), (99.0, 3.0)):
            ours = [percentile_of(at_client, percentile) * 1000 for _, at_client in runs]
            floor = [percentile_of(at_reader, percentile) * 1000 for at_reader, _ in runs]
            what = f"change → client, policy `{policy}`, p{percentile:g} ({count:,} clients, {rate:,}/s)"
            if policy == "own":
                yield Line(what, "ms", ours, "bare reader", floor, most=most)
            else:
                yield Line(what, "ms", ours, most=20 if percentile == 50 else None)


def _insert(writer: psycopg.Connection, mark: str) -> None:
    writer.execute("insert into public.rows (user_id, value, at) values (null, %s, now())", (_VALUE + mark,))


async def _in_a_room(server: Server, clients: int) -> LoadClients:
    join = [
        "1",
        "1",
        "realtime:room",
        "phx_join",
        {"config": {"broadcast": {"self": True}, "presence": {"enabled": False}}},
    ]
    text = json.dumps(join).encode()
    requests = [row_request(server.url, index) for index in range(clients)]
    return await connect(server.url, requests, until=(b"phx_reply", 1), first=[text_frame(text)] * clients)


class _Sender:
    """Sends by the clients in turn, because each has a rate."""

    def __init__(self, sockets: LoadClients) -> None:
        self._sockets = sockets.sockets
        self._number = 0

    def send(self, mark: str) -> None:
        """Send a broadcast to all of them."""
        self._number += 1
        payload = {"type": "broadcast", "event": "moved", "payload": {"value": _VALUE, "mark": mark}}
        text = json.dumps(["1", str(self._number + 1), "realtime:room", "broadcast", payload]).encode()
        sender: socket.socket = self._sockets[self._number % len(self._sockets)]
        sender.send(text_frame(text))


def _beside(
    bench: Bench, server: Server, folder: Path, compiler: str, sockets: LoadClients, send: Callable[[str], None],
    what: str, least: float,
) -> Line:  # fmt: skip
    """Measure frames a second of the core, in turns with the C program."""
    before = sockets.bytes
    send("warm up")
    sockets.until_all(b"warm up")
    size = (sockets.bytes - before) // len(sockets)
    turns, events = (1, 5) if bench.quick else (TURNS, EVENTS)
    ours, beside = [], []
    with Floor(compiler, folder, len(sockets), size) as floor:
        floor.run(events)
        for _ in bench.rounds(f"{what} to {len(sockets):,} sockets, frames of {size} bytes"):
            spent = [(_spent(server, sockets, send, events), floor.run(events)) for _ in range(turns)]
            frames = turns * events * len(sockets)
            ours.append(frames / sum(seconds for seconds, _ in spent))
            beside.append(frames / sum(seconds for _, seconds in spent))
    return Line(f"{what} to {len(sockets):,} sockets", "frames/s", ours, "send() in C", beside, least=least)


def _spent(server: Server, sockets: LoadClients, send: Callable[[str], None], events: int) -> float:
    before = cpu_seconds(server.pid)
    for number in range(events):
        mark = f"mark {time.monotonic_ns():020} {number:06}"
        send(mark)
        sockets.until_all(mark.encode())
    sockets.rest(REST_S)
    return cpu_seconds(server.pid) - before


def _storm(
    bench: Bench, conninfo: str, folder: Path, writer: psycopg.Connection, clients: int
) -> Iterator[Line]:  # fmt: skip
    """Have all clients reconnect at once after a restart."""
    writer.execute(f"alter policy rights on public.rows using ({POLICIES['own']})".encode())
    took = []
    for number in bench.rounds(f"{clients:,} clients join again at once after a restart"):
        with serving(conninfo, folder) as server, uvloop.run(connected(server, clients, filtered=False)) as sockets:
            sockets.rest(2.0)  # the joins are acknowledged
        mark = f"missed {number}"
        writer.execute(
            "insert into public.rows (user_id, value, at) select id, %s, now() from auth.users limit %s",
            (mark, clients),
        )
        with serving(conninfo, folder) as server:
            requests = [row_request(server.url, index) for index in range(clients)]
            joins = [row_join(index, ref=9) for index in range(clients)]
            began = time.monotonic()
            until = (mark.encode(), 1)
            with uvloop.run(connect(server.url, requests, until=until, first=joins, at_once=clients)):
                took.append(time.monotonic() - began)
    yield Line(f"{clients:,} clients join again at once: the last has what it missed after", "s", took, most=5)

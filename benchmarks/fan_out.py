"""One event to many sockets: frames per second of one core, beside a C program that only calls send().

Every event is committed alone, and the next one when all clients have it, so that no client gets two frames with one
send. Both are counted by the CPU time of the sending process: for the server, everything from the WAL to the log. They
alternate every few seconds, because the cost of system calls on a virtual machine changes by half within minutes. The
server is measured with io_uring, if the system allows that, and without.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import psycopg
import uvloop
from psycopg.rows import TupleRow

from benchmarks.environment import Server, environment, serving, token
from benchmarks.load_clients import LoadClients, connect, handshake
from benchmarks.machine import SERVER_CORES, cpu_seconds, prepare_process
from benchmarks.report import Bench, Line

FRAMES = 200_000  # in a turn, which takes one to three seconds
TURNS = 6
REST_S = 0.2  # the append follows 50 ms after the last frame
PAD = 74
"""So that a frame is about 300 bytes, as a score's is."""


def measure(bench: Bench) -> Iterator[Line]:
    """Measure 1,000 and 5,000 sockets, and 1,000 without io_uring."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("The floor is a C program, and there is no cc. On Debian: apt-get install gcc libc6-dev")
    prepare_process()
    sizes = bench.sizes(1000, 5000)
    for sockets, io_uring, how in (*((size, "auto", "") for size in sizes), (sizes[0], "off", ", without io_uring")):
        events, turns = (2, 1) if bench.quick else (FRAMES // sockets, TURNS)
        with (
            environment(sockets) as (conninfo, folder),
            serving(conninfo, folder, "--io-uring", io_uring) as server,
            everyone(server, sockets) as clients,
            Floor(compiler, folder, sockets, warm_up(conninfo, clients)) as floor,
        ):
            run(conninfo, server, clients, events)
            floor.run(events)
            ours, beside = [], []
            for _ in bench.rounds(f"fan-out to {sockets:,} sockets{how}, in {turns} turns with its floor"):
                spent = [(run(conninfo, server, clients, events), floor.run(events)) for _ in range(turns)]
                ours.append(turns * events * sockets / sum(seconds for seconds, _ in spent))
                beside.append(turns * events * sockets / sum(seconds for _, seconds in spent))
        what, least = f"fan-out of one event to {sockets:,} sockets{how}", 0.75 if io_uring == "auto" else None
        yield Line(what, "frames/s", ours, "send() in C", beside, least=least)


def everyone(server: Server, sockets: int, client: str = "c") -> LoadClients:
    """Connect all of them as admins, on the channel of all scores."""
    requests = [
        handshake(server.url, token(index, role="admin"), client=client, channels="momentum_updates:all")
        for index in range(sockets)
    ]
    return uvloop.run(connect(server.url, requests))


def publish(connection: psycopg.Connection[TupleRow], mark: str, pad: int = PAD) -> None:
    """Publish one event to all of them."""
    connection.execute(
        "select momentum.publish(array['momentum_updates:all'], jsonb_build_object("
        "'event_type', 'momentum_score_updated', 'pad', repeat('x', %s), 'mark', %s::text))",
        (pad, mark),
    )


def warm_up(conninfo: str, clients: LoadClients) -> int:
    """Publish events until every snapshot boundary has passed. Return the bytes of one frame."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for number in range(5):
            before = clients.bytes
            publish(connection, f"warm {number}")
            clients.until_all(f"warm {number}".encode())
    return (clients.bytes - before) // len(clients)


def run(conninfo: str, server: Server, clients: LoadClients, events: int) -> float:
    """Return the CPU seconds of the server for this many events to all."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        before = cpu_seconds(server.pid)
        for number in range(events):
            publish(connection, f"mark {number:06}")
            clients.until_all(f"mark {number:06}".encode())
        clients.rest(REST_S)
        return cpu_seconds(server.pid) - before


class Floor:
    """The C program, with as many sockets."""

    def __init__(self, compiler: str, folder: Path, sockets: int, size: int) -> None:
        program = folder / "floor"
        subprocess.run([compiler, "-O2", "-o", program, Path(__file__).with_name("floor.c")], check=True)
        self._process = subprocess.Popen([program, str(sockets), str(size)], stdin=PIPE, stdout=PIPE, text=True)
        try:
            os.sched_setaffinity(self._process.pid, SERVER_CORES)
            port = self._answer()
            self.clients = LoadClients([socket.create_connection(("127.0.0.1", port)) for _ in range(sockets)], [], [])
        except BaseException:
            self._process.kill()
            raise

    def __enter__(self) -> Floor:
        return self

    def __exit__(self, *_: object) -> None:
        self.clients.close()
        self._process.terminate()
        self._process.wait()

    def run(self, events: int) -> float:
        """Return its CPU seconds for as many frames."""
        assert self._process.stdin is not None
        spent = 0.0
        for number in range(events):
            mark = f"mark {number:06}"
            print(mark, file=self._process.stdin, flush=True)
            self.clients.until_all(mark.encode())
            spent += self._answer() / 1e9
        return spent

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

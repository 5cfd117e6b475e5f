"""This project beside a server written without it: FastAPI, asyncpg's LISTEN and the seed's triggers (peers/listen.py).

Both have the same database, clients and load, and a core of their own. The peer has no delivery guarantees, so the
difference is the cost of this project's guarantees.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import psycopg
import uvloop

from benchmarks import latency
from benchmarks.environment import SECRET, Server, environment, serving, switch, token, user
from benchmarks.fan_out import REST_S
from benchmarks.load_clients import connect, handshake
from benchmarks.machine import SERVER_CORES, cpu_seconds, prepare_process
from benchmarks.report import Bench, Line
from benchmarks.triggers import OURS, SEED

CONNECTIONS = 1000
RATE = 200  # as many as the peer can handle
SECONDS = 10.0
EVENTS = 100
WARM_UP = 5
PEER = "FastAPI, LISTEN"


def measure(bench: Bench) -> Iterator[Line]:
    """Measure latency and fan-out of both in turns."""
    prepare_process()
    (connections,) = bench.sizes(CONNECTIONS)
    rate, seconds = (RATE, SECONDS) if connections == CONNECTIONS else (connections, 2.0)
    ours, theirs, frames, their_frames = [], [], [], []
    with environment(connections) as (conninfo, folder), psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(Path(__file__).with_name("peers").joinpath("seed.sql").read_text(encoding="utf-8"))
        for _ in bench.rounds(f"beside {PEER}: {connections:,} connections"):
            switch(connection, on=OURS, off=SEED)
            with serving(conninfo, folder) as server:
                ours.append(latency.run(conninfo, server.url, connections, rate, seconds, floor=False))
                frames.append(fan(server, connections, conninfo))
            switch(connection, on=SEED, off=OURS)
            with peer(conninfo) as server:
                theirs.append(latency.run(conninfo, server.url, connections, rate, seconds, floor=False))
                their_frames.append(fan(server, connections, conninfo))
    for percentile in (50.0, 99.0):
        yield Line(
            f"write → client, p{percentile:g} ({connections:,} connections, {rate:,} writes/s)", "ms",
            [latency.percentile_of(at_client, percentile) * 1000 for _, at_client in ours],
            PEER, [latency.percentile_of(at_client, percentile) * 1000 for _, at_client in theirs],
        )  # fmt: skip
    yield Line(f"a score's update to {connections:,} sockets", "frames/s", frames, PEER, their_frames)


@contextmanager
def peer(conninfo: str) -> Iterator[Server]:
    """Run the peer on the server's core."""
    dsn = f"postgresql://postgres@/postgres?host={psycopg.conninfo.conninfo_to_dict(conninfo)['host']}"
    with socket.create_server(("127.0.0.1", 0)) as bound:  # held from here on: another program could take a free port
        port = bound.getsockname()[1]
        given = ("--fd", str(bound.fileno()), "--log-level", "warning")
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "benchmarks.peers.listen:app", *given],
            env={**os.environ, "DATABASE_URL": dsn, "JWT_SECRET": SECRET}, pass_fds=[bound.fileno()],
        )  # fmt: skip
    os.sched_setaffinity(process.pid, SERVER_CORES)
    try:
        ends_at = monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=1):
                    break
            except OSError:
                if monotonic() > ends_at or process.poll() is not None:
                    raise SystemExit("The peer did not start.") from None
        yield Server(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.kill()  # at SIGTERM it waits for its clients
        process.wait()


def fan(server: Server, connections: int, conninfo: str) -> float:
    """Return frames per second of the server's core when one score changes and every client is an admin."""
    requests = [
        handshake(server.url, token(index, role="admin"), channels="momentum_updates:all")
        for index in range(connections)
    ]
    with uvloop.run(connect(server.url, requests)) as clients, psycopg.connect(conninfo, autocommit=True) as connection:
        before = 0.0
        for number in range(WARM_UP + EVENTS):
            if number == WARM_UP:
                before = cpu_seconds(server.pid)
            day = (datetime.now(UTC) - timedelta(days=number + 1)).date().isoformat()  # identifies the event
            connection.execute(
                "update public.daily_engagement_scores set score_date = %s where user_id = %s", (day, user(0))
            )
            clients.until_all(day.encode())
        clients.rest(REST_S)
        return EVENTS * connections / (cpu_seconds(server.pid) - before)

"""CPU of a server when little happens: 5,000 connections with heartbeats; and under the seed's normal load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import uvloop

from benchmarks.environment import environment, serving, token, user
from benchmarks.load_clients import connect, handshake
from benchmarks.machine import cpu_seconds, prepare_process
from benchmarks.report import Bench, Line

SECONDS = 25.0  # one heartbeat and one ping for each
RATE = 50  # updates per second, two events each


def measure(bench: Bench) -> Iterator[Line]:
    """Return the percentage of one core."""
    prepare_process()
    seconds = 2.0 if bench.quick else SECONDS
    for connections, rate, what, most in (
        (5000, 0, "no events", 5.0),
        (1000, RATE, f"{2 * RATE} events/s", 10.0),
    ):
        (connected,) = bench.sizes(connections)
        values = []
        with environment(connected) as (conninfo, folder):
            for _ in bench.rounds(f"{connected:,} connections, {what}, for {seconds:.0f} s"):
                with serving(conninfo, folder) as server:
                    requests = [handshake(server.url, token(index)) for index in range(connected)]
                    with uvloop.run(connect(server.url, requests)) as clients:
                        clients.rest(1.0)
                        before = cpu_seconds(server.pid)
                        with writing(conninfo, rate, seconds, connected):
                            clients.rest(seconds)
                        values.append((cpu_seconds(server.pid) - before) / seconds * 100)
        yield Line(f"a core at {connected:,} connections, {what}", "%", values, most=most)


@contextmanager
def writing(conninfo: str, rate: int, seconds: float, users: int) -> Iterator[None]:
    """Write at a steady pace while the block runs."""
    thread = threading.Thread(target=_write, args=(conninfo, rate, seconds, users))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _write(conninfo: str, rate: int, seconds: float, users: int) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            connection.execute(
                "update public.daily_engagement_scores set final_score = %s where user_id = %s",
                (number % 100, user(number % users)),
            )

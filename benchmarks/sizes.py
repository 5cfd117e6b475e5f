"""How the cost grows: by connections, by events a second, by the size of an event. It should not, but by the bytes.

What is counted is the server's processor time, for one frame or one event.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import uvloop

from benchmarks import fan_out
from benchmarks.at_rest import writing
from benchmarks.environment import Server, serving, stage, token
from benchmarks.load_clients import Crowd, connect, handshake
from benchmarks.machine import cpu_seconds, prepare_process
from benchmarks.report import Bench, Line

CONNECTIONS = (1000, 3000, 10_000)
PAYLOADS = (300, 1024, 4 * 1024, 16 * 1024, 64 * 1024)
RATES = (100, 1000)
EVENTS = 30
SECONDS = 5.0


def measure(bench: Bench) -> Iterator[Line]:
    """Microseconds a frame, or an event."""
    prepare_process()
    sizes = bench.sizes(*CONNECTIONS)
    with stage(max(sizes)) as (conninfo, folder):
        for connections in sizes:
            with serving(conninfo, folder) as server, fan_out.everyone(server, connections) as crowd:
                fan_out.warm_up(conninfo, crowd)
                values = [_frame(conninfo, server, crowd) for _ in bench.rounds(f"a frame at {connections:,}")]
            yield Line(f"a frame, of an event to {connections:,} sockets", "µs", values)
        with serving(conninfo, folder) as server, fan_out.everyone(server, sizes[0]) as crowd:
            fan_out.warm_up(conninfo, crowd)
            for payload in PAYLOADS:
                values = [
                    _frame(conninfo, server, crowd, payload) for _ in bench.rounds(f"a frame of {payload:,} bytes")
                ]
                yield Line(f"a frame of {payload / 1024:.1f} kB, to {sizes[0]:,} sockets", "µs", values)
        requests = [handshake("http://127.0.0.1", token(index)) for index in range(sizes[0])]
        for rate in RATES[: 1 if bench.quick else None]:
            values = []
            for _ in bench.rounds(f"an event at {2 * rate:,} events/s"):
                with serving(conninfo, folder) as server, uvloop.run(connect(server.url, requests)) as crowd:
                    values.append(_event(conninfo, server, crowd, rate, SECONDS if not bench.quick else 1.0))
            yield Line(f"an event, at {2 * rate:,} events/s to {sizes[0]:,} users", "µs", values)


def _frame(conninfo: str, server: Server, crowd: Crowd, payload: int = 300) -> float:
    """Of an event to all of them."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        before = cpu_seconds(server.pid)
        for number in range(EVENTS):
            mark = f"size {payload} {number:06}"
            fan_out.publish(connection, mark, max(0, payload - 226))
            crowd.until_all(mark.encode())
        crowd.rest(fan_out.REST_S)
        return (cpu_seconds(server.pid) - before) / EVENTS / len(crowd) * 1e6


def _event(conninfo: str, server: Server, crowd: Crowd, rate: int, seconds: float) -> float:
    """Of one to its user, at a steady pace; heartbeats are in it."""
    crowd.rest(1.0)
    before = cpu_seconds(server.pid)
    with writing(conninfo, rate, seconds, len(crowd)):
        crowd.rest(seconds + 1.0)
    return (cpu_seconds(server.pid) - before) / (2 * rate * seconds) * 1e6

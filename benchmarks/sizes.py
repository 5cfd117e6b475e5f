"""Growth of the cost with connections, with events per second, and with the size of an event.

Only the bytes should cost more. The measure is the server's CPU time for one frame or one event.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import uvloop

from benchmarks import fan_out
from benchmarks.at_rest import writing
from benchmarks.environment import Server, environment, serving, token
from benchmarks.load_clients import LoadClients, connect, handshake
from benchmarks.machine import cpu_seconds, prepare_process
from benchmarks.report import Bench, Line

CONNECTIONS = (1000, 3000, 10_000)
PAYLOADS = (300, 1024, 4 * 1024, 16 * 1024, 64 * 1024)
RATES = (100, 1000)
EVENTS = 30
SECONDS = 5.0


def measure(bench: Bench) -> Iterator[Line]:
    """Measure microseconds per frame, and per event."""
    prepare_process()
    sizes = bench.sizes(*CONNECTIONS)
    with environment(max(sizes)) as (conninfo, folder):
        for connections in sizes:
            with serving(conninfo, folder) as server, fan_out.everyone(server, connections) as clients:
                fan_out.warm_up(conninfo, clients)
                values = [_frame(conninfo, server, clients) for _ in bench.rounds(f"a frame at {connections:,}")]
            yield Line(f"a frame, of an event to {connections:,} sockets", "µs", values)
        with serving(conninfo, folder) as server, fan_out.everyone(server, sizes[0]) as clients:
            fan_out.warm_up(conninfo, clients)
            for payload in PAYLOADS:
                values = [
                    _frame(conninfo, server, clients, payload) for _ in bench.rounds(f"a frame of {payload:,} bytes")
                ]
                yield Line(f"a frame of {payload / 1024:.1f} kB, to {sizes[0]:,} sockets", "µs", values)
        requests = [handshake("http://127.0.0.1", token(index)) for index in range(sizes[0])]
        for rate in RATES[: 1 if bench.quick else None]:
            values = []
            for _ in bench.rounds(f"an event at {2 * rate:,} events/s"):
                with serving(conninfo, folder) as server, uvloop.run(connect(server.url, requests)) as clients:
                    values.append(_event(conninfo, server, clients, rate, SECONDS if not bench.quick else 1.0))
            yield Line(f"an event, at {2 * rate:,} events/s to {sizes[0]:,} users", "µs", values)


def _frame(conninfo: str, server: Server, clients: LoadClients, payload: int = 300) -> float:
    """Measure one event to all clients."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        before = cpu_seconds(server.pid)
        for number in range(EVENTS):
            mark = f"size {payload} {number:06}"
            fan_out.publish(connection, mark, max(0, payload - 226))
            clients.until_all(mark.encode())
        clients.rest(fan_out.REST_S)
        return (cpu_seconds(server.pid) - before) / EVENTS / len(clients) * 1e6


def _event(conninfo: str, server: Server, clients: LoadClients, rate: int, seconds: float) -> float:
    """Measure events to one user each, at a steady pace, heartbeats included."""
    clients.rest(1.0)
    before = cpu_seconds(server.pid)
    with writing(conninfo, rate, seconds, len(clients)):
        clients.rest(seconds + 1.0)
    return (cpu_seconds(server.pid) - before) / (2 * rate * seconds) * 1e6

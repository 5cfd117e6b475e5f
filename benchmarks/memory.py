"""Memory of a connection: idle, authenticated, granted, subscribed to its user's four channels."""

from __future__ import annotations

from collections.abc import Iterator

import uvloop

from benchmarks.environment import environment, serving, token
from benchmarks.load_clients import connect, handshake
from benchmarks.machine import prepare_process, resident
from benchmarks.report import Bench, Line


def measure(bench: Bench) -> Iterator[Line]:
    """Measure 1,000, 5,000 and 10,000, each in a server of its own."""
    prepare_process()
    sizes = bench.sizes(1000, 5000, 10_000)
    with environment(max(sizes)) as (conninfo, folder):
        for connections in sizes:
            values = []
            for _ in bench.rounds(f"memory of {connections:,} connections"):
                with serving(conninfo, folder) as server:
                    few = [handshake(server.url, token(index)) for index in range(20)]
                    uvloop.run(connect(server.url, few)).close()  # allocated once, not per client
                    before = resident(server.pid)
                    requests = [handshake(server.url, token(index)) for index in range(connections)]
                    with uvloop.run(connect(server.url, requests)):
                        values.append((resident(server.pid) - before) / connections / 1000)
            yield Line(f"memory a connection, {connections:,} idle", "kB", values, most=10)

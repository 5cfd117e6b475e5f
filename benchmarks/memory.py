"""What a connection holds of memory: idle, with a token, granted, subscribed to its user's four channels."""

from __future__ import annotations

from collections.abc import Iterator

import uvloop

from benchmarks.environment import serving, stage, token
from benchmarks.load_clients import connect, handshake
from benchmarks.machine import prepare_process, resident
from benchmarks.report import Bench, Line


def measure(bench: Bench) -> Iterator[Line]:
    """At 1,000, 5,000 and 10,000; each size in a server of its own."""
    prepare_process()
    sizes = bench.sizes(1000, 5000, 10_000)
    with stage(max(sizes)) as (conninfo, folder):
        for connections in sizes:
            values = []
            for _ in bench.rounds(f"memory of {connections:,} connections"):
                with serving(conninfo, folder) as server:
                    few = [handshake(server.url, token(index)) for index in range(20)]
                    uvloop.run(connect(server.url, few)).close()  # what a server gets once, whoever comes
                    before = resident(server.pid)
                    requests = [handshake(server.url, token(index)) for index in range(connections)]
                    with uvloop.run(connect(server.url, requests)):
                        values.append((resident(server.pid) - before) / connections / 1000)
            yield Line(f"memory a connection, {connections:,} idle", "kB", values, most=10)

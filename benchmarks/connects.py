"""Connects per second, each with a token, grants and a snapshot; and resumes.

A client counts once its snapshot has arrived, or its resume with the two events that it missed. It resumes with the
same
token, as after a network failure, and with another, as after an hour. Single connects are timed at 100 per second; in
the end all clients reconnect at once after a restart of the server.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from urllib.request import urlopen

import psycopg
import uvloop

from benchmarks.environment import environment, serving, token
from benchmarks.load_clients import LoadClients, connect, handshake
from benchmarks.machine import prepare_process
from benchmarks.report import Bench, Line

CLIENTS = 5000
A_SECOND = 100
SECONDS = 10
MISSED = (b'"previous_id"', 2)  # a score's change and its invalidation


def measure(bench: Bench) -> Iterator[Line]:
    """Let every client connect, leave, miss a change and reconnect, four times."""
    prepare_process()
    (clients,) = bench.sizes(CLIENTS)
    first, resumed, renewed, once, storm = [], [], [], [], []
    with environment(clients) as (conninfo, folder):
        for _ in bench.rounds(f"{clients:,} clients connect, resume, and resume at once"):
            tokens = [token(index) for index in range(clients)]
            with serving(conninfo, folder) as server:
                ids, rate, _ = _all(server.url, tokens, [""] * clients, (b'"initial_state"', 1))
                first.append(rate)
                change(conninfo)
                _, rate, _ = _all(server.url, tokens, ids, MISSED)
                resumed.append(rate)
                once.append(_paced(server.url, tokens, ids[: min(clients, A_SECOND * SECONDS)]))
                others = [token(index, renewed="yes") for index in range(clients)]
                _, rate, _ = _all(server.url, others, ids, MISSED)
                renewed.append(rate)
            change(conninfo)
            with serving(conninfo, folder) as server:
                _, _, took = _all(server.url, tokens, ids, (b'"previous_id"', 4), at_once=clients)
                storm.append(took)
    yield Line("connections, each with a snapshot", "a second", first)
    yield Line("connections resumed, with the token of before", "a second", resumed, least=1000)
    yield Line("connections resumed, with another token", "a second", renewed, least=1000)
    yield Line(f"one resume, at {A_SECOND} a second, p99", "ms", [value * 1000 for value in once], most=20)
    yield Line(f"{clients:,} resume at once after a restart: the last is back after", "s", storm)


def change(conninfo: str) -> None:
    """Change everybody's score."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("update public.daily_engagement_scores set final_score = (final_score + 1)::integer % 100")


def _all(
    url: str, tokens: list[str], ids: list[str], until: tuple[bytes, int], at_once: int = 32
) -> tuple[list[str], float, float]:
    """Return the positions, connects per second, and the seconds until the last one was live."""
    requests = [handshake(url, token, last=last) for token, last in zip(tokens, ids, strict=True)]
    began = time.monotonic()
    with uvloop.run(connect(url, requests, until=until, at_once=at_once)) as clients:
        took = time.monotonic() - began
    _until_gone(url)
    return clients.ids, len(ids) / took, took


def _until_gone(url: str) -> None:
    """Wait until the server has closed all of them, which is work, too."""
    ends_at = time.monotonic() + 60
    while json.loads(urlopen(f"{url}/sync/health", timeout=10).read())["connected_clients"]:
        if time.monotonic() > ends_at:
            raise SystemExit("Connections that were closed are still there.")
        time.sleep(0.1)


def _paced(url: str, tokens: list[str], ids: list[str]) -> float:
    """Return the 99th percentile of connect times at a steady pace, in seconds."""
    requests = [handshake(url, token, last=last) for token, last in zip(tokens, ids, strict=False)]

    async def come() -> list[float]:
        began = time.monotonic()

        async def one(index: int) -> LoadClients:
            await asyncio.sleep(max(0.0, began + index / A_SECOND - time.monotonic()))
            return await connect(url, [requests[index]], until=MISSED)

        crowds = await asyncio.gather(*(one(index) for index in range(len(requests))))
        for clients in crowds:
            clients.close()
        return [clients.took[0] for clients in crowds]

    return statistics.quantiles(uvloop.run(come()), n=100)[98]

"""One UPDATE of 100,000 rows: the time until its last event is delivered, and the delay for everybody else.

Events are sent in commit order, so a later commit waits until the large transaction has been sent. An admin receives
all of its events; meanwhile other users write and wait for their own events.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator

import psycopg
import websockets

from benchmarks.environment import PATH, Server, environment, serving, token, user
from benchmarks.machine import prepare_process, resident
from benchmarks.report import Bench, Line

ROWS = 100_000
OTHERS = 50
OTHERS_A_SECOND = 100
TIMEOUT_S = 300.0


def measure(bench: Bench) -> Iterator[Line]:
    """Run the transaction on users of its own while the others write."""
    prepare_process()
    (rows,) = bench.sizes(ROWS)
    last, others, most = [], [], []
    for _ in bench.rounds(f"one transaction of {rows:,} rows"):
        with environment(rows + OTHERS) as (conninfo, folder), serving(conninfo, folder) as server:
            took, waits, grew = asyncio.run(_run(server, conninfo, rows))
            last.append(took)
            others.append(statistics.quantiles(waits, n=100)[98])
            most.append(grew / 2**20)
    yield Line(f"{rows:,} rows in one transaction: commit → last client", "s", last)
    yield Line("p99 of everybody else meanwhile", "s", others)
    yield Line("memory of the server meanwhile", "MiB more", most)


async def _run(server: Server, conninfo: str, rows: int) -> tuple[float, list[float], int]:
    address = server.url.replace("http", "ws") + PATH
    admin = {"Authorization": f"Bearer {token(0, role='admin')}"}
    before = most = resident(server.pid)
    sent: dict[tuple[int, float], float] = {}
    waits: list[float] = []
    ended, heard = asyncio.Event(), asyncio.Event()

    async def write_others() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            number = 0
            while not ended.is_set():
                index, score = rows + number % OTHERS, number // OTHERS / 100
                sent[index, score] = time.monotonic()
                await connection.execute(
                    "update public.daily_engagement_scores set final_score = %s where user_id = %s",
                    (score, user(index)),
                )
                number += 1
                await asyncio.sleep(1 / OTHERS_A_SECOND)

    async def hear_others(socket: websockets.ClientConnection) -> None:
        async for text in socket:
            event = json.loads(text).get("event", {})
            key = (int(str(event.get("user_id", "0"))[-12:], 16), event.get("final_score"))
            if key in sent:
                waits.append(time.monotonic() - sent.pop(key))
                if not sent:
                    heard.set()

    async def commit() -> float:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            await connection.execute(
                "update public.daily_engagement_scores set momentum_state = 'Rising' where user_id < %s", (user(rows),)
            )
            return time.monotonic()

    watched = ",".join(f"momentum_updates:{user(rows + number)}" for number in range(OTHERS))
    async with (
        websockets.connect(f"{address}?channels=momentum_updates:all", additional_headers=admin) as everything,
        websockets.connect(f"{address}?client_id=others&channels={watched}", additional_headers=admin) as some,
    ):
        for socket in (everything, some):
            await asyncio.wait_for(socket.recv(), TIMEOUT_S)  # its opening: later commits arrive as events
        async with asyncio.TaskGroup() as tasks:  # a failure of one ends the others and is raised
            hearing = tasks.create_task(hear_others(some))
            writing = tasks.create_task(write_others())
            committing = tasks.create_task(commit())
            count = 0
            while count < rows:
                text = await asyncio.wait_for(everything.recv(), TIMEOUT_S)
                count += b'"Rising"' in (text if isinstance(text, bytes) else text.encode())
                if count % 1000 == 0:
                    most = max(most, resident(server.pid))
            took = time.monotonic() - await committing
            ended.set()
            await writing
            heard.clear()
            while sent:
                await asyncio.wait_for(heard.wait(), TIMEOUT_S)
            hearing.cancel()
    return took, waits, most - before

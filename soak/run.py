"""One long run: a server, clients that come and go, writers, small faults, and samples."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import websockets
from psycopg import AsyncConnection

from benchmarks.environment import PATH, environment, serving, token, user
from soak.verdict import Sample

_USERS = 200
_FAULT_EVERY_S = 30.0
_TOKEN_S = 600.0
_SAMPLE_EVERY_S = 5.0
_CUT_SERVER = """
select pg_terminate_backend(pid) from pg_stat_activity
where application_name like 'momentum-sync %' and application_name not like 'momentum-sync soak%'
    and random() < 0.5
"""


@dataclass
class Result:
    """Samples, faults, and errors that clients saw."""

    samples: list[Sample] = field(default_factory=list)
    faults: int = 0
    connects: int = 0
    received: int = 0
    wrong: list[str] = field(default_factory=list)


def soak(seconds: float, rate: float, clients: int, tell: Callable[[Sample], None]) -> Result:
    """Run for this long, with this many score changes a second and clients at a time. `tell` gets each sample."""
    # A window that is full after some minutes, as it is after an hour in production: until then memory grows.
    window = ("--window-bytes", str(8 * 2**20))
    with environment(_USERS) as (conninfo, folder), serving(conninfo, folder, *window) as server:
        return asyncio.run(_run(conninfo, server.url, server.pid, seconds, rate, clients, tell))


async def _run(
    conninfo: str, url: str, pid: int, seconds: float, rate: float, clients: int, tell: Callable[[Sample], None]
) -> Result:
    result, began = Result(), time.monotonic()
    ends = began + seconds
    tasks = [asyncio.create_task(_client(url, number, result, ends)) for number in range(clients)]
    tasks += [asyncio.create_task(_write(conninfo, rate, ends)), asyncio.create_task(_break(conninfo, result, ends))]
    try:
        async with httpx.AsyncClient(timeout=5.0) as http:
            while time.monotonic() < ends:
                await asyncio.sleep(_SAMPLE_EVERY_S)
                for task in tasks:
                    if task.done():
                        task.result()
                sample = await _sample(conninfo, http, url, pid, time.monotonic() - began, result)
                if sample is not None:
                    result.samples.append(sample)
                    tell(sample)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return result


async def _sample(
    conninfo: str, http: httpx.AsyncClient, url: str, pid: int, at: float, result: Result
) -> Sample | None:
    """Return the present values; None while the database or the server does not answer, as after a fault."""
    with suppress(psycopg.Error, httpx.HTTPError):
        health = (await http.get(f"{url}/sync/health")).json()
        async with await AsyncConnection.connect(conninfo, autocommit=True, connect_timeout=5) as connection:
            row = await (await connection.execute(
                "select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint,"
                " coalesce((select last_number from momentum.stream), 0)"
                " from pg_inherits i join pg_class c on c.oid = i.inhrelid"
                " where i.inhparent = 'momentum.event_log'::regclass"
            )).fetchone()  # fmt: skip
        assert row is not None
        return Sample(
            at=round(at, 1), rss=_rss(pid), files=_files(pid),
            clients=health["connected_clients"], retained=health["capture"]["slot"]["retained"] or 0, log=row[0],
            events=row[1], received=result.received, lag_ms=health["capture"]["lag_ms"],
        )  # fmt: skip
    return None


def _files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the server has ended")


async def _client(url: str, number: int, result: Result, ends: float) -> None:
    """Connect, stay for a while, leave, and resume."""
    chance = random.Random(number)
    index, last = number % _USERS, ""
    address = f"ws://{urlsplit(url).netloc}{PATH}"
    bearer, renew = "", 0.0
    while time.monotonic() < ends:
        if time.monotonic() >= renew:  # as an app does: one token for many connections
            bearer, renew = token(index), time.monotonic() + _TOKEN_S
        query = f"?client_id=soak-{number}" + (f"&last_event_id={last}" if last else "")
        stays = time.monotonic() + chance.uniform(2.0, 40.0)
        try:
            async with websockets.connect(
                address + query, additional_headers={"Authorization": f"Bearer {bearer}"}, open_timeout=10
            ) as socket:
                result.connects += 1
                previous = last
                while time.monotonic() < stays:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max(0.1, stays - time.monotonic())):
                            message = json.loads(await socket.recv())
                            previous = _take(message, number, previous, result)
                            last = previous
        except (OSError, TimeoutError, websockets.WebSocketException):
            await asyncio.sleep(chance.uniform(0.1, 1.0))  # a fault; it resumes


def _take(message: dict[str, object], number: int, previous: str, result: Result) -> str:
    """Check that a message follows the one before. Return the client's position."""
    match message["type"]:
        case "initial_state":
            return str(message["last_event_id"])
        case "realtime_event" | "cache_invalidation":
            event = message["event"] if message["type"] == "realtime_event" else message
            assert isinstance(event, dict)
            if event["previous_id"] != previous:
                result.wrong.append(f"client {number}: {event['id']} follows {event['previous_id']}, not {previous}")
            result.received += message["type"] == "realtime_event"
            return str(event["id"])
    return previous


async def _write(conninfo: str, rate: float, ends: float) -> None:
    chance = random.Random(1)
    while time.monotonic() < ends:
        with suppress(psycopg.OperationalError):
            async with await AsyncConnection.connect(
                conninfo, autocommit=True, application_name="momentum-sync soak", connect_timeout=5
            ) as connection:
                while time.monotonic() < ends:
                    await connection.execute(
                        "update public.daily_engagement_scores set final_score = %s where user_id = %s",
                        (chance.randrange(100), user(chance.randrange(_USERS))),
                    )
                    await asyncio.sleep(1.0 / rate)
        await asyncio.sleep(0.5)


async def _break(conninfo: str, result: Result, ends: float) -> None:
    """Cut half of the server's connections to the database, again and again."""
    while time.monotonic() < ends:
        await asyncio.sleep(_FAULT_EVERY_S)
        async with await AsyncConnection.connect(
            conninfo, autocommit=True, application_name="momentum-sync soak", connect_timeout=5
        ) as connection:
            await connection.execute(_CUT_SERVER)
        result.faults += 1

"""`serve --workers`: processes that share a port, are started again, and end with their parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from psycopg.conninfo import make_conninfo

from momentum_sync import Client as SdkClient
from momentum_sync import FileStore, Resync
from momentum_sync.settings import read
from momentum_sync.tasks import end
from momentum_sync.workers import count_of, environment
from tests.fixtures.cli import clean
from tests.fixtures.postgres import CAPTURE_ROLE, SERVER_ROLE, Sql, add_notification
from tests.fixtures.server import SECRET, SERVICE_KEY, TIMEOUT_S, Server, settings_for, sign


class Workers:
    """A running `serve --workers 2`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def pids(self) -> dict[str, int]:
        """Return the process ids by the names of the workers, as they were started first."""
        (line,) = [line for line in self.lines() if line["event"] == "workers started"]
        return {name: int(str(line[name])) for name in ("capture", "gateway_1", "gateway_2")}

    async def until_logged(self, event: str, count: int, **parts: object) -> list[dict[str, object]]:
        async with asyncio.timeout(4 * TIMEOUT_S):
            while True:
                found = [line for line in self.lines() if line["event"] == event and parts.items() <= line.items()]
                if len(found) >= count:
                    return found
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.05)


def started(folder: Path, variables: dict[str, str]) -> Workers:
    """Start `serve --workers 2` under these variables."""
    log = folder / "workers.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "momentum_sync", "serve", "--workers", "2", "--port", "0"], env=variables,
            cwd=folder, stdout=output, stderr=output,
        )  # fmt: skip
    return Workers(process, log)


@asynccontextmanager
async def running(database: str, folder: Path) -> AsyncIterator[tuple[Workers, Server]]:
    url, capture = (make_conninfo(database, user=role) for role in (SERVER_ROLE, CAPTURE_ROLE))
    variables = clean(folder, {
        "DATABASE_URL": url, "MOMENTUM_CAPTURE_URL": capture, "SUPABASE_JWT_SECRET": SECRET,
        "SUPABASE_SERVICE_ROLE_KEY": SERVICE_KEY, "MOMENTUM_DRAIN": "1s",
    })  # fmt: skip
    workers = started(folder, variables)
    process = workers.process
    try:
        found = await workers.until_logged("listening", 2, role="gateway")
        assert found[0]["url"] == found[1]["url"]
        server = Server(str(found[0]["url"]), settings_for(url))
        for line in found:
            async with httpx.AsyncClient(base_url=str(line["own_url"])) as http, asyncio.timeout(TIMEOUT_S):
                while (await http.get("/sync/health")).status_code != 200:
                    await asyncio.sleep(0.05)
        yield workers, server
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 4 * TIMEOUT_S) == 0
    for pid in workers.pids().values():
        assert not is_running(pid)


async def connections(url: str) -> int:
    async with httpx.AsyncClient(base_url=url) as http:
        return int((await http.get("/sync/health")).json()["connected_clients"])


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie, which its parent has not reaped, has ended, too.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


async def test_workers_share_a_port_and_are_started_again(
    database: str, db: Sql, user: UUID, tmp_path: Path
) -> None:  # fmt: skip
    async with running(database, tmp_path) as (workers, server):
        async with AsyncExitStack() as stack:
            for number in range(20):  # the kernel spreads connections
                await stack.enter_async_context(server.live(user, client_id=str(number)))
            counts = [
                await connections(str(line["own_url"]))
                for line in await workers.until_logged("listening", 2, role="gateway")
            ]
            assert sum(counts) == 20
            assert {line["worker"] for line in workers.lines() if line.get("role") == "gateway"} == {
                "gateway_1", "gateway_2",
            }  # fmt: skip
            assert all(counts)
        async with server.live(user, client_id="phone") as client:
            add_notification(db, user, title="one")
            last = (await client.until("realtime_event"))["event"]["id"]
        for name in ("capture", "gateway_1"):
            os.kill(workers.pids()[name], signal.SIGKILL)
            (line, *_) = await workers.until_logged("worker ended", 1, worker=name)
            assert line["status"] == -signal.SIGKILL
            add_notification(db, user, title="two")
            while True:
                try:
                    async with server.connect(sign(user), client_id="phone", last_event_id=last) as client:
                        assert (await client.next())["resumed"]
                        last = (await client.until("realtime_event"))["event"]["id"]
                    break
                except (OSError, httpx.HTTPError, EOFError):
                    await asyncio.sleep(0.1)
        await workers.until_logged("capture live", 2)
        await workers.until_logged("listening", 3, role="gateway")


async def test_a_rolling_restart_that_no_client_notices(
    database: str, db: Sql, user: UUID, tmp_path: Path
) -> None:  # fmt: skip
    async with running(database, tmp_path) as (workers, server):
        store = tmp_path / "client.json"

        async def token() -> str:
            return sign(user)

        async with SdkClient(server.url, token=token, store=FileStore(store)) as client:
            got: list[str] = []

            async def follow() -> None:
                async for event in client.events():
                    assert not isinstance(event, Resync), event
                    if "title" in event.fields:
                        got.append(str(event.fields["title"]))

            async with asyncio.timeout(TIMEOUT_S):
                await client.wait_until_live()
            following = asyncio.create_task(follow())
            before = workers.pids()
            workers.process.send_signal(signal.SIGHUP)
            sent = 0
            while len([line for line in workers.lines() if line["event"] == "worker replaced"]) < 3:
                add_notification(db, user, title=str(sent))
                sent += 1
                await asyncio.sleep(0.1)
                assert workers.process.poll() is None
            add_notification(db, user, title="last")
            async with asyncio.timeout(4 * TIMEOUT_S):
                while got[-1:] != ["last"]:
                    await asyncio.sleep(0.05)
            await end(following)
        assert got == [*map(str, range(sent)), "last"]
        replaced = [line for line in workers.lines() if line["event"] == "worker replaced"]
        assert [line["worker"] for line in replaced] == ["gateway_1", "gateway_2", "capture"]
        assert not any(map(is_running, before.values()))


async def test_workers_end_with_a_parent_that_was_killed(database: str, tmp_path: Path) -> None:
    variables = clean(tmp_path, {"DATABASE_URL": make_conninfo(database), "SUPABASE_JWT_SECRET": SECRET})
    workers = started(tmp_path, variables)
    process = workers.process
    await workers.until_logged("listening", 3)
    pids = workers.pids()
    process.kill()
    await asyncio.to_thread(process.wait)
    async with asyncio.timeout(2 * TIMEOUT_S):
        while any(map(is_running, pids.values())):
            await asyncio.sleep(0.05)


def test_workers_get_the_settings_wherever_they_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOMENTUM_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("MOMENTUM_WORKERS", "4")
    settings = read(
        jwt_secret="x" * 32, retention="36h", allowed_origins="https://a.example,https://b.example",
        token_in_query=True, own_port=9000,
    )  # fmt: skip
    found = environment(settings, "postgresql://h/d", "nats://n:1", 8800)
    assert count_of(settings) == 4
    expected = {
        "SUPABASE_JWT_SECRET": "x" * 32, "MOMENTUM_RETENTION": "129600.000000s", "MOMENTUM_TOKEN_IN_QUERY": "True",
        "MOMENTUM_ALLOWED_ORIGINS": "https://a.example,https://b.example", "MOMENTUM_LOG_LEVEL": "DEBUG",
        "DATABASE_URL": "postgresql://h/d", "MOMENTUM_NATS_URL": "nats://n:1", "MOMENTUM_PORT": "8800",
    }  # fmt: skip
    assert {
        name: value for name, value in found.items() if name.startswith(("MOMENTUM_", "SUPABASE_", "DATABASE_"))
    } == expected

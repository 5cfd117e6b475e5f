"""An upgrade from the last release: database, capture and gateway, while clients are connected; and mixed SDKs.

`tests/fixtures/releases` has the wheel of the last release. A release replaces it with its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
import websockets

from tests.fixtures.gateways import Nats
from tests.fixtures.postgres import add_notification, new_user
from tests.fixtures.server import SECRET, TIMEOUT_S, Client, Server, sign, until_state

(WHEEL,) = (Path(__file__).parents[1] / "fixtures" / "releases").glob("*.whl")
SOURCE = Path(__file__).parents[2] / "src"

FOLLOW = """
import asyncio, sys
import momentum_sync

async def main():
    url, token, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    async with momentum_sync.Client(url, token, client_id="sdk") as client:
        await client.wait_until_live()
        print("live", flush=True)
        async for event in client.events():
            if isinstance(event, momentum_sync.Event):
                print(event["title"], flush=True)
                count -= 1
                if not count:
                    return

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the last release's package."""
    folder = tmp_path_factory.mktemp("release")
    zipfile.ZipFile(WHEEL).extractall(folder)
    return folder


class Version:
    """The command of one version, on one database."""

    def __init__(self, package: Path, database: str, nats: Nats | None, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MOMENTUM_", "SUPABASE_"))},
            "PYTHONPATH": str(package), "DATABASE_URL": database, "SUPABASE_JWT_SECRET": SECRET, "MOMENTUM_PORT": "0",
            "MOMENTUM_DRAIN": "0.1s", "MOMENTUM_DATA_DIR": str(folder),
        }  # fmt: skip
        if nats is not None:
            self.environment["MOMENTUM_NATS_URL"] = nats.url

    def migrate(self, *more: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "momentum_sync", "migrate", *more], env=self.environment, cwd=self.folder,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    @asynccontextmanager
    async def serving(self, role: str, *, state: str = "live") -> AsyncIterator[tuple[Server, subprocess.Popen[bytes]]]:
        """Run a server of this version. It is killed at the end, unless it has ended by then."""
        log = self.folder / f"{role}-{id(self)}-{len(list(self.folder.iterdir()))}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "momentum_sync", "serve", "--role", role], env=self.environment,
                cwd=self.folder, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                while not (lines := [line for line in log.read_text().splitlines() if '"listening"' in line]):
                    assert process.poll() is None, log.read_text()
                    await asyncio.sleep(0.05)
            server = Server(json.loads(lines[0])["url"], None)  # type: ignore[arg-type]
            await until_state(server, state)
            yield server, process
        finally:
            process.kill()
            process.wait(30)


async def titles(client: Client, until: str) -> list[str]:
    """Return the titles of notifications, up to one of them."""
    found: list[str] = []
    while not found or found[-1] != until:
        found.append((await client.until("realtime_event"))["event"]["title"])
    return found


async def reconnected(server: Server, user: UUID, last: str) -> Client:
    socket = await websockets.connect(
        f"{server.ws}/ws?client_id=phone&last_event_id={last}", max_queue=None,
        additional_headers={"Authorization": f"Bearer {sign(user)}"},
    )  # fmt: skip
    return Client(socket)


async def test_servers_are_replaced_one_by_one_and_a_client_misses_nothing(
    empty_database: str, release: Path, nats: Nats, tmp_path: Path
) -> None:
    Version(release, empty_database, None, tmp_path).migrate()  # that version refuses NATS's address here
    old, new = (Version(package, empty_database, nats, tmp_path) for package in (release, SOURCE))
    with psycopg.connect(empty_database, autocommit=True) as db:
        user = new_user(db)
        async with old.serving("capture") as (_, old_capture), old.serving("gateway") as (first, old_gateway):
            async with first.live(user, client_id="phone") as client:
                add_notification(db, user, title="one")
                event = (await client.until("realtime_event"))["event"]
                assert event["title"] == "one"
                await asyncio.to_thread(new.migrate, "--again")
                add_notification(db, user, title="two")
                event = (await client.until("realtime_event"))["event"]
            async with new.serving("gateway") as (second, _):
                old_gateway.send_signal(signal.SIGTERM)
                add_notification(db, user, title="three")
                client = await reconnected(second, user, event["id"])
                assert (await client.until("subscription_confirmed"))["resumed"]
                assert await titles(client, "three") == ["three"]
                async with new.serving("capture", state="waiting"):
                    old_capture.send_signal(signal.SIGTERM)
                    for number in range(20):
                        add_notification(db, user, title=str(number))
                        await asyncio.sleep(0.05)
                    assert await titles(client, "19") == [str(number) for number in range(20)]
                await client.socket.close()


@pytest.mark.parametrize("way", ["the last release's SDK", "the last release's server"])
async def test_sdk_and_server_of_two_versions(empty_database: str, release: Path, tmp_path: Path, way: str) -> None:
    server_is_old = way.endswith("server")
    server = Version(release if server_is_old else SOURCE, empty_database, None, tmp_path)
    server.migrate()
    with psycopg.connect(empty_database, autocommit=True) as db:
        user = new_user(db)
        async with server.serving("all") as (running, _):
            sdk = await asyncio.create_subprocess_exec(
                sys.executable, "-c", FOLLOW, running.url, sign(user), "3", stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(SOURCE if server_is_old else release)}, cwd=tmp_path,
            )  # fmt: skip
            assert sdk.stdout is not None
            async with asyncio.timeout(4 * TIMEOUT_S):
                assert await sdk.stdout.readline() == b"live\n"
                for title in ("a", "b", "c"):
                    add_notification(db, user, title=title)
                assert await sdk.stdout.read() == b"a\nb\nc\n"
                assert await sdk.wait() == 0


def test_a_new_server_on_an_old_database_names_the_command(empty_database: str, release: Path, tmp_path: Path) -> None:
    Version(release, empty_database, None, tmp_path).migrate()
    new = Version(SOURCE, empty_database, None, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "momentum_sync", "serve"], env=new.environment, cwd=tmp_path, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "momentum-sync migrate" in done.stderr
    new.migrate()

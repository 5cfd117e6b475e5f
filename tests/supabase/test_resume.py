"""Each of Supabase's clients, while its network or the server is away: nothing is lost."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from faults.listening import start_server
from faults.proxy import Proxy
from momentum_sync.settings import read
from tests.fixtures.cli import clean
from tests.fixtures.postgres import Sql
from tests.fixtures.server import ANON_KEY, SECRET, Server, Start, sign, until_state
from tests.fixtures.todos import TODOS, add_todo
from tests.sdk.drivers import Driver
from tests.supabase.programs import NAMES, missing, program

RESUMED = "Resumed: the changes since this client was last connected follow."


class App:
    """An app with one of the clients, behind a network that can be cut and a server that can be restarted."""

    def __init__(self, driver: Driver, network: Proxy, user: UUID) -> None:
        self.driver = driver
        self.network = network
        self.user = user

    async def live(self, **params: str) -> None:
        """Connect, and join a private topic for the user's rows and for messages from the database."""
        await self.driver.do(
            "open", url=f"http://127.0.0.1:{self.network.port}", key=ANON_KEY,
            token=sign(self.user, session_id="one"), params=params,
        )  # fmt: skip
        await self.driver.do("subscribe", topic="room", bindings=[TODOS], config={"private": True}, events=["added"])
        await self.driver.until(lambda one: one.get("status") == "SUBSCRIBED")

    def rows(self) -> list[int]:
        """Return the rows of all changes that came, in order."""
        return [change["new"]["id"] for change in self.driver.all("change")]

    def messages(self) -> list[int]:
        """Return the rows of all messages that came, in order."""
        return [message["payload"]["row"] for message in self.driver.all("broadcast")]

    async def until(self, number: int) -> None:
        """Wait for the change of a row, and for the message about it."""
        await self.driver.come(lambda: number in self.rows() and number in self.messages(), True)

    def check(self, count: int) -> None:
        """Check that everything came, and that the first time each came is in order."""
        for came in (self.rows(), self.messages()):
            first = list(dict.fromkeys(came))
            assert first == list(range(count)), came


@pytest_asyncio.fixture(params=NAMES)
async def app(request: pytest.FixtureRequest, todos: Sql) -> AsyncIterator[App]:
    """Yield an app with each client in turn, without a server."""
    if reason := missing(request.param):
        pytest.skip(reason)
    network = Proxy()
    await network.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(network.stop)
        client = await stack.enter_async_context(program(request.param))
        driver = await stack.enter_async_context(client.start())
        yield App(driver, network, uuid4())


class Writer:
    """Writes rows, one after the other, each with a message in the same transaction."""

    def __init__(self, sql: Sql, user: UUID) -> None:
        self.count = 0
        self._sql = sql
        self._user = user
        sql.execute("create policy everybody on realtime.messages for select to authenticated using (true)")

    def _add(self) -> None:
        with self._sql.transaction():
            add_todo(self._sql, self.count, self._user)
            row = (self.count,)
            self._sql.execute("select realtime.send(jsonb_build_object('row', %s::int), 'added', 'room')", row)

    async def write(self, count: int) -> None:
        """Write some rows, with a little time between them."""
        for _ in range(count):
            await asyncio.to_thread(self._add)
            self.count += 1
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("params", [{"client_id": "device"}, {}], ids=["client_id", "session_id"])
async def test_cuts_lose_nothing(app: App, start: Start, todos: Sql, params: dict[str, str]) -> None:
    writer = Writer(todos, app.user)
    async with start() as server:
        app.network.ports = [int(server.url.rsplit(":", 1)[1])]
        await app.live(**params)
        for _ in range(2):
            await writer.write(10)
            ports, app.network.ports = app.network.ports, []
            app.network.cut(Random(0), share=1.0)
            await writer.write(10)
            app.network.ports = ports
            await app.until(writer.count - 1)
        app.check(writer.count)
        assert RESUMED in [system["message"] for system in app.driver.all("system")]


async def test_a_killed_server_loses_nothing(app: App, database: str, todos: Sql, tmp_path: Path) -> None:
    writer = Writer(todos, app.user)

    async def serve() -> subprocess.Popen[bytes]:
        process, port = await start_server(
            ["-m", "momentum_sync"], folder=tmp_path, log=tmp_path / "server.log", seconds=60.0,
            environment=clean(tmp_path, {
                "DATABASE_URL": database, "SUPABASE_JWT_SECRET": SECRET, "SUPABASE_ANON_KEY": ANON_KEY,
            }),
        )  # fmt: skip
        settings = read(database_url=database, jwt_secret=SECRET)
        await until_state(Server(f"http://127.0.0.1:{port}", settings), "live")
        app.network.ports = [port]
        return process

    process = await serve()
    try:
        await app.live(client_id="device")
        for _ in range(2):
            await writer.write(10)
            await app.until(writer.count - 1)
            await writer.write(3)
            app.network.ports = []  # the port is free for other programs
            process.kill()
            await asyncio.to_thread(process.wait)
            await writer.write(5)
            process = await serve()
            await app.until(writer.count - 1)
        app.check(writer.count)
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)

"""A database, a server, a network with faults, and an SDK."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from faults.listening import start_server
from faults.proxy import Proxy
from momentum_sync.settings import read
from tests.fixtures.cli import clean
from tests.fixtures.server import SECRET, Server, Start, sign, until_state
from tests.sdk import drivers
from tests.sdk.drivers import Driver, Program


@dataclass
class World:
    """A user's program that reaches a server through a network with faults."""

    user: UUID
    database: str
    folder: Path
    network: Proxy
    sdk: Program | drivers.Chromium
    origin: str | None
    serve: Callable[..., AbstractAsyncContextManager[int]]
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def url(self) -> str:
        """Return the address of the present server for the program."""
        return f"http://127.0.0.1:{self.network.port}"

    @asynccontextmanager
    async def client(
        self, *, token: str | list[str] | None = None, patience: float = 60.0, channels: list[str] | None = None,
        store: bool = False, user_id: str | None = None, client_id: str | None = None, store_failures: int = 0,
    ) -> AsyncIterator[Driver]:  # fmt: skip
        """Run a program that follows the user."""
        tokens = token if isinstance(token, list) else [token or sign(self.user)]
        async with self.sdk.start() as driver:
            await driver.do(
                "open", url=self.url, token=tokens, patience=patience, channels=channels or [],
                store=self.sdk.store(self.folder) if store else None, user_id=user_id, client_id=client_id,
                store_failures=store_failures,
            )  # fmt: skip
            yield driver


@pytest_asyncio.fixture(params=["python", "node", "chromium"])
async def world(
    request: pytest.FixtureRequest, start: Start, database: str, user: UUID, tmp_path: Path
) -> AsyncIterator[World]:
    """Yield a server that can be stopped and started behind a network, and one of the SDKs."""
    if reason := drivers.missing(request.param):
        pytest.skip(reason)
    network = Proxy()
    await network.start()
    async with AsyncExitStack() as stack:
        sdk: Program | drivers.Chromium
        origin = None
        if request.param == "chromium":
            sdk, origin = await stack.enter_async_context(drivers.chromium())
        else:
            sdk = drivers.python() if request.param == "python" else drivers.node()

        @asynccontextmanager
        async def serve(**settings: Any) -> AsyncIterator[int]:
            allowed = {"allowed_origins": origin} if origin is not None else {}
            async with start(heartbeat="1s", **allowed, **settings) as server:
                port = int(server.url.rsplit(":", 1)[1])
                network.ports = [port]
                try:
                    yield port
                finally:
                    network.ports = []  # the port is free for other programs

        yield World(user, database, tmp_path, network, sdk, origin, serve)
    await network.stop()


class Process:
    """`momentum-sync serve` as an operator runs it: a process that can be killed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        world = self._world
        environment = {
            "DATABASE_URL": world.database, "SUPABASE_JWT_SECRET": SECRET, "MOMENTUM_HEARTBEAT": "1s",
            **({"MOMENTUM_ALLOWED_ORIGINS": world.origin} if world.origin is not None else {}),
        }  # fmt: skip
        self._running, port = await start_server(
            ["-m", "momentum_sync"], environment=clean(world.folder, environment), folder=world.folder,
            log=world.folder / "server.log", seconds=30,
        )  # fmt: skip
        settings = read(database_url=world.database, jwt_secret=SECRET)
        await until_state(Server(f"http://127.0.0.1:{port}", settings), "live")
        world.network.ports = [port]

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self._world.network.ports = []  # the port is free for other programs
        if self._running is not None:
            self._running.kill()
            self._running.wait()
            self._running = None


@pytest_asyncio.fixture
async def process(world: World) -> AsyncIterator[Process]:
    """Yield a server in a process of its own."""
    running = Process(world)
    await running.start()
    yield running
    running.kill()

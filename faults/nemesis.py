"""What goes wrong: servers, PostgreSQL and the network, each mistreated in turn by a schedule that a seed gives."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import httpx
import psycopg

from faults.proxy import Proxy
from momentum_sync.database.embedded import Embedded

_READY_S = 60.0
_ROOT = Path(__file__).resolve().parents[1]

FAULTS = {
    "kill -9 of the server": 4, "rolling restart": 3, "server paused": 3, "WAL sender paused": 2,
    "PostgreSQL restarted at once": 3, "connections cut": 5, "connections dead": 3, "commits held": 4,
    "slot dropped": 1, "log truncated": 1, "nothing": 2,
}  # fmt: skip
"""What can be done, and how often beside the others."""


class Servers:
    """Server processes behind a proxy: one that serves, at times another that waits."""

    def __init__(
        self, conninfo: str, secret: str, proxy: Proxy, log: Path, mutation: str | None, *, capture: str | None = None
    ) -> None:
        self._environment = {
            **os.environ, "DATABASE_URL": conninfo, "SUPABASE_JWT_SECRET": secret, "MOMENTUM_HEARTBEAT": "1s",
            "MOMENTUM_DRAIN": "1s", "MOMENTUM_LOG_LEVEL": "INFO", "MOMENTUM_WINDOW_BYTES": "200000",
            "MOMENTUM_SEND_BUFFER_BYTES": "16384",
        }  # fmt: skip
        if capture is not None:
            self._environment["MOMENTUM_CAPTURE_URL"] = capture
        self._program = ["-m", "momentum_sync"] if mutation is None else ["-m", "faults.mutations", mutation]
        self._proxy = proxy
        self._log = log
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> int:
        """Starts one; returns its port."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        with self._log.open("ab") as log:
            self.processes[port] = subprocess.Popen(
                [sys.executable, *self._program, "serve", "--port", str(port)], env=self._environment, cwd=_ROOT,
                stdout=log, stderr=log,
            )  # fmt: skip
        self._proxy.ports.insert(0, port)
        return port

    async def until(self, port: int, *states: str) -> None:
        """Waits until the server's capture is in one of the states."""
        async with asyncio.timeout(_READY_S), httpx.AsyncClient(timeout=2.0) as http:
            while True:
                with suppress(httpx.HTTPError):
                    health = (await http.get(f"http://127.0.0.1:{port}/sync/health")).json()
                    if health["capture"]["state"] in states:
                        return
                if self.processes[port].poll() is not None:
                    raise RuntimeError(f"the server ended by itself; see {self._log}")
                await asyncio.sleep(0.05)

    async def end(self, port: int, number: int) -> None:
        """Ends one by a signal and waits for it."""
        self._proxy.ports.remove(port)
        process = self.processes.pop(port)
        process.send_signal(number)
        await asyncio.to_thread(process.wait, 60)

    @property
    def serving(self) -> int:
        """The port of the one that has served longest."""
        return next(iter(self.processes))


class Nemesis:
    """`faults` counts what was done, by its name."""

    def __init__(self, servers: Servers, postgres: Embedded, proxy: Proxy, chance: Random) -> None:
        self._servers = servers
        self._postgres = postgres
        self._proxy = proxy
        self._chance = chance
        self._picks = Random(chance.random())  # which connections: how many there are must not move the schedule
        self.faults: Counter[str] = Counter()
        self._done_by: dict[str, Callable[[], Awaitable[None]]] = {
            "kill -9 of the server": self.kill_server,
            "rolling restart": self.roll,
            "server paused": self.pause_server,
            "WAL sender paused": self.pause_sender,
            "PostgreSQL restarted at once": self.crash_postgres,
            "connections cut": self.cut,
            "connections dead": self.go_dead,
            "commits held": self.hold_commits,
            "slot dropped": self.drop_slot,
            "log truncated": self.truncate_log,
            "nothing": self.rest,
        }

    async def rage(self, seconds: float, only: list[str] | None = None) -> None:
        """One fault after another, for so long."""
        menu = only or list(FAULTS)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            (name,) = self._chance.choices(menu, [FAULTS[name] for name in menu])
            await self._done_by[name]()
            self.faults[name] += 1
            await asyncio.sleep(self._chance.uniform(0.2, 1.5))

    async def kill_server(self) -> None:
        await self._servers.end(self._servers.serving, signal.SIGKILL)
        await self._servers.until(self._servers.start(), "live")

    async def roll(self) -> None:
        """The next server waits for the slot before the first is asked to go."""
        old = self._servers.serving
        new = self._servers.start()
        await self._servers.until(new, "waiting", "live")
        await self._servers.end(old, signal.SIGTERM)
        await self._servers.until(new, "live")

    async def pause_server(self) -> None:
        process = self._servers.processes[self._servers.serving]
        await self._pause(process.pid)

    async def pause_sender(self) -> None:
        """The feed stands still while everything else runs."""
        with psycopg.connect(self._postgres.conninfo, autocommit=True) as connection:
            row = connection.execute(
                "select active_pid from pg_replication_slots where slot_name = 'momentum_sync' and active"
            ).fetchone()
        if row is not None:
            await self._pause(row[0])

    async def _pause(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(self._chance.uniform(0.3, 3.0))
            finally:
                os.kill(pid, signal.SIGCONT)

    async def crash_postgres(self) -> None:
        await asyncio.to_thread(self._postgres.restart, "immediate")
        await self._servers.until(self._servers.serving, "live")

    async def cut(self) -> None:
        self._proxy.cut(self._picks, 0.6)

    async def go_dead(self) -> None:
        self._proxy.go_dead(self._picks, 0.4)

    async def hold_commits(self) -> None:
        """Commits are in the WAL, and so on their way to clients, before any snapshot sees them."""
        with psycopg.connect(self._postgres.conninfo, autocommit=True) as connection:
            connection.execute("alter system set synchronous_standby_names = 'nobody'")
            connection.execute("select pg_reload_conf()")
            try:
                await asyncio.sleep(self._chance.uniform(0.5, 2.0))
            finally:
                connection.execute("alter system reset synchronous_standby_names")
                connection.execute("select pg_reload_conf()")

    async def drop_slot(self) -> None:
        with psycopg.connect(self._postgres.conninfo, autocommit=True) as connection:
            for _ in range(200):
                connection.execute(
                    "select pg_terminate_backend(active_pid) from pg_replication_slots"
                    " where slot_name = 'momentum_sync' and active"
                )
                try:
                    connection.execute("select pg_drop_replication_slot('momentum_sync')")
                except psycopg.errors.ObjectInUse:
                    await asyncio.sleep(0.01)
                    continue
                except psycopg.errors.UndefinedObject:
                    pass
                break
        await self._servers.until(self._servers.serving, "live")

    async def truncate_log(self) -> None:
        with psycopg.connect(self._postgres.conninfo, autocommit=True) as connection:
            connection.execute("set lock_timeout = '5s'")
            with suppress(psycopg.errors.LockNotAvailable):
                connection.execute("truncate momentum.event_log")

    async def rest(self) -> None:
        await asyncio.sleep(1.0)

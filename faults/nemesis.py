"""Faults of servers, PostgreSQL and the network, by a schedule that a seed determines."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random

import httpx
import psycopg

from faults.database import SERVER, Database
from faults.http_client import http_client
from faults.listening import start_server
from faults.proxy import Proxy

_UNDER_WAY_S = 2.0  # time for transactions that began before the policies changed
_READY_S = 60.0
_LOOKS = 4
_ROOT = Path(__file__).resolve().parents[1]
_HOSTILE = {
    "client_encoding": "LATIN1", "idle_session_timeout": "500ms", "statement_timeout": "1ms", "lock_timeout": "1ms",
    "default_transaction_read_only": "on", "search_path": "pg_temp", "datestyle": "SQL, DMY", "row_security": "off",
}  # fmt: skip

FAULTS = {
    "kill -9 of the server": 4, "rolling restart": 3, "server paused": 3, "WAL sender paused": 2,
    "PostgreSQL restarted at once": 3, "connections cut": 5, "connections dead": 3, "commits held": 4,
    "slot dropped": 1, "log truncated": 1, "nothing": 2, "database connections cut": 3, "database connections dead": 1,
    "database slow": 2, "clock of the server stepped": 3, "clock of the database stepped": 3, "table truncated": 1,
    "copy restored under the server": 1, "copy restored while no server runs": 1, "failover to a lagging standby": 1,
    "settings on roles": 1, "slow policy": 2,
}  # fmt: skip
"""What can be done, and how often beside the others."""


class Servers:
    """Server processes behind a proxy: one that serves, at times another that waits.

    `ready` is the time in seconds that one may take to reach a state.
    """

    def __init__(
        self, conninfo: str, secret: str, proxy: Proxy, log: Path, mutation: str | None, *, capture: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._environment = {
            **os.environ, "DATABASE_URL": conninfo, "SUPABASE_JWT_SECRET": secret, "MOMENTUM_HEARTBEAT": "1s",
            "MOMENTUM_DRAIN": "1s", "MOMENTUM_LOG_LEVEL": "INFO", "MOMENTUM_WINDOW_BYTES": "200000",
            "MOMENTUM_SEND_BUFFER_BYTES": "16384", **(environment or {}),
        }  # fmt: skip
        if capture is not None:
            self._environment["MOMENTUM_CAPTURE_URL"] = capture
        self._program = ["-m", "momentum_sync"] if mutation is None else ["-m", "faults.mutations", mutation]
        self._proxy = proxy
        self._log = log
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ready = _READY_S

    async def start_all(self, folder: Path) -> None:
        """Start the servers, and wait until they are live. `folder` is for files."""
        await self.until(await self.start(), "live")

    async def stop(self) -> None:
        """Kill everything."""
        for process in self.processes.values():
            process.kill()
            await asyncio.to_thread(process.wait, 30)

    async def start(self) -> int:
        """Start a server. Return its port."""
        process, port = await start_server(
            self._program, environment=self._environment, folder=_ROOT, log=self._log, seconds=self.ready
        )
        self.processes[port] = process
        self._proxy.ports.insert(0, port)
        return port

    async def until(self, port: int, *states: str) -> None:
        """Wait until the server's capture is in one of the states."""
        async with asyncio.timeout(self.ready), http_client(2.0) as http:
            while True:
                with suppress(httpx.HTTPError):
                    health = (await http.get(f"http://127.0.0.1:{port}/sync/health")).json()
                    if health["capture"]["state"] in states:
                        return
                if self.processes[port].poll() is not None:
                    raise RuntimeError(f"the server ended by itself; see {self._log}")
                await asyncio.sleep(0.05)

    def note(self, what: str) -> None:
        """Add a line to the servers' log."""
        with self._log.open("a") as log:
            print(f"{time.time():.3f} fault: {what}", file=log)

    def ask(self) -> None:
        """Have every server log the places at which its tasks wait."""
        for process in self.processes.values():
            process.send_signal(signal.SIGUSR1)

    async def end(self, port: int, number: int) -> None:
        """End a server by a signal and wait for it."""
        self._proxy.ports.remove(port)
        process = self.processes.pop(port)
        process.send_signal(number)
        await asyncio.to_thread(process.wait, 60)

    @property
    def serving(self) -> int:
        """Return the port of the server that has served longest."""
        return next(iter(self.processes))


class Nemesis:
    """Injects faults. `menu` has those that can be done, and how often; `faults` counts them by name."""

    def __init__(self, servers: Servers, database: Database, proxy: Proxy, chance: Random) -> None:
        self._servers = servers
        self._database = database
        self._proxy = proxy
        self._chance = chance
        self._picks = Random(chance.random())  # chooses connections; their number must not change the schedule
        self.faults: Counter[str] = Counter()
        self.policies_changed_at = float("-inf")  # seconds since 1970, by the database's clock
        self.menu: Mapping[str, int] = FAULTS
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
            "database connections cut": self.cut_database,
            "database connections dead": self.kill_database_network,
            "database slow": self.slow_database,
            "clock of the server stepped": self.step_server,
            "clock of the database stepped": self.step_database,
            "table truncated": self.truncate_table,
            "copy restored under the server": self.restore,
            "copy restored while no server runs": self.restore_alone,
            "failover to a lagging standby": self.fail_over,
            "settings on roles": self.settings_on_roles,
            "slow policy": self.slow_policy,
        }

    async def rage(self, seconds: float, only: list[str] | None = None) -> None:
        """Inject one fault after another for this long."""
        menu = [name for name in only or self.menu if self._database.has_clocks or not name.startswith("clock")]
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            (name,) = self._chance.choices(menu, [self.menu[name] for name in menu])
            self._servers.note(name)
            await self._done_by[name]()
            self.faults[name] += 1
            await asyncio.sleep(self._chance.uniform(0.2, 1.5))

    async def kill_server(self) -> None:
        await self._servers.end(self._servers.serving, signal.SIGKILL)
        await self._servers.until(await self._servers.start(), "live")

    # The network between the servers and PostgreSQL

    async def cut_database(self) -> None:
        self._database.proxy.cut(self._picks, 0.7)

    async def kill_database_network(self) -> None:
        """Make connections half-open: neither side hears from the other again."""
        self._database.proxy.go_dead(self._picks, self._chance.choice((0.5, 1.1)))
        await asyncio.sleep(1.0)  # longer than the interval after which silence is noticed
        await self._servers.until(self._servers.serving, "live")

    async def slow_database(self) -> None:
        self._database.proxy.delay = self._chance.uniform(0.001, 0.02)
        try:
            await asyncio.sleep(self._chance.uniform(1.0, 4.0))
        finally:
            self._database.proxy.delay = 0.0

    # Clocks

    async def step_server(self) -> None:
        self._database.set_clock("server", self._chance.uniform(-3.0, 3.0) * 3600)
        await asyncio.sleep(self._chance.uniform(1.0, 3.0))

    async def step_database(self) -> None:
        self._database.set_clock("database", -self._chance.choice((0.0, 60.0, 3600.0, 86_400.0, 2 * 86_400.0)))
        rest = self._chance.uniform(1.0, 3.0)
        for _ in range(_LOOKS):
            await asyncio.sleep(rest / _LOOKS)
            # PostgreSQL's timers go by this clock: a deadlock from before the step would be noticed a day later.
            await self._execute(
                "select pg_cancel_backend(pid) from pg_stat_activity"
                " where wait_event_type = 'Lock' and query_start > clock_timestamp() + interval '1 second'"
            )

    # Histories that end

    async def truncate_table(self) -> None:
        table = self._chance.choice(("daily_engagement_scores", "coach_interventions", "momentum_notifications"))
        await self._execute(f"truncate {table}")

    async def _execute(self, *statements: str) -> None:
        """Execute statements in a thread: they may wait for a lock holder that waits for this event loop's proxies."""

        def run() -> None:
            with psycopg.connect(self._database.conninfo, autocommit=True) as connection:
                for statement in statements:
                    connection.execute(statement.encode())

        await asyncio.to_thread(run)

    async def restore(self) -> None:
        """Restore a copy of the data directory, with slot and log, while the server runs."""
        await self._database.copy()
        await self._servers.until(self._servers.serving, "live")
        await asyncio.sleep(self._chance.uniform(1.0, 4.0))
        await self._database.restore()
        await self._servers.until(self._servers.serving, "live")

    async def restore_alone(self) -> None:
        await self._database.copy()
        await self._servers.until(self._servers.serving, "live")
        await asyncio.sleep(self._chance.uniform(1.0, 4.0))
        await self._servers.end(self._servers.serving, signal.SIGKILL)
        await self._database.restore()
        # At times long enough for the new branch to assign offsets that the previous one had assigned.
        await asyncio.sleep(self._chance.uniform(0.0, 8.0))
        await self._servers.until(await self._servers.start(), "live")

    async def fail_over(self) -> None:
        await self._database.follow()
        await asyncio.sleep(self._chance.uniform(0.5, 3.0))
        await self._database.fail_over()
        await self._servers.until(self._servers.serving, "live")

    # Operators' mistakes

    async def settings_on_roles(self) -> None:
        """Give the server's role settings that would break its connections."""
        await self._execute(*[f"alter role {SERVER} set {name} = '{value}'" for name, value in _HOSTILE.items()])
        try:
            self._database.proxy.cut(self._picks, 1.1)
            await asyncio.sleep(self._chance.uniform(2.0, 4.0))
            await self._servers.until(self._servers.serving, "live")
        finally:
            await self._execute(f"alter role {SERVER} reset all")

    async def slow_policy(self) -> None:
        """Make a policy slow for one user, without changing any rights."""
        await self._execute(
            "do $$ begin execute format("
            "'create policy slow on momentum_notifications as restrictive for select to authenticated using ("
            " case when auth.uid() = %L then (select pg_sleep(0.7)) is not null else true end)',"
            " (select min(s.user_id::text) from daily_engagement_scores s)); end $$"
        )
        self.policies_changed_at = await asyncio.to_thread(self._database_time) + _UNDER_WAY_S
        try:
            await asyncio.sleep(self._chance.uniform(2.0, 5.0))
        finally:
            await self._execute("drop policy slow on momentum_notifications")

    def _database_time(self) -> float:
        with psycopg.connect(self._database.conninfo, autocommit=True) as connection:
            row = connection.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
        assert row is not None
        return float(row[0])

    async def roll(self) -> None:
        """Start the next server, which waits for the slot, before the first is stopped."""
        old = self._servers.serving
        new = await self._servers.start()
        await self._servers.until(new, "waiting", "live")
        await self._servers.end(old, signal.SIGTERM)
        await self._servers.until(new, "live")

    async def pause_server(self) -> None:
        process = self._servers.processes[self._servers.serving]
        await self._pause(process.pid)

    async def pause_sender(self) -> None:
        """Stop the WAL sender while everything else runs."""
        with psycopg.connect(self._database.conninfo, autocommit=True) as connection:
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
        await asyncio.to_thread(self._database.postgres.restart, "immediate")
        await self._servers.until(self._servers.serving, "live")

    async def cut(self) -> None:
        self._proxy.cut(self._picks, 0.6)

    async def go_dead(self) -> None:
        self._proxy.go_dead(self._picks, 0.4)

    async def hold_commits(self) -> None:
        """Hold commits in the WAL, and so on their way to clients, before any snapshot sees them."""
        with psycopg.connect(self._database.conninfo, autocommit=True) as connection:
            connection.execute("alter system set synchronous_standby_names = 'nobody'")
            connection.execute("select pg_reload_conf()")
            try:
                await asyncio.sleep(self._chance.uniform(0.5, 2.0))
            finally:
                connection.execute("alter system reset synchronous_standby_names")
                connection.execute("select pg_reload_conf()")

    async def drop_slot(self) -> None:
        with psycopg.connect(self._database.conninfo, autocommit=True) as connection:
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
        with psycopg.connect(self._database.conninfo, autocommit=True) as connection:
            connection.execute("set lock_timeout = '5s'")
            with suppress(psycopg.errors.LockNotAvailable):
                connection.execute("truncate momentum.event_log")

    async def rest(self) -> None:
        await asyncio.sleep(1.0)

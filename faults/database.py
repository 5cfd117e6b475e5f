"""The PostgreSQL of one history: its network, its clock, its copies and its standbys."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from faults import clocks
from faults.proxy import Proxy
from faults.witness import Witness
from faults.workload import Writers
from momentum_sync.database.embedded import Embedded

SERVER = "momentum_faults"
"""The server's role: apart, so that settings can be put on it."""


class Database:
    """The current primary. `proxy` is the network between it and the servers.

    Call `copy` or `follow` first, and then `restore` or `fail_over`. `writers` must be there by then.
    """

    def __init__(self, postgres: Embedded, folder: Path, witness: Witness) -> None:
        self.postgres = postgres
        self.proxy = Proxy(websockets=False)
        self.witness = witness
        self.writers: Writers
        self._folder = folder
        self._standby: Embedded | None = None
        self._number = 0
        self._stack = ExitStack()
        self.proxy.ports = [_socket(postgres)]

    @property
    def conninfo(self) -> str:
        """Return the connection string of the primary itself, past the proxy."""
        return self.postgres.conninfo

    @property
    def servers_conninfo(self) -> str:
        """Return the connection string of the servers: through the proxy, as their role."""
        parts = conninfo_to_dict(self.postgres.conninfo)
        return make_conninfo(host="127.0.0.1", port=str(self.proxy.port), dbname=parts["dbname"], user=SERVER)

    def close(self) -> None:
        """Stop the clusters that took over."""
        self._stack.close()

    # Clocks

    @property
    def has_clocks(self) -> bool:
        """Return whether clocks can be set."""
        return clocks.can_step()

    def set_clock(self, whose: str, seconds: float) -> None:
        """Set the clock of the `server` or the `database` to this offset in seconds."""
        clocks.step(_clock(self._folder, whose), seconds)

    # A copy

    async def copy(self) -> None:
        """Copy the whole data directory while PostgreSQL is stopped."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            # PostgreSQL would wait a minute for the sender of a dead connection before it stops.
            connection.execute("select pg_terminate_backend(pid) from pg_stat_replication")
        await self._stop("fast")
        kept = self._kept()
        if kept.exists():
            await asyncio.to_thread(shutil.rmtree, kept)
        await asyncio.to_thread(_copy, self.postgres.cluster, kept)
        await asyncio.to_thread(self.postgres.start)

    async def restore(self) -> None:
        """Replace the data directory by the copy: same system identifier, same timeline, older slots and log."""
        with self.writers.paused():
            await asyncio.to_thread(self.witness.cut_off)
            await self._stop("immediate")
            await asyncio.to_thread(shutil.rmtree, self.postgres.cluster)
            await asyncio.to_thread(_copy, self._kept(), self.postgres.cluster)
            await asyncio.to_thread(self.postgres.start)

    def _kept(self) -> Path:
        return self.postgres.cluster.with_name("kept")

    # A standby

    async def follow(self) -> None:
        """Start a standby that has everything up to now and receives nothing more."""
        self._number += 1
        home = self._folder / f"standby{self._number}"
        home.mkdir(mode=0o755)
        standby = Embedded(home)
        await asyncio.to_thread(self._start_standby, standby)
        with psycopg.connect(standby.conninfo, autocommit=True) as connection:
            connection.execute("alter system set primary_conninfo = ''")
            connection.execute("select pg_reload_conf()")
            while connection.execute("select count(*) from pg_stat_wal_receiver").fetchone() != (0,):
                await asyncio.sleep(0.02)
        self._standby = standby

    def _start_standby(self, standby: Embedded) -> None:
        standby._make_home()
        standby._programs = standby._reachable_programs()
        parts = conninfo_to_dict(self.postgres.conninfo)
        standby._call(
            "pg_basebackup", "-D", str(standby.cluster), "-R", "-X", "stream", "-c", "fast", "-h", str(parts["host"]),
            "-U", "postgres",
        )  # fmt: skip
        self._stack.enter_context(standby)
        with psycopg.connect(standby.conninfo, autocommit=True) as connection:
            while connection.execute(
                "select count(*) from pg_stat_wal_receiver where status = 'streaming'"
            ).fetchone() == (0,):
                pass

    async def fail_over(self) -> None:
        """Promote the standby at the position that it has replayed, and stop the primary."""
        assert self._standby is not None
        standby, self._standby = self._standby, None
        with self.writers.paused():
            with psycopg.connect(standby.conninfo, autocommit=True) as connection:
                row = connection.execute("select pg_last_wal_replay_lsn()::text").fetchone()
                assert row is not None
                connection.execute("select pg_promote()")
            await asyncio.to_thread(self.witness.follow, standby.conninfo, str(row[0]))
            await self._stop("immediate")
            self.postgres = standby
            self.writers.conninfo = standby.conninfo
            self.proxy.ports = [_socket(standby)]

    async def _stop(self, mode: str) -> None:
        await asyncio.to_thread(self.postgres.stop, mode)


def clock_environment(folder: Path, whose: str) -> dict[str, str]:
    """Return the environment that lets `Database.set_clock` set a process's clock; empty where none can be set."""
    return clocks.environment(_clock(folder, whose)) if clocks.can_step() else {}


@contextmanager
def clock_of_children(folder: Path) -> Iterator[None]:
    """Give the database's clock to every process started in this block."""
    before = dict(os.environ)
    os.environ.update(clock_environment(folder, "database"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _clock(folder: Path, whose: str) -> Path:
    return folder / f"clock-{whose}"


def _socket(postgres: Embedded) -> Path:
    return Path(str(conninfo_to_dict(postgres.conninfo)["host"])) / ".s.PGSQL.5432"


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("postmaster.pid"))
    for path in (target, *target.rglob("*")):
        was = (source / path.relative_to(target)).lstat()
        os.chown(path, was.st_uid, was.st_gid, follow_symlinks=False)

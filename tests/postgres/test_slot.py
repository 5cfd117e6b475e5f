"""An unsuitable database is refused with one sentence and the command that fixes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from momentum_sync.capture import preflight
from momentum_sync.database.embedded import Embedded
from momentum_sync.database.migrate import migrate
from momentum_sync.errors import Unsuitable
from tests.fixtures.postgres import CAPTURE_ROLE, SERVER_ROLE, Sql, temporary_database


def complaint(conninfo: str, name: str = "momentum_sync") -> tuple[str, str]:
    with pytest.raises(Unsuitable) as unsuitable:
        preflight.check(conninfo, name)
    assert str(unsuitable.value).endswith(".")
    assert "\n" not in str(unsuitable.value)
    return str(unsuitable.value), unsuitable.value.hint


def test_a_good_database_passes(database: str) -> None:
    preflight.check(database, "momentum_sync")


def test_nothing_answers(database: str) -> None:
    sentence, hint = complaint(make_conninfo(database, host="127.0.0.1", port=1))
    assert "cannot be reached" in sentence
    assert "DATABASE_URL=" in hint


def test_too_old() -> None:
    # No server of that version is available here, so only the check of the version number is tested.
    version, *others = preflight.examine_server(14, "logical", "UTF8")
    assert str(version.problem).startswith("PostgreSQL 14 is too old; 15 is the oldest")
    assert [each.problem for each in (*others, *preflight.examine_server(15, "logical", "UTF8"))] == [None] * 5


def test_not_migrated(empty_database: str) -> None:
    assert complaint(empty_database) == (
        "The database is not migrated to this version.",
        "Run: momentum-sync migrate",
    )


def test_another_encoding(cluster: str) -> None:
    with psycopg.connect(cluster, autocommit=True) as admin:
        admin.execute("create database latin template template0 encoding 'LATIN1' locale 'C'")
        try:
            sentence, hint = complaint(make_conninfo(cluster, dbname="latin"))
        finally:
            admin.execute("drop database latin")
    assert "LATIN1" in sentence
    assert "encoding 'UTF8'" in hint


@pytest.fixture
def plain_role(database: str) -> Iterator[str]:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute('create role "Plain Role" login noinherit bypassrls')
        try:
            yield make_conninfo(database, user="Plain Role")
        finally:
            admin.execute(
                'reassign owned by "Plain Role" to postgres; drop owned by "Plain Role"; drop role "Plain Role"'
            )


def test_a_role_that_lacks_everything_is_led_to_all_of_it(database: str, plain_role: str) -> None:
    sentence, hint = complaint(plain_role)
    assert sentence == "The role Plain Role lacks REPLICATION."
    assert "MOMENTUM_CAPTURE_URL" in hint
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(hint.removeprefix("As a superuser: ").partition(" or ")[0].encode())
    sentence, hint = complaint(plain_role)
    assert sentence.startswith("The role Plain Role lacks privileges that the server needs: ")
    assert hint == "As postgres, the owner of the tables, run: momentum-sync migrate --server-role 'Plain Role'"
    with pytest.raises(Unsuitable, match="bypasses row level security"):
        migrate(database, tell=lambda _: None, server_role="Plain Role")
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute('alter role "Plain Role" nobypassrls')
    migrate(database, tell=lambda _: None, server_role="Plain Role")
    preflight.check(plain_role, "momentum_sync")


def test_a_role_that_is_not_there(database: str) -> None:
    with pytest.raises(Unsuitable) as unsuitable:
        migrate(database, tell=lambda _: None, server_role="nobody")
    assert unsuitable.value.hint.startswith('create role "nobody" login noinherit')


def test_functions_that_are_missing(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("drop function momentum.become(text, text)")
    assert complaint(database) == (
        "Functions of this version are missing in schema momentum.",
        "Run: momentum-sync migrate --again",
    )


def test_two_roles_share_the_work(database: str, empty_database: str) -> None:
    server, capture = (make_conninfo(database, user=role) for role in (SERVER_ROLE, CAPTURE_ROLE))
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"alter role {CAPTURE_ROLE} set timezone = 'Asia/Tokyo'")
        try:
            preflight.check(server, "momentum_sync", capture=capture)
        finally:
            admin.execute(f"alter role {CAPTURE_ROLE} reset timezone")
    with pytest.raises(Unsuitable, match="lacks REPLICATION"):
        preflight.check(server, "momentum_sync")
    with pytest.raises(Unsuitable, match="not the same database"):
        preflight.check(server, "momentum_sync", capture=empty_database)


def test_the_servers_roles_are_above_nothing(db: Sql) -> None:
    rows = db.execute(
        "select rolname, rolsuper, rolbypassrls, rolreplication, rolinherit, rolcreaterole, rolcreatedb from pg_roles"
        " where rolname = any(%s)",
        ([SERVER_ROLE, CAPTURE_ROLE],),
    ).fetchall()
    assert sorted(rows) == [
        (CAPTURE_ROLE, False, False, True, True, False, False),
        (SERVER_ROLE, False, False, False, False, False, False),
    ]
    for table in ("daily_engagement_scores", "momentum_notifications", "coach_interventions"):
        for role in (SERVER_ROLE, CAPTURE_ROLE):
            allowed = db.execute(
                "select has_table_privilege(%s, %s, 'select, insert, update, delete')", (role, f"public.{table}")
            ).fetchone()
            assert allowed == (False,)


def test_no_free_slot(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        row = admin.execute("show max_replication_slots").fetchone()
        assert row is not None
        taken = 0
        while True:
            try:
                admin.execute(f"select pg_create_logical_replication_slot('taken_{taken}', 'pgoutput')")
            except psycopg.errors.ConfigurationLimitExceeded:
                break
            taken += 1
        sentence, hint = complaint(database)
        preflight.check(database, "taken_0")
    assert sentence == f"All {row[0]} replication slots of the server are in use."
    assert "max_replication_slots = 20" in hint


@pytest.mark.parametrize("standbys", ["*", "ANY 1 (replica, *)", '"momentum-sync capture"'])
def test_commits_that_would_wait_for_us(own_cluster: Embedded, standbys: str) -> None:
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as admin:
        admin.execute(f"alter system set synchronous_standby_names = '{standbys}'")
        admin.execute("select pg_reload_conf()")
        while admin.execute("show synchronous_standby_names").fetchone() != (standbys,):
            admin.execute("select pg_sleep(0.01)")
        sentence, hint = complaint(own_cluster.conninfo)
        assert "every commit would wait" in sentence
        assert "alter system set synchronous_standby_names" in hint


def test_a_slot_of_somebody_else(cluster: str, database: str) -> None:
    with temporary_database(cluster) as elsewhere:
        with psycopg.connect(elsewhere, autocommit=True) as connection:
            connection.execute("select pg_create_logical_replication_slot('theirs', 'pgoutput')")
        sentence, hint = complaint(database, "theirs")
    assert "belongs to another program" in sentence
    assert "MOMENTUM_SLOT=" in hint


def test_wal_level_and_what_the_command_line_makes_of_it(own_cluster: Embedded, tmp_path: Path) -> None:
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as admin:
        admin.execute("alter system set wal_level = replica")
    own_cluster.restart("fast")
    sentence, hint = complaint(own_cluster.conninfo)
    assert sentence == "wal_level is replica, but reading changes requires logical."
    assert "alter system set wal_level = 'logical'" in hint
    done = subprocess.run(
        [sys.executable, "-m", "momentum_sync", "serve", "--port", "0", "--database-url", own_cluster.conninfo],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [f"momentum-sync: {sentence}", f"  {hint}"]

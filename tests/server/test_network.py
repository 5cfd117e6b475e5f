"""The network between server and database, the clocks of both, and settings that roles carry."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from faults import clocks
from faults.proxy import Proxy
from momentum_sync import metrics
from momentum_sync.capture.preflight import check
from momentum_sync.database.connection import Pool, connect, make_pool, using
from momentum_sync.database.embedded import Embedded, short_folder
from momentum_sync.database.migrate import migrate
from momentum_sync.errors import Unsuitable
from tests.fixtures.cluster import until_logged
from tests.fixtures.postgres import CAPTURE_ROLE, SERVER_ROLE, Sql, add_notification, new_user
from tests.fixtures.server import TIMEOUT_S, Bounds, Server, Start, sign, until_state

ALL = 1.1  # the share that reaches every connection


@asynccontextmanager
async def behind_a_proxy(start: Start, database: str) -> AsyncIterator[tuple[Server, Proxy]]:
    """Start a server that connects to the database only through a proxy."""
    proxy = Proxy(websockets=False)
    proxy.ports = [Path(str(conninfo_to_dict(database)["host"])) / ".s.PGSQL.5432"]
    await proxy.start()
    network = {"host": "127.0.0.1", "port": str(proxy.port)}
    try:
        async with start(
            conninfo=make_conninfo(database, user=SERVER_ROLE, **network),
            capture_url=make_conninfo(database, user=CAPTURE_ROLE, **network),
        ) as server:
            yield server, proxy
    finally:
        await proxy.stop()


async def test_connections_to_the_database_that_go_silent_are_given_up(
    start: Start, database: str, db: Sql, user: UUID, bounds: Bounds
) -> None:
    """The stream, the log's connections and the callers' connections all become half-open."""
    bounds("capture", silence_s=3.0, answer_s=3.0)
    bounds("log", work_s=3.0)
    bounds("queries", cut_s=3.0)
    async with behind_a_proxy(start, database) as (server, proxy), server.live(user) as client:
        add_notification(db, user, title="before")
        before = (await client.next())["event"]
        assert proxy.go_dead(Random(0), ALL) > 3
        add_notification(db, user, title="meanwhile")
        async with server.http(sign(user)) as http, asyncio.timeout(60):
            while (await http.post("/sync/momentum", json={"user_id": str(user)})).status_code != 200:
                await asyncio.sleep(0.1)
        meanwhile = (await client.until("realtime_event"))["event"]
        assert (meanwhile["title"], meanwhile["previous_id"]) == ("meanwhile", before["id"])
        await until_state(server, "live")
        await until_logged(db, 2)
    slots = db.execute("select slot_name from pg_replication_slots where database = current_database()").fetchall()
    assert slots == [("momentum_sync",)]


async def test_silent_connections_do_not_hold_up_the_next_run_one_after_the_other(
    start: Start, database: str, db: Sql
) -> None:
    """After one connection breaks, the others are suspect; each would be noticed only after its deadline."""
    async with behind_a_proxy(start, database) as (server, proxy):
        assert proxy.go_dead(Random(0), ALL) > 3
        db.execute("select pg_terminate_backend(active_pid) from pg_replication_slots where active")
        await until_state(server, "broken")
        async with asyncio.timeout(TIMEOUT_S):  # half of the deadline of one of them
            await until_state(server, "live")


@pytest_asyncio.fixture
async def pool(database: str) -> AsyncIterator[tuple[Pool, Proxy]]:
    """Yield an open pool of four connections, behind a proxy."""
    proxy = Proxy(websockets=False)
    proxy.ports = [Path(str(conninfo_to_dict(database)["host"])) / ".s.PGSQL.5432"]
    await proxy.start()
    conninfo = make_conninfo(database, user=SERVER_ROLE, host="127.0.0.1", port=str(proxy.port))
    opened = make_pool(conninfo, "test", size=4, wait=TIMEOUT_S)
    try:
        await opened.open()
        yield opened, proxy
    finally:
        await opened.close()
        await proxy.stop()


async def test_one_silent_connection_of_a_pool_costs_one_deadline_not_one_each(pool: tuple[Pool, Proxy]) -> None:
    connections, proxy = pool
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(using(connections, TIMEOUT_S))
    assert proxy.go_dead(Random(0), ALL) == 4
    with pytest.raises(psycopg.OperationalError):
        async with using(connections, 0.5) as connection:
            await connection.execute("select 1")
    for _ in range(8):
        async with using(connections, TIMEOUT_S) as connection:
            await connection.execute("select 1")


async def test_connections_that_replaced_others_just_before_the_network_fails_are_suspect_too(
    pool: tuple[Pool, Proxy],
) -> None:
    connections, proxy = pool
    with pytest.raises(psycopg.OperationalError):
        async with using(connections, 0.5) as connection:
            async with using(connections, TIMEOUT_S):
                pass
            await connections.drain()
            async with asyncio.timeout(TIMEOUT_S):
                while not connections.get_stats()["pool_available"]:
                    await asyncio.sleep(0.01)
            proxy.go_dead(Random(0), ALL)
            await connection.execute("select 1")
    async with using(connections, TIMEOUT_S) as connection:
        await connection.execute("select 1")


async def test_connections_to_the_database_that_are_reset_are_made_again(
    start: Start, database: str, db: Sql, user: UUID
) -> None:
    async with behind_a_proxy(start, database) as (server, proxy), server.live(user) as client:
        for number in range(3):
            proxy.cut(Random(number), ALL)
            add_notification(db, user, title=str(number))
            assert (await client.until("realtime_event"))["event"]["title"] == str(number)


@pytest.mark.parametrize("step", [3600.0, -3600.0, 86_400.0 * 40])
async def test_a_clock_that_steps_ends_no_connection_and_stops_no_heartbeat(
    start: Start, db: Sql, user: UUID, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    real = time.time
    async with start(heartbeat="0.2s") as server, server.live(user) as client, server.http() as http:
        await client.until("heartbeat")
        monkeypatch.setattr(time, "time", lambda: real() + step)
        for number in range(5):
            assert (await client.until("heartbeat"))["lag_ms"] < 5_000
            add_notification(db, user, title=str(number))
            assert (await client.until("realtime_event"))["event"]["title"] == str(number)
        health = (await http.get("/sync/health")).json()
        assert (health["status"], health["capture"]["state"]) == ("healthy", "live")
        monkeypatch.setattr(time, "time", real)
        assert (await client.until("heartbeat"))["lag_ms"] < 5_000
        assert (await client.ask({"type": "ping"}))["type"] in ("pong", "heartbeat")


@contextmanager
def clock_of_its_own(days: float) -> Iterator[tuple[Embedded, Path]]:
    """Start a PostgreSQL with a clock that is off by `days`. A write to the returned file changes the offset."""
    if not clocks.can_step():
        assert "CI" not in os.environ, "CI installs a C compiler"
        pytest.skip("needs a C compiler, which CI installs")
    with short_folder() as folder:
        offset = folder / "offset"
        clocks.step(offset, days * 86_400)
        environment = clocks.environment(offset)
        cluster = Embedded(folder)
        with pytest.MonkeyPatch.context() as patched:
            for name, value in environment.items():
                patched.setenv(name, value)
            cluster.__enter__()
        try:
            yield cluster, offset
        finally:
            cluster.__exit__()


@pytest.mark.parametrize("days", [-5, 5, 30])
async def test_partitions_and_retention_go_by_the_databases_clock(start: Start, days: int) -> None:
    with clock_of_its_own(days) as (cluster, offset), psycopg.connect(cluster.conninfo, autocommit=True) as db:
        migrate(cluster.conninfo, tell=lambda _: None)
        user = new_user(db)
        row = db.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
        assert row is not None
        assert abs(row[0] - time.time() - days * 86_400) < 3_600
        async with start(conninfo=cluster.conninfo, retention="1d") as server, server.live(user) as client:
            add_notification(db, user, title="one")
            first = (await client.next())["event"]["id"]
            await until_logged(db, 1)
        async with start(
            conninfo=cluster.conninfo, retention="1d"
        ) as server:  # its housekeeping drops no partition of today
            async with server.connect(sign(user), last_event_id=first) as client:
                assert (await client.next())["resumed"] is True
            async with server.live(user) as client:
                for step in (days + 1, days - 4):
                    clocks.step(offset, step * 86_400)
                    add_notification(db, user, title=str(step))
                    assert (await client.until("realtime_event"))["event"]["title"] == str(step)
                await until_logged(db, 3)
                assert (await until_state(server, "live"))["status"] == "healthy"


HOSTILE = {
    "search_path": "pg_temp, public", "client_encoding": "LATIN1", "datestyle": "SQL, DMY", "timezone": "Asia/Tokyo",
    "intervalstyle": "sql_standard", "bytea_output": "escape", "extra_float_digits": "-15",
    "standard_conforming_strings": "off", "row_security": "off", "quote_all_identifiers": "on",
    "default_transaction_isolation": "serializable", "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on", "statement_timeout": "1ms", "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms", "idle_session_timeout": "500ms", "wal_sender_timeout": "100ms",
    # PostgreSQL 17 and later. It is in force until the connection has pinned it with its first statement.
    "transaction_timeout": "300ms",
}  # fmt: skip


@pytest.mark.parametrize("way", ["role", "database", "environment"])
async def test_settings_that_a_role_a_database_or_the_environment_carries_change_nothing(
    start: Start, db: Sql, database: str, user: UUID, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    known = {row[0] for row in db.execute("select name from pg_settings").fetchall()}
    name = conninfo_to_dict(database)["dbname"]
    settings = {setting: value for setting, value in HOSTILE.items() if setting in known}
    if way == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", settings.pop("client_encoding"))
        monkeypatch.setenv(
            "PGOPTIONS", " ".join(f"-c {key}={value.replace(' ', '')}" for key, value in settings.items())
        )
    for setting, value in settings.items():
        if way == "database":
            db.execute(f"alter database {name} set {setting} = {value!r}")
        elif way == "role":
            for role in (SERVER_ROLE, CAPTURE_ROLE):
                db.execute(f"alter role {role} in database {name} set {setting} = {value!r}")
    broke = metrics.CAPTURE_BREAKS.collect().samples[0].value
    async with start() as server, server.live(user) as client, server.http(sign(user)) as http:
        ends = time.monotonic() + 3.0
        while time.monotonic() < ends:
            add_notification(db, user, title="🏃 gut gelaufen")
            assert (await client.until("realtime_event"))["event"]["title"] == "🏃 gut gelaufen"
            db.execute("begin; lock table public.momentum_notifications")
            reading = asyncio.ensure_future(http.post("/sync/notifications", json={"user_id": str(user)}))
            await asyncio.sleep(0.5)  # longer than `transaction_timeout`
            db.execute("rollback")
            answer = await reading
            assert answer.status_code == 200, answer.text
            await asyncio.sleep(0.7)  # longer than `idle_session_timeout`
        assert (await until_state(server, "live"))["status"] == "healthy"
        policies = "select count(*) from momentum.policies where changed"
        assert db.execute(policies).fetchone() == (0,)
    assert metrics.CAPTURE_BREAKS.collect().samples[0].value == broke


@contextmanager
def pgbouncer(database: str, *, ignored: str) -> Iterator[str]:
    """Run PgBouncer in transaction mode before the database. Yield its connection string."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        if os.environ.get("CI"):
            raise FileNotFoundError("CI installs pgbouncer")
        pytest.skip("needs pgbouncer, which CI installs")
    parts = conninfo_to_dict(database)
    with short_folder() as folder:
        sockets, settings = folder / "sockets", folder / "pgbouncer.ini"
        sockets.mkdir(mode=0o777)
        sockets.chmod(0o777)
        settings.write_text(
            f"[databases]\n* = host={parts['host']} user={parts['user']}\n[pgbouncer]\nlisten_addr =\n"
            f"unix_socket_dir = {sockets}\nauth_type = any\npool_mode = transaction\n"
            f"ignore_startup_parameters = {ignored}\n"
        )
        owner = Path(str(parts["host"])).stat()
        running = subprocess.Popen(
            [program, "-q", str(settings)], user=owner.st_uid, group=owner.st_gid, extra_groups=[], cwd="/"
        )
        try:
            ends = time.monotonic() + 15
            while not (sockets / ".s.PGSQL.6432").exists():
                assert running.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.02)
            yield make_conninfo(host=str(sockets), port="6432", dbname=parts["dbname"], user="postgres")
        finally:
            running.terminate()
            running.wait(15)


@pytest.mark.parametrize("ignored", ["extra_float_digits", "extra_float_digits, options"], ids=["strict", "lenient"])
def test_a_transaction_pooler_is_refused_and_nothing_leaks_into_its_sessions(database: str, ignored: str) -> None:
    with pgbouncer(database, ignored=ignored) as pooled:
        for refused in (lambda: check(pooled, "momentum_sync"), lambda: migrate(pooled, tell=lambda _: None)):
            with pytest.raises(Unsuitable, match="connection pooler") as unsuitable:
                refused()
            assert "direct address" in unsuitable.value.hint
            assert "port 5432" in unsuitable.value.hint
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as app:
            for setting in ("search_path", "statement_timeout", "lock_timeout", "row_security"):
                row = app.execute(f"select setting, boot_val from pg_settings where name = '{setting}'").fetchone()
                assert row is not None
                assert row[0] == row[1], setting


@pytest.mark.parametrize("malformed", [
    "postgresql://user:s3cr@t@127.0.0.1:1/x",
    "postgresql://user:s3cr/et@127.0.0.1:1/x",
    "postgresql://user:s3cr%zzet@127.0.0.1:1/x",
    "postgresql://user:s3cret@[127.0.0.1:1/x",
    "host=127.0.0.1 port=1 password=s3cret nonsense",
    "host=127.0.0.1 port=s3cret",
    "s3cret",
])  # fmt: skip
def test_no_part_of_a_malformed_connection_string_is_told(malformed: str) -> None:
    with pytest.raises(Unsuitable) as unsuitable:
        connect(malformed, application_name="test")
    told = f"{unsuitable.value} {unsuitable.value.hint} {unsuitable.value.__cause__} {unsuitable.value.__context__}"
    assert "s3cr" not in told or unsuitable.value.__suppress_context__
    assert "s3cr" not in f"{unsuitable.value} {unsuitable.value.hint}"


@pytest.mark.parametrize("unreachable", [
    "postgresql://user:s3cret@127.0.0.1:1/x", "host=127.0.0.1 port=1 user=u password=s3cret dbname=x",
])  # fmt: skip
def test_who_did_not_answer_is_told_with_host_and_port(unreachable: str) -> None:
    with pytest.raises(Unsuitable, match=r'"127\.0\.0\.1", port 1 failed: Connection refused') as unsuitable:
        connect(unreachable, application_name="test")
    assert "s3cret" not in f"{unsuitable.value} {unsuitable.value.hint}"


async def test_a_large_transaction_is_read_whatever_the_capture_roles_own_timeouts(
    start: Start, db: Sql, database: str, user: UUID
) -> None:
    """In PostgreSQL 17 and later the role's `transaction_timeout` applies to logical decoding."""
    name = conninfo_to_dict(database)["dbname"]
    for setting in ("transaction_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
        if db.execute("select 1 from pg_settings where name = %s", (setting,)).fetchone():
            db.execute(f"alter role {CAPTURE_ROLE} in database {name} set {setting} = '200ms'")
    async with start() as server, server.live(user) as client:
        db.execute(
            "select count(momentum.publish(array['x'], jsonb_build_object('event_type', 'x', 'n', n)))"
            " from generate_series(1, 100000) as n"
        )
        add_notification(db, user, title="after")
        async with asyncio.timeout(90):
            while (await until_state(server, "live"))["capture"]["last_event_id"].split("-")[1] != "100001":
                await asyncio.sleep(0.1)
        assert (await client.until("realtime_event"))["event"]["title"] == "after"

"""Breaks in history: detected by the server, reported to every client, and followed by a snapshot."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import closing
from typing import Any
from uuid import UUID

import psycopg
import pytest
import websockets
from psycopg.conninfo import make_conninfo

from momentum_sync.capture.checkpoint import Checkpoint, Checkpoints
from momentum_sync.capture.slot import SlotFacts, read_slot_state
from momentum_sync.capture.supervisor import Capture
from momentum_sync.database.embedded import Embedded
from momentum_sync.limits import CaptureLimits
from tests.fixtures.cluster import confirmed, hold_commits, release_commits, until_logged, until_resync, write_elsewhere
from tests.fixtures.postgres import CAPTURE_ROLE, SERVER_ROLE, Sql, add_notification, new_user
from tests.fixtures.server import Bounds, Server, Start, sign, until_state


def drop_slot(db: Sql) -> None:
    """Drop the slot while the server uses it, as an operator might."""
    while True:
        db.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'momentum_sync'"
        )
        try:
            db.execute("select pg_drop_replication_slot('momentum_sync')")
        except psycopg.errors.ObjectInUse:
            continue
        return


@pytest.mark.parametrize("what", ["slot dropped", "slot moved on", "log truncated"])
async def test_a_break_under_a_running_server(start: Start, db: Sql, user: UUID, bounds: Bounds, what: str) -> None:
    bounds("capture", log_check_interval_s=0.05)
    async with start() as server:
        async with server.live(user) as client:
            add_notification(db, user)
            last = (await client.next())["event"]["id"]
            await until_logged(db, 1)
            if what == "slot dropped":
                drop_slot(db)
            elif what == "log truncated":
                db.execute("truncate momentum.event_log")
            else:
                pid = (
                    "select pg_terminate_backend(active_pid) from pg_replication_slots"
                    " where slot_name = 'momentum_sync'"
                )
                while True:
                    db.execute(pid)
                    add_notification(db, user, title="lost to capture")
                    try:
                        db.execute("select pg_replication_slot_advance('momentum_sync', pg_current_wal_lsn())")
                    except psycopg.errors.ObjectInUse:
                        continue
                    break
            code, why = await client.closed()
            assert (code, "last_event_id" in why) == (1012, True)
        new = await until_resync(server, user, last)
        async with server.connect(sign(user), last_event_id=new) as client:
            assert (await client.next())["resumed"] is True


async def test_a_slot_that_lost_its_wal(start: Start, own_cluster: Embedded) -> None:
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
        user = new_user(db)
        async with start(conninfo=own_cluster.conninfo) as server, server.live(user) as client:
            add_notification(db, user)
            last = (await client.next())["event"]["id"]
        db.execute("alter system set max_slot_wal_keep_size = '1MB'")
        db.execute("select pg_reload_conf()")
        add_notification(db, user, title="lost to capture")
        state = "select wal_status from pg_replication_slots where slot_name = 'momentum_sync'"
        db.execute("create table filler (text text)")
        while db.execute(state).fetchone() != ("lost",):
            db.execute("insert into filler select repeat('x', 1000) from generate_series(1, 2000)")
            db.execute("select pg_switch_wal()")
            db.execute("checkpoint")
        assert (await read_slot_state(own_cluster.conninfo, "momentum_sync", CaptureLimits())).state == "lost"
        async with start(conninfo=own_cluster.conninfo) as server:
            await until_resync(server, user, last)
            async with server.live(user) as client:
                assert len(client.seen[1]["notifications"]) == 2
            assert db.execute(state).fetchone() == ("reserved",)


async def test_another_timeline(start: Start, own_cluster: Embedded) -> None:
    """A restore to a point in time, or a standby that took over."""
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
        user = new_user(db)
    async with start(conninfo=own_cluster.conninfo) as server, server.live(user) as client:
        last = client.seen[-1]["last_event_id"]
    signal_file = own_cluster.cluster / "standby.signal"
    await asyncio.to_thread(own_cluster.stop, "fast")
    signal_file.touch()
    if own_cluster._owner is not None:
        os.chown(signal_file, own_cluster._owner.pw_uid, own_cluster._owner.pw_gid)
    await asyncio.to_thread(own_cluster.start)
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
        assert db.execute("select pg_promote()").fetchone() == (True,)
    async with start(conninfo=own_cluster.conninfo) as server:
        await until_resync(server, user, last)


async def test_another_system(start: Start, db: Sql, user: UUID) -> None:
    """A dump that is restored on another system has the rows, but not the WAL."""
    async with start() as server, server.live(user) as client:
        last = client.seen[-1]["last_event_id"]
    db.execute("update momentum.stream set system_identifier = '7000000000000000001'")
    async with start() as server:
        await until_resync(server, user, last)


async def test_a_log_of_an_earlier_layout_is_made_anew_and_clients_are_told(
    start: Start, database: str, db: Sql, user: UUID
) -> None:
    from momentum_sync.database.migrate import migrate

    async with start() as server, server.live(user) as client:
        last = client.seen[-1]["last_event_id"]
        add_notification(db, user)
        await until_logged(db, 1)
    db.execute("alter table momentum.stream rename column kept_from to first_number")
    db.execute("alter table momentum.event_log drop column keys")
    migrate(database, tell=lambda _: None, server_role=SERVER_ROLE)
    async with start() as server:
        await until_resync(server, user, last)


async def test_a_feed_that_stands_still_is_noticed_though_everything_runs(start: Start, db: Sql, user: UUID) -> None:
    async with start(heartbeat="0.2s") as server, server.live(user) as client, server.http() as http:
        row = db.execute("select active_pid from pg_replication_slots where slot_name = 'momentum_sync'").fetchone()
        assert row is not None
        assert (await client.until("heartbeat"))["lag_ms"] < 5_000
        os.kill(row[0], signal.SIGSTOP)
        try:
            async with asyncio.timeout(30):
                while (await client.until("heartbeat"))["lag_ms"] <= 5_000:
                    assert (await client.ask({"type": "request_momentum_update"}))["type"] != "error"
            health = await http.get("/sync/health")
            assert health.json()["status"] == "degraded"
            assert health.json()["capture"]["lag_ms"] > 5_000
        finally:
            os.kill(row[0], signal.SIGCONT)
        async with asyncio.timeout(30):
            while (await client.until("heartbeat"))["lag_ms"] > 1_000:
                pass
        assert (await http.get("/sync/health")).json()["status"] == "healthy"


async def test_a_stream_that_says_nothing_is_given_up(start: Start, db: Sql, user: UUID, bounds: Bounds) -> None:
    bounds("capture", silence_s=2.0)
    async with start() as server:
        query = "select active_pid from pg_replication_slots where slot_name = 'momentum_sync'"
        row = db.execute(query).fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSTOP)
        try:
            await until_state(server, "broken")
        finally:
            os.kill(row[0], signal.SIGCONT)
        await until_state(server, "live")
        assert db.execute(query).fetchone() != row


async def test_the_slot_goes_on_while_the_database_is_busy_with_other_tables(
    start: Start, db: Sql, bounds: Bounds
) -> None:
    bounds("capture", idle_confirm_interval_s=0.2)
    async with start():
        db.execute("create table other (text text)")
        before = confirmed(db)
        db.execute("insert into other select repeat('x', 100) from generate_series(1, 20000)")
        row = db.execute("select pg_current_wal_lsn() - '0/0'").fetchone()
        assert row is not None
        assert int(row[0]) - before > 1_000_000
        async with asyncio.timeout(20):
            while confirmed(db) < int(row[0]):
                await asyncio.sleep(0.05)


async def test_health_reports_the_state_of_the_slot(start: Start, db: Sql, bounds: Bounds) -> None:
    bounds("capture", slot_check_interval_s=0.05)
    version = db.info.server_version

    async def until_slot(server: Server, state: str) -> dict[str, object]:
        async with server.http() as http, asyncio.timeout(30):
            while True:
                slot: dict[str, object] = (await http.get("/sync/health")).json()["capture"]["slot"]
                if slot["state"] == state:
                    return slot
                await asyncio.sleep(0.02)

    # A slot as an earlier version created it: without a copy on standbys.
    db.execute("select pg_create_logical_replication_slot('momentum_sync', 'pgoutput')")
    async with start() as server:
        slot = await until_slot(server, "reading")
        assert set(slot) == {"state", "retained", "reserve"}
        assert isinstance(slot["retained"], int)
        kept = db.execute(
            "select (to_jsonb(r) ->> 'failover')::boolean from pg_replication_slots r where slot_name = 'momentum_sync'"
        ).fetchone()
        assert kept == (True if version >= 170000 else None,)


async def test_an_unread_slot_is_reported_as_idle(db: Sql) -> None:
    assert (await read_slot_state(db.info.dsn, "momentum_sync", CaptureLimits())).state == "absent"
    db.execute("select pg_create_logical_replication_slot('momentum_sync', 'pgoutput')")
    assert (await read_slot_state(db.info.dsn, "momentum_sync", CaptureLimits())).state == "idle"


async def test_clients_are_closed_when_another_instance_takes_over_the_slot(
    start: Start, db: Sql, user: UUID, bounds: Bounds
) -> None:
    bounds("capture", slot_elsewhere_s=0.5)
    bounds("capture", backoff_s=(1.0,))  # the waiting instance gets the slot first
    async with start() as first, first.live(user) as client, start(live=False) as second:
        add_notification(db, user, title="read")
        last = (await client.next())["event"]["id"]
        await until_state(second, "waiting")
        db.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'momentum_sync'"
        )
        await until_state(second, "live")
        assert (await client.closed())[0] == 1012
        add_notification(db, user, title="missed")
        async with second.connect(sign(user), last_event_id=last) as there:
            assert (await there.next())["replayed"] == 1
            assert (await there.next())["event"]["title"] == "missed"


async def test_a_wal_sender_that_has_lost_its_client_is_ended(start: Start, db: Sql, bounds: Bounds) -> None:
    """The network is lost and the clock of the database set back, so wal_sender_timeout never passes."""
    bounds("capture", slot_silent_s=0.5)
    async with start():
        pass  # it has created the slot
    conninfo = make_conninfo(
        db.info.dsn, user=CAPTURE_ROLE, replication="database", options="-c wal_sender_timeout=0"
    )  # fmt: skip
    db.execute(f"grant pg_read_all_stats to {CAPTURE_ROLE}")
    try:
        with closing(psycopg.connect(conninfo, autocommit=True)) as lost:
            began = lost.pgconn.exec_(
                b"START_REPLICATION SLOT momentum_sync LOGICAL 0/0"
                b" (proto_version '1', publication_names 'momentum_sync')"
            )
            assert began.status == psycopg.pq.ExecStatus.COPY_BOTH
            async with start() as server:
                await until_state(server, "live")
    finally:
        db.execute(f"revoke pg_read_all_stats from {CAPTURE_ROLE}")


async def test_a_break_while_a_commit_is_in_the_wal_and_not_yet_visible(
    start: Start, own_cluster: Embedded, bounds: Bounds
) -> None:
    """The old history has the event and no snapshot sees it: the server refuses clients until one does."""
    bounds("capture", log_check_interval_s=0.05)
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
        db.execute("set synchronous_commit = local")
        user = new_user(db)
        async with start(conninfo=own_cluster.conninfo) as server, server.live(user) as early:
            hold_commits(db)
            writing = asyncio.ensure_future(asyncio.to_thread(write_elsewhere, own_cluster.conninfo, user, "held"))
            assert (await early.until("realtime_event"))["event"]["title"] == "held"
            await until_logged(db, 1)
            db.execute("truncate momentum.event_log")
            assert (await early.closed())[0] == 1012
            health = await until_state(server, "catching_up")
            assert health["status"] == "unhealthy"
            with pytest.raises(websockets.InvalidStatus):
                async with server.connect(sign(user)):
                    raise AssertionError("it was let in")
            assert not writing.done()
            release_commits(db)
            await writing
            await until_state(server, "live")
            async with server.live(user) as client:
                assert [row["title"] for row in client.seen[1]["notifications"]] == ["held"]


async def test_a_stop_during_startup_confirms_no_event_that_is_not_logged(
    start: Start, db: Sql, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start():
        pass
    for _ in range(3):
        add_notification(db, user)
    real = Checkpoints.acquire

    async def ended_meanwhile(checkpoints: Checkpoints, facts: SlotFacts, **more: Any) -> Checkpoint:
        captures[0].end()
        return await real(checkpoints, facts, **more)

    captures: list[Capture] = []
    run = Capture.run

    async def kept(capture: Capture) -> None:
        captures.append(capture)
        await run(capture)

    with monkeypatch.context() as patched:
        patched.setattr(Capture, "run", kept)
        patched.setattr(Checkpoints, "acquire", ended_meanwhile)
        async with start(live=False):
            pass
    async with start():
        assert len(await until_logged(db, 3)) == 3

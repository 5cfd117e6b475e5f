"""Histories that break without a sign in slot, system or timeline: restored copies, TRUNCATE, lower counters."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from faults.proxy import Proxy
from momentum_sync.capture.checkpoint import Checkpoints
from momentum_sync.capture.preflight import check
from momentum_sync.capture.slot import StreamRefused, ensure_slot
from momentum_sync.database.embedded import Embedded
from momentum_sync.database.migrate import migrate
from momentum_sync.errors import CaptureError, Unsuitable
from momentum_sync.eventlog.feed import FeedState
from momentum_sync.limits import CaptureLimits
from tests.fixtures.cluster import until_logged, until_resync
from tests.fixtures.postgres import (
    CAPTURE_ROLE,
    SERVER_ROLE,
    Sql,
    add_intervention,
    add_notification,
    add_score,
    new_user,
    temporary_database,
)
from tests.fixtures.server import TIMEOUT_S, Bounds, Server, Start, sign, until_state, until_stitched


@contextmanager
def sql(cluster: Embedded) -> Iterator[Sql]:
    with psycopg.connect(cluster.conninfo, autocommit=True) as connection:
        yield connection


async def stop(cluster: Embedded, mode: str = "fast") -> None:
    await asyncio.to_thread(cluster.stop, mode)


async def copy(cluster: Embedded) -> Path:
    """A copy of the whole data directory, taken while PostgreSQL is stopped."""
    kept = cluster.cluster.with_name("kept")
    await stop(cluster)
    await asyncio.to_thread(_copy, cluster.cluster, kept)
    await asyncio.to_thread(cluster.start)
    return kept


async def restore(cluster: Embedded, kept: Path) -> None:
    """Replace the data directory by the copy, with slot and log as they were."""
    await stop(cluster)
    await put_back(cluster, kept)


async def put_back(cluster: Embedded, kept: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, cluster.cluster)
    await asyncio.to_thread(_copy, kept, cluster.cluster)
    await asyncio.to_thread(cluster.start)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)
    for path in (target, *target.rglob("*")):
        was = (source / path.relative_to(target)).lstat()
        os.chown(path, was.st_uid, was.st_gid, follow_symlinks=False)


async def test_a_copy_restored_while_no_server_runs(start: Start, own_cluster: Embedded) -> None:
    """System identifier, timeline, slot and log agree; only the client knows the lost branch."""
    with sql(own_cluster) as db:
        user = new_user(db)
    async with start(conninfo=own_cluster.conninfo, heartbeat="0.2s") as server, server.live(user) as client:
        await until_stitched(client)
        with sql(own_cluster) as db:
            add_notification(db, user, title="in the copy")
        common = (await client.until("realtime_event"))["event"]["id"]
    kept = await copy(own_cluster)
    async with start(conninfo=own_cluster.conninfo) as server, server.live(user) as client:
        with sql(own_cluster) as db:
            for number in range(3):
                add_notification(db, user, title=f"lost {number}")
        lost = [(await client.next())["event"]["id"] for _ in range(3)]
    await restore(own_cluster, kept)
    async with start(conninfo=own_cluster.conninfo) as server:
        with sql(own_cluster) as db:
            for number in range(5):
                add_notification(db, user, title=f"new {number}")
            await until_logged(db, 6)
        for number, last in enumerate(lost):
            async with server.connect(sign(user), last_event_id=last) as client:
                assert (await client.next())["reason"] == "history_changed"
                titles = {row["title"] for row in (await client.next())["notifications"]}
                assert titles == {"in the copy", *(f"new {number}" for number in range(5))}
            async with server.http(sign(user)) as http:
                answer = await http.post("/sync/events", json={"last_event_id": last})
                assert (answer.status_code, answer.json()["reason"]) == (409, "history_changed"), number
        async with server.connect(sign(user), last_event_id=common) as client:
            confirmed = await client.next()
            assert (confirmed["resumed"], confirmed["replayed"]) == (True, 5)


async def test_a_copy_restored_while_an_instance_waits_that_takes_over(
    start: Start, own_cluster: Embedded, bounds: Bounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance has not read the stream, but has looked at the log."""
    bounds("capture", log_look_s=0.0)
    looked: asyncio.Queue[int] = asyncio.Queue()
    look = Checkpoints.last_logged

    async def spied(self: Checkpoints, seen: FeedState | None) -> FeedState | None:
        found = await look(self, seen)
        if found is not None:
            looked.put_nowait(found.logged)
        return found

    monkeypatch.setattr(Checkpoints, "last_logged", spied)
    with sql(own_cluster) as db:
        user = new_user(db)
    async with AsyncExitStack() as first:
        reading = await first.enter_async_context(start(conninfo=own_cluster.conninfo))
        with sql(own_cluster) as db:
            add_notification(db, user, title="in the copy")
            await until_logged(db, 1)
        kept = await copy(own_cluster)
        await until_state(reading, "live")
        async with start(conninfo=own_cluster.conninfo, live=False) as waiting:
            await until_state(waiting, "waiting")
            with sql(own_cluster) as db:
                before = db.execute("select epoch from momentum.stream").fetchone()
                add_notification(db, user, title="lost")
                await until_logged(db, 2)
            async with asyncio.timeout(TIMEOUT_S):
                while await looked.get() < 2:
                    pass
            await stop(own_cluster)
            await first.aclose()
            await put_back(own_cluster, kept)
            await until_state(waiting, "live")
            with sql(own_cluster) as db:
                assert db.execute("select epoch from momentum.stream").fetchone() != before


@pytest.mark.parametrize("more", [1, 5], ids=["less than was lost", "more than was lost"])
async def test_a_copy_restored_under_a_running_server(start: Start, own_cluster: Embedded, more: int) -> None:
    with sql(own_cluster) as db:
        user = new_user(db)
    async with start(conninfo=own_cluster.conninfo) as server:
        with sql(own_cluster) as db:
            add_notification(db, user, title="in the copy")
            await until_logged(db, 1)
        kept = await copy(own_cluster)
        await until_state(server, "live")
        async with server.live(user) as client:
            with sql(own_cluster) as db:
                for number in range(3):
                    add_notification(db, user, title=f"lost {number}")
                for _ in range(3):
                    last = (await client.next())["event"]["id"]
                await until_logged(db, 4)
            await restore(own_cluster, kept)
            with sql(own_cluster) as db:
                for number in range(more):
                    add_notification(db, user, title=f"new {number}")
            assert (await client.closed())[0] == 1012
        await until_resync(server, user, last)
        async with server.live(user) as client:
            titles = {row["title"] for row in client.seen[1]["notifications"]}
            assert titles == {"in the copy", *(f"new {number}" for number in range(more))}


async def test_a_snapshot_of_an_earlier_run_of_postgres_is_taken_again(start: Start, own_cluster: Embedded) -> None:
    """After a crash PostgreSQL may reuse transaction ids that such a snapshot counts as seen."""
    with sql(own_cluster) as db:
        user = new_user(db)
    async with start(conninfo=own_cluster.conninfo) as server:
        async with server.live(user) as client:
            last = client.seen[-1]["last_event_id"]
            assert "." in last, "it carries its snapshot"
        await asyncio.to_thread(own_cluster.restart, "immediate")
        async with asyncio.timeout(30):
            while True:
                await until_state(server, "live")
                async with server.connect(sign(user), last_event_id=last) as client:
                    if (await client.next()).get("reason") == "history_changed":
                        break


async def test_a_cluster_that_takes_over_with_a_lower_transaction_counter(
    start: Start, own_cluster: Embedded, database: str, user: UUID, db: Sql
) -> None:
    """Transaction ids remembered from the old cluster must not delay clients of the new one."""
    with sql(own_cluster) as new:
        new.execute("insert into auth.users (id) values (%s)", (user,))
    for _ in range(3):  # the old cluster's ids are ahead
        db.execute("do $$ begin for i in 1..3000 loop perform pg_current_xact_id(); commit; end loop; end $$")
    proxy = Proxy(websockets=False)
    proxy.ports = [_socket(database)]
    await proxy.start()
    try:
        settings = {"host": "127.0.0.1", "port": str(proxy.port)}
        name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
        with sql(own_cluster) as new:
            new.execute(f"create database {name} template postgres")
        async with start(
            conninfo=make_conninfo(database, user=SERVER_ROLE, **settings),
            capture_url=make_conninfo(database, user=CAPTURE_ROLE, **settings), live=False,
        ) as server:  # fmt: skip
            await until_state(server, "live")
            async with server.live(user) as client:
                db.execute("create policy more on momentum_notifications for select using (false)")
                add_notification(db, user)
                last = (await client.until("realtime_event"))["event"]["id"]
            with sql(own_cluster) as new:
                new.execute(f"create role {SERVER_ROLE} login noinherit; create role {CAPTURE_ROLE} login replication")
            migrate(make_conninfo(own_cluster.conninfo, dbname=str(name)), tell=lambda _: None, server_role=SERVER_ROLE)
            proxy.ports = [_socket(own_cluster.conninfo)]
            proxy.cut(Random(0), 1.1)
            await until_state(server, "broken")
            await until_resync(server, user, last)
            async with asyncio.timeout(3):
                async with server.live(user):
                    pass
    finally:
        await proxy.stop()


def _socket(conninfo: str) -> Path:
    return Path(str(psycopg.conninfo.conninfo_to_dict(conninfo)["host"])) / ".s.PGSQL.5432"


@pytest.mark.parametrize("statement", [
    "truncate daily_engagement_scores",
    "truncate coach_interventions, momentum_notifications",
    "truncate auth.users cascade",
])  # fmt: skip
async def test_a_truncated_table_ends_the_history(
    server: Server, db: Sql, user: UUID, statement: LiteralString
) -> None:
    add_score(db, user)
    async with server.live(user) as client:
        add_notification(db, user, title="before")
        last = (await client.until("realtime_event"))["event"]["id"]
        with db.transaction():
            add_notification(db, user, title="before, in the same transaction")
            db.execute(statement)
            if "users" not in statement:
                add_notification(db, user, title="after, in the same transaction")
        assert (await client.closed())[0] == 1012
        assert client.seen[-1]["event"]["title"] == "before, in the same transaction"
    new = await until_resync(server, user, last)
    expected = {row[0] for row in db.execute("select title from momentum_notifications").fetchall()}
    async with server.live(user) as client:
        assert {row["title"] for row in client.seen[1]["notifications"]} == expected
        if expected:
            add_notification(db, user, title="live")
            assert (await client.until("realtime_event"))["event"]["title"] == "live"
    async with server.connect(sign(user), last_event_id=new) as client:
        confirmed = await client.next()
        assert confirmed["resumed"] is True


async def test_an_open_transaction_does_not_keep_a_truncated_history_from_beginning_again(
    server: Server, db: Sql, database: str, user: UUID
) -> None:
    async with server.live(user) as client:
        last = client.seen[-1]["last_event_id"]
        with psycopg.connect(database) as other:
            other.execute("select pg_current_xact_id()")
            db.execute("truncate daily_engagement_scores")
            assert (await client.closed())[0] == 1012
            await until_resync(server, user, last)


async def test_rows_that_bypass_ordinary_triggers_are_published(server: Server, db: Sql, user: UUID) -> None:
    """A subscription's apply worker writes with session_replication_role = replica."""
    async with server.live(user) as client:
        db.execute("set session_replication_role = replica")
        add_score(db, user)
        add_intervention(db, user)
        notification = add_notification(db, user)
        db.execute("delete from momentum_notifications where id = %s", (notification,))
        kinds = [(await client.until("realtime_event"))["event"]["event_type"] for _ in range(4)]
    assert kinds == ["momentum_score_created", "intervention_created", "push_notification", "notification_removed"]
    assert [message["type"] for message in client.seen].count("cache_invalidation") == 1


@pytest.mark.parametrize(("damage", "said"), [
    ("alter table coach_interventions disable trigger intervention_realtime_trigger", "is disabled"),
    ("alter table coach_interventions enable trigger intervention_realtime_trigger", "is not as it was installed"),
    ("drop trigger notification_realtime_trigger on momentum_notifications", "is missing"),
    ("create or replace function publish_momentum_update() returns trigger language plpgsql security definer"
     " set search_path = pg_catalog, pg_temp as 'begin return null; end'", "publish_momentum_update() is not as"),
    ("drop trigger momentum_score_truncate_trigger on daily_engagement_scores", "is missing"),
    ("create or replace function momentum.emit(channels text, event text) returns pg_lsn language sql"
     " return '0/0'::pg_lsn", "momentum.emit(text,text) is not as"),
], ids=["disabled", "not always", "dropped", "replaced", "truncate dropped", "helper replaced"])  # fmt: skip
async def test_what_publishes_and_is_not_as_installed_turns_health_and_is_repaired(
    start: Start, db: Sql, database: str, user: UUID, damage: LiteralString, said: str
) -> None:
    db.execute(damage)
    async with start() as server, server.http() as http:
        async with asyncio.timeout(20):
            while not (health := (await http.get("/sync/health")).json())["publishing"]["problems"]:
                await asyncio.sleep(0.05)
        (problem,) = health["publishing"]["problems"]
        assert said in problem
        assert health["status"] == "degraded"
    told: list[str] = []
    migrate(database, tell=told.append)
    assert any(said in line and "--again" in line for line in told)
    told.clear()
    migrate(database, tell=told.append, again=True)
    assert not any("--again" in line for line in told)
    async with start() as server, server.live(user) as client, server.http() as http:
        assert (await http.get("/sync/health")).json()["status"] == "healthy"
        add_score(db, user)
        assert (await client.until("realtime_event"))["event"]["event_type"] == "momentum_score_created"
        db.execute("truncate daily_engagement_scores")
        assert (await client.closed())[0] == 1012


async def test_triggers_of_others_that_run_before_ours_are_named(
    start: Start, db: Sql, database: str, user: UUID
) -> None:
    db.execute(
        "create function again() returns trigger language plpgsql as $$ begin"
        " update coach_interventions set trigger_reason = 'later' where id = new.id and trigger_reason <> 'later';"
        " return null; end $$;"
        "create trigger a_first after insert on coach_interventions for each row execute function again();"
        "create trigger z_last after insert on coach_interventions for each row execute function again();"
        "create trigger a_before before insert on momentum_notifications for each row"
        " execute function momentum_set_updated_at()"
    )
    told: list[str] = []
    migrate(database, tell=told.append)
    assert (
        [line for line in told if "runs before the publishing trigger" in line]
        == [line for line in told if "a_first" in line]
        != []
    )
    assert not any("z_last" in line or "a_before" in line for line in told)
    async with start() as server, server.http() as http, asyncio.timeout(20):
        while not (health := (await http.get("/sync/health")).json())["publishing"]["foreign_triggers"]:
            await asyncio.sleep(0.05)
        assert health["publishing"]["foreign_triggers"] == ["a_first on public.coach_interventions"]
        assert health["status"] == "healthy"


async def test_a_database_copied_as_a_template_is_served_beside_the_first(
    start: Start, cluster: str, database: str, db: Sql, user: UUID
) -> None:
    async with start() as first, first.live(user) as client:
        add_notification(db, user)
        last = (await client.next())["event"]["id"]
        await until_logged(db, 1)
    db.close()
    name = str(psycopg.conninfo.conninfo_to_dict(database)["dbname"])
    with temporary_database(cluster, like=name) as second:
        server, capture = (make_conninfo(second, user=role) for role in (SERVER_ROLE, CAPTURE_ROLE))
        with pytest.raises(Unsuitable, match="belongs to another program") as unsuitable:
            check(server, "momentum_sync", capture=capture)
        assert "MOMENTUM_SLOT=momentum_sync_2" in unsuitable.value.hint
        check(server, "momentum_sync_2", capture=capture)
        async with start(conninfo=server, capture_url=capture, slot="momentum_sync_2") as copied:
            await until_resync(copied, user, last)
    async with start() as first, first.connect(sign(user), last_event_id=last) as client:
        assert (await client.next())["resumed"] is True


@asynccontextmanager
async def publication_dropped_and_made_again(db: Sql) -> AsyncIterator[None]:
    """Drop the publication while no server runs, change a row, and create the publication again after the block."""
    db.execute("drop publication momentum_sync")
    db.execute("create table plain (id int)")
    db.execute("insert into plain values (1)")
    yield
    db.execute("create publication momentum_sync")


async def test_a_publication_that_is_dropped_and_made_again_does_not_stop_capture_for_ever(
    start: Start, db: Sql, user: UUID
) -> None:
    """Before PostgreSQL 18 every attempt fails, so the slot is recreated and clients get a snapshot."""
    async with start() as server, server.live(user) as client:
        add_notification(db, user)
        last = (await client.next())["event"]["id"]
        await until_logged(db, 1)
    async with publication_dropped_and_made_again(db):
        add_notification(db, user, title="meanwhile")
    async with start(live=False) as server:
        await until_state(server, "live")
        async with server.connect(sign(user), last_event_id=last) as client:
            confirmed = await client.next()
            assert confirmed["resumed"] or confirmed["reason"] == "history_changed"
        async with server.live(user) as client:
            assert {row["title"] for row in client.seen[1]["notifications"]} == {"Well", "meanwhile"}
            add_notification(db, user, title="after")
            assert (await client.until("realtime_event"))["event"]["title"] == "after"


async def test_a_change_that_can_never_be_decoded_does_not_stop_capture_for_ever(
    start: Start, bounds: Bounds, db: Sql, user: UUID
) -> None:
    """The row filter divides by zero, on every attempt."""
    bounds("capture", stuck_s=1.0)
    db.execute("create table divided (n integer primary key)")
    db.execute("alter publication momentum_sync add table divided where (1 / n > 0)")
    async with start() as server, server.live(user) as client:
        db.execute("insert into divided values (0)")
        add_notification(db, user, title="meanwhile")
        await client.closed()
        await until_state(server, "live")
        async with server.live(user) as client:
            assert [row["title"] for row in client.seen[1]["notifications"]] == ["meanwhile"]
            add_notification(db, user, title="after")
            assert (await client.until("realtime_event"))["event"]["title"] == "after"


async def test_a_read_replica_is_refused(own_cluster: Embedded) -> None:
    await stop(own_cluster)
    signal_file = own_cluster.cluster / "standby.signal"
    signal_file.touch()
    if own_cluster._owner is not None:
        os.chown(signal_file, own_cluster._owner.pw_uid, own_cluster._owner.pw_gid)
    await asyncio.to_thread(own_cluster.start)
    with pytest.raises(Unsuitable, match="read replica") as unsuitable:
        check(own_cluster.conninfo, "momentum_sync")
    assert unsuitable.value.hint == "Set DATABASE_URL to the address of the primary."


async def test_branches_whose_commits_are_at_the_same_place_in_the_wal(start: Start, own_cluster: Embedded) -> None:
    """Branches restored from one copy have commits at the same LSN; only the commit time differs."""
    with sql(own_cluster) as db:
        user = new_user(db)
    async with start(conninfo=own_cluster.conninfo) as server, server.live(user):
        with sql(own_cluster) as db:
            add_notification(db, user, title="in the copy")
            await until_logged(db, 1)
    kept = await copy(own_cluster)
    ids: list[str] = []
    for branch in range(4):
        async with start(conninfo=own_cluster.conninfo) as server, server.live(user) as client:
            with sql(own_cluster) as db:
                add_notification(db, user, title=f"branch {branch}")
            # Wait for the event: an offset that the feed has not reached is refused as an unknown id.
            mine = (await client.until("realtime_event"))["event"]["id"]
            for last in ids:
                async with server.connect(sign(user), last_event_id=last) as other:
                    assert (await other.next())["reason"] == "history_changed"
            ids.append(mine)
        await restore(own_cluster, kept)
    assert len(set(ids)) == 4


async def test_the_slot_of_another_database_is_left_alone(cluster: str, database: str, db: Sql) -> None:
    with temporary_database(cluster) as other, psycopg.connect(other, autocommit=True) as elsewhere:
        elsewhere.execute("select pg_create_logical_replication_slot('theirs', 'pgoutput')")
        stuck = StreamRefused("requested WAL segment has already been removed", "58P01", began=True)
        assert stuck.is_final
        with pytest.raises(CaptureError, match="belongs to the database"):
            await ensure_slot(database, "theirs", CaptureLimits(), stuck=stuck)
        found = db.execute("select database from pg_replication_slots where slot_name = 'theirs'").fetchone()
        assert found == (psycopg.conninfo.conninfo_to_dict(other)["dbname"],)


def test_a_library_that_cannot_be_opened_for_a_moment_costs_no_slot() -> None:
    assert not StreamRefused(
        'could not access file "pgoutput": No such file or directory', "58P01", began=True
    ).is_final

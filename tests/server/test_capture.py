"""Capture under failures: PostgreSQL stops, another instance takes over, the log is slow."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from uuid import UUID

import psycopg
import pytest
import websockets

from momentum_sync.database.connection import Pool, using
from momentum_sync.database.embedded import Embedded
from tests.fixtures.cluster import (
    confirmed,
    hold_commits,
    release_commits,
    score_elsewhere,
    until_logged,
    write_elsewhere,
)
from tests.fixtures.postgres import Sql, add_notification, add_score, new_user
from tests.fixtures.server import Server, Start, sign, until_state, until_stitched


async def test_events_are_logged_with_their_places_and_the_slot_is_confirmed_behind_them(
    server: Server, db: Sql, user: UUID
) -> None:
    before = confirmed(db)
    add_score(db, user)
    await until_logged(db, 2)
    rows = db.execute(
        "select number, commit_index, channels, xid, abs(extract(epoch from committed_at - now())) < 60,"
        " commit_lsn - '0/0' from momentum.event_log order by number"
    ).fetchall()
    assert [(row[0], row[1]) for row in rows] == [(1, 0), (2, 1)]
    assert rows[1][2] == [f"momentum_updates:{user}", "momentum_updates:all"]
    assert rows[0][3] == rows[1][3]
    assert rows[0][4]
    async with asyncio.timeout(20):
        while confirmed(db) <= before:
            await asyncio.sleep(0.02)
    assert confirmed(db) >= rows[1][5]


async def test_the_slot_is_confirmed_only_behind_the_log_and_keepalives_are_answered_meanwhile(
    start: Start, database: str, db: Sql, user: UUID
) -> None:
    impatient = psycopg.conninfo.make_conninfo(database, options="-c wal_sender_timeout=1500ms")
    async with start(conninfo=impatient) as server, server.live(user) as client:
        add_score(db, user)
        await until_logged(db, 2)
        pid = db.execute("select active_pid from pg_replication_slots where database = current_database()").fetchone()
        with psycopg.connect(database) as blocker:
            blocker.execute("lock table momentum.stream in access exclusive mode")
            before = confirmed(db)
            add_notification(db, user)
            assert (await client.until("realtime_event"))["event"]["event_type"] == "momentum_score_created"
            assert (await client.until("realtime_event"))["event"]["event_type"] == "push_notification"
            # Longer than wal_sender_timeout: PostgreSQL would have ended a stream that does not answer.
            await asyncio.to_thread(db.execute, "select pg_sleep(4)")
            assert confirmed(db) == before
        assert [kind for _, kind in await until_logged(db, 3)][-1] == "push_notification"
        again = db.execute("select active_pid from pg_replication_slots where database = current_database()").fetchone()
        assert again == pid, "the stream was never lost"


async def test_what_was_written_while_the_server_was_down_is_in_the_log_afterwards(
    start: Start, db: Sql, user: UUID
) -> None:
    async with start():
        add_notification(db, user)
        await until_logged(db, 1)
    for _ in range(3):
        add_notification(db, user)
    async with start() as server:
        assert [number for number, _ in await until_logged(db, 4)] == [1, 2, 3, 4]
        async with server.live(user) as client:
            add_notification(db, user)
            assert (await client.next())["event"]["id"].split("-")[1] == "5"


async def test_a_second_instance_waits_for_the_slot_and_takes_over(start: Start, db: Sql, user: UUID) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(start())
        async with start(live=False) as second:
            health = await until_state(second, "waiting")
            assert health["status"] == "unhealthy"
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with second.connect(sign(user)):
                    raise AssertionError("it was let in")
            assert refused.value.response.status_code == 503
            add_notification(db, user)
            await until_logged(db, 1)
            epoch = (await until_state(first, "live"))["capture"]["last_event_id"].split("-")[0]
            await stack.aclose()
            assert (await until_state(second, "live"))["capture"]["last_event_id"].startswith(f"{epoch}-1-")
            async with second.live(user) as client:
                add_notification(db, user)
                assert (await client.next())["event"]["id"].startswith(f"{epoch}-2-")


async def test_a_foreign_message_under_our_prefix_stops_nothing(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user) as client:
        for content in ("nonsense", "{}", '{"channels": [], "event": {}}', '{"channels": ["x"], "event": [1]}'):
            db.execute("select pg_logical_emit_message(true, 'momentum_sync', %s)", (content,))
        db.execute("select pg_logical_emit_message(true, 'momentum_sync', '\\xff00'::bytea)")
        db.execute("select pg_logical_emit_message(false, 'momentum_sync', 'outside of any transaction')")
        add_notification(db, user)
        event = (await client.next())["event"]
    assert event["event_type"] == "push_notification"
    assert [number for number, _ in await until_logged(db, 1)] == [1]


@pytest.mark.parametrize("depth", [50, 100, 974, 1_500, 5_000])
async def test_a_row_nested_deeper_than_an_event_may_be_comes_without_that_field(
    server: Server, db: Sql, user: UUID, depth: int
) -> None:
    notification = add_notification(db, user)
    async with server.live(user) as client:
        nested = '{"a":' * depth + "1" + "}" * depth
        db.execute("update momentum_notifications set action_data = %s where id = %s", (nested, notification))
        add_notification(db, user, title="after")
        deep, after = [(await client.until("realtime_event"))["event"] for _ in range(2)]
    assert deep.get("omitted") == (None if depth == 50 else ["action_data"])
    assert ("action_data" in deep) == (depth == 50)
    assert (deep["title"], after["title"]) == ("Well", "after")
    assert (await until_state(server, "live"))["status"] == "healthy"
    await until_logged(db, 3)


async def test_a_log_with_an_event_that_cannot_be_read_is_taken_over(start: Start, db: Sql, user: UUID) -> None:
    """Neither a limit introduced later nor a damaged row in the log may stop the server."""
    async with start() as server, server.live(user):
        for title in ("one", "two"):
            add_notification(db, user, title=title)
        await until_logged(db, 2)
    for damaged in ("[1, 2]", '{"event_type": ' + "[" * 900 + "]" * 900 + "}"):
        db.execute("update momentum.event_log set event = %s where number = 1", (damaged,))
        async with start() as server, server.live(user) as client:
            add_notification(db, user, title="after")
            assert (await client.until("realtime_event"))["event"]["title"] == "after"


async def test_a_forged_message_deeper_or_larger_than_any_stops_nothing(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user) as client:
        for event in ('{"a":' * 990 + "1" + "}" * 990, '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"):
            forged = f'{{"channels": ["notifications:{user}"], "event": {event}}}'
            db.execute("select pg_logical_emit_message(true, 'momentum_sync', %s)", (forged,))
        many = json.dumps([str(number) for number in range(20_000)])
        db.execute(
            "select pg_logical_emit_message(true, 'momentum_sync', %s)", (f'{{"channels": {many}, "event": {{}}}}',)
        )
        add_notification(db, user)
        assert (await client.next())["event"]["event_type"] == "push_notification"


async def test_json_that_jsonb_rejects_is_no_event_and_does_not_stop_capture(
    server: Server, db: Sql, user: UUID
) -> None:
    for text in ("\\u0000", "\\\\\\u0000", "\\ud83d", "\\\\u0000"):  # the last is an escaped backslash, which is valid
        content = '{"channels":["x,\\"y\\\\"],"event":{"t":"' + text + '"}}'
        db.execute("select pg_logical_emit_message(true, 'momentum_sync', %s)", (content,))
    add_notification(db, user)
    assert [kind for _, kind in await until_logged(db, 2)] == [None, "push_notification"]
    assert db.execute("select channels from momentum.event_log order by number limit 1").fetchone() == (['x,"y\\'],)


async def test_a_long_read_of_the_log_does_not_block_the_server(
    start: Start, database: str, db: Sql, user: UUID
) -> None:
    async with start():
        add_notification(db, user)
        await until_logged(db, 1)
    with psycopg.connect(database) as reader:
        reader.execute("select count(*) from momentum.event_log")
        async with start() as server:
            add_notification(db, user)
            await until_logged(db, 2)
            assert (await until_state(server, "live"))["capture"]["lag_ms"] < 5_000


async def test_a_slot_made_anew_begins_another_epoch(start: Start, db: Sql, user: UUID) -> None:
    async with start() as server:
        first = (await until_state(server, "live"))["capture"]["last_event_id"]
    async with asyncio.timeout(20):
        while db.execute("select 1 from pg_replication_slots where slot_name = 'momentum_sync' and active").fetchone():
            await asyncio.sleep(0.02)
    db.execute("select pg_drop_replication_slot('momentum_sync')")
    add_notification(db, user)
    async with start() as server:
        second = (await until_state(server, "live"))["capture"]["last_event_id"]
        async with server.connect(sign(user), last_event_id=first) as client:
            assert (await client.next())["reason"] == "history_changed"
    assert first.split("-")[0] != second.split("-")[0]


async def test_no_query_for_an_event(
    server: Server, db: Sql, user: UUID, other: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server.live(user) as client, server.live(other):
        async with asyncio.timeout(20):
            while db.execute(
                "select 1 from pg_stat_activity where datname = current_database() and state <> 'idle'"
                " and application_name in ('momentum-sync gateway', 'momentum-sync connect', 'momentum-sync events')"
            ).fetchone():
                await asyncio.sleep(0.01)
        worked: list[object] = []
        real = using

        def counted(pool: Pool, seconds: float) -> object:
            worked.append(pool)
            return real(pool, seconds)

        monkeypatch.setattr("momentum_sync.database.pool.using", counted)
        for _ in range(20):
            add_notification(db, user)
        for _ in range(20):
            await client.until("realtime_event")
        assert worked == []


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_connections_survive_a_restart_of_postgres(start: Start, own_cluster: Embedded, mode: str) -> None:
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
        user = new_user(db)
    async with start(conninfo=own_cluster.conninfo, heartbeat="0.2s") as server, server.live(user) as client:
        await until_stitched(client)  # else a restart closes it: transaction ids may be reused
        with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
            add_notification(db, user, title="before")
            before = (await client.until("realtime_event"))["event"]
        await asyncio.to_thread(own_cluster.stop, mode)
        health = await until_state(server, "broken")
        assert health["status"] == "unhealthy"
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with server.connect(sign(user)):
                raise AssertionError("it was let in")
        assert refused.value.response.status_code == 503
        await client.send({"type": "request_momentum_update"})
        assert (await client.until("error", "momentum_state_update"))["code"] == "unavailable"
        await asyncio.to_thread(own_cluster.start)
        await until_state(server, "live")
        with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
            add_notification(db, user, title="after")
            after = (await client.until("realtime_event"))["event"]
        assert (after["title"], after["previous_id"]) == ("after", before["id"])
        async with server.live(user) as another:
            assert len(another.seen[1]["notifications"]) == 2


async def test_a_read_after_an_event_never_returns_older_data(start: Start, own_cluster: Embedded) -> None:
    """A commit is in the WAL before it is visible, so a read after its event must wait until it is visible."""
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
        db.execute("set synchronous_commit = local")
        user, other = new_user(db), new_user(db)
        add_score(db, user, score=50)
        async with start(conninfo=own_cluster.conninfo) as server, server.live(user) as client:
            hold_commits(db)
            writing = asyncio.ensure_future(asyncio.to_thread(score_elsewhere, own_cluster.conninfo, user, 60))
            assert (await client.until("realtime_event"))["event"]["final_score"] == 60
            await client.send({"type": "request_momentum_update"})
            async with server.http(sign(user)) as http:
                asked = [
                    asyncio.ensure_future(http.post(f"/sync/{what}", json={"user_id": str(user)}))
                    for what in ("momentum", "history", "notifications", "interventions")
                ]
                async with server.http(sign(other)) as others:  # this user's data have not changed
                    answer = await others.post("/sync/momentum", json={"user_id": str(other)})
                    assert answer.status_code == 200
                assert not [one for one in asked if one.done()]
                assert not writing.done()
                release_commits(db)
                momentum, history, *_ = [one.json()["data"] for one in await asyncio.gather(*asked)]
            assert (momentum["final_score"], [day["final_score"] for day in history]) == (60, [60])
            assert (await client.until("momentum_state_update"))["data"]["final_score"] == 60
            await writing


async def test_the_stitch_with_a_commit_that_is_in_the_wal_and_not_yet_visible(
    start: Start, own_cluster: Embedded
) -> None:
    """A commit that waits for a standby is sent to capture before any snapshot sees it."""
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
        db.execute("set synchronous_commit = local")
        user = new_user(db)
        async with start(conninfo=own_cluster.conninfo) as server, server.live(user) as early:
            hold_commits(db)
            writing = asyncio.ensure_future(asyncio.to_thread(write_elsewhere, own_cluster.conninfo, user, "late"))
            late = (await early.until("realtime_event"))["event"]
            soon = add_notification(db, user, title="soon")
            await early.until("realtime_event")
            assert not writing.done()
            async with server.connect(sign(user)) as client:
                state = await client.until("initial_state")
                assert [row["id"] for row in state["notifications"]] == [str(soon)]
                event = (await client.next())["event"]
                assert event["notification_id"] == late["notification_id"]
                assert event["previous_id"] == state["last_event_id"]
                assert (await client.ask({"type": "ping"}))["type"] == "pong"
            release_commits(db)
            assert str(await writing) == late["notification_id"]


async def test_snapshot_and_events_are_exact_whatever_commits_meanwhile(
    start: Start, database: str, db: Sql, user: UUID
) -> None:
    """Rows are only added, so each must arrive exactly once: in the snapshot, or as an event."""
    stop = asyncio.Event()

    def write(writer: int) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            for number in range(25):
                with connection.transaction():
                    add_notification(connection, user, title=f"{writer}.{number}")
                    connection.execute("select pg_sleep(random() * 0.02)")

    async with start(max_connections_per_user=100) as server:
        writers = [asyncio.ensure_future(asyncio.to_thread(write, writer)) for writer in range(6)]
        results: list[tuple[list[str], list[str]]] = []

        async def watch() -> None:
            async with server.connect(sign(user)) as client:
                held = [row["id"] for row in (await client.until("initial_state"))["notifications"]]
                last = client.seen[-1]["last_event_id"]
                came: list[str] = []
                await stop.wait()
                while len(held) + len(came) < 150:
                    event = (await client.until("realtime_event"))["event"]
                    assert event["previous_id"] == last
                    last = event["id"]
                    came.append(event["notification_id"])
                assert (await client.ask({"type": "ping"}))["type"] == "pong"
                results.append((held, came))

        watchers = []
        while not all(writer.done() for writer in writers):
            watchers.append(asyncio.ensure_future(watch()))
            await asyncio.sleep(0.01)
        await asyncio.gather(*writers)
        stop.set()
        await asyncio.gather(*watchers)
    everything = sorted(str(row[0]) for row in db.execute("select id from momentum_notifications"))
    assert len(results) == len(watchers) > 10
    for held, came in results:
        assert sorted(held + came) == everything
    assert any(came for _, came in results)

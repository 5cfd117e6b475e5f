"""Several gateways on one feed: a real NATS server, a real PostgreSQL, and each role with all of its parts."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack, suppress
from typing import Any
from uuid import UUID

import nats as nats_py
import psycopg
import pytest
from websockets.exceptions import InvalidStatus

from tests.fixtures.gateways import Nats, Run
from tests.fixtures.postgres import Sql, add_notification, until_read
from tests.fixtures.server import SERVICE_KEY, Bounds, Client, Server, sign, until_state


async def titles(client: Client, count: int) -> list[str]:
    """Return the titles of the next notifications."""
    found: list[str] = []
    while len(found) < count:
        message = await client.until("realtime_event")
        if "title" in message["event"]:
            found.append(message["event"]["title"])
    return found


async def health(server: Server) -> dict[str, Any]:
    async with server.http() as http:
        return dict((await http.get("/sync/health")).json())


async def until_status(server: Server, wanted: str) -> dict[str, Any]:
    """Wait for a status of the health. Return the health."""
    async with asyncio.timeout(20):
        while (found := await health(server))["status"] != wanted:
            await asyncio.sleep(0.05)
    return found


async def test_an_event_reaches_the_clients_of_all_gateways_in_order(run: Run, db: Sql, user: UUID) -> None:
    expected = [str(number) for number in range(30)]
    async with run("capture"), run("gateway") as one, run("gateway") as two:
        async with one.live(user, client_id="a") as first, two.live(user, client_id="b") as second:
            for title in expected:
                add_notification(db, user, title=title)
            assert await titles(first, 30) == await titles(second, 30) == expected
        assert (await health(one))["status"] == "healthy"


@pytest.mark.parametrize("role", ["capture", "gateway", "all"])
async def test_every_role_schedules_full_garbage_collections_itself(run: Run, role: str) -> None:
    async with AsyncExitStack() as stack:
        if role == "gateway":
            await stack.enter_async_context(run("capture"))
        gc.set_threshold(700, 10, 10)  # CPython's own
        async with run(role):
            assert gc.get_threshold()[2] > 100_000


async def test_a_client_moves_between_gateways(run: Run, db: Sql, user: UUID) -> None:
    async with run("capture"), run("gateway") as one, run("gateway") as two:
        query: dict[str, Any] = {}
        for number in range(6):
            server = (one, two)[number % 2]
            async with server.connect(sign(user), client_id="phone", **query) as client:
                assert (await client.next())["resumed"] is bool(query)
                add_notification(db, user, title=str(number))
                message = await client.until("realtime_event")
                assert message["event"]["title"] == str(number)
                query = {"last_event_id": message["event"]["id"]}


async def test_a_gateway_that_is_behind_waits_for_the_client_s_position(
    run: Run, db: Sql, user: UUID, bounds: Bounds
) -> None:
    async with run("capture"), run("gateway") as one:
        bounds("feed", poll_alone_s=3.0)
        async with run("gateway", nats_url="nats://127.0.0.1:1") as behind:  # no server listens there
            async with one.live(user, client_id="phone") as client:
                add_notification(db, user, title="seen")
                last = (await client.until("realtime_event"))["event"]["id"]
            await until_read(db)
            add_notification(db, user, title="missed")
            async with behind.connect(sign(user), client_id="phone", last_event_id=last) as client:
                assert (await client.next())["resumed"]
                assert await titles(client, 1) == ["missed"]


async def test_a_read_is_not_older_than_what_the_client_has_received_elsewhere(
    run: Run, db: Sql, user: UUID, bounds: Bounds
) -> None:
    async with run("capture"), run("gateway") as one:
        bounds("feed", poll_alone_s=3.0)
        async with run("gateway", nats_url="nats://127.0.0.1:1") as behind:  # no server listens there
            async with one.live(user) as client:
                add_notification(db, user, title="seen")
                last = (await client.until("realtime_event"))["event"]["id"]
            async with behind.http(sign(user)) as http:
                body = {"user_id": str(user)}
                answer = await http.post("/sync/notifications", json=body, headers={"Last-Event-ID": last})
                assert "seen" in answer.text
                reached = (await http.get("/sync/health")).json()["capture"]["last_event_id"]
                assert int(reached.split("-")[1]) >= int(last.split("-")[1])
                other = await http.post("/sync/notifications", json=body, headers={"Last-Event-ID": "nonsense"})
                assert other.status_code == 200


async def test_a_position_that_no_gateway_has_sent_is_refused(run: Run, db: Sql, user: UUID) -> None:
    async with run("capture"), run("gateway") as server:
        async with server.live(user) as client:
            epoch = client.seen[-1]["last_event_id"].split("-")[0]
        for last, reason in ((f"{epoch}-999999-1", "unknown_id"), ("01234567-1-1", "history_changed")):
            async with server.connect(sign(user), last_event_id=last) as client:
                assert (await client.next())["reason"] == reason


async def test_without_the_broker_sockets_stay_and_events_come_from_the_log(
    run: Run, db: Sql, user: UUID, nats: Nats
) -> None:
    async with run("capture") as capture, run("gateway") as server, server.live(user) as client:
        await nats.stop()
        found = await until_status(server, "degraded")
        assert "NATS" in found["capture"]["problem"]
        for title in ("one", "two"):
            add_notification(db, user, title=title)
        assert await titles(client, 2) == ["one", "two"]
        assert (await health(server))["capture"]["state"] == "live"
        async with server.live(user) as another:  # new clients are served, too
            add_notification(db, user, title="three")
            assert await titles(another, 1) == await titles(client, 1) == ["three"]
        await nats.start()
        await until_status(server, "healthy")
        assert (await health(capture))["status"] == "healthy"
        add_notification(db, user, title="four")
        assert await titles(client, 1) == ["four"]


async def test_a_broker_that_stands_still_loses_nothing(
    run: Run, db: Sql, user: UUID, nats: Nats, bounds: Bounds
) -> None:
    bounds("feed", silence_s=0.5, poll_s=0.1, ping_s=1)
    async with run("capture"), run("gateway") as server, server.live(user) as client:
        nats.pause()
        try:
            for title in ("one", "two"):
                add_notification(db, user, title=title)
            assert await titles(client, 2) == ["one", "two"]
        finally:
            nats.go_on()
        add_notification(db, user, title="three")
        assert await titles(client, 1) == ["three"]


async def test_an_event_that_is_too_large_for_the_broker_comes_from_the_log(
    run: Run, db: Sql, user: UUID, bounds: Bounds
) -> None:
    bounds("feed", message_bytes=2_000)
    async with run("capture"), run("gateway") as server, server.live(user) as client:
        large = "x" * 3_000
        for title in ("before", large, "after"):
            add_notification(db, user, title=title)
        assert await titles(client, 3) == ["before", large, "after"]


async def test_what_a_slow_gateway_drops_comes_from_the_log(
    run: Run, db: Sql, user: UUID, bounds: Bounds, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds("feed", inbox_bytes=6_000)
    async with run("capture"), run("gateway") as server, server.live(user) as client:
        expected = [f"{number} {'x' * 900}" for number in range(100)]
        with db.transaction():  # all are published together, more than the gateway may hold
            for title in expected:
                add_notification(db, user, title=title)
        assert await titles(client, 100) == expected
    logged = capsys.readouterr()
    assert "SlowConsumerError" in logged.out + logged.err


async def test_what_others_write_on_the_subject_is_not_taken(run: Run, db: Sql, user: UUID, nats: Nats) -> None:
    async with run("capture"), run("gateway") as server, server.live(user) as client:
        stranger = await nats_py.connect(nats.url)
        subjects: set[str] = set()

        async def heard(message: Any) -> None:
            subjects.add(message.subject)

        await stranger.subscribe("momentum_sync.>", cb=heard)
        async with asyncio.timeout(5):
            while not subjects:
                await asyncio.sleep(0.05)
        (subject,) = subjects
        for nonsense in (b"", b"nonsense", b"\x93\x01\x02\x03", b"\xc0"):
            await stranger.publish(subject, nonsense)
        await stranger.flush()
        add_notification(db, user, title="still here")
        assert await titles(client, 1) == ["still here"]
        await stranger.close()


async def test_a_standby_takes_over_and_no_client_is_dropped(run: Run, db: Sql, user: UUID) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        await first.enter_async_context(run("capture"))
        standby = await stack.enter_async_context(run("capture", live=False))
        await until_state(standby, "waiting")
        server = await stack.enter_async_context(run("gateway"))
        client = await stack.enter_async_context(server.live(user))
        epoch = client.seen[-1]["last_event_id"].split("-")[0]
        add_notification(db, user, title="one")
        assert await titles(client, 1) == ["one"]
        await first.aclose()
        add_notification(db, user, title="two")
        assert await titles(client, 1) == ["two"]
        await until_state(standby, "live")
        assert client.seen[-1]["event"]["id"].split("-")[0] == epoch
        await until_status(server, "healthy")


async def test_a_new_epoch_closes_the_clients_of_all_gateways(run: Run, db: Sql, user: UUID) -> None:
    async with run("capture") as capture, run("gateway") as one, run("gateway") as two:
        async with one.live(user, client_id="a") as first, two.live(user, client_id="b") as second:
            last = first.seen[-1]["last_event_id"]
            await drop_slot(db)
            assert (await first.closed())[0] == (await second.closed())[0] == 1012
        await until_state(capture, "live")
        await until_state(two, "live")
        async with two.connect(sign(user), last_event_id=last) as client:
            assert (await client.next())["reason"] == "history_changed"
            add_notification(db, user, title="in the new epoch")
            assert await titles(client, 1) == ["in the new epoch"]


async def drop_slot(db: Sql) -> None:
    """Drop the slot under the capture that reads it: events are lost, and an epoch ends."""
    ours = "from pg_replication_slots where database = current_database()"
    async with asyncio.timeout(20):
        while db.execute(f"select {ours}").fetchone() is not None:
            db.execute(f"select pg_terminate_backend(active_pid) {ours} and active")
            with suppress(psycopg.errors.ObjectInUse):  # it has another reader already
                db.execute(f"select pg_drop_replication_slot(slot_name) {ours}")
            await asyncio.sleep(0)


async def test_gateways_wait_for_capture(run: Run, db: Sql, user: UUID, bounds: Bounds) -> None:
    bounds("feed", away_s=1.5)
    async with run("gateway", live=False) as server:
        assert (await health(server))["status"] == "unhealthy"
        async with server.http(sign(user)) as http:
            assert (await http.post("/sync/events", json={"last_event_id": "01234567-1-1"})).status_code == 503
        async with run("capture"):
            await until_state(server, "live")
            async with server.live(user) as client:
                add_notification(db, user, title="one")
                assert await titles(client, 1) == ["one"]
        await until_state(server, "waiting")


async def test_capture_alone_answers_health_and_metrics_and_serves_no_client(run: Run, user: UUID) -> None:
    async with run("capture") as server, server.http() as http:
        found = await health(server)
        assert (found["role"], found["status"], found["connected_clients"]) == ("capture", "healthy", 0)
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/sync/state")).status_code == 404
        text = (await http.get("/metrics", headers={"apikey": SERVICE_KEY})).text
        assert "momentum_nats_connected 1.0" in text
        assert "momentum_connections" not in text
        with pytest.raises(InvalidStatus):
            async with server.connect(sign(user)):
                pass

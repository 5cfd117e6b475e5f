"""The behaviour of both SDKs on a real server under the same faults: in Python, Node, and a real Chromium."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import pytest
import websockets
from psycopg import sql

from tests.fixtures.postgres import Sql, add_intervention, add_notification, add_score
from tests.fixtures.server import PATH, sign
from tests.sdk.conftest import Process, World
from tests.sdk.drivers import Chromium, Driver


def set_score(db: Sql, user: UUID, score: float) -> None:
    db.execute("update daily_engagement_scores set final_score = %s where user_id = %s", (score, user))


def scores(driver: Driver) -> list[float]:
    """Return the scores of the received events, in order."""
    fields = [one["fields"] for one in driver.seen if str(one.get("event", "")).startswith("momentum_score_")]
    return [float(one["final_score"]) for one in fields]


async def until_score(driver: Driver, score: float) -> dict[str, Any]:
    return await driver.state(
        lambda state: state["status"] == "live" and state["momentum"] and state["momentum"]["final_score"] == score
    )


async def test_the_state_follows_the_tables(world: World, db: Sql) -> None:
    add_score(db, world.user, score=50)
    first = add_intervention(db, world.user)
    unread = add_notification(db, world.user, title="One")
    async with world.serve(), world.client() as driver:
        state = await driver.live()
        assert state["momentum"]["final_score"] == 50
        assert [one["id"] for one in state["interventions"]] == [str(first)]
        assert [one["id"] for one in state["notifications"]] == [str(unread)]
        await driver.come(lambda: driver.all("resync"), [None])
        set_score(db, world.user, 61.5)
        second = add_intervention(db, world.user)
        db.execute("update coach_interventions set status = 'completed' where id = %s", (first,))
        newer = add_notification(db, world.user, title="Two")
        db.execute("update momentum_notifications set status = 'opened' where id = %s", (unread,))
        state = await driver.state(
            lambda state: (
                [one["id"] for one in state["notifications"]] == [str(newer)] and len(state["interventions"]) == 1
            )
        )
        assert (state["momentum"]["final_score"], state["momentum"].get("breakdown")) == (61.5, None)
        assert [one["id"] for one in state["interventions"]] == [str(second)]
        await driver.come(lambda: scores(driver), [61.5])
        await driver.do("momentum")
        assert (await driver.until(lambda one: "momentum" in one))["momentum"]["final_score"] == 61.5
        await driver.state(lambda state: state["momentum"].get("breakdown") is not None)


async def test_the_latest_score_is_deleted_or_moved(world: World, db: Sql) -> None:
    add_score(db, world.user, score=40, day="current_date - 1")
    add_score(db, world.user, score=50)
    async with world.serve(), world.client() as driver:
        await until_score(driver, 50)
        db.execute("delete from daily_engagement_scores where final_score = 50")
        await until_score(driver, 40)
        add_score(db, world.user, score=70)
        await until_score(driver, 70)
        db.execute("update daily_engagement_scores set score_date = current_date - 5 where final_score = 70")
        await until_score(driver, 40)


async def test_the_server_is_killed_again_and_again(world: World, process: Process, db: Sql) -> None:
    add_score(db, world.user, score=0)
    async with world.client() as driver:
        await driver.live()
        sent = [float(number) for number in range(1, 61)]
        for number in sent:
            set_score(db, world.user, number)
            if number % 20 == 0:
                process.kill()
                set_score(db, world.user, 99)
                await driver.state(lambda state: state["status"] == "offline" and state["since"])
                await process.start()
        await driver.do("wake")
        set_score(db, world.user, 100)
        await until_score(driver, 100)
        expected = [score for number in sent for score in ([number, 99.0] if number % 20 == 0 else [number])]
        await driver.come(lambda: scores(driver), [*expected, 100.0])
        assert driver.all("resync") == [None], "every time it resumed"
        assert "Gap" not in driver.all("error")


async def test_a_program_that_is_started_again_goes_on_where_it_was(world: World, db: Sql) -> None:
    add_score(db, world.user, score=1)
    unread = add_notification(db, world.user)
    async with world.serve():
        async with world.client(store=True) as driver:
            await driver.live()
            set_score(db, world.user, 2)
            await until_score(driver, 2)
            await driver.do("close")
            await driver.until(lambda one: one.get("closed"))
        set_score(db, world.user, 3)
        async with world.client(store=True) as driver:
            state = await until_score(driver, 3)
            assert [one["id"] for one in state["notifications"]] == [str(unread)], "as it was kept"
            await driver.come(lambda: scores(driver), [3.0])
            assert driver.all("resync") == []
        async with world.client(store=True, token=sign(await other_user(db))) as driver:
            state = await driver.live()
            assert (state["momentum"]["has_data"], state["notifications"]) == (False, []), "nothing of another's"


async def other_user(db: Sql) -> UUID:
    row = db.execute("insert into auth.users (id, email) values (gen_random_uuid(), 'o@test.invalid') returning id")
    found = row.fetchone()
    assert found is not None
    return UUID(str(found[0]))


async def test_started_offline_it_shows_what_it_knew_and_since_when(world: World, db: Sql) -> None:
    add_score(db, world.user, score=5)
    async with world.serve():
        async with world.client(store=True) as driver:
            await driver.live()
            await driver.do("close")
            await driver.until(lambda one: one.get("closed"))
    world.network.ports = []
    async with world.client(store=True) as driver:
        state = await driver.state(lambda state: state["momentum"] is not None)
        assert (state["status"], state["momentum"]["final_score"]) == ("offline", 5)
        since = state["since"] if state["since"] < 1e11 else state["since"] / 1000
        assert 0 <= time.time() - since < 60
        await driver.until(lambda one: one.get("error") == "ConnectionLost")


async def test_a_token_that_expires_is_renewed_on_the_same_connection(world: World, db: Sql) -> None:
    add_score(db, world.user, score=5)
    soon = sign(world.user, exp=int(time.time()) + 30)
    async with world.serve(), world.client(token=[soon, sign(world.user)]) as driver:
        await driver.live()
        await driver.until(lambda one: one.get("token") == 2)  # after the warning that the first token expires
        set_score(db, world.user, 6)
        await until_score(driver, 6)
        assert driver.all("error") == []


async def test_an_expired_token_is_asked_for_anew(world: World, db: Sql) -> None:
    add_score(db, world.user, score=5)
    expired = sign(world.user, exp=int(time.time()) - 3600)
    async with world.serve(), world.client(token=[expired, sign(world.user)]) as driver:
        refused = await driver.until(lambda one: "error" in one)
        assert refused == {"error": "Rejected", "code": "token_expired"}
        await driver.live()
        assert driver.all("token") == [1, 2]


async def test_a_slow_network(world: World, db: Sql) -> None:
    add_score(db, world.user, score=0)
    world.network.delay = 0.02
    async with world.serve(), world.client() as driver:
        await driver.live()
        for number in range(1, 201):
            set_score(db, world.user, number % 100)
        set_score(db, world.user, 77.5)
        await until_score(driver, 77.5)
        await driver.come(lambda: scores(driver), [*[float(number % 100) for number in range(1, 201)], 77.5])


async def test_connections_that_break_all_the_time(world: World, db: Sql) -> None:
    add_score(db, world.user, score=0)
    chance = random.Random(7)
    async with world.serve(), world.client() as driver:
        await driver.live()
        for number in range(1, 61):
            set_score(db, world.user, number)
            if number % 10 == 0:
                await driver.live()
                world.network.cut(chance, share=1.0)
                await driver.state(lambda state: state["status"] == "offline")
                await driver.do("wake")
        await until_score(driver, 60)
        await driver.come(lambda: scores(driver), [float(number) for number in range(1, 61)])
        assert driver.all("resync") == [None]


async def test_two_hours_asleep(world: World, db: Sql) -> None:
    """The socket is dead without a close; only the clock shows it."""
    add_score(db, world.user, score=0)
    async with world.serve(), world.client() as driver:
        await driver.live()
        world.network.go_dead(random.Random(1), share=1.0)
        for number in range(1, 31):
            set_score(db, world.user, number)
        await driver.do("advance", seconds=7200)
        await driver.until(lambda one: one.get("error") == "FeedFrozen")
        await until_score(driver, 30)
        await driver.come(lambda: scores(driver), [float(number) for number in range(1, 31)])
        assert driver.all("resync") == [None]


async def test_a_feed_that_stands_still_is_noticed(world: World, db: Sql) -> None:
    add_score(db, world.user, score=0)
    async with world.serve(), world.client(patience=2.5) as driver:
        await driver.live()
        world.network.go_dead(random.Random(1), share=1.0)
        set_score(db, world.user, 9)
        await driver.until(lambda one: one.get("error") == "FeedFrozen")
        await until_score(driver, 9)
        await driver.come(lambda: scores(driver), [9.0])
        assert driver.all("resync") == [None]


async def test_an_event_that_is_missed_is_noticed_and_the_state_read_anew(world: World, db: Sql) -> None:
    add_score(db, world.user, score=0)
    async with world.serve(), world.client() as driver:
        await driver.live()
        world.network.lose = b'"realtime_event"'
        set_score(db, world.user, 8)
        await driver.until(lambda one: one.get("error") == "Gap")
        await driver.until(lambda one: one.get("resync") == "gap")
        assert (await until_score(driver, 8))["status"] == "live"


async def test_a_history_that_broke_is_told_and_the_cache_is_dropped(world: World, db: Sql) -> None:
    add_score(db, world.user, score=1)
    async with world.serve():
        async with world.client(store=True) as driver:
            await driver.live()
            await driver.do("get", key="momentum:history:x", value=[1], persistent=True)
            await driver.until(lambda one: one.get("value") == [1])
            await driver.do("close")
            await driver.until(lambda one: one.get("closed"))
    row = db.execute("select slot_name from pg_replication_slots where database = current_database()").fetchone()
    assert row is not None
    db.execute(sql.SQL("select pg_drop_replication_slot({})").format(sql.Literal(row[0])))
    set_score(db, world.user, 2)
    async with world.serve(), world.client(store=True) as driver:
        await driver.until(lambda one: one.get("resync") == "history_changed")
        await until_score(driver, 2)
        await driver.do("peek", key="momentum:history:x")
        assert (await driver.until(lambda one: "peeked" in one))["peeked"] is None


async def test_the_cache(world: World, db: Sql) -> None:
    add_score(db, world.user, score=1)
    key = f"momentum:current:{world.user}"
    async with world.serve(), world.client() as driver:
        await driver.live()
        await driver.do("get", key=key, value="first", hold=True)
        await driver.until(lambda one: one.get("fetched") == key)
        await driver.do("get", key=key, value="not asked for")
        await driver.do("release", key=key)
        for _ in range(2):
            assert (await driver.until(lambda one: one.get("key") == key))["value"] == "first"
        assert driver.all("fetches") == [1], "one fetch for both"
        await driver.do("get", key=key, value="nor now")
        assert (await driver.until(lambda one: one.get("key") == key))["value"] == "first"
        set_score(db, world.user, 2)
        await driver.until(lambda one: key in one.get("invalidated", []))
        await driver.do("peek", key=key)
        assert (await driver.until(lambda one: "peeked" in one))["peeked"] is None
        # A value that is invalidated during its fetch may be stale, and is fetched again.
        await driver.do("get", key=key, value="second", hold=True)
        await driver.until(lambda one: one.get("fetched") == key)
        set_score(db, world.user, 3)
        await driver.until(lambda one: key in one.get("invalidated", []))
        await driver.do("release", key=key)
        await driver.until(lambda one: one.get("fetches") == 3)
        await driver.do("release", key=key)
        assert (await driver.until(lambda one: one.get("key") == key))["value"] == "second"
        # Offline, cached values stay available.
        world.network.ports = []
        world.network.cut(random.Random(0), share=1.0)
        await driver.state(lambda state: state["status"] == "offline")
        await driver.do("get", key=key, value="not to be had")
        assert (await driver.until(lambda one: one.get("key") == key))["value"] == "second"


async def test_an_invalidation_is_acknowledged_once_the_entry_is_gone(world: World, db: Sql) -> None:
    """A key is acknowledged only after the program's store has dropped it."""
    add_score(db, world.user, score=1)
    key = f"momentum:trend:{world.user}"
    async with world.serve(), world.client(store=True) as driver:
        await driver.live()
        await driver.do("get", key=key, value="kept", persistent=True)
        await driver.until(lambda one: one.get("value") == "kept")
        set_score(db, world.user, 2)
        await driver.until(lambda one: key in one.get("invalidated", []))
        await driver.do("close")
        await driver.until(lambda one: one.get("closed"))
    world.network.ports = []
    async with world.client(store=True) as driver:
        await driver.state(lambda state: state["momentum"] is not None)
        await driver.do("peek", key=key)
        assert (await driver.until(lambda one: "peeked" in one))["peeked"] is None


async def test_what_was_read_offline_is_sent_later_and_once(world: World, db: Sql) -> None:
    add_score(db, world.user, score=1)
    ids = [str(add_notification(db, world.user, title=str(number))) for number in range(25)]
    async with world.serve():
        async with world.client(store=True) as driver:
            await driver.live()
            await driver.do("close")
            await driver.until(lambda one: one.get("closed"))
    world.network.ports = []
    async with world.client(store=True) as driver:
        await driver.state(lambda state: len(state["notifications"]) == 25)
        for one in ids[:24]:
            await driver.do("mark_read", id=one)
        await driver.state(lambda state: [one["id"] for one in state["notifications"]] == ids[24:])
        await driver.come(lambda: sorted(driver.all("kept")), sorted(ids[:24]))
    async with world.serve(), world.client(store=True) as driver:
        await driver.until(lambda one: "state" in one and one["state"]["status"] == "live")
        await driver.do("sent")
        await driver.until(lambda one: one.get("sent"))
        rows = db.execute(
            "select id::text from momentum_notifications where status = 'opened' and opened_at is not null"
            " order by title::int"
        ).fetchall()
        assert [row[0] for row in rows] == ids[:24]
        state = await driver.live()
        assert [one["id"] for one in state["notifications"]] == ids[24:]
        opened = [one["fields"]["notification_id"] for one in driver.seen if one.get("event") == "push_notification"]
        assert len(opened) == len(set(opened)), "the server was told once"
        await driver.do("mark_read", id="00000000-0000-4000-8000-000000000000")
        await driver.until(lambda one: one.get("error") == "RequestFailed" and one["code"] == "not_found")
        await driver.do("sent")
        await driver.until(lambda one: one.get("sent"))


async def test_channels_beside_the_users_own(world: World, db: Sql) -> None:
    async with world.serve(), world.client(token=sign(world.user, app_role="coach")) as driver:
        await driver.live()
        await driver.do("subscribe", channels=["interventions:coaches"])
        held = await driver.until(lambda one: "channels" in one)
        assert "interventions:coaches" in held["channels"]
        stranger = await other_user(db)
        await driver.do("subscribe", channels=[f"notifications:{stranger}"])
        assert (await driver.until(lambda one: one.get("error") == "RequestFailed"))["code"] == "forbidden"
        world.network.cut(random.Random(0), share=1.0)
        await driver.state(lambda state: state["status"] == "offline")
        add_intervention(db, stranger)
        event = await driver.until(lambda one: one.get("event") == "intervention_created")
        assert event["fields"]["user_id"] == str(stranger), "and it is missed in the resume as well"


async def test_channels_asked_for_while_it_connects(world: World, db: Sql) -> None:
    world.network.delay = 0.05
    async with world.serve(), world.client(token=sign(world.user, app_role="coach")) as driver:
        await driver.until(lambda one: one.get("token") == 1)  # the client is connecting and not yet confirmed
        await driver.do("subscribe", channels=["interventions:coaches"])
        await driver.live()
        async with asyncio.timeout(20):
            held: list[str] = []
            while "interventions:coaches" not in held:
                await driver.do("subscribe", channels=["interventions:coaches"])
                held = (await driver.until(lambda one: "channels" in one))["channels"]
        stranger = await other_user(db)
        add_intervention(db, stranger)
        event = await driver.until(lambda one: one.get("event") == "intervention_created")
        assert event["fields"]["user_id"] == str(stranger)


async def test_channels_that_are_refused_are_told(world: World, db: Sql) -> None:
    channel = f"notifications:{await other_user(db)}"
    async with world.serve(), world.client(channels=[channel]) as driver:
        assert (await driver.until(lambda one: "error" in one)) == {"error": "RequestFailed", "code": "forbidden"}
        await driver.live()


async def test_replaced_by_the_same_device_it_does_not_come_back(world: World) -> None:
    async with world.serve() as port, world.client(client_id="phone") as driver:
        await driver.live()
        address = f"ws://127.0.0.1:{port}{PATH}?client_id=phone"
        async with websockets.connect(address, additional_headers={"Authorization": f"Bearer {sign(world.user)}"}):
            assert (await driver.until(lambda one: one.get("name") == "Ended"))["ended"] == 4410
            await driver.state(lambda state: state["status"] == "ended")


async def test_a_user_who_is_revoked_is_told_and_comes_back_with_a_newer_token(world: World, db: Sql) -> None:
    tokens = [sign(world.user, iat=int(time.time()) - 60), sign(world.user, iat=int(time.time()) + 5)]
    async with world.serve(), world.client(token=tokens) as driver:
        await driver.live()
        db.execute("select momentum.revoke(%s)", (world.user,))
        assert (await driver.until(lambda one: "error" in one))["code"] == 4401
        await driver.until(lambda one: one.get("token") == 2)
        await driver.until(lambda one: "state" in one and one["state"]["status"] == "live")


async def test_what_is_not_allowed_ends_the_client_and_nothing_stays(world: World, db: Sql) -> None:
    add_score(db, world.user, score=50)
    stranger = await other_user(db)
    async with world.serve():
        async with world.client(store=True) as driver:
            await driver.live()
            await driver.do("close")
            await driver.until(lambda one: one.get("closed"))
        async with world.client(store=True, user_id=str(world.user), token=sign(stranger)) as driver:
            ended = await driver.until(lambda one: one.get("name") == "Ended")
            assert ended["ended"] in (403, 4403)
            state = await driver.state(lambda state: state["status"] == "ended")
            assert state["momentum"] is None
    world.network.ports = []
    async with world.client(store=True) as driver:
        await driver.until(lambda one: one.get("error") == "ConnectionLost")
        assert (await driver.state(lambda _: True))["momentum"] is None, "nor in the store"


async def test_where_nobody_listens_it_tries_again_with_growing_pauses(world: World) -> None:
    began = time.monotonic()
    async with world.client() as driver:
        for _ in range(3):
            await driver.until(lambda one: one.get("error") == "ConnectionLost")
        assert time.monotonic() - began < 15
        assert (await driver.state(lambda _: True))["since"] is None
        async with world.serve():
            await driver.do("wake")
            await asyncio.wait_for(driver.live(), 20)


@asynccontextmanager
async def portal(world: World, status: str) -> AsyncIterator[None]:
    """Run a captive portal that answers every request with its own page, as in a hotel's network."""
    body = b"<html>Please accept our terms.</html>"
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n"
    answer = (head + "Access-Control-Allow-Origin: *\r\nConnection: close\r\n\r\n").encode() + body

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    before, world.network.ports = world.network.ports, [server.sockets[0].getsockname()[1]]
    world.network.cut(random.Random(0), share=1.0)
    try:
        yield
    finally:
        world.network.ports = before
        server.close()


async def test_a_captive_portal_has_no_last_word(world: World, db: Sql) -> None:
    """The client does not end, and keeps the user's changes, under every status that a portal answers with."""
    unread = str(add_notification(db, world.user))
    async with world.serve(), world.client(store=True) as driver:
        await driver.live()
        for number, status in enumerate(("403 Forbidden", "400 Bad Request", "422 Unprocessable Entity")):
            async with portal(world, status):
                await driver.state(lambda state: state["status"] == "offline")
                if number == 0:
                    await driver.do("mark_read", id=unread)
                    await driver.until(lambda one: one.get("kept") == unread)
                await driver.do("wake")
                await driver.until(lambda one: one.get("error") in ("Rejected", "ConnectionLost"))
            await driver.do("wake")
            await driver.until(lambda one: "state" in one and one["state"]["status"] == "live")
        await driver.do("sent")
        await driver.until(lambda one: one.get("sent"))
        assert "Ended" not in driver.all("error")
        assert db.execute("select status from momentum_notifications").fetchone() == ("opened",)


async def test_a_client_that_is_closed_while_it_waits_for_a_token_opens_nothing(world: World, db: Sql) -> None:
    """A late connection would replace, and so end, the next client with the same `client_id`."""
    add_score(db, world.user, score=1)
    token = sign(world.user)
    async with world.serve(), world.client(token=["!hold", token], client_id="phone") as first:
        await first.until(lambda one: one.get("token") == 1)
        await first.do("close")
        await first.until(lambda one: one.get("closed"))
        async with world.client(client_id="phone") as second:
            await second.live()
            await first.do("release", key="token")
            await first.do("peek", key="nothing")
            await first.until(lambda one: "peeked" in one)
            set_score(db, world.user, 2)
            await until_score(second, 2)
            assert second.all("error") == []


async def test_a_store_that_fails_for_a_while_gets_everything(world: World, db: Sql) -> None:
    unread = str(add_notification(db, world.user))
    world.network.ports = []
    async with world.client(store=True, store_failures=2) as driver:
        await driver.until(lambda one: one.get("token") == 1)
        await driver.do("mark_read", id=unread)
        await driver.until(lambda one: one.get("not_kept") == unread)
        await driver.until(lambda one: one.get("error") == "StoreFailed")
        await driver.do("mark_read", id="00000000-0000-4000-8000-000000000000")
        kept = await driver.until(lambda one: "kept" in one or "not_kept" in one)
        if "not_kept" in kept:
            await driver.do("mark_read", id="00000000-0000-4000-8000-000000000000")
            await driver.until(lambda one: "kept" in one)
    async with world.serve(), world.client(store=True) as driver:
        await driver.live()
        await driver.do("sent")
        await driver.until(lambda one: one.get("sent"))
        assert db.execute("select status from momentum_notifications").fetchone() == ("opened",)


async def test_a_clock_that_is_set_back_hides_no_dead_feed(world: World, db: Sql) -> None:
    add_score(db, world.user, score=0)
    async with world.serve(), world.client(patience=2.5) as driver:
        await driver.live()
        world.network.go_dead(random.Random(1), share=1.0)
        await driver.do("advance", seconds=-7200)
        await driver.until(lambda one: one.get("error") == "FeedFrozen")
        set_score(db, world.user, 9)
        await until_score(driver, 9)


async def test_on_a_shared_device_nobody_is_shown_anothers_state(world: World, db: Sql) -> None:
    add_score(db, world.user, score=5)
    unread = str(add_notification(db, world.user))
    async with world.serve(), world.client(store=True) as driver:
        await until_score(driver, 5)
        await driver.do("close")
        await driver.until(lambda one: one.get("closed"))
    world.network.ports = []
    async with world.client(store=True, token="!fail") as driver:  # no token is available for any user
        await driver.until(lambda one: one.get("error") == "TokenUnavailable")
        await driver.until(lambda one: one.get("token") == 2)
        assert [state["momentum"] for state in driver.all("state")] == [None] * len(driver.all("state"))
    async with world.client(store=True) as driver:  # the same user gets all stored data
        await driver.state(lambda state: state["momentum"] is not None)
        await driver.do("mark_read", id=unread)
        await driver.until(lambda one: one.get("kept") == unread)
        await driver.do("clear")
        await driver.until(lambda one: one.get("cleared"))
        assert (await driver.state(lambda _: True))["momentum"] is None
    async with world.client(store=True) as driver:  # after a logout nothing is stored
        await driver.until(lambda one: one.get("error") == "ConnectionLost")
        assert (await driver.state(lambda _: True))["momentum"] is None


async def test_a_fetch_that_never_comes_does_not_keep_its_key(world: World) -> None:
    async with world.client() as driver:
        await driver.do("get", key="slow", value=1, hold=True, within=0.2)
        await driver.until(lambda one: one.get("error") == "FetchFailed")
        await driver.do("get", key="slow", value=2)
        assert (await driver.until(lambda one: one.get("key") == "slow"))["value"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"version":1}',
        '{"version":1,"user_id":"x","last_event_id":1,"known_at":null,"state":{},"cache":[],"outbox":0}',
    ],
    ids=["half", "little", "types"],
)
async def test_a_store_that_was_damaged_is_told_and_gone_without(world: World, db: Sql, text: str) -> None:
    add_score(db, world.user, score=3)
    async with world.serve():
        async with world.sdk.start() as driver:
            await driver.do("write_store", store=world.sdk.store(world.folder), text=text)
            await driver.until(lambda one: one.get("written"))
        async with world.client(store=True) as driver:
            await driver.until(lambda one: one.get("error") == "StoreFailed")
            await until_score(driver, 3)
            await driver.do("close")
            await driver.until(lambda one: one.get("closed"))
        world.network.ports = []
        async with world.client(store=True) as driver:
            await driver.state(lambda state: state["momentum"] is not None)


async def test_what_the_server_cannot_do_now_is_sent_again(world: World, db: Sql) -> None:
    """A mark is dropped only if the server rejects that notification."""
    unread = str(add_notification(db, world.user))
    async with world.serve(), world.client(store=True) as driver:
        await driver.live()
        db.execute(
            "create function refuse() returns trigger language plpgsql as 'begin raise exception ''not now''; end';"
            "create trigger refuse before update on momentum_notifications for each row execute function refuse()"
        )
        await driver.do("mark_read", id=unread)
        refused = await driver.until(lambda one: one.get("error") == "RequestFailed")
        assert refused["code"] not in ("not_found", "forbidden")
        db.execute("drop trigger refuse on momentum_notifications")
        await driver.do("sent")
        await driver.until(lambda one: one.get("sent"))
        assert db.execute("select status from momentum_notifications").fetchone() == ("opened",)


async def test_a_browser_that_says_that_it_is_offline_is_believed(world: World) -> None:
    """Other runtimes have no such event and notice only the broken connection."""
    async with world.serve(), world.client() as driver:
        await driver.live()
        world.network.ports = []
        if isinstance(world.sdk, Chromium):
            await driver.do("offline")
        else:
            world.network.cut(random.Random(0), share=1.0)
        await driver.state(lambda state: state["status"] == "offline")

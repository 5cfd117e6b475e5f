"""Each message of the contract, section 2, over a real socket, from a client that shares no code with the server."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
import websockets
from structlog.testing import capture_logs
from websockets.frames import Frame, Opcode

from tests.fixtures.postgres import Sql, add_intervention, add_notification, add_score, new_user
from tests.fixtures.server import PATH, SERVICE_KEY, Bounds, Common, Server, Start, sign


@pytest.fixture
def database(shared_database: str) -> str:
    return shared_database


@pytest.fixture
def server(common: Common) -> Server:
    return common.server


def own(user: UUID) -> list[str]:
    return [f"momentum_updates:{user}", f"interventions:{user}", f"notifications:{user}", "cache_invalidation"]


@pytest.mark.parametrize("path", [PATH, "/ws"])
async def test_a_connection_begins_with_confirmation_and_state(server: Server, db: Sql, user: UUID, path: str) -> None:
    add_score(db, user, "Rising", 71.5)
    intervention = add_intervention(db, user)
    unread = add_notification(db, user)
    add_notification(db, user, status="opened")
    add_notification(db, user, "custom")
    async with server.connect(sign(user), path=path, user_id=user, client_id="phone") as client:
        confirmed = await client.next()
        state = await client.next()
    assert abs(datetime.fromisoformat(confirmed.pop("timestamp")) - datetime.now(UTC)) < timedelta(minutes=1)
    assert confirmed == {
        "type": "subscription_confirmed", "channels": own(user), "user_id": str(user), "client_id": "phone",
        "resumed": False, "replayed": 0,
    }  # fmt: skip
    assert state["type"] == "initial_state"
    assert (state["momentum"]["momentum_state"], state["momentum"]["final_score"]) == ("Rising", 71.5)
    assert [row["id"] for row in state["interventions"]["interventions"]] == [str(intervention)]
    assert [row["id"] for row in state["notifications"]] == [str(unread)]
    assert state["last_event_id"]


async def test_user_and_client_may_be_left_out(server: Server, user: UUID) -> None:
    async with server.connect(sign(user)) as client:
        confirmed = await client.next()
    assert confirmed["user_id"] == str(user)
    assert str(UUID(confirmed["client_id"])) == confirmed["client_id"]


async def test_a_change_is_an_event_and_an_invalidation(server: Server, db: Sql, user: UUID) -> None:
    async with server.connect(sign(user)) as client:
        state = await client.until("initial_state")
        add_score(db, user, "Rising", 71.5)
        invalidation, update = await client.next(), await client.next()
        assert invalidation["type"] == "cache_invalidation"
        assert invalidation["cache_keys"][0] == f"momentum:current:{user}"
        assert invalidation["previous_id"] == state["last_event_id"]
        assert update["type"] == "realtime_event"
        assert update["event"]["event_type"] == "momentum_score_created"
        assert update["event"]["channel"] == f"momentum_updates:{user}"
        assert update["event"]["previous_id"] == invalidation["id"]


async def test_interventions_and_notifications_are_events(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user) as client:
        add_intervention(db, user)
        add_notification(db, user)
        db.execute("delete from coach_interventions")
        events = [(await client.until("realtime_event"))["event"] for _ in range(3)]
    assert [(event["event_type"], event["channel"]) for event in events] == [
        ("intervention_created", f"interventions:{user}"),
        ("push_notification", f"notifications:{user}"),
        ("intervention_deleted", f"interventions:{user}"),
    ]


async def test_nobody_hears_of_another(server: Server, db: Sql, user: UUID, other: UUID) -> None:
    async with server.live(user) as mine, server.live(other) as theirs:
        add_score(db, other)
        await theirs.until("realtime_event")
        add_score(db, user)
        first = await mine.next()
        assert first["type"] == "cache_invalidation"
        assert str(other) not in str(mine.seen[2:])


async def test_events_come_in_commit_order_and_in_a_chain(server: Server, db: Sql, user: UUID) -> None:
    add_score(db, user)
    async with server.connect(sign(user)) as client:
        previous = (await client.until("initial_state"))["last_event_id"]
        for score in range(50):
            db.execute("update daily_engagement_scores set final_score = %s", (score,))
        scores: list[float] = []
        while len(scores) < 50:
            message = await client.next()
            event = message.get("event", message)
            assert event["previous_id"] == previous
            previous = event["id"]
            if message["type"] == "realtime_event":
                scores.append(event["final_score"])
    assert scores == list(range(50))


async def test_ping(server: Server, user: UUID) -> None:
    async with server.live(user) as client:
        answer = await client.ask({"type": "ping", "ref": "r1"})
    assert (answer["type"], answer["ref"]) == ("pong", "r1")
    assert answer["timestamp"].endswith("Z")


async def test_request_momentum_update(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user) as client:
        answer = await client.ask({"type": "request_momentum_update", "ref": 1})
        assert (answer["type"], answer["ref"], answer["data"]["has_data"]) == ("momentum_state_update", 1, False)
        add_score(db, user, "Rising", 71.5)
        await client.until("realtime_event")
        answer = await client.ask({"type": "request_momentum_update"})
        assert answer["data"]["final_score"] == 71.5


async def test_mark_notification_read(server: Server, db: Sql, user: UUID) -> None:
    notification = add_notification(db, user)
    message = {"type": "mark_notification_read", "notification_id": str(notification), "ref": 1}
    opened = "select status, opened_at from momentum_notifications where id = %s"
    async with server.live(user) as client:
        await client.send(message)
        both = {came["type"]: came for came in [await client.next(), await client.next()]}
        answer = both["notification_marked_read"]
        assert (answer["notification_id"], answer["ref"]) == (str(notification), 1)
        assert both["realtime_event"]["event"]["status"] == "opened"
        row = db.execute(opened, (notification,)).fetchone()
        assert row is not None
        assert row[0] == "opened"
        assert row[1] is not None
        again = await client.ask(message)
        assert again["type"] == "notification_marked_read"
        assert db.execute(opened, (notification,)).fetchone() == row
        db.execute("update momentum_notifications set status = 'clicked' where id = %s", (notification,))
        await client.until("realtime_event")
        assert (await client.ask(message))["type"] == "notification_marked_read"
        assert db.execute("select status from momentum_notifications where id = %s", (notification,)).fetchone() == (
            "clicked",
        )


async def test_a_notification_of_another_is_as_unknown_as_one_that_is_not(
    server: Server, db: Sql, user: UUID, other: UUID
) -> None:
    theirs = add_notification(db, other)
    async with server.live(user) as client:
        answers = [
            await client.ask({"type": "mark_notification_read", "notification_id": str(notification)})
            for notification in (theirs, uuid4())
        ]
    for answer in answers:
        answer.pop("timestamp")
    assert answers[0] == answers[1]
    assert (answers[0]["type"], answers[0]["code"]) == ("error", "not_found")
    assert db.execute("select status from momentum_notifications where id = %s", (theirs,)).fetchone() == ("sent",)


async def test_marking_a_notification_that_may_only_be_seen_is_forbidden(server: Server, db: Sql, user: UUID) -> None:
    notification = add_notification(db, user)
    async with server.connect(sign(new_user(db), app_role="admin"), user_id=user) as client:
        await client.until("initial_state")
        answer = await client.ask({"type": "mark_notification_read", "notification_id": str(notification)})
    assert (answer["type"], answer["code"]) == ("error", "forbidden")
    status = db.execute("select status from momentum_notifications where id = %s", (notification,)).fetchone()
    assert status == ("sent",)


async def test_a_connection_comes_back_with_as_many_channels_as_it_may_ask_for(server: Server) -> None:
    channels = [f"momentum_updates:{uuid4()}" for _ in range(500)]
    async with server.connect(sign(uuid4(), app_role="admin"), channels=",".join(channels)) as client:
        confirmed = await client.until("subscription_confirmed")
    assert set(channels) <= set(confirmed["channels"])


async def test_an_operators_own_channel(server: Server, db: Sql, user: UUID) -> None:
    async with (
        server.connect(None, headers={"apikey": SERVICE_KEY}, channels="orders:42") as service,
        server.connect(sign(user), channels="orders:42") as client,
    ):
        assert (await service.next())["channels"] == ["orders:42"]
        assert (await client.next())["refused"] == ["orders:42"]
        await service.until("initial_state")
        for event in ({"event_type": "order", "user_id": 5}, {"event_type": 7}, {"cache_keys": "none"}, {}):
            db.execute("select momentum.publish(array['orders:42'], %s)", (json.dumps(event),))
            came = (await service.next())["event"]
            assert {name: came[name] for name in event} == event


async def test_one_large_message_is_no_slow_client(start: Start, db: Sql, user: UUID) -> None:
    async with start(send_buffer_bytes=16 * 1024) as server, server.live(user) as client:
        add_notification(db, user, title="x" * 900_000)
        event = (await client.until("realtime_event"))["event"]
        assert len(event["title"]) == 900_000
        assert (await client.ask({"type": "ping"}))["type"] == "pong"


async def test_a_message_in_the_same_breath_as_the_close_is_done(server: Server, db: Sql, user: UUID) -> None:
    notification = add_notification(db, user)
    async with server.live(user) as client:
        text = json.dumps({"type": "mark_notification_read", "notification_id": str(notification)}).encode()
        close = Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True)
        client.socket.transport.write(Frame(Opcode.TEXT, text).serialize(mask=True) + close)
        async with asyncio.timeout(20):
            done = "select status from momentum_notifications where id = %s"
            while db.execute(done, (notification,)).fetchone() != ("opened",):
                await asyncio.sleep(0.02)


async def test_an_ack_is_confirmed_once_for_each_pending_key(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user) as client:
        add_score(db, user)
        keys = (await client.until("cache_invalidation"))["cache_keys"]
        await client.until("realtime_event")
        await client.send({"type": "cache_invalidation_ack", "cache_keys": [*keys, "momentum:current:nobody"]})
        await client.send({"type": "cache_invalidation_ack", "cache_key": keys[0]})
        await client.send({"type": "ping"})
        confirmed = []
        while (message := await client.next())["type"] != "pong":
            assert message["type"] == "cache_invalidation_confirmed"
            confirmed.append(message["cache_key"])
    assert confirmed == keys


async def test_subscribe_and_unsubscribe(server: Server, db: Sql, user: UUID) -> None:
    coach = new_user(db)
    add_intervention(db, user, coach=coach)
    async with server.connect(sign(coach, app_role="coach")) as client:
        await client.until("initial_state")
        wanted = ["interventions:coaches", f"interventions:{user}"]
        answer = await client.ask({"type": "subscribe", "channels": wanted, "ref": 1})
        assert (answer["type"], answer["ref"]) == ("subscription_confirmed", 1)
        assert answer["channels"] == [*own(coach), *wanted]
        add_intervention(db, user)
        event = (await client.next())["event"]
        assert event["channel"] == f"interventions:{user}"
        answer = await client.ask({"type": "unsubscribe", "channels": wanted})
        assert answer["channels"] == own(coach)
        add_intervention(db, user)
        assert (await client.ask({"type": "ping"}))["type"] == "pong"


async def test_a_channel_that_is_not_granted(server: Server, user: UUID, other: UUID) -> None:
    async with server.live(user) as client:
        refused = [f"notifications:{other}", "momentum_updates:all"]
        answer = await client.ask({"type": "subscribe", "channels": [f"interventions:{user}", *refused], "ref": 4})
        assert (answer["type"], answer["code"], answer["ref"], answer["refused"]) == ("error", "forbidden", 4, refused)
        answer = await client.ask({"type": "unsubscribe", "channels": ["none"]})
        assert answer["channels"] == own(user)


async def test_channels_from_the_first_moment(server: Server, db: Sql, user: UUID) -> None:
    coach = new_user(db)
    async with server.connect(
        sign(coach, app_role="coach"), channels="interventions:coaches,momentum_updates:all"
    ) as client:
        confirmed = await client.next()
        assert confirmed["channels"] == [*own(coach), "interventions:coaches"]
        assert confirmed["refused"] == ["momentum_updates:all"]
        await client.until("initial_state")
        add_intervention(db, user)
        assert (await client.next())["event"]["channel"] == "interventions:coaches"


async def test_an_admin_hears_of_everybody_once(server: Server, db: Sql, user: UUID) -> None:
    admin = new_user(db)
    channels = f"momentum_updates:{user},momentum_updates:all"
    async with server.connect(sign(admin, app_role="admin"), channels=channels) as client:
        await client.until("initial_state")
        add_score(db, user)
        add_score(db, admin)
        assert (await client.next())["event"]["channel"] == f"momentum_updates:{user}"
        await client.until("cache_invalidation")
        assert (await client.next())["event"]["channel"] == f"momentum_updates:{admin}"


async def test_an_admin_acts_for_a_user(server: Server, db: Sql, user: UUID) -> None:
    add_score(db, user, "Rising", 71.5)
    async with server.connect(sign(new_user(db), app_role="admin"), user_id=user) as client:
        confirmed = await client.next()
        assert (confirmed["user_id"], confirmed["channels"]) == (str(user), own(user))
        assert (await client.next())["momentum"]["final_score"] == 71.5


async def test_the_service_gets_what_it_asks_for(server: Server, db: Sql, user: UUID) -> None:
    headers = {"apikey": SERVICE_KEY}
    async with server.connect(None, headers=headers, channels="momentum_updates:all,cache_invalidation") as client:
        confirmed, state = await client.next(), await client.next()
        assert (confirmed["channels"], confirmed["user_id"]) == (["momentum_updates:all"], None)
        assert confirmed["refused"] == ["cache_invalidation"]
        assert (state["momentum"], state["interventions"], state["notifications"]) == (None, None, [])
        answer = await client.ask({"type": "request_momentum_update"})
        assert (answer["type"], answer["code"]) == ("error", "no_user")
        add_score(db, user)
        assert (await client.next())["event"]["user_id"] == str(user)
    async with server.connect(None, headers=headers, user_id=user) as client:
        assert (await client.next())["channels"] == own(user)


async def test_acting_for_another_is_closed_with_4403(server: Server, user: UUID, other: UUID) -> None:
    for target in (other, uuid4()):
        async with server.connect(sign(user, app_role="coach"), user_id=target) as client:
            assert (await client.closed())[0] == 4403
            assert client.seen == []


async def test_a_second_connection_of_the_same_client_replaces_the_first(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user, client_id="phone") as first:
        async with server.live(user, client_id="phone") as second, server.live(user, client_id="tablet") as third:
            assert (await first.closed())[0] == 4410
            add_score(db, user)
            await second.until("realtime_event")
            await third.until("realtime_event")


async def test_too_many_connections(start: Start, user: UUID) -> None:
    async with start(max_connections_per_user=2) as server:
        async with server.live(user), server.live(user), server.connect(sign(user)) as third:
            assert (await third.closed())[0] == 4413
        async with server.live(user) as again:
            assert (await again.ask({"type": "ping"}))["type"] == "pong"


@pytest.mark.parametrize("brought", ["nonsense", "abcdef01-7"])
async def test_a_last_event_id_is_taken_and_answered_with_a_reason(server: Server, user: UUID, brought: str) -> None:
    async with server.connect(sign(user), last_event_id=brought) as client:
        confirmed = await client.next()
        assert (confirmed["resumed"], confirmed["replayed"]) == (False, 0)
        assert confirmed["reason"] in ("unknown_id", "history_changed")
        assert (await client.next())["type"] == "initial_state"


async def test_heartbeats(start: Start, db: Sql, user: UUID) -> None:
    async with start(heartbeat="0.2s") as server, server.live(user) as client:
        heartbeat = await client.until("heartbeat")
        assert isinstance(heartbeat["lag_ms"], int)
        add_score(db, user)
        last = (await client.until("realtime_event"))["event"]["id"]
        assert (await client.until("heartbeat"))["last_event_id"] == last


async def test_a_client_that_is_gone_without_a_word_is_let_go(start: Start, user: UUID) -> None:
    async with start(heartbeat="0.1s") as server:
        async with server.live(user) as client:
            transport = client.socket.transport
            transport.pause_reading()  # no pong from now on, as from a phone without a network
            async with server.http() as http, asyncio.timeout(10):
                while (await http.get("/sync/health")).json()["connected_clients"]:
                    await asyncio.sleep(0.02)
            transport.abort()


async def test_a_token_that_expires_is_announced_and_then_ends_it(server: Server, user: UUID) -> None:
    soon = int(datetime.now(UTC).timestamp()) + 2
    async with server.connect(sign(user, exp=soon)) as client:
        await client.until("initial_state")
        warning = await client.next()
        assert warning["type"] == "token_expiring"
        assert datetime.fromisoformat(warning["expires_at"]).timestamp() == soon
        assert (await client.closed())[0] == 4401


async def test_a_fresh_token_without_reconnecting(server: Server, db: Sql, user: UUID) -> None:
    soon = int(datetime.now(UTC).timestamp()) + 2
    async with server.connect(sign(user, exp=soon)) as client:
        await client.until("token_expiring")
        answer = await client.ask({"type": "authenticate", "token": sign(user, exp=soon + 600), "ref": 1})
        assert (answer["type"], answer["ref"]) == ("authenticated", 1)
        assert datetime.fromisoformat(answer["expires_at"]).timestamp() == soon + 600
        while datetime.now(UTC).timestamp() < soon + 0.2:
            assert (await client.ask({"type": "ping"}))["type"] == "pong"
            await asyncio.sleep(0.05)
        add_score(db, user)
        await client.until("realtime_event")


async def test_a_wrong_fresh_token_changes_nothing(server: Server, user: UUID, other: UUID) -> None:
    async with server.live(user) as client:
        for token, code in ((sign(other), "forbidden"), (sign(user, exp=1), "token_expired"), ("x", "invalid_token")):
            answer = await client.ask({"type": "authenticate", "token": token, "ref": 1})
            assert (answer["type"], answer["code"], answer["ref"]) == ("error", code, 1)
        assert (await client.ask({"type": "ping"}))["type"] == "pong"


async def test_a_fresh_token_with_fewer_rights_loses_channels(server: Server, db: Sql, user: UUID) -> None:
    coach = new_user(db)
    async with server.connect(sign(coach, app_role="coach"), channels="interventions:coaches") as client:
        await client.until("initial_state")
        answer = await client.ask({"type": "authenticate", "token": sign(coach)})
        assert (answer["type"], answer["refused"]) == ("authenticated", ["interventions:coaches"])
        add_intervention(db, user)
        assert (await client.ask({"type": "ping"}))["type"] == "pong"


async def test_the_token_as_a_subprotocol(server: Server, user: UUID) -> None:
    async with websockets.connect(
        server.ws + PATH, subprotocols=["momentum.v1", f"bearer.{sign(user)}"]  # type: ignore[list-item]
    ) as socket:  # fmt: skip
        assert socket.subprotocol == "momentum.v1"
        assert '"subscription_confirmed"' in str(await socket.recv())


async def test_the_token_in_the_address_is_taken_only_if_the_operator_says_so(
    start: Start, user: UUID, capfd: pytest.CaptureFixture[str]
) -> None:
    token = sign(user)
    async with start() as server:
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with server.connect(None, access_token=token):
                raise AssertionError("it was let in")
        assert refused.value.response.status_code == 401
    async with (
        start(token_in_query=True, log_level="DEBUG") as server,
        server.connect(None, access_token=token) as client,
    ):
        assert (await client.next())["type"] == "subscription_confirmed"
    captured = capfd.readouterr()
    assert token not in captured.out + captured.err


async def test_pages_of_other_origins_may_not_connect_unless_listed(start: Start, user: UUID) -> None:
    async with start(allowed_origins="https://app.example") as server:
        for origin in ("https://app.example", server.url):
            async with server.connect(sign(user), headers={"Origin": origin}) as client:
                assert (await client.next())["type"] == "subscription_confirmed"
        for origin in ("https://evil.example", "null", "https://app.example.evil.example"):
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with server.connect(sign(user), headers={"Origin": origin}):
                    raise AssertionError("it was let in")
            assert refused.value.response.status_code == 403
    async with start(allowed_origins="*") as server:
        async with server.connect(sign(user), headers={"Origin": "https://any.example"}) as client:
            assert (await client.next())["type"] == "subscription_confirmed"


async def test_an_origin_that_is_refused_is_logged_once(start: Start, user: UUID, bounds: Bounds) -> None:
    page = "https://app-of-ours.example"
    bounds("origins", most=2)
    with capture_logs() as logged:
        async with start() as server:
            for origin in (page, page, "https://second.example", "https://third.example", page):
                with pytest.raises(websockets.InvalidStatus) as refused:
                    async with server.connect(sign(user), headers={"Origin": origin}):
                        raise AssertionError("it was let in")
                assert f"MOMENTUM_ALLOWED_ORIGINS={origin}" in (refused.value.response.body or b"").decode()
    settings = [entry["setting"] for entry in logged if entry["event"] == "origin refused"]
    assert settings == [f"MOMENTUM_ALLOWED_ORIGINS={origin}" for origin in (page, "https://second.example")]


async def test_in_development_mode_pages_of_this_machine_may_connect(start: Start, user: UUID, tmp_path: Path) -> None:
    async with start(jwt_secret=None) as server:
        assert server.settings.development
        secret = (tmp_path / "development.secret").read_text(encoding="ascii").strip()
        token = jwt.encode(
            {"sub": str(user), "role": "authenticated", "aud": "authenticated", "exp": int(time.time()) + 600}, secret
        )
        for page in ("http://localhost:5173", "http://127.0.0.1:3000"):
            async with server.connect(token, headers={"Origin": page}) as client:
                assert (await client.next())["type"] == "subscription_confirmed"
            async with server.http(Origin=page) as http:
                assert (await http.get("/sync/health")).headers["Access-Control-Allow-Origin"] == page
        with pytest.raises(websockets.InvalidStatus):
            async with server.connect(token, headers={"Origin": "http://localhost.evil.example"}):
                raise AssertionError("it was let in")


async def test_a_server_that_ends_says_so(start: Start, user: UUID) -> None:
    async with start() as server:
        socket = await websockets.connect(
            str(httpx.URL(server.ws + PATH)), additional_headers={"Authorization": f"Bearer {sign(user)}"}
        )
        await socket.recv()
    with pytest.raises(websockets.ConnectionClosed):
        while True:
            await socket.recv()
    assert socket.close_code == 1012
    assert "reconnect with your last_event_id" in (socket.close_reason or "")


async def test_a_snapshot_has_the_newest_notifications_up_to_a_limit_of_bytes(
    server: Server, db: Sql, user: UUID
) -> None:
    """A client that refuses its snapshot for its size could only ask for it again."""
    for number in range(12):
        add_notification(db, user, title=f"{number:02} {'x' * 2_000_000}")
    async with server.connect(sign(user)) as client:
        notifications = (await client.until("initial_state"))["notifications"]
    assert [one["title"][:2] for one in notifications] == [f"{number:02}" for number in range(11, 3, -1)]

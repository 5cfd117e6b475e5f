"""Resumes: exactly the missed events, or none, from any server."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from momentum_sync.database import pool as pools
from momentum_sync.database.embedded import Embedded
from momentum_sync.database.pool import CallerPool
from momentum_sync.domain.tables import SCHEMA
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.limits import QueryLimits
from tests.fixtures.cluster import hold_commits, release_commits, score_elsewhere, until_logged
from tests.fixtures.postgres import Sql, add_intervention, add_notification, add_score, new_user, until_read
from tests.fixtures.server import PATH, SERVICE_KEY, Bounds, Client, Server, Start, sign

Message = dict[str, Any]


def fields(message: Message) -> Message:
    """Return an event's fields, whichever of the two messages carries it."""
    event: Message = message.get("event", message)
    return event


async def events(client: Client, count: int) -> list[Message]:
    """Return the next `count` events; nothing else may arrive in between."""
    found: list[Message] = []
    while len(found) < count:
        message = await client.next()
        assert message["type"] in ("realtime_event", "cache_invalidation"), message
        found.append(message)
    return found


async def quiet(client: Client) -> None:
    """Assert that every message was read."""
    assert (await client.ask({"type": "ping"}))["type"] == "pong"


def chained(messages: list[Message], first: str) -> None:
    """Assert that each event names the one before it."""
    ids = [first, *(fields(message)["id"] for message in messages)]
    assert [fields(message)["previous_id"] for message in messages] == ids[:-1]


async def resumed(client: Client, replayed: int) -> list[Message]:
    """Return the confirmation of a resume, and its events."""
    confirmed = await client.next()
    assert confirmed["type"] == "subscription_confirmed"
    assert (confirmed["resumed"], confirmed["replayed"]) == (True, replayed)
    assert "reason" not in confirmed
    return await events(client, replayed)


async def test_a_client_that_comes_back_gets_what_it_missed_and_nothing_else(
    server: Server, db: Sql, user: UUID, other: UUID
) -> None:
    async with server.live(user) as client:
        add_notification(db, user, title="read")
        last = (await client.next())["event"]["id"]
    for title in ("one", "two"):
        add_notification(db, user, title=title)
        add_notification(db, other, title="not for us")
    add_score(db, user)
    await until_read(db)
    async with server.connect(sign(user), last_event_id=last) as client:
        came = await resumed(client, 4)
        chained(came, last)
        assert [message["event"]["title"] for message in came[:2]] == ["one", "two"]
        assert [message["type"] for message in came[2:]] == ["cache_invalidation", "realtime_event"]
        add_notification(db, user, title="live")
        (live,) = await events(client, 1)
        chained([live], fields(came[-1])["id"])
        await quiet(client)


async def test_nothing_missed_is_a_resume_too(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user) as client:
        last = client.seen[-1]["last_event_id"]
    for _ in range(2):
        async with server.connect(sign(user), last_event_id=last) as client:
            assert await resumed(client, 0) == []
            await quiet(client)
    add_notification(db, user)
    await until_read(db)
    async with server.connect(sign(user), last_event_id=last) as client:
        chained(await resumed(client, 1), last)


async def test_straight_after_the_snapshot(server: Server, database: str, db: Sql, user: UUID) -> None:
    """Events that the snapshot lacks arrive with the resume, even of old transactions; others do not."""
    with psycopg.connect(database) as old:
        add_notification(old, user, title="began before")
        add_notification(db, user, title="in the snapshot")
        async with server.live(user) as client:
            assert [row["title"] for row in client.seen[-1]["notifications"]] == ["in the snapshot"]
            last = client.seen[-1]["last_event_id"]
        old.commit()
    add_notification(db, user, title="after")
    await until_read(db)
    async with server.connect(sign(user), last_event_id=last) as client:
        came = await resumed(client, 2)
        assert [message["event"]["title"] for message in came] == ["began before", "after"]
        chained(came, last)


async def test_a_coach_and_an_admin_resume_on_all_their_channels(server: Server, db: Sql, user: UUID) -> None:
    coach, admin = new_user(db), new_user(db)
    asked = {coach: ("coach", "interventions:coaches"), admin: ("admin", "momentum_updates:all,interventions:coaches")}
    last = {}
    for who, (role, channels) in asked.items():
        async with server.connect(sign(who, app_role=role), channels=channels) as client:
            last[who] = (await client.until("initial_state"))["last_event_id"]
    add_intervention(db, user)
    add_score(db, user)
    add_notification(db, user)
    await until_read(db)
    for who, (role, channels) in asked.items():
        async with server.connect(sign(who, app_role=role), channels=channels, last_event_id=last[who]) as client:
            kinds = ["intervention_created"] if role == "coach" else ["intervention_created", "momentum_score_created"]
            came = await resumed(client, len(kinds))
            assert [message["event"]["event_type"] for message in came] == kinds
            chained(came, last[who])
            await quiet(client)


async def test_channels_are_granted_anew_on_a_resume(server: Server, db: Sql, user: UUID) -> None:
    coach = new_user(db)
    async with server.connect(sign(coach, app_role="coach"), channels="interventions:coaches") as client:
        last = (await client.until("initial_state"))["last_event_id"]
    add_intervention(db, user)
    async with server.connect(sign(coach), channels="interventions:coaches", last_event_id=last) as client:
        confirmed = await client.next()
        assert confirmed["refused"] == ["interventions:coaches"]
        assert (confirmed["resumed"], confirmed["replayed"]) == (True, 0)
        await quiet(client)


async def test_on_channels_subscribed_to_later(server: Server, db: Sql) -> None:
    last = ""
    service = {"apikey": SERVICE_KEY}
    async with server.connect(None, headers=service) as client:
        await client.until("initial_state")
        await client.ask({"type": "subscribe", "channels": ["a", "b"]})
        db.execute("""select momentum.publish(array['a'], '{"event_type": "x", "n": 1}')""")
        last = (await client.next())["event"]["id"]
    for channel in ("b", "c", "a"):
        db.execute("""select momentum.publish(array[%s], '{"event_type": "x"}')""", (channel,))
    await until_read(db)
    async with server.connect(None, headers=service, channels="a,b", last_event_id=last) as client:
        came = await resumed(client, 2)
        assert [message["event"]["channel"] for message in came] == ["b", "a"]
        chained(came, last)


@pytest.mark.parametrize("preloaded", [0, 3, 1_000], ids=["from the log", "from both", "from memory"])
@pytest.mark.parametrize("page", [0, 64 * 1024], ids=["a page an event", "one page"])
async def test_over_another_server_from_wherever_the_events_are(
    start: Start, db: Sql, user: UUID, other: UUID, bounds: Bounds, preloaded: int, page: int
) -> None:
    bounds("log", preload_rows=preloaded)
    bounds("delivery", page_bytes=page)
    async with start() as first, first.live(user) as client:
        last = client.seen[-1]["last_event_id"]
    for number in range(10):
        add_notification(db, user, title=str(number))
        add_notification(db, other)
    async with start() as second:
        async with second.connect(sign(user), last_event_id=last) as client:
            came = await resumed(client, 10)
            assert [message["event"]["title"] for message in came] == [str(number) for number in range(10)]
            chained(came, last)
            add_notification(db, user, title="live")
            chained(await events(client, 1), fields(came[-1])["id"])
    async with start() as third, third.connect(sign(user), last_event_id=last) as client:
        assert [fields(message)["id"] for message in await resumed(client, 11)][:10] == [
            fields(message)["id"] for message in came
        ]
        await quiet(client)


async def test_events_during_a_long_resume_are_delivered_after_it(
    start: Start, db: Sql, user: UUID, bounds: Bounds
) -> None:
    bounds("log", preload_rows=20)
    bounds("delivery", page_bytes=2_000)
    async with start() as server, server.live(user) as client:
        last = client.seen[-1]["last_event_id"]
    db.execute(
        "insert into momentum_notifications (user_id, notification_type, trigger_date, title, message, status)"
        " select %s, 'celebration', current_date, n::text, repeat('x', 200), 'sent' from generate_series(1, 500) n",
        (user,),
    )
    async with start() as server, server.connect(sign(user), last_event_id=last) as client:
        confirmed = await client.next()
        assert confirmed["replayed"] == 500
        writing = asyncio.gather(*[
            asyncio.to_thread(add_notification_later, db, user, str(number)) for number in range(501, 521)
        ])  # fmt: skip
        came = await events(client, 520)
        await writing
        chained(came, last)
        assert [message["event"]["title"] for message in came[:500]] == [str(number) for number in range(1, 501)]
        assert sorted(int(message["event"]["title"]) for message in came[500:]) == list(range(501, 521))
        await quiet(client)


def add_notification_later(db: Sql, user: UUID, title: str) -> None:
    add_notification(db, user, title=title)


@pytest.mark.parametrize(
    "last", ["nonsense", "00000000-1-0", "%s-999999-0"], ids=["nonsense", "another epoch", "ahead"]
)
async def test_an_unusable_last_event_id_gets_a_reason_and_a_snapshot(
    server: Server, db: Sql, user: UUID, last: str
) -> None:
    async with server.live(user) as client:
        epoch = client.seen[-1]["last_event_id"].split("-")[0]
    add_notification(db, user)
    given = last.replace("%s", epoch)
    async with server.connect(sign(user), last_event_id=given) as client:
        confirmed = await client.next()
        assert (confirmed["resumed"], confirmed["replayed"]) == (False, 0)
        assert confirmed["reason"] == ("history_changed" if last.startswith("0000") else "unknown_id")
        assert len((await client.next())["notifications"]) == 1
    async with server.http(sign(user)) as http:
        answer = await http.post("/sync/events", json={"last_event_id": given})
        assert answer.status_code == 409
        assert answer.json()["reason"] == answer.json()["error"]["code"] == confirmed["reason"]


async def test_a_resume_beyond_the_retention_gets_the_reason_expired(
    start: Start, db: Sql, user: UUID, bounds: Bounds
) -> None:
    bounds("log", preload_rows=0)
    async with start() as server, server.live(user) as client:
        last = client.seen[-1]["last_event_id"]
        for _ in range(3):
            add_notification(db, user)
        middle = [fields(message)["id"] for message in await events(client, 3)][1]
    db.execute("delete from momentum.event_log where number = 1")
    db.execute("update momentum.stream set kept_from = 2")
    async with start() as server, server.http(sign(user)) as http:
        async with server.connect(sign(user), last_event_id=last) as client:
            confirmed = await client.next()
            assert (confirmed["resumed"], confirmed["reason"]) == (False, "expired")
            assert len((await client.next())["notifications"]) == 3
        async with server.connect(sign(user), last_event_id=middle) as client:
            await resumed(client, 1)
        answer = await http.post("/sync/events", json={"last_event_id": last})
        assert (answer.status_code, answer.json()["reason"]) == (409, "expired")


@pytest.mark.parametrize("prefix", ["", PATH])
async def test_the_same_over_http(server: Server, db: Sql, user: UUID, other: UUID, prefix: str) -> None:
    async with server.live(user) as client:
        last = client.seen[-1]["last_event_id"]
    add_notification(db, other)
    for number in range(5):
        add_notification(db, user, title=str(number))
    add_score(db, user)
    await until_read(db)
    async with server.http(sign(user)) as http:
        answer = await http.post(f"{prefix}/sync/events", json={"last_event_id": last})
        whole = answer.json()
        assert answer.status_code == 200
        assert whole["complete"] is True
        assert [event["event_type"] for event in whole["events"]] == [
            *["push_notification"] * 5, "cache_invalidation", "momentum_score_created",
        ]  # fmt: skip
        found, place = [], last
        for _ in range(4):
            part = (await http.post(f"{prefix}/sync/events", json={"last_event_id": place, "limit": 2})).json()
            assert (part["last_event_id"] == part["events"][-1]["id"]) != part["complete"]
            found += part["events"]
            place = part["last_event_id"]
        assert part["complete"] is True
        nothing = (await http.post(f"{prefix}/sync/events", json={"last_event_id": place})).json()
        assert nothing == {"events": [], "last_event_id": place, "complete": True, "refused": []}
    assert found == whole["events"]
    async with server.connect(sign(user), last_event_id=last) as client:
        came = await resumed(client, 7)
    assert [fields(message)["id"] for message in came] == [event["id"] for event in found]
    chained([{"event": event} for event in found], last)
    async with server.connect(sign(user), last_event_id=place) as client:
        assert await resumed(client, 0) == []


async def test_http_gives_no_more_than_a_page(start: Start, db: Sql, user: UUID, bounds: Bounds) -> None:
    bounds("http", events_bytes=1_000)
    async with start() as server:
        async with server.live(user) as client:
            last = client.seen[-1]["last_event_id"]
        for _ in range(4):
            add_notification(db, user, title="x" * 600)
        await until_read(db)
        async with server.http(sign(user)) as http:
            body = (await http.post("/sync/events", json={"last_event_id": last})).json()
            assert (len(body["events"]), body["complete"]) == (2, False)
            body = (await http.post("/sync/events", json={"last_event_id": body["last_event_id"]})).json()
            assert (len(body["events"]), body["complete"]) == (2, True)


async def test_what_http_refuses(server: Server, user: UUID) -> None:
    async with server.http(sign(user)) as http:
        for wrong in (
            {},
            {"last_event_id": 7},
            {"last_event_id": "x", "limit": 0},
            {"last_event_id": "x", "limit": 1001},
            {"last_event_id": "x", "channels": ["a\0b"]},
            {"last_event_id": "x", "channels": [""]},
            {"last_event_id": "x", "more": 1},
        ):
            answer = await http.post("/sync/events", json=wrong)
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_field"), wrong
    async with server.http() as http:
        assert (await http.post("/sync/events", json={"last_event_id": "x"})).status_code == 401


async def test_simultaneous_resumes_share_round_trips_and_need_no_snapshot(
    server: Server, db: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *users = [new_user(db) for _ in range(201)]
    async with server.live(first) as client:
        last = client.seen[-1]["last_event_id"]
    asked: list[int] = []
    real = pools._answer_together

    async def counted(pool: Any, questions: Any, *more: Any) -> float:
        asked.append(len(questions))
        assert {len(question.queries) for question in questions} == {1}, "a snapshot was read"
        return await real(pool, questions, *more)

    monkeypatch.setattr(pools, "_answer_together", counted)
    everyone = asyncio.Barrier(len(users))

    async def come_back(who: UUID) -> None:
        await everyone.wait()
        async with server.connect(sign(who), last_event_id=last) as client:
            assert await resumed(client, 0) == []

    await asyncio.gather(*map(come_back, users))
    assert sum(asked) == len(users)
    assert len(asked) < len(users) / 2


async def test_a_resume_with_the_same_token_needs_no_query_until_rights_change(
    server: Server, db: Sql, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    real = pools._answer_together

    async def counted(pool: Any, questions: Any, *more: Any) -> float:
        asked.extend(questions)
        return await real(pool, questions, *more)

    token = sign(user)

    async def come_back(last: str) -> int:
        """Reconnect. Return the number of questions that it took."""
        asked.clear()
        async with server.connect(token, last_event_id=last) as client:
            assert (await client.next())["resumed"] is True
        return len(asked)

    monkeypatch.setattr(pools, "_answer_together", counted)
    async with server.connect(token) as client:
        last = (await client.until("initial_state"))["last_event_id"]
        add_notification(db, user)
        last = (await client.until("realtime_event"))["event"]["id"]
        assert await come_back(last) == 0
        db.execute("drop policy if exists more on coach_interventions")
        db.execute("create policy more on coach_interventions for select to authenticated using (false)")
        add_notification(db, user, title="after the change")
        while (await client.until("realtime_event"))["event"]["title"] != "after the change":
            pass
        assert await come_back(last) > 0
        db.execute("set role service_role")
        db.execute("select momentum.revoke(%s)", (user,))
        db.execute("reset role")
        assert (await client.closed())[0] == 4401
    async with server.connect(token, last_event_id=last) as client:
        assert (await client.closed())[0] == 4401


async def test_a_failing_query_does_not_fail_the_others_in_its_round_trip(server: Server, db: Sql, user: UUID) -> None:
    """Handshakes reject channels that PostgreSQL cannot store; a claim might still fail."""
    pool = CallerPool(server.settings.database_url or "", QueryLimits(), size=2)
    authorizer = Authorizer(pool, SCHEMA, most=10, up_to_date=lambda: True)
    await pool.open()
    good = Identity("authenticated", user, json.dumps({"sub": str(user), "role": "authenticated"}), None)
    bad = Identity("nobody_at_all", user, "{}", None)
    channel = f"notifications:{user}"
    answers = await asyncio.gather(
        *[authorizer.granted(who, user, [channel]) for who in (good, good, good, bad, good)], return_exceptions=True
    )
    await pool.close()
    assert [answer == Granted([channel]) for answer in answers] == [True, True, True, False, True]
    assert isinstance(answers[3], Exception)


async def test_a_quiet_client_resumes_from_where_the_feed_has_come_and_does_not_expire(
    start: Start, db: Sql, user: UUID, other: UUID, bounds: Bounds
) -> None:
    """The client gets no event for longer than the retention; its last event expires, its position does not."""
    bounds("log", preload_rows=0)
    async with start(heartbeat="0.2s") as server, server.live(user) as client:
        last = client.seen[-1]["last_event_id"]
        for _ in range(5):
            add_notification(db, other)
        await until_read(db)
        while (heartbeat := await client.until("heartbeat"))["position"].split("-")[1] != "6":
            assert heartbeat["last_event_id"] == last
        position = heartbeat["position"]
        add_notification(db, user, title="chained")
        event = fields(await client.until("realtime_event"))
        assert event["previous_id"] == last, "a position is no part of the chain"
    db.execute(
        "update momentum.stream set kept_from = 7, kept_mark = (select momentum.mark(commit_lsn, committed_at)"
        " from momentum.event_log"
        " where number = 6)"
    )
    db.execute("delete from momentum.event_log where number < 7")
    async with start() as server:
        async with server.connect(sign(user), last_event_id=last) as client:
            assert (await client.next())["reason"] == "expired"
        async with server.connect(sign(user), last_event_id=position) as client:
            (came,) = await resumed(client, 1)
            assert (fields(came)["title"], fields(came)["previous_id"]) == ("chained", position)


async def test_a_log_that_ends_before_the_window_refuses_the_resume(start: Start, db: Sql, user: UUID) -> None:
    """So it is after failover to a lagging standby, until capture notices: the events in between are nowhere."""
    async with start(window_bytes=65_536) as server:
        async with server.live(user) as client:
            add_notification(db, user)
            last = (await client.until("realtime_event"))["event"]["id"]
            for number in range(10):
                add_notification(db, user, title=f"{number}" * 10_000)
                await client.until("realtime_event")
            await until_logged(db, 11)
        db.execute("delete from momentum.event_log where number > 3")
        async with server.connect(sign(user), last_event_id=last) as client:
            confirmed = await client.next()
            assert (confirmed["resumed"], confirmed["reason"]) == (False, "expired")


async def test_a_read_after_a_restart_waits_for_events_sent_before_it(start: Start, own_cluster: Embedded) -> None:
    """A commit is in the WAL but not visible; one server logs its event and stops, the next must wait for it."""
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
        db.execute("set synchronous_commit = local")
        user = new_user(db)
        add_score(db, user, score=50)
        writing: asyncio.Future[None] | None = None
        try:
            async with start(conninfo=own_cluster.conninfo) as server, server.live(user) as client:
                hold_commits(db)
                writing = asyncio.ensure_future(asyncio.to_thread(score_elsewhere, own_cluster.conninfo, user, 60))
                assert fields(await client.until("realtime_event"))["final_score"] == 60
                await until_logged(db, 2)
            async with start(conninfo=own_cluster.conninfo) as server, server.http(sign(user)) as http:
                asking = asyncio.ensure_future(http.post("/sync/momentum", json={"user_id": str(user)}))
                done, _ = await asyncio.wait([asking], timeout=1.0)
                assert not done, "it would be what was before the change"
                release_commits(db)
                await writing
                assert (await asking).json()["data"]["final_score"] == 60
        finally:
            release_commits(db)


async def test_channels_that_are_refused_are_named_over_http(server: Server, db: Sql, user: UUID, other: UUID) -> None:
    async with server.live(user) as client:
        last = client.seen[-1]["last_event_id"]
    async with server.http(sign(user)) as http:
        asked = {"last_event_id": last, "channels": [f"interventions:{other}", f"interventions:{user}"]}
        answer = await http.post("/sync/events", json=asked)
    assert answer.json()["refused"] == [f"interventions:{other}"]

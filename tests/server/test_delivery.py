"""Clients that read slowly, late or not at all: memory is bounded, no event is lost, no other client is delayed."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from uuid import UUID

import pytest

from momentum_sync.eventlog.page import Page
from momentum_sync.gateway.connection_states import DeliveryState
from momentum_sync.gateway.delivery import Delivery
from momentum_sync.gateway.send_budget import SendBudget
from tests.fixtures.postgres import Sql, add_notification, add_score, new_user
from tests.fixtures.server import Bounds, Client, Server, Start, sign

TEXT = "x" * 100_000


async def clients_left(server: Server, count: int) -> None:
    async with server.http() as http, asyncio.timeout(30):
        while (await http.get("/sync/health")).json()["connected_clients"] > count:
            await asyncio.sleep(0.02)


async def titles(client: Client, count: int) -> tuple[list[str], str]:
    """Return the titles of the next events, and the last id. Check that each event names the one before it."""
    found: list[str] = []
    last = client.seen[-1]["last_event_id"]
    while len(found) < count:
        event = (await client.until("realtime_event"))["event"]
        assert event["previous_id"] == last
        last = event["id"]
        found.append(event["title"])
    return found, last


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the highest numbers of unsent bytes so far, of one connection and of all, in the send budget."""
    most = [0, 0]
    real = SendBudget.grew

    def watched(send_budget: SendBudget, connection: Delivery, size: int) -> bool:
        over = real(send_budget, connection, size)
        most[0] = max(most[0], size)
        most[1] = max(most[1], send_budget.total)
        return over

    monkeypatch.setattr(SendBudget, "grew", watched)
    return most


def write_many(db: Sql, user: UUID, count: int) -> None:
    for number in range(count):
        add_notification(db, user, title=f"{number}:{TEXT}")


async def test_a_client_that_stops_reading_is_closed_delays_no_other_and_resumes_without_loss(
    start: Start, db: Sql, user: UUID, other: UUID, kept: list[int], bounds: Bounds
) -> None:
    bounds("delivery", stall_s=1.0)
    limit = 256 * 1024
    async with start(send_buffer_bytes=limit) as server, server.live(user) as slow, server.live(other) as quick:
        slow.socket.transport.pause_reading()
        await asyncio.to_thread(write_many, db, user, 150)
        add_score(db, other)
        await quick.until("realtime_event")
        await clients_left(server, 1)
        # One write may exceed the limit, but no second one follows.
        assert limit < kept[0] <= limit + 2 * len(TEXT)
        last = slow.seen[-1]["last_event_id"]
        slow.socket.transport.resume_reading()
        code, reason = await slow.closed()
        assert code == 4409
        assert "last_event_id" in reason
        read = [message["event"] for message in slow.seen if message["type"] == "realtime_event"]
        assert 0 < len(read) < 150
        async with server.connect(sign(user), last_event_id=read[-1]["id"]) as client:
            confirmed = await client.next()
            assert (confirmed["resumed"], confirmed["replayed"]) == (True, 150 - len(read))
            while len(read) < 150:
                read.append((await client.until("realtime_event"))["event"])
        assert [event["title"].split(":")[0] for event in read] == [str(number) for number in range(150)]
        assert [event["previous_id"] for event in read] == [last, *(event["id"] for event in read[:-1])]


async def test_a_client_that_reads_after_a_while_loses_neither_its_connection_nor_an_event(
    start: Start, db: Sql, user: UUID, kept: list[int]
) -> None:
    limit = 64 * 1024
    async with start(send_buffer_bytes=limit) as server, server.live(user) as client:
        client.socket.transport.pause_reading()
        await asyncio.to_thread(write_many, db, user, 100)
        assert kept[0] > limit, "it has fallen behind"
        client.socket.transport.resume_reading()
        found, _ = await titles(client, 100)
        assert [title.split(":")[0] for title in found] == [str(number) for number in range(100)]
        add_notification(db, user, title="live")
        assert (await client.until("realtime_event"))["event"]["title"] == "live"
        assert (await client.ask({"type": "ping"}))["type"] == "pong"


async def test_unsent_bytes_of_all_connections_are_bounded(
    start: Start, db: Sql, user: UUID, kept: list[int], bounds: Bounds
) -> None:
    bounds("delivery", stall_s=2.0)
    total = 1024 * 1024
    async with start(send_buffer_bytes=512 * 1024, send_total_bytes=total) as server:
        async with server.live(user, client_id="a") as a, server.live(user, client_id="b") as b:
            async with server.live(user, client_id="c") as c, server.live(user, client_id="d") as d:
                for client in (a, b, c, d):
                    client.socket.transport.pause_reading()
                await asyncio.to_thread(write_many, db, user, 120)
                await clients_left(server, 0)
                assert total // 2 < kept[1] <= total, "there was room for it before it was written"
                for client in (a, b, c, d):
                    client.socket.transport.resume_reading()
                    assert (await client.closed())[0] == 4409


async def test_a_client_that_sends_requests_and_reads_no_answer_is_closed(
    start: Start, db: Sql, user: UUID, bounds: Bounds
) -> None:
    """Unlike events, answers cannot be sent again later, so they must not accumulate."""
    bounds("delivery", stall_s=60.0)
    add_score(db, user)
    db.execute("update daily_engagement_scores set breakdown = %s", (f'{{"x": "{"y" * 900_000}"}}',))
    async with start(send_buffer_bytes=64 * 1024) as server, server.live(user) as client:
        client.socket.transport.pause_reading()
        for _ in range(60):
            await client.send({"type": "request_momentum_update"})
        await clients_left(server, 0)
        client.socket.transport.abort()


@pytest.mark.parametrize("window", [64 * 1024 * 1024, 64 * 1024], ids=["from memory", "from the log"])
async def test_a_large_event_for_which_there_is_no_room_keeps_its_place_and_comes_once(
    start: Start, db: Sql, user: UUID, bounds: Bounds, window: int
) -> None:
    """Others hold the whole budget and read nothing, until they are closed for it.

    One transaction has small and large events, on two channels of one client.
    """
    bounds("delivery", stall_s=2.0, turn_s=4.0)
    bounds("sockets", close_slow_s=1.0)
    large = "x" * 150_000
    total = 1024 * 1024
    async with start(send_buffer_bytes=total, send_total_bytes=total, window_bytes=window) as server:
        other = new_user(db)
        async with AsyncExitStack() as stack:
            stuck = [await stack.enter_async_context(server.live(other, client_id=str(number))) for number in range(8)]
            for client in stuck:
                client.socket.transport.pause_reading()
            await asyncio.to_thread(write_many, db, other, 60)
            reader = await stack.enter_async_context(
                server.connect(sign(user, role="service_role", sub=None), user_id=user, channels="first,second")
            )
            last = (await reader.until("initial_state"))["last_event_id"]
            with db.transaction():
                for number in range(4):
                    small = json.dumps({"event_type": "small", "number": number})
                    db.execute("select momentum.publish(array['first'], %s)", (small,))
                    event = json.dumps({"event_type": "large", "number": number, "text": large})
                    db.execute("select momentum.publish(array['first', 'second'], %s)", (event,))
            came = [(await reader.until("realtime_event"))["event"] for _ in range(8)]
            assert [(event["event_type"], event["number"]) for event in came] == [
                (kind, number) for number in range(4) for kind in ("small", "large")
            ]
            assert [event["previous_id"] for event in came] == [last, *[event["id"] for event in came[:-1]]]
            for client in stuck:  # or their close would wait for an answer that they do not read
                client.socket.transport.abort()


async def test_a_slow_reader_of_a_large_event_is_closed_while_others_wait(
    start: Start, db: Sql, user: UUID, bounds: Bounds
) -> None:
    """A trickle of reads avoids the stall timeout, but does not extend a turn that other clients wait for."""
    db.execute("update momentum.settings set max_event_bytes = 16777216")
    bounds("delivery", turn_s=2.0, stall_s=0.5)
    bounds("sockets", close_slow_s=0.5)
    total = 1024 * 1024
    large = json.dumps({"event_type": "large", "text": "x" * 14_000_000})
    async with start(send_buffer_bytes=total, send_total_bytes=total) as server, AsyncExitStack() as stack:
        service = sign(user, role="service_role", sub=None)
        dribbler, reader = [
            await stack.enter_async_context(server.connect(service, user_id=user, channels=name)) for name in "bc"
        ]
        for client in (dribbler, reader):
            await client.until("initial_state")
        db.execute("select momentum.publish(array['b', 'c'], '{\"event_type\": \"small\"}')")
        for client in (dribbler, reader):
            await client.until("realtime_event")  # it follows
        dribbler.socket.transport.pause_reading()
        db.execute("select momentum.publish(array['b'], %s)", (large,))

        async def dribble() -> None:
            while True:
                dribbler.socket.transport.resume_reading()
                for _ in range(4):  # reads
                    await asyncio.sleep(0)
                dribbler.socket.transport.pause_reading()
                await asyncio.sleep(0.3)

        reading = asyncio.ensure_future(dribble())
        await asyncio.to_thread(db.execute, "select momentum.publish(array['c'], %s)", (large,))
        assert (await reader.until("realtime_event"))["event"]["event_type"] == "large"
        await clients_left(server, 1)
        reading.cancel()
        dribbler.socket.transport.abort()


async def test_a_connection_that_cannot_be_given_its_events_is_closed_and_not_left_silent(
    start: Start, db: Sql, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 64 * 1024
    async with start(send_buffer_bytes=limit) as server, server.live(user) as client:
        client.socket.transport.pause_reading()
        await asyncio.to_thread(write_many, db, user, 100)
        real = Delivery._give

        def broken(_: Delivery, *given: object) -> None:
            raise LookupError("a defect")

        monkeypatch.setattr(Delivery, "_give", broken)
        client.socket.transport.resume_reading()
        assert (await client.closed())[0] == 1012
        monkeypatch.setattr(Delivery, "_give", real)
        read = [message["event"] for message in client.seen if message["type"] == "realtime_event"]
        async with server.connect(sign(user), last_event_id=read[-1]["id"]) as again:
            assert (await again.next())["replayed"] == 100 - len(read)


async def test_the_page_size_grows_again_after_a_page_with_a_slow_policy(
    server: Server, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Delivery] = []
    real = Delivery.catch_up

    def watched(out: Delivery) -> None:
        made.append(out)
        real(out)

    monkeypatch.setattr(Delivery, "catch_up", watched)
    async with server.live(user):
        out = made[0]
        out._enter(DeliveryState.CATCHING_UP)
        out._page_bytes = 0
        pages = []
        for _ in range(9):
            out._give(Page([], out._connection.cursor.offset))
            pages.append(out._page)
        assert pages == [1024, 2048, 4096, 8192, 16384, 32768, 65536, 65536, 65536]

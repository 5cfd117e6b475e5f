"""State that gateways share: clients and their limits, broadcasts, presence, and sessions of Supabase's clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from tests.fixtures.gateways import Nats, Run
from tests.fixtures.postgres import Sql, add_notification
from tests.fixtures.realtime import RESUMED, Page, page, until_acknowledged
from tests.fixtures.server import SERVICE_KEY, TIMEOUT_S, Bounds, Server, sign
from tests.fixtures.todos import add_todo

Pair = tuple[Server, Server]


@pytest_asyncio.fixture
async def pair(run: Run, bounds: Bounds) -> AsyncIterator[Pair]:
    """Run a capture and two gateways, which hear each other."""
    bounds("peers", report_s=0.2, expire_s=1.5, answer_s=0.1)
    bounds("resume", ping_s=0.05, save_s=0.05)
    async with run("capture"), run("gateway", max_connections_per_user=3) as one:
        async with run("gateway", max_connections_per_user=3) as two:
            await asyncio.sleep(0.5)
            yield one, two


async def connections(server: Server) -> int:
    async with server.http() as http:
        return int((await http.get("/sync/health")).json()["connected_clients"])


async def until_connections(server: Server, wanted: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while await connections(server) != wanted:
            await asyncio.sleep(0.02)


async def test_a_client_id_is_unique_on_all_gateways(pair: Pair, user: UUID, other: UUID) -> None:
    one, two = pair
    async with one.live(user, client_id="phone") as first, one.live(user, client_id="tablet"):
        async with one.live(other, client_id="phone"):
            async with two.live(user, client_id="phone") as second:
                assert (await first.closed())[0] == 4410
                await until_connections(one, 2)
                async with one.live(user, client_id="phone"):
                    assert (await second.closed())[0] == 4410


async def test_the_limit_of_connections_counts_on_all_gateways(pair: Pair, db: Sql, user: UUID) -> None:
    one, two = pair
    async with one.live(user, client_id="a"), one.live(user, client_id="b") as second:
        async with two.live(user, client_id="c") as third:
            await until_refused(two, user, "d")
            async with two.live(user, client_id="a") as moved:  # it replaces one of them
                add_notification(db, user)
                for client in (second, third, moved):
                    await client.until("realtime_event")
        async with asyncio.timeout(TIMEOUT_S):
            while not await admits(two, user, "d"):
                await asyncio.sleep(0.05)


async def admits(server: Server, user: UUID, client_id: str) -> bool:
    async with server.connect(sign(user), client_id=client_id) as client:
        try:
            await client.until("initial_state")
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            assert closed.rcvd.code == 4413
            return False
        return True


async def until_refused(server: Server, user: UUID, client_id: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while await admits(server, user, client_id):
            await asyncio.sleep(0.05)


# Supabase's protocol


async def test_a_client_resumes_its_tables_on_another_gateway(pair: Pair, todos: Sql, user: UUID) -> None:
    one, two = pair
    client = page(one, user, client_id="phone")
    async with client.connected():
        assert await client.join() is None
        add_todo(todos, 0, user)
        assert await client.ids(1) == [0]
        await until_acknowledged(todos, 1)
    for number in range(1, 4):
        add_todo(todos, number, user)
    client.server = two
    async with client.connected():
        assert await client.join() == RESUMED
        add_todo(todos, 4, user)
        got: dict[int, None] = {}
        while 4 not in got:  # the first may come again, if its pong was not saved in time
            got[(await client.ids(1))[0]] = None
        assert [number for number in got if number] == [1, 2, 3, 4]


async def test_a_socket_whose_client_is_elsewhere_is_closed(pair: Pair, todos: Sql, user: UUID) -> None:
    one, two = pair
    client, moved = page(one, user, client_id="phone"), page(two, user, client_id="phone")
    async with client.connected():
        await client.join()
        moved.ref = client.ref + 10
        async with moved.connected():
            assert await moved.join() == RESUMED
            with pytest.raises(ConnectionClosed):
                while True:
                    await client.next()


async def joined(server: Server, user: UUID, topic: str, **config: Any) -> Any:
    """Return the context of a client that has joined a topic without tables."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Page]:
        client = page(server, user, client_id=uuid4().hex)
        async with client.connected():
            client.ref += 1
            payload = {"config": config, "access_token": sign(user)}
            await client.socket.send(json.dumps([str(client.ref), str(client.ref), topic, "phx_join", payload]))
            assert (await client.next())[4]["status"] == "ok"
            yield client

    return opened()


async def until(client: Page, event: str) -> dict[str, Any]:
    while (frame := await client.next())[3] != event:
        pass
    return dict(frame[4])


async def test_broadcasts_reach_the_members_on_all_gateways(pair: Pair, user: UUID) -> None:
    one, two = pair
    topic, config = "realtime:room", {"broadcast": {"self": False}, "presence": {"enabled": False}}
    async with await joined(one, user, topic, **config) as a, await joined(two, user, topic, **config) as b:
        for number in range(20):
            await a.send(topic, "broadcast", {"type": "broadcast", "event": "moved", "payload": {"number": number}})
        assert [(await until(b, "broadcast"))["payload"]["number"] for _ in range(20)] == list(range(20))
        async with two.http(apikey=SERVICE_KEY) as http:
            body = {"messages": [{"topic": "room", "event": "said", "payload": {"by": "http"}}]}
            assert (await http.post("/realtime/v1/api/broadcast", json=body)).status_code == 202
        for client in (a, b):
            received = await asyncio.wait_for(client.socket.recv(), TIMEOUT_S)
            assert isinstance(received, bytes)
            assert received.endswith(b'{"by":"http"}')


async def names(client: Page, state: dict[str, set[str]], wanted: set[str]) -> None:
    """Apply states and diffs of presence until these members are there."""
    async with asyncio.timeout(TIMEOUT_S):
        while set(state) != wanted:
            frame = await client.next()
            match frame[3]:
                case "presence_state":
                    state.clear()
                    state.update({key: {meta["phx_ref"] for meta in one["metas"]} for key, one in frame[4].items()})
                case "presence_diff":
                    for key, one in frame[4]["leaves"].items():
                        state[key] -= {meta["phx_ref"] for meta in one["metas"]}
                        if not state[key]:
                            del state[key]
                    for key, one in frame[4]["joins"].items():
                        state.setdefault(key, set()).update(meta["phx_ref"] for meta in one["metas"])


async def test_presence_is_the_same_on_all_gateways(pair: Pair, run: Run, user: UUID) -> None:
    one, two = pair
    topic = "realtime:room"

    def config(key: str) -> dict[str, Any]:
        return {"presence": {"enabled": True, "key": key}}

    track = {"type": "presence", "event": "track", "payload": {"at": "desk"}}
    async with await joined(one, user, topic, **config("a")) as a:
        await a.send(topic, "presence", track)
        seen_by_a: dict[str, set[str]] = {}
        await names(a, seen_by_a, {"a"})
        async with await joined(two, user, topic, **config("b")) as b:
            await b.send(topic, "presence", track)
            await names(b, {}, {"a", "b"})
            await names(a, seen_by_a, {"a", "b"})
            async with run("gateway") as three, await joined(three, user, topic, **config("c")) as c:
                await names(c, {}, {"a", "b"})  # it asked the others
                await c.send(topic, "presence", track)
                await names(a, seen_by_a, {"a", "b", "c"})
            await names(a, seen_by_a, {"a", "b"})
        await names(a, seen_by_a, {"a"})


async def test_the_members_of_a_gateway_that_is_not_heard_are_gone_until_it_is(
    pair: Pair, user: UUID, nats: Nats
) -> None:
    one, two = pair
    topic, track = "realtime:room", {"type": "presence", "event": "track", "payload": {}}
    async with await joined(one, user, topic, presence={"enabled": True, "key": "a"}) as a:
        await a.send(topic, "presence", track)
        async with await joined(two, user, topic, presence={"enabled": True, "key": "b"}) as b:
            await b.send(topic, "presence", track)
            state: dict[str, set[str]] = {}
            await names(a, state, {"a", "b"})
            await nats.stop()
            await names(a, state, {"a"})
            await nats.start()
            await names(a, state, {"a", "b"})

"""Broadcasts by socket and by HTTP, and presence, on a running server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from momentum_sync.limits import Rate
from tests.fixtures.server import ANON_KEY, SERVICE_KEY, TIMEOUT_S, Bounds, Common, Server, Start, sign


@pytest.fixture
def database(shared_database: str) -> str:
    return shared_database


@pytest.fixture
def server(common: Common) -> Server:
    return common.server


BATCH = "/realtime/v1/api/broadcast"


@asynccontextmanager
async def joined(server: Server, topic: str = "room", **config: Any) -> AsyncIterator[ClientConnection]:
    """Yield a socket that has joined a topic."""
    url = f"{server.ws}/realtime/v1/websocket?apikey={ANON_KEY}&vsn=2.0.0"
    async with websockets.connect(url, open_timeout=TIMEOUT_S, max_queue=None) as socket:
        await socket.send(json.dumps(["1", "1", f"realtime:{topic}", "phx_join", {"config": config}]))
        assert json.loads(await socket.recv())[4]["status"] == "ok"
        assert json.loads(await socket.recv())[4]["message"].startswith("NotResumable: ")
        yield socket


async def message(socket: ClientConnection) -> Any:
    """Return the next broadcast: a binary frame as it is, a text's payload."""
    while True:
        data = await asyncio.wait_for(socket.recv(), TIMEOUT_S)
        if isinstance(data, bytes):
            return data
        frame = json.loads(data)
        if frame[3] == "broadcast":
            return frame[4]


async def closed_with(socket: ClientConnection) -> int:
    """Read until the server closes a socket. Return its close code."""
    with pytest.raises(websockets.ConnectionClosed) as closed:
        while True:
            await asyncio.wait_for(socket.recv(), TIMEOUT_S)
    assert closed.value.rcvd is not None
    return int(closed.value.rcvd.code)


def sent(event: str, payload: bytes, *, is_json: bool = True, topic: str = "realtime:room") -> bytes:
    return bytes([4, len(topic), len(event), 0, is_json]) + topic.encode() + event.encode() + payload


@pytest.mark.parametrize("path", [BATCH, "/api/broadcast"])
async def test_a_batch_by_http_comes_to_the_members(server: Server, path: str) -> None:
    messages = [
        {"topic": "room", "event": "one", "payload": {"n": 1}}, {"topic": "other", "event": "x", "payload": {}},
        {"topic": "room", "event": "two", "payload": {"n": [2]}, "private": False},
    ]  # fmt: skip
    async with joined(server) as socket, server.http() as http:
        answer = await http.post(path, json={"messages": messages}, headers={"apikey": ANON_KEY})
        assert (answer.status_code, answer.content) == (202, b"")
        assert await message(socket) == sent("one", b'{"n":1}')
        assert await message(socket) == sent("two", b'{"n":[2]}')


async def test_a_sender_keeps_its_order_before_and_after_it_joins(server: Server) -> None:
    """Before it joins, a client of Supabase's sends by HTTP."""
    async with joined(server, "order") as reader, server.http() as http:
        for number in range(5):
            answer = await http.post(f"{BATCH}/order/events/{number}", json={}, headers={"apikey": ANON_KEY})
            assert answer.status_code == 202
        async with joined(server, "order") as sender:
            for number in range(5, 50):
                said = {"type": "broadcast", "event": str(number), "payload": {}}
                await sender.send(json.dumps(["1", str(number), "realtime:order", "broadcast", said]))
            came = [await message(reader) for _ in range(50)]
    assert came[:5] == [sent(str(number), b"{}", topic="realtime:order") for number in range(5)]
    assert [broadcast["event"] for broadcast in came[5:]] == [str(number) for number in range(5, 50)]


@pytest.mark.parametrize("authorization", ["", "Bearer", "bearer"])
async def test_an_empty_token_is_none(server: Server, authorization: str) -> None:
    """supabase-js of 2025 sends one when no user has signed in."""
    async with server.http() as http:
        headers = {"apikey": ANON_KEY, "authorization": authorization}
        answer = await http.post(f"{BATCH}/room/events/e", json={}, headers=headers)
        assert answer.status_code == 202


async def test_one_message_by_http_may_be_bytes(server: Server) -> None:
    async with joined(server, "a/b") as socket, server.http(sign(uuid4())) as http:
        answer = await http.post(f"{BATCH}/a%2Fb/events/raw", content=b"\x00\xff",
                                 headers={"content-type": "application/octet-stream"})  # fmt: skip
        assert answer.status_code == 202
        assert await message(socket) == sent("raw", b"\x00\xff", is_json=False, topic="realtime:a/b")
        answer = await http.post(f"{BATCH}/a%2Fb/events/te%2Fxt", json={"n": 1})
        assert answer.status_code == 202
        assert await message(socket) == sent("te/xt", b'{"n":1}', topic="realtime:a/b")
        assert (await http.post(f"{BATCH}/a/events/b/c", json={})).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "says"),
    [
        (BATCH, {"messages": []}, {"apikey": ""}, 401, "API key is missing"),
        (BATCH, {"messages": []}, {"authorization": "Bearer nonsense"}, 401, "The token provided is not a valid JWT"),
        (BATCH, {}, {}, 422, "messages"),
        (BATCH, {"messages": [{"topic": "a", "event": "b"}]}, {}, 422, "payload"),
        (BATCH, {"messages": [{"topic": "a", "event": "b", "payload": 7}]}, {}, 422, "must be an object"),
        (BATCH, {"messages": [{"topic": "", "event": "b", "payload": {}}]}, {}, 422, "topic"),
        (BATCH, {"messages": [{"topic": "a\n", "event": "b", "payload": {}}]}, {}, 422, "topic"),
        (BATCH, {"messages": [{"topic": "a", "event": "", "payload": {}}]}, {}, 422, "can't be blank"),
        (BATCH, {"messages": [{"topic": "a", "event": "b", "payload": {"a": "x" * 300_000}}]}, {}, 413, "at most"),
        (f"{BATCH}/a/events/b", {}, {"content-type": "text/plain"}, 415, "application/octet-stream"),
        (f"{BATCH}/a/events/b", b"{", {"content-type": "application/json"}, 422, "no JSON"),
        (BATCH, b"nonsense", {}, 422, "messages"),
    ],
)  # fmt: skip
async def test_what_cannot_be_sent_is_told(
    server: Server, path: str, body: Any, headers: dict[str, str], status: int, says: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with server.http() as http:
        given = {"apikey": ANON_KEY, "content-type": "application/json", **headers}
        answer = await http.post(path, content=content, headers={name: value for name, value in given.items() if value})
        assert answer.status_code == status, answer.text
        assert says in answer.text
        assert status == 413 or "message" in answer.json()


async def test_too_many_messages_by_http_are_told_and_none_of_them_is_sent(start: Start, bounds: Bounds) -> None:
    bounds("users", broadcasts=Rate(3, 0.001))
    batch = {"messages": [{"topic": "room", "event": f"e{number}", "payload": {}} for number in range(2)]}
    async with start() as server, server.http() as http, joined(server) as socket:
        statuses = []
        for key in (ANON_KEY, ANON_KEY, SERVICE_KEY):
            answer = await http.post(BATCH, json=batch, headers={"apikey": key})
            statuses.append(answer.status_code)
            assert (answer.headers.get("retry-after") == "1") == (answer.status_code == 429)
        assert statuses == [202, 429, 202]
        assert [await message(socket) for _ in range(4)] == [sent(f"e{number}", b"{}") for number in (0, 1, 0, 1)]
        four = {"messages": [*batch["messages"], *batch["messages"]]}
        answer = await http.post(BATCH, json=four, headers={"apikey": ANON_KEY})
        assert (answer.status_code, answer.json()["errors"]) == (422, {"messages": ["should have at most 3 item(s)"]})


async def test_a_page_of_any_origin_may_send(server: Server) -> None:
    headers = {
        "origin": "https://app.example", "access-control-request-method": "POST",
        "access-control-request-headers": "apikey,authorization,content-type,x-client-info",
    }  # fmt: skip
    async with server.http() as http:
        asked = await http.options(BATCH, headers=headers)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "*")
        refused: httpx.Response = await http.post(BATCH, json={}, headers={"origin": "https://app.example"})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")


async def test_a_large_message_is_delivered_and_a_larger_one_ends_the_connection(server: Server) -> None:
    async with joined(server) as one, joined(server) as other:
        payload = {"type": "broadcast", "event": "e", "payload": {"a": "x" * 200_000}}
        await one.send(json.dumps(["1", "2", "realtime:room", "broadcast", payload]))
        assert await message(other) == payload
        await one.send("x" * 300_000)
        assert await closed_with(one) == 1009


async def test_who_does_not_read_is_closed_and_the_others_get_everything(start: Start) -> None:
    payload = {"type": "broadcast", "event": "e", "payload": {"a": "x" * 100_000}}
    async with start(send_buffer_bytes=256 * 1024) as server, joined(server) as sender, joined(server) as other:
        async with joined(server) as slow:
            slow.transport.pause_reading()
            for number in range(60):
                await sender.send(json.dumps(["1", str(number + 2), "realtime:room", "broadcast", payload]))
                assert await message(other) == payload
            slow.transport.resume_reading()
            assert await closed_with(slow) == 4409


async def test_members_that_do_not_read_do_not_keep_the_total_exhausted(start: Start) -> None:
    payload = {"type": "broadcast", "event": "e", "payload": {"a": "x" * 100_000}}
    async with start(send_buffer_bytes=16 * 2**20, send_total_bytes=16 * 2**20) as server, joined(server) as sender:
        async with AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(joined(server)) for _ in range(5)]
            for each in slow:
                each.transport.pause_reading()
            for number in range(80):  # 40 MB for all of them
                await sender.send(json.dumps(["1", str(number + 2), "realtime:room", "broadcast", payload]))
                await sender.send(json.dumps([None, "h", "phoenix", "heartbeat", {}]))
                while json.loads(await asyncio.wait_for(sender.recv(), TIMEOUT_S))[1] != "h":
                    pass
            for each in slow:
                each.transport.resume_reading()
                assert await closed_with(each) == 4409


async def test_presence_of_a_dead_socket_vanishes(server: Server) -> None:
    async with joined(server, presence={"enabled": True}) as watcher:
        assert json.loads(await watcher.recv())[3] == "presence_state"
        async with joined(server, presence={"enabled": True, "key": "k"}) as one:
            track = {"type": "presence", "event": "track", "payload": {"name": "A"}}
            await one.send(json.dumps(["1", "2", "realtime:room", "presence", track]))
            diff = json.loads(await asyncio.wait_for(watcher.recv(), TIMEOUT_S))
            assert list(diff[4]["joins"]) == ["k"]
            one.transport.abort()
        diff = json.loads(await asyncio.wait_for(watcher.recv(), TIMEOUT_S))
        assert (diff[3], list(diff[4]["leaves"]), diff[4]["joins"]) == ("presence_diff", ["k"], {})

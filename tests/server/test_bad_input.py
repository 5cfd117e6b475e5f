"""Invalid input of clients gets the contract's error; nothing crashes, nothing leaks, others are not affected."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
import websockets
from websockets.frames import Frame, Opcode

from tests.fixtures.postgres import Sql, add_score
from tests.fixtures.server import PATH, SERVICE_KEY, TIMEOUT_S, Client, Common, Server, sign


@pytest.fixture
def database(shared_database: str) -> str:
    return shared_database


@pytest.fixture
def server(common: Common) -> Server:
    return common.server


@asynccontextmanager
async def undisturbed(server: Server, db: Sql, other: UUID) -> AsyncIterator[None]:
    """Check that another client stays live during the block and receives a change afterwards."""
    async with server.live(other) as bystander:
        yield
        assert (await bystander.ask({"type": "ping"}))["type"] == "pong"
        add_score(db, other)
        assert (await bystander.next())["type"] == "cache_invalidation"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("\0", "invalid_json"),
        ("[]", "invalid_message"),
        ("[" * 60_000, "invalid_message"),
        ('{"type": "dance"}', "unknown_type"),
        ('{"type": "subscribe", "channels": 7}', "invalid_field"),
        (
            '{"type": "mark_notification_read", "notification_id": "\' or true; drop table auth.users; --"}',
            "invalid_field",
        ),
        (b"\x00\x01", "binary_frame"),
        (b'{"type": "ping"}', "binary_frame"),
    ],
)
async def test_a_frame_that_is_no_message(
    server: Server, db: Sql, user: UUID, other: UUID, sent: str | bytes, code: str
) -> None:
    async with undisturbed(server, db, other), server.live(user) as client:
        answer = await client.ask(sent)
        assert (answer["type"], answer["code"]) == ("error", code)
        assert (await client.ask({"type": "ping"}))["type"] == "pong"


@pytest.mark.parametrize(
    "channel", ["' or true --", "momentum_updates:' or true --", "\u2028", "x" * 200, "a,b", "momentum_updates:all\0"]
)
async def test_a_channel_that_is_none(server: Server, db: Sql, user: UUID, other: UUID, channel: str) -> None:
    async with undisturbed(server, db, other), server.live(user) as client:
        answer = await client.ask({"type": "subscribe", "channels": [channel]})
        assert (answer["type"], answer["code"]) in (("error", "forbidden"), ("error", "invalid_field"))


async def test_one_unreadable_message_after_another(server: Server, db: Sql, user: UUID, other: UUID) -> None:
    async with undisturbed(server, db, other), server.live(user) as client:
        for _ in range(5):
            await client.send("nonsense")
        assert (await client.closed())[0] == 4400


async def test_a_flood_of_messages(server: Server, db: Sql, user: UUID, other: UUID) -> None:
    async with undisturbed(server, db, other), server.live(user) as client:
        for _ in range(300):
            try:
                await client.send({"type": "request_momentum_update"})
            except websockets.ConnectionClosed:
                break
        code, reason = await client.closed()
        assert code == 4429
        assert "reconnect" in reason


async def too_big(server: Server) -> str:
    """Return the number of connections closed for the size of a message."""
    async with server.http(apikey=SERVICE_KEY) as http:
        (count,) = re.findall(r'^momentum_closes_total\{code="1009"\} (.*)$', (await http.get("/metrics")).text, re.M)
    return str(count)


@pytest.mark.parametrize("fragments", [1, 20])
async def test_a_frame_of_100_kb(server: Server, db: Sql, user: UUID, other: UUID, fragments: int) -> None:
    async with undisturbed(server, db, other), server.live(user) as client:
        before = await too_big(server)
        part = '{"type": "ping", "ref": "' + "x" * (100_000 // fragments)
        try:
            await client.socket.send([part] * fragments if fragments > 1 else part)
        except websockets.ConnectionClosed:
            pass
        assert (await client.closed())[0] == 1009
        async with asyncio.timeout(20):
            while await too_big(server) == before:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"user_id": "' or true --"}, "invalid_user_id"),
        ({"user_id": ""}, "invalid_user_id"),
        ({"user_id": "1"}, "invalid_user_id"),
        ({"client_id": "x" * 201}, "too_long"),
        ({"client_id": "a\0b"}, "invalid_text"),
        ({"channels": "a\0b"}, "invalid_text"),
        ({"channels": ",".join("x" * 4 for _ in range(501))}, "too_long"),
    ],
)
async def test_an_address_that_cannot_be_read(
    server: Server, db: Sql, user: UUID, other: UUID, query: dict[str, str], code: str
) -> None:
    async with undisturbed(server, db, other):
        refused = await _refused(server, sign(user), query)
        assert (refused.status_code, json.loads(refused.body or b"")["error"]["code"]) == (400, code)


async def _refused(server: Server, token: str | None, query: dict[str, str]) -> Any:
    address = str(httpx.URL(server.ws + PATH, params=query))
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websockets.connect(address, additional_headers=headers):
            raise AssertionError("it was let in")
    return refused.value.response


@pytest.mark.parametrize(
    "token", [None, "", "x", "a.b.c", sign(UUID(int=1), exp=1), sign(UUID(int=1), role="postgres")], ids=range(6)
)
async def test_without_a_valid_token_there_is_no_socket(server: Server, token: str | None) -> None:
    response = await _refused(server, token, {})
    assert response.status_code == 401
    assert response.headers["Content-Type"] == "application/json"
    assert set(json.loads(response.body)["error"]) == {"code", "message"}


async def test_a_socket_at_another_address(server: Server, user: UUID) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with server.connect(sign(user), path="/elsewhere"):
            raise AssertionError("it was let in")
    assert refused.value.response.status_code == 404


@asynccontextmanager
async def raw(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def handshake(token: str, *, key: str = "dGhlIHNhbXBsZSBub25jZQ==", version: str = "13") -> bytes:
    return (
        f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: {version}\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()


async def test_half_a_handshake(server: Server, db: Sql, user: UUID, other: UUID) -> None:
    async with undisturbed(server, db, other):
        whole = handshake(sign(user))
        for length in (1, 30, len(whole) - 2):
            async with raw(server) as (_, writer):
                writer.write(whole[:length])
                await writer.drain()


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        ({"key": ""}, 400),
        ({"key": "short"}, 400),
        ({"version": "8"}, 400),
        ({"version": "x"}, 400),
    ],
)
async def test_a_handshake_that_breaks_the_protocol(
    server: Server, db: Sql, user: UUID, other: UUID, broken: dict[str, str], status: int
) -> None:
    async with undisturbed(server, db, other), raw(server) as (reader, writer):
        writer.write(handshake(sign(user), **broken))
        async with asyncio.timeout(TIMEOUT_S):
            answer = await reader.read()
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    "more", [f"Cookie: {'x' * 40_000}\r\n", "X: y\r\n" * 200, "Origin: http://[\r\n"], ids=["long", "many", "origin"]
)
async def test_a_handshake_with_headers_that_are_not_taken(
    server: Server, db: Sql, user: UUID, other: UUID, more: str
) -> None:
    async with undisturbed(server, db, other), raw(server) as (reader, writer):
        writer.write(handshake(sign(user)).replace(b"\r\n\r\n", b"\r\n" + more.encode() + b"\r\n"))
        async with asyncio.timeout(TIMEOUT_S):
            answer = await reader.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1][:1] == b"4"
    if b"application/json" in head:
        assert set(json.loads(body)["error"]) == {"code", "message"}


async def test_a_handshake_then_nothing_but_garbage(server: Server, db: Sql, user: UUID, other: UUID) -> None:
    async with undisturbed(server, db, other), raw(server) as (reader, writer):
        writer.write(handshake(sign(user)))
        async with asyncio.timeout(TIMEOUT_S):
            assert b" 101 " in await reader.readline()
            writer.write(os.urandom(4096))
            await reader.read()


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Opcode.TEXT, b'{"type": "ping"}').serialize(mask=False),
        b"\x83\x80\0\0\0\0",
        b"\xc1\x80\0\0\0\0",
        Frame(Opcode.CONT, b"x").serialize(mask=True),
        Frame(Opcode.TEXT, b"\xff\xfe").serialize(mask=True),
        b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
        Frame(Opcode.PING, b"x" * 125).serialize(mask=True)[:-100],
    ],
    ids=["unmasked", "reserved opcode", "reserved bit", "no start", "not utf-8", "an endless length", "cut short"],
)
async def test_frames_that_break_the_protocol(server: Server, db: Sql, user: UUID, other: UUID, frame: bytes) -> None:
    async with undisturbed(server, db, other), raw(server) as (reader, writer):
        writer.write(handshake(sign(user)))
        async with asyncio.timeout(TIMEOUT_S):
            assert b" 101 " in await reader.readline()
            writer.write(frame)
            writer.write_eof()
            await reader.read()


async def test_a_client_that_leaves_at_any_moment(server: Server, db: Sql, user: UUID, other: UUID) -> None:
    async with undisturbed(server, db, other):
        for step in range(12):
            async with raw(server) as (reader, writer):
                writer.write(handshake(sign(user)))
                if step % 3:
                    async with asyncio.timeout(TIMEOUT_S):
                        await reader.readline()
                if step % 3 == 2:
                    writer.write(Frame(Opcode.TEXT, b'{"type": "request_momentum_update"}').serialize(mask=True))
                    await writer.drain()
        async with server.http() as http, asyncio.timeout(TIMEOUT_S):
            while (await http.get("/sync/health")).json()["connected_clients"] > 1:
                await asyncio.sleep(0.02)


async def test_messages_sent_before_the_greeting_wait_for_it(server: Server, user: UUID) -> None:
    async with server.connect(sign(user)) as client:
        assert isinstance(client, Client)
        await client.send({"type": "ping", "ref": 1})
        kinds = [(await client.next())["type"] for _ in range(3)]
    assert kinds == ["subscription_confirmed", "initial_state", "pong"]

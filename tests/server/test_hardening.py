"""Excessive, slow and frequent requests are refused, and other clients are not affected."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
import websockets
from websockets.frames import Frame, Opcode

from momentum_sync.limits import Rate
from tests.fixtures.server import PATH, SERVICE_KEY, TIMEOUT_S, Bounds, Server, Start, sign


@asynccontextmanager
async def raw(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection of bytes."""
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield reader, writer
    finally:
        writer.close()


def error_in(answer: bytes) -> tuple[int, str]:
    """Return status and code of an answer in the contract's form."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /sync/health HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /sync/momentum HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "an upgrade that nobody knows"],
)
async def test_a_request_that_is_never_complete_is_ended(start: Start, bounds: Bounds, begun: bytes) -> None:
    bounds("http", request_s=0.3)
    async with start() as server:
        async with raw(server) as (reader, writer):
            writer.write(begun)
            answer = await reader.read()
        if answer:
            assert error_in(answer)[0] in (401, 404, 408)


WHOLE = b"GET /sync/health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "begun",
    [
        WHOLE + WHOLE[:20],
        b"POST /sync/momentum HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n",
        WHOLE + b"\r\n",
        WHOLE + WHOLE,
    ],
    ids=["one and a half", "a body without end", "a request and a line", "two"],
)
@pytest.mark.parametrize("more", [b"", b"x", b"\r\n"])
async def test_data_after_a_request_does_not_extend_its_deadline(
    start: Start, bounds: Bounds, begun: bytes, more: bytes
) -> None:
    bounds("http", request_s=0.5)
    bounds("http", answer_s=0.5)
    async with start() as server:
        async with raw(server) as (reader, writer):
            writer.write(begun)
            await reader.readline()  # the first answer
            writer.write(more)
            with suppress(ConnectionResetError):  # the server may have closed it with unread bytes
                await reader.read()


async def test_a_request_that_comes_byte_by_byte_gains_no_time(start: Start, bounds: Bounds) -> None:
    bounds("http", request_s=0.5)
    async with start() as server:
        async with raw(server) as (reader, writer):
            writer.write(b"GET /sync/health HTTP/1.1\r\n")
            reading = asyncio.ensure_future(reader.read())
            number = 0
            while not reading.done():
                writer.write(b"X-%d: y\r\n" % number)
                number += 1
                await asyncio.wait([reading], timeout=0.02)
            assert error_in(reading.result()) == (408, "too_slow")


async def test_a_refused_client_that_keeps_sending_gets_the_error_and_is_disconnected(
    start: Start, bounds: Bounds
) -> None:
    bounds("http", linger_s=0.3)
    async with start() as server:
        async with raw(server) as (reader, writer):
            writer.write(b"no HTTP\r\n" + b"x" * 1_000_000)
            assert error_in(await reader.read()) == (400, "bad_request")
            while not writer.transport.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.02)


async def test_a_head_without_end_is_refused(server: Server) -> None:
    async with raw(server) as (reader, writer):
        writer.write(b"GET /sync/health HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"y" * 100_000)
        assert error_in(await reader.read()) == (431, "too_large")
    async with raw(server) as (reader, writer):
        writer.write(b"GET /sync/health?" + b"x" * 100_000)
        assert error_in(await reader.read()) == (431, "too_large")


async def test_input_that_is_not_http_gets_the_contracts_error(server: Server) -> None:
    async with raw(server) as (reader, writer):
        writer.write(b"\x16\x03\x01 this is TLS, or anything\r\n\r\n")
        assert error_in(await reader.read()) == (400, "bad_request")


async def test_as_many_connections_as_the_kernel_allows_wait_to_be_accepted(start: Start) -> None:
    """All clients reconnect at once after a restart, and one that finds no place tries again a second later."""
    async with start() as server:
        address = urlsplit(server.url)
        found = [backlog for at, backlog in listening_sockets() if at == address.port]
    assert found == [somaxconn()]


def somaxconn() -> int:
    return int(Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii"))


def listening_sockets() -> Iterator[tuple[int, int]]:
    """Yield port and backlog of this process's listening sockets. Linux reports the backlog in `tcpi_sacked`."""
    for each in Path("/proc/self/fd").iterdir():
        try:
            if not str(each.readlink()).startswith("socket:"):
                continue
            found = socket.socket(fileno=os.dup(int(each.name)))
        except OSError:  # the folder's own descriptor
            continue
        with found:
            if found.family == socket.AF_INET and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                (sacked,) = struct.unpack_from("I", found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)
                yield found.getsockname()[1], sacked


REQUEST = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("at_once", [3, 10_000])
async def test_a_client_that_does_not_read_its_answers_is_disconnected(
    start: Start, bounds: Bounds, at_once: int
) -> None:
    """A few pipelined requests wait for their answers; very many are not kept."""
    bounds("http", answer_s=0.5)
    bounds("http", kernel_bytes=4096)
    loop = asyncio.get_running_loop()
    async with start() as server, server.http() as http:
        address = urlsplit(server.url)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, (address.hostname, address.port))
            async with asyncio.timeout(TIMEOUT_S):
                with pytest.raises(ConnectionError):
                    await loop.sock_sendall(client, REQUEST * at_once)
                    while True:  # a write reveals the reset
                        await loop.sock_sendall(client, b"\r\n")
                        await asyncio.sleep(0.01)
        assert (await http.get("/sync/health")).status_code == 200


async def test_requests_that_come_together_are_answered_in_their_order(server: Server) -> None:
    async with raw(server) as (reader, writer):
        writer.write(REQUEST * 3 + REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await reader.read()).count(b"HTTP/1.1 200") == 4


async def test_the_number_of_sockets_is_limited(start: Start, user: UUID, bounds: Bounds) -> None:
    bounds("http", connections=3)
    async with start(max_connections=2) as server, AsyncExitStack() as stack:
        open_ones = [await stack.enter_async_context(raw(server)) for _ in range(8)]
        answers = []
        for reader, _ in open_ones[5:]:
            answers.append(error_in(await reader.read()))
        assert answers == [(503, "unavailable")] * 3


async def test_a_user_asks_so_often_over_http_and_others_as_they_like(
    start: Start, user: UUID, other: UUID, bounds: Bounds
) -> None:
    bounds("users", requests=Rate(20, 0.01))
    body = {"user_id": str(user)}
    async with start() as server:
        async with server.http(sign(user)) as http:
            statuses = [(await http.post("/sync/momentum", json=body)).status_code for _ in range(20)]
            refused = await http.post("/sync/notifications", json=body)
        assert statuses == [200] * 20
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
        assert refused.headers["Retry-After"] == "1"
        async with server.http(sign(other)) as http:
            assert (await http.post("/sync/momentum", json={"user_id": str(other)})).status_code == 200
        async with server.http(apikey=SERVICE_KEY) as http:
            assert {(await http.post("/sync/momentum", json=body)).status_code for _ in range(50)} == {200}


async def test_a_user_connects_so_often(start: Start, user: UUID, other: UUID, bounds: Bounds) -> None:
    bounds("users", connects=Rate(5, 0.01))
    async with start() as server:
        for _ in range(5):
            async with server.live(user):
                pass
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with server.live(user):
                raise AssertionError("it was let in")
        assert refused.value.response.status_code == 429
        async with server.live(other):
            pass


async def test_the_messages_of_all_of_a_users_sockets_count_together(
    start: Start, user: UUID, other: UUID, bounds: Bounds
) -> None:
    bounds("users", frames=Rate(10, 0.01))
    async with start() as server, server.live(other) as somebody, AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(server.live(user, client_id=name)) for name in "ab"]
        for client in (one, two) * 5:  # fewer than each connection may send alone
            assert (await client.ask({"type": "ping"}))["type"] == "pong"
        await two.send({"type": "ping"})
        assert (await two.closed())[0] == 4429
        assert (await somebody.ask({"type": "ping"}))["type"] == "pong"


@pytest.mark.parametrize("nested", ["[" * 30_000, '{"user_id":' * 5_000, "[" * 30_000 + "]" * 30_000])
async def test_json_of_great_depth(server: Server, user: UUID, nested: str) -> None:
    async with server.http(sign(user)) as http:
        answer = await http.post("/sync/momentum", content=nested, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    async with server.live(user) as client:
        assert (await client.ask(nested))["code"] in ("invalid_json", "invalid_message")
        assert (await client.ask('{"type": "ping", "ref": ' + nested[:20_000] + "}"))["type"] == "error"


async def test_nothing_is_compressed(server: Server, user: UUID) -> None:
    async with server.connect(sign(user)) as client:  # the client offers compression
        assert client.socket.protocol.extensions == []
        assert "Sec-WebSocket-Extensions" in client.socket.request.headers  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example", "https://app.example.evil.example", "https://evil-app.example", "http://app.example",
        "https://app.example:8443", "https://app.example/", "null", "", "file://", "https://app.example?x", "https://x@app.example",
    ],
)  # fmt: skip
async def test_pages_of_other_origins(start: Start, user: UUID, origin: str) -> None:
    async with start(allowed_origins="https://app.example") as server:
        async with server.connect(sign(user), headers={"Origin": "https://app.example"}) as client:
            assert (await client.next())["type"] == "subscription_confirmed"
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with server.connect(sign(user), headers={"Origin": origin}):
                raise AssertionError("it was let in")
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize("name", ["a\nb", "a\r\nSet-Cookie: x", "\x1b[31mred", "\x7f", "\x85", "\t"])
async def test_names_have_no_control_characters(server: Server, user: UUID, name: str) -> None:
    for field in ("client_id", "channels"):
        query: dict[str, Any] = {field: name}
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with server.connect(sign(user), **query):
                raise AssertionError("it was let in")
        assert refused.value.response.status_code == 400
    async with server.live(user) as client:
        assert (await client.ask({"type": "subscribe", "channels": [name]}))["code"] == "invalid_field"
    async with server.http(sign(user)) as http:
        answer = await http.post("/sync/events", json={"last_event_id": "x", "channels": [name]})
        assert answer.status_code == 422


async def test_the_address_of_a_socket_is_not_reflected(server: Server) -> None:
    async with server.http() as http:
        answer = await http.get(f"{PATH}?access_token=a-secret-of-somebody")
    assert "a-secret-of-somebody" not in answer.text


def handshake(server: Server, *, method: str = "GET", key: str = "dGhlIHNhbXBsZSBub25jZQ==") -> bytes:
    """Return a handshake as raw bytes."""
    lines = (
        f"{method} {PATH} HTTP/1.1", "Host: x", f"Authorization: Bearer {sign(uuid4())}", "Upgrade: websocket",
        "Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13",
    )  # fmt: skip
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


@pytest.mark.parametrize("before", [b"", WHOLE], ids=["first", "after another request"])
@pytest.mark.parametrize("cut", [1, 100, -1], ids=str)
async def test_a_handshake_that_comes_in_parts_is_accepted(server: Server, cut: int, before: bytes) -> None:
    whole = handshake(server)
    async with raw(server) as (reader, writer):
        if before:
            writer.write(before)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
        writer.write(whole[:cut])
        await writer.drain()
        await asyncio.sleep(0.05)  # the parts must not come together
        writer.write(whole[cut:])
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert b"subscription_confirmed" in await reader.readuntil(b"subscription_confirmed")


@pytest.mark.parametrize("cut", [0, -20], ids=["at once", "in parts"])
async def test_a_message_that_comes_with_the_handshake_is_answered(server: Server, cut: int) -> None:
    whole = handshake(server)
    async with raw(server) as (reader, writer):
        if cut:
            writer.write(whole[:cut])
            await writer.drain()
            await asyncio.sleep(0.05)  # the parts must not come together
        writer.write(whole[cut:] + Frame(Opcode.TEXT, b'{"type":"ping","ref":"early"}').serialize(mask=True))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert b'"early"' in await reader.readuntil(b'"early"')


@pytest.mark.parametrize(
    ("method", "key"), [("POST", "dGhlIHNhbXBsZSBub25jZQ=="), ("GET", "short"), ("GET", "\xfc")], ids=repr
)
async def test_a_request_that_is_no_handshake_is_refused(server: Server, method: str, key: str) -> None:
    async with raw(server) as (reader, writer):
        writer.write(handshake(server, method=method, key=key))
        assert error_in(await reader.read()) == (400, "bad_handshake")


async def test_a_handshake_behind_a_request_that_is_not_answered_yet_ends_the_connection(server: Server) -> None:
    """Its answer would be written into the frames; and one request must not speak for the other."""
    authorized = b"GET /sync/momentum HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + sign(uuid4()).encode()
    anonymous = re.sub(rb"Authorization: [^\r]*\r\n", b"", handshake(server))
    async with raw(server) as (reader, writer):
        writer.write(authorized + b"\r\n\r\n" + anonymous)
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""
        assert b" 101 " not in answer


async def test_connections_within_the_bound_are_not_refused_because_of_others_beyond_it(
    start: Start, bounds: Bounds
) -> None:
    bounds("http", connections=3)
    async with start(max_connections=3) as server, AsyncExitStack() as stack:
        within = [await stack.enter_async_context(raw(server)) for _ in range(6)]
        for reader, writer in within:  # all are accepted
            writer.write(WHOLE)
            assert b" 200 " in await reader.readline()
        beyond = [await stack.enter_async_context(raw(server)) for _ in range(8)]
        for reader, _ in beyond:
            assert error_in(await reader.read()) == (503, "unavailable")
        for reader, writer in within:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(WHOLE)
        for reader, _ in within:
            assert b" 503 " not in (await reader.readuntil(b"\r\n\r\n"))

"""Which first bytes of a connection are a WebSocket's handshake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from momentum_sync.gateway.arrival import Arrival, Http, MakesWebSocket, upgrade_of
from momentum_sync.limits import HttpLimits

HANDSHAKE = (
    b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX-Name: M\xfcnchen\r\n\r\n"
)
MOST = 1_000


def test_a_whole_handshake_is_taken_with_what_follows_it() -> None:
    for rest in (b"", b"\x89\x80\0\0\0\0", HANDSHAKE):
        found = upgrade_of(HANDSHAKE + rest, MOST)
        assert found is not None
        assert found.request.target == "/a?b=c"
        assert found.request.headers["sec-websocket-version"] == ["13"]
        assert found.request.headers["x-name"] == ["M\xfcnchen"]
        assert found.rest == rest


def test_a_part_of_a_handshake_is_none() -> None:
    for length in range(len(HANDSHAKE)):
        assert upgrade_of(HANDSHAKE[:length], MOST) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="a plain request"),
        pytest.param(HANDSHAKE.replace(b"GET", b"POST"), id="another method"),
        pytest.param(HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"), id="another version"),
        pytest.param(HANDSHAKE.replace(b"WebSocket\r", b"h2c\r"), id="another protocol"),
        pytest.param(HANDSHAKE.replace(b"WebSocket\r", b"h2c, websocket\r"), id="a choice of protocols"),
        pytest.param(HANDSHAKE.replace(b"Host: x\r\n", b"Host: x\r\n" + b"A: b\r\n" * 123), id="too many headers"),
        pytest.param(HANDSHAKE.replace(b"keep-alive, Upgrade", b"close"), id="no upgrade"),
        pytest.param(HANDSHAKE.replace(b"Host", b"Ho st"), id="a bad header"),
        pytest.param(HANDSHAKE.replace(b"WebSocket\r", b"\xa0websocket\r"), id="a space that is none in HTTP"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + HANDSHAKE, id="after another request"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx" + HANDSHAKE, id="after a request with a body"
        ),
        pytest.param(HANDSHAKE.replace(b"Host", b"Content-Length: 3\r\nHost") + b"abc", id="with a body"),
        pytest.param(
            HANDSHAKE.replace(b"Host", b"Transfer-Encoding: chunked\r\nHost") + b"0\r\n\r\n", id="with a body in parts"
        ),
        pytest.param(b"\x16\x03\x01 this is TLS", id="no HTTP"),
    ],
)
def test_anything_else_is_none(data: bytes) -> None:
    assert upgrade_of(data, 10_000) is None


def test_an_empty_body_is_none() -> None:
    assert upgrade_of(HANDSHAKE.replace(b"Host", b"Content-Length: 0\r\nHost"), MOST) is not None


def test_128_headers_are_taken() -> None:
    assert upgrade_of(HANDSHAKE.replace(b"Host: x\r\n", b"Host: x\r\n" + b"A: b\r\n" * 122), 10_000) is not None


def test_a_handshake_within_the_bound_is_taken_and_a_longer_one_is_not() -> None:
    assert upgrade_of(HANDSHAKE, len(HANDSHAKE)) is not None
    assert upgrade_of(HANDSHAKE + b"more", len(HANDSHAKE)) is not None
    assert upgrade_of(HANDSHAKE, len(HANDSHAKE) - 1) is None


class World:
    """A connection with all that it may be handed to. `seen` has what happened."""

    def __init__(self, *, most: int = 3, websockets: bool = True) -> None:
        self.seen: list[object] = []
        self.state = ServerState()
        self.timer: Callable[[], None] | None = None
        self.delay = 0.0
        self.protocol: object = None
        self.closing = False
        self.config = cast(Config, object())
        given = self.config, self.state, dict[str, Any](), cast(asyncio.AbstractEventLoop, self)
        limits = HttpLimits(request_s=7.0, head_bytes=MOST)
        websocket = cast(MakesWebSocket, self.websocket) if websockets else None
        self.arrival = Arrival(cast(Callable[..., Http], self.http), websocket, most, limits, given)

    def arrive(self) -> None:
        self.arrival.connection_made(cast(asyncio.Transport, self))

    # The loop and its timer

    def call_later(self, delay: float, call: Callable[[], None]) -> World:
        self.delay, self.timer = delay, call
        return self

    def cancel(self) -> None:
        self.timer = None

    # The transport

    def is_closing(self) -> bool:
        return self.closing

    def set_protocol(self, protocol: object) -> None:
        self.protocol = protocol

    def close(self) -> None:
        self.closing = True

    # Both protocols

    def http(self, config: Config, state: ServerState, app_state: dict[str, Any], loop: object) -> World:
        assert (config, state, app_state, loop) == (self.config, self.state, {}, self)
        self.seen.append("http")
        return self

    def websocket(self, state: ServerState, loop: object) -> World:
        assert (state, loop) == (self.state, self)
        self.seen.append("websocket")
        return self

    def connection_made(self, transport: object) -> None:
        assert transport is self.protocol is self
        self.seen.append("made")

    def data_received(self, data: bytes) -> None:
        self.seen.append(data)

    def late(self) -> None:
        self.seen.append("late")

    def exceeds(self) -> None:
        self.seen.append("exceeds")

    def upgraded(self, transport: object, handshake: Any, rest: bytes) -> None:
        assert transport is self.protocol is self
        self.seen.append((handshake.target, rest))


def test_a_handshake_goes_to_the_websocket() -> None:
    world = World()
    world.arrive()
    assert (world.delay, list(cast(set[object], world.state.connections))) == (7.0, [world.arrival])
    world.arrival.data_received(HANDSHAKE + b"rest")
    assert world.seen == ["websocket", ("/a?b=c", b"rest")]
    assert (world.timer, world.state.connections) == (None, set())


@pytest.mark.parametrize("data", [HANDSHAKE[:-1], b"GET / HTTP/1.1\r\n\r\n", HANDSHAKE + bytes(1)])
def test_all_else_goes_to_http_and_so_does_a_handshake_where_there_are_no_websockets(data: bytes) -> None:
    world = World(websockets=not data.startswith(HANDSHAKE))
    world.arrive()
    world.arrival.data_received(data)
    assert world.seen == ["http", "made", data]
    assert (world.timer, world.state.connections) == (None, set())


def test_one_that_sends_nothing_is_late() -> None:
    world = World()
    world.arrive()
    assert world.timer is not None
    world.timer()
    assert world.seen == ["http", "made", "late"]
    assert world.state.connections == set()


@pytest.mark.parametrize(("others", "seen"), [(2, []), (3, ["http", "made", "exceeds"])])
def test_one_too_many_is_refused(others: int, seen: list[object]) -> None:
    world = World(most=3)
    cast(set[object], world.state.connections).update(range(others))
    world.arrive()
    assert world.seen == seen
    assert (world.timer is None) is bool(seen)


def test_a_connection_that_ends_is_forgotten() -> None:
    world = World()
    world.arrive()
    world.arrival.shutdown()
    assert world.closing
    world.arrival.data_received(HANDSHAKE)
    assert world.seen == []
    world.arrival.connection_lost(None)
    assert (world.timer, world.state.connections) == (None, set())


def test_a_target_in_parts_is_put_together() -> None:
    target = b"/" + b"a" * 900
    found = upgrade_of(HANDSHAKE.replace(b"/a?b=c", target), 10_000)
    assert found is not None
    assert found.request.target == target.decode()

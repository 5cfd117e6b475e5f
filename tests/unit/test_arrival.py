"""Which first bytes of a connection are a WebSocket's handshake."""

from __future__ import annotations

import pytest

from momentum_sync.gateway.arrival import upgrade_of

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

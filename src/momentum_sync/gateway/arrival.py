"""A connection until its first bytes: most clients send a WebSocket's handshake, all others get uvicorn's HTTP.

uvicorn's HTTP protocol is made for many requests. When thousands of clients reconnect at once, a tenth of the work
would be to set it up for one handshake each, and to parse the same head once more.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from momentum_sync.gateway.handshake import Handshake
from momentum_sync.limits import HttpLimits


class WebSocket(asyncio.Protocol, ABC):
    """The protocol of a WebSocket."""

    __slots__ = ()

    @abstractmethod
    def upgraded(self, transport: asyncio.Transport, handshake: Handshake | None, rest: bytes) -> None:
        """Take over a connection.

        Args:
            transport: the connection.
            handshake: the request; None if it is none, although it asks for a WebSocket.
            rest: what followed the request.
        """


class Http(Protocol):
    """The HTTP protocol of all other connections."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over a connection."""

    def data_received(self, data: bytes) -> None:
        """Receive its bytes, from the first one on."""

    def late(self) -> None:
        """Refuse it, because nothing came in time."""

    def exceeds(self) -> None:
        """Refuse it, because there are too many."""


_MOST_HEADERS = 128  # of a handshake
_SPACE = " \t"  # RFC 9110, section 5.6.3; Python's own idea of white space is wider

Given = tuple[Config, ServerState, dict[str, Any], asyncio.AbstractEventLoop]
"""What uvicorn gives to a protocol: its configuration, state, the application's state, and the loop."""
MakesWebSocket = Callable[[ServerState, asyncio.AbstractEventLoop], WebSocket]


class Upgrade(NamedTuple):
    """A handshake, and the bytes after it."""

    request: Handshake
    rest: bytes


class Arrival(asyncio.Protocol):
    """A connection from which nothing has been received.

    Args:
        http: makes the HTTP protocol.
        websocket: makes the WebSocket's protocol; None if there is none here.
        most: connections at most.
        limits: bounds.
        given: for the HTTP protocol.
    """

    __slots__ = ("_deadline", "_given", "_http", "_limits", "_loop", "_most", "_state", "_transport", "_websocket")

    def __init__(
        self, http: Callable[..., Http], websocket: MakesWebSocket | None, most: int, limits: HttpLimits, given: Given
    ) -> None:  # fmt: skip
        self._http = http
        self._websocket = websocket
        self._most = most
        self._limits = limits
        self._given = given
        _, self._state, _, self._loop = given
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline of the first byte, or refuse one connection too many."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class does not derive from it
        connections: set[Any] = self._state.connections  # typed as a set of uvicorn's own protocols
        connections.add(self)
        if len(connections) > self._most:
            self._to_http().exceeds()
        else:
            self._deadline = self._loop.call_later(self._limits.request_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection that closed before it sent anything."""
        self._leave()

    def shutdown(self) -> None:
        """End the connection because uvicorn ends."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Hand the connection over."""
        if self._transport.is_closing():
            return
        upgrade = None if self._websocket is None else upgrade_of(data, self._limits.head_bytes)
        if upgrade is None or self._websocket is None:
            self._to_http().data_received(data)
            return
        self._leave()
        protocol = self._websocket(self._state, self._loop)
        self._transport.set_protocol(protocol)
        protocol.upgraded(self._transport, upgrade.request, upgrade.rest)

    def _late(self) -> None:
        self._to_http().late()

    def _to_http(self) -> Http:
        self._leave()
        protocol = self._http(*self._given)
        self._transport.set_protocol(cast(asyncio.Protocol, protocol))
        protocol.connection_made(self._transport)
        return protocol

    def _leave(self) -> None:
        connections: set[Any] = self._state.connections
        connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()


class _Head:
    """Target and headers of the requests that httptools has parsed, and their number."""

    def __init__(self) -> None:
        self.requests = 0
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_message_begin(self) -> None:
        self.requests += 1

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))


def upgrade_of(data: bytes, most: int) -> Upgrade | None:
    """Return the handshake with which received bytes begin.

    Returns:
        None if they begin with anything else, with a part of a handshake, or with one of more than `most` bytes.
    """
    head = _Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade as upgrade:
        (length,) = upgrade.args
    except httptools.HttpParserError:
        return None
    else:
        return None
    if head.requests > 1 or length > most:  # what precedes the handshake wants an answer of its own
        return None
    request = handshake_of(parser, head.target, head.headers)
    return None if request is None else Upgrade(request, data[length:])


def handshake_of(
    parser: httptools.HttpRequestParser, target: bytes, headers: Sequence[tuple[bytes, bytes]]
) -> Handshake | None:
    """Return a parsed request that asks for a WebSocket as RFC 6455 has it, section 4.1; None for any other request.

    Its key and version are not checked.
    """
    if parser.get_method() != b"GET" or parser.get_http_version() != "1.1" or len(headers) > _MOST_HEADERS:
        return None
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip(_SPACE))
    if [value.lower() for value in found.get("upgrade", [])] != ["websocket"]:
        return None
    # A body would be read as frames.
    if "transfer-encoding" in found or any(length != "0" for length in found.get("content-length", [])):
        return None
    return Handshake(target.decode("latin-1"), found)

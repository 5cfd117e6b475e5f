"""uvicorn on a bound socket, with its HTTP protocol bounded: a slow or excessive request does not hold a connection.

This is the only file that uses private parts of uvicorn, and the versions that it works with are bounded in
`pyproject.toml`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, cast

import httptools
import msgspec
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from momentum_sync import observe
from momentum_sync.errors import Unsuitable
from momentum_sync.gateway.arrival import Arrival, MakesWebSocket, WebSocket, handshake_of
from momentum_sync.limits import HttpLimits, Limits

_SAID = {
    400: ("bad_request", "Bad Request", "This is not an HTTP request."),
    408: ("too_slow", "Request Timeout", "The request was not complete within {0.request_s:.0f} s."),
    431: ("too_large", "Request Header Fields Too Large", "URL and headers exceed {0.head_bytes} bytes."),
    503: ("unavailable", "Service Unavailable", "Too many connections; try again in a moment."),
}


class BoundedHttp(HttpToolsProtocol):
    """A connection that began with anything but a WebSocket's handshake."""

    limits: HttpLimits
    websocket: MakesWebSocket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline of the first request."""
        super().connection_made(cast(asyncio.Transport, transport))  # uvloop's class does not derive from it
        self._head = 0
        self._answering = self._receiving = self._refused = False
        self._deadline: asyncio.TimerHandle | None = None
        # uvicorn starts no timer before the first response, so a silent connection would stay open.
        self._within(self.limits.request_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        self._within(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data to uvicorn within the bounds."""
        if self._is_over():
            return
        # Parsing a body resets this count, because a body may be longer than a head.
        self._head += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(400)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                (length,) = upgrade.args
                self._upgrade(data[length:])
        # After an upgrade the WebSocket owns the socket, and this protocol must start no deadline.
        if self._is_over() or self.transport.get_protocol() is not self:
            return
        if self._head > self.limits.head_bytes:
            self._refuse(431)
        elif self._deadline is None:  # received data stopped uvicorn's timer for the next request
            self._within(self.limits.request_s)

    def exceeds(self) -> None:
        """Refuse the connection, because there are too many."""
        self._refuse(503)

    def _is_over(self) -> bool:
        return self._refused or self.transport.is_closing()

    def _upgrade(self, rest: bytes) -> None:
        """Hand the connection to the WebSocket's protocol: its handshake came in parts, or after other requests."""
        cycle: RequestResponseCycle | None = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if is_answering or self.pipeline or self.transport.get_write_buffer_size():
            # The answer would be written into the frames.
            self.transport.abort()
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.limits.head_bytes:
            self._refuse(431)
            return
        self._within(None)  # the WebSocket has its own deadline for the handshake
        self.connections.discard(self)
        handshake = handshake_of(self.parser, self.url, self.headers)
        protocol = type(self).websocket(self.server_state, self.loop)
        self.transport.set_protocol(protocol)
        protocol.upgraded(self.transport, handshake, rest)
        del self.parser  # it refers to this object; uvicorn does the same when a connection is lost

    # The parser's callbacks

    def on_message_begin(self) -> None:
        """Start the deadline of a request."""
        self._receiving = True
        self._within(self.limits.request_s)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Bound pipelined requests."""
        self._head = 0
        if len(self.pipeline) >= self.limits.pipelined:
            # uvicorn reads on after each answer, however many requests wait, and they would fill memory.
            self.transport.abort()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count the body separately from the head."""
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Start the deadline of the answer."""
        self._answering, self._receiving = True, False
        self._within(self.limits.answer_s)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End the deadline of the answer once the client has read it."""
        super().on_response_complete()
        self._answering = not self.cycle.response_complete  # the last of pipelined requests
        # uvicorn calls an answer complete when it is written, whether or not the client reads.
        if self._answering or self.transport.get_write_buffer_size():
            self._within(self.limits.answer_s)
        else:
            self._within(self.limits.request_s if self._receiving else None)

    def _within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.late)

    def late(self) -> None:
        """End a request or an answer that exceeded its deadline."""
        # Part of an answer may have been sent, and the client would read a 408 as its continuation.
        if self._refused or self._answering or self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._refuse(408)

    def _refuse(self, status: int) -> None:
        code, phrase, sentence = _SAID[status]
        body = msgspec.json.encode({"error": {"code": code, "message": sentence.format(self.limits)}})
        head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self._refused = True
        self._within(self.limits.linger_s)
        if self.cycle is not None:  # the handler has no client any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if status != 503 and self.transport.can_write_eof():
            self.transport.write_eof()  # the client closes when it has read this
        else:  # too many connections are open already
            self.transport.close()


def _arrivals(most: int, limits: HttpLimits, websocket: MakesWebSocket | None) -> Callable[..., asyncio.Protocol]:
    """Return what makes uvicorn's protocols for a server with at most `most` connections, WebSockets included."""
    http = type("BoundedHttpProtocol", (BoundedHttp,), {"limits": limits, "websocket": websocket})

    def arrive(
        config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> asyncio.Protocol:  # fmt: skip
        given = config, server_state, app_state, _loop or asyncio.get_running_loop()
        return Arrival(http, websocket, most, limits, given)

    return arrive


class Bound(NamedTuple):
    """The places where a server listens.

    Attributes:
        host: address.
        port: port; 0: any free one.
        most: WebSockets at most.
        own_port: a further port on loopback, if this process shares the other one.
        reuse: whether other processes may listen on the same port.
    """

    host: str
    port: int
    most: int
    own_port: int | None = None
    reuse: bool = False


class Listening(NamedTuple):
    """A server that listens.

    Attributes:
        url: the root's URL.
        stop: takes no new connections on that address from now on. Those that are open stay.
    """

    url: str
    stop: Callable[[], None]


@asynccontextmanager
async def listening(
    api: FastAPI,
    websockets: MakesWebSocket | None,
    bound: Bound,
    stopped: asyncio.Event,
    limits: Limits,
) -> AsyncIterator[Listening]:
    """Serve HTTP and WebSockets.

    The socket is bound before uvicorn starts, so that the port is known, and an error names the remedy.

    Args:
        api: the HTTP application.
        websockets: makes the protocol of a WebSocket; None for a process that serves none.
        bound: where to listen, and the number of WebSockets at most.
        stopped: set if uvicorn ends.
        limits: bounds.

    Raises:
        Unsuitable: the address cannot be bound.
    """
    # An access log would show `?access_token=`, and uvicorn's log configuration would bypass `observe`.
    config = uvicorn.Config(
        api,
        http=cast(type[asyncio.Protocol], _arrivals(bound.most + limits.http.connections, limits.http, websockets)),
        # Only whether there is one counts: this server's own protocols hand connections over.
        ws="none" if websockets is None else WebSocket,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        backlog=limits.http.backlog,
        timeout_graceful_shutdown=limits.lifecycle.stop_s,
    )
    listeners = [_bind(bound.host, bound.port, limits.http.kernel_bytes, reuse=bound.reuse)]
    if bound.own_port is not None:
        listeners.append(_bind("127.0.0.1", bound.own_port, limits.http.kernel_bytes, option="--own-port"))
    url, *own = [_url(host, listener) for host, listener in zip((bound.host, "127.0.0.1"), listeners, strict=False)]
    uvicorn_server = _Uvicorn(config)
    serving = asyncio.ensure_future(uvicorn_server.serve(sockets=listeners))
    serving.add_done_callback(lambda _: stopped.set())
    # If uvicorn fails during startup, the wait below must end, too.
    serving.add_done_callback(lambda _: uvicorn_server.listens.set())
    await uvicorn_server.listens.wait()
    try:
        observe.listening(url, *own)
        yield Listening(url, uvicorn_server.stop_listening)
    finally:
        uvicorn_server.should_exit = True
        await serving


class _Uvicorn(uvicorn.Server):
    """uvicorn without handlers for the process's signals, which belong to the program that runs the server."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop_listening(self) -> None:
        """Close the first of the listening sockets, and leave its connections open."""
        self.servers[0].close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind(
    host: str, port: int, kernel_bytes: int, *, reuse: bool = False, option: str = "--port"
) -> socket.socket:  # fmt: skip
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted sockets inherit this size. By default Linux buffers up to 4 MiB, which no send budget counts.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_bytes)
        listener.bind((host, port))
    except OSError as error:
        raise Unsuitable(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            f"Stop the program that listens there, or choose another port: {option} 8788",
        ) from error
    return listener

"""uvicorn's HTTP protocol, bounded: whoever is slow to say what it wants, or says too much, does not hold a socket."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_REQUEST_S = 10.0  # from the connection, or the first byte of a request, to its last
_ANSWER_S = 60.0  # from there until the answer is with the client
_LINGER_S = 5.0  # for who is refused and still sends: to close at once would reset what tells it why
MAX_HEAD = 32 * 1024
_AT_ONCE = 8  # requests that may wait for the answer to the one before

_SAID = {
    400: ("bad_request", "Bad Request", "This is no HTTP request."),
    408: ("too_slow", "Request Timeout", f"A request must be complete within {_REQUEST_S:.0f} s."),
    431: ("too_large", "Request Header Fields Too Large", f"Address and headers have at most {MAX_HEAD} bytes."),
    503: ("unavailable", "Service Unavailable", "Too many connections; try again in a moment."),
}


class BoundedHttp(HttpToolsProtocol):
    """One connection of a server that has at most `most` of them, those of WebSockets among them."""

    most: int

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))  # uvloop's is one in all but its class
        self._head = 0
        self._answering = self._receiving = self._refused = False
        self._deadline: asyncio.TimerHandle | None = None
        self._within(_REQUEST_S)
        if len(self.connections) > self.most:
            self._refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        self._within(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_over():
            return
        self._head += len(data)
        super().data_received(data)
        if self._is_over() or self.transport.get_protocol() is not self:
            return
        if self._head > MAX_HEAD:
            self._refuse(431)
        elif self._deadline is None:  # what came has stopped uvicorn's own time for the next request
            self._within(_REQUEST_S)

    def _is_over(self) -> bool:
        return self._refused or self.transport.is_closing()

    def handle_websocket_upgrade(self) -> None:
        self._within(None)  # the socket has a time of its own for the handshake
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400)

    # The parser's callbacks

    def on_message_begin(self) -> None:
        self._receiving = True
        self._within(_REQUEST_S)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = 0
        if len(self.pipeline) >= _AT_ONCE:
            # uvicorn reads on after each answer, however many requests wait. Nobody sends so many but to fill memory.
            self.transport.abort()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._answering, self._receiving = True, False
        self._within(_ANSWER_S)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._answering = not self.cycle.response_complete  # of the requests that came together, the last
        # To uvicorn an answer is complete when it has been written, whether or not the client reads.
        if self._answering or self.transport.get_write_buffer_size():
            self._within(_ANSWER_S)
        else:
            self._within(_REQUEST_S if self._receiving else None)

    def _within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        """What was to happen in time did not."""
        if self._refused or self._answering or self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._refuse(408)

    def _refuse(self, status: int) -> None:
        code, phrase, sentence = _SAID[status]
        body = msgspec.json.encode({"error": {"code": code, "message": sentence}})
        head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self._refused = True
        self._within(_LINGER_S)
        if self.cycle is not None:  # whoever was at work on the request has nobody to answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if status != 503 and self.transport.can_write_eof():
            self.transport.write_eof()  # the client's end comes back when it has read ours
        else:  # there are too many already
            self.transport.close()


def bounded_http(most: int) -> type[Any]:
    """The protocol class of a server with so many connections, as uvicorn wants it."""
    return type("BoundedHttpProtocol", (BoundedHttp,), {"most": most})

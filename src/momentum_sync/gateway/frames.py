"""WebSocket frames of one connection: `websockets`' sans-I/O protocol, and messages put together from frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from itertools import cycle
from operator import xor
from types import GeneratorType
from typing import cast

import msgspec
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Protocol, Side, State
from websockets.streams import StreamReader

from momentum_sync.gateway.conversation import BinaryMessage


def rejection(status: int, error: Mapping[str, object]) -> bytes:
    """Return the HTTP response that refuses a handshake, with the error as JSON."""
    body = msgspec.json.encode(error)
    headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
    if status == 401:
        # RFC 9110, section 11.6.1: a 401 response must have this header.
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        headers["Retry-After"] = "1"
    return Response(status, HTTPStatus(status).phrase, headers, body).serialize()


# RFC 6455, section 5.2: a client's frame of at most 125 bytes begins with opcode, size and mask.
_MASKED_HEADER, _LONGEST_CONTROL, _PONG, _NO_MASK = 6, 125, 0x8A, bytes(4)


class Frames:
    """The protocol's state machine, and the messages that have arrived.

    Attributes:
        inbox: messages not handled yet.
    """

    __slots__ = (
        "_accepted", "_between_frames", "_binary", "_closed_with", "_parts", "_pong", "_protocol", "inbox",
    )  # fmt: skip

    def __init__(self, most: int) -> None:
        # The request is parsed before, so the protocol begins with frames.
        self._protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=most)
        self._accepted = False
        self.inbox: list[bytes] = []  # an empty deque is 600 bytes
        self._closed_with: int | None = None
        self._parts: list[bytes] = []
        self._binary = False
        self._pong = b""
        self._between_frames = False  # whether that is known, since the parser was last given bytes

    def pong(self, data: bytes) -> bytes | None:
        """Return the payload of received bytes that are one whole pong; None if they are anything else.

        After a payload, do not pass the bytes to `receive`. Supabase's clients are pinged up to once a second, and the
        library's parser is most of the cost of a pong.
        """
        size = len(data) - _MASKED_HEADER
        if not 0 <= size <= _LONGEST_CONTROL or data[0] != _PONG or data[1] != 0x80 | size:
            return None
        self._between_frames = self._between_frames or self._is_between_frames()
        if not self._between_frames or not self.is_open:
            return None
        mask, payload = data[2:_MASKED_HEADER], data[_MASKED_HEADER:]
        return payload if mask == _NO_MASK else bytes(map(xor, payload, cycle(mask)))

    def _is_between_frames(self) -> bool:
        # Between frames the library's parser waits in `at_eof`, with an empty buffer; within one, in `read_exact`.
        waiting = cast("GeneratorType[None, None, None]", self._protocol.parser)
        while (inner := waiting.gi_yieldfrom) is not None:
            waiting = cast("GeneratorType[None, None, None]", inner)
        return waiting.gi_code is StreamReader.at_eof.__code__

    def receive(self, data: bytes) -> None:
        """Parse received bytes."""
        self._between_frames = False
        self._protocol.receive_data(data)

    def release(self) -> None:
        """End the parser: it and the protocol refer to each other, and only a garbage collection would free them.

        So does the error with which it ended, by its traceback.
        """
        self._protocol.parser.close()
        self._protocol.parser_exc = None

    def receive_eof(self) -> None:
        """Note that the client sends nothing more."""
        self._protocol.receive_eof()

    def events(self) -> Iterator[Frame]:
        """Yield the frames that were parsed since the last call."""
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                yield event

    def allow(self, most: int) -> None:
        """Set the largest size of a message, in bytes."""
        self._protocol.max_message_size = most

    def begin(self) -> None:
        """Note that the handshake is accepted."""
        self._accepted = True

    def collect(self, frame: Frame) -> None:
        """Add a data frame to its message, and a complete message to the inbox."""
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._parts = [bytes(frame.data)]
            self._binary = frame.opcode is Opcode.BINARY
        elif frame.opcode is Opcode.CONT:
            # Empty fragments do not count against the size of a message, but would make this list grow.
            if frame.data:
                self._parts.append(bytes(frame.data))
        else:
            return
        if frame.fin:
            message = b"".join(self._parts)
            self.inbox.append(BinaryMessage(message) if self._binary else message)
            self._parts = []

    @property
    def is_idle(self) -> bool:
        """Return whether no message waits or has come in part."""
        return not self.inbox and not self._parts

    @property
    def size(self) -> int:
        """Return the bytes of messages that are not handled yet."""
        return sum(map(len, self.inbox)) + sum(map(len, self._parts))

    @property
    def is_open(self) -> bool:
        """Return whether the handshake is done and neither side has sent a close frame."""
        return self._accepted and self._protocol.state is State.OPEN

    @property
    def is_closed_by_client(self) -> bool:
        """Return whether the client sent a close frame."""
        return self._protocol.close_rcvd is not None

    @property
    def is_broken(self) -> bool:
        """Return whether the client broke the protocol. The close frame that tells it is in `to_send`."""
        return self._protocol.parser_exc is not None

    def close(self, code: int, reason: str) -> None:
        """Send a close frame."""
        self._protocol.send_close(code, reason)
        self._closed_with = code

    @property
    def closed_with(self) -> int | None:
        """Return the code of the server's own close frame; None before it, and if the client closes.

        The protocol closes if the client breaks it, as with a message that is too large.
        """
        if self._closed_with is None and self._protocol.parser_exc is not None:
            sent = self._protocol.close_sent
            return None if sent is None else int(sent.code)
        return self._closed_with

    def to_send(self, *, hold_pongs: bool = False) -> list[bytes]:
        """Return the protocol's own data to write.

        With `hold_pongs` pongs are kept for `held_pong`: a client that does not read would make them pile up.
        """
        # An empty item is websockets' SEND_EOF; the connection closes the socket itself.
        out = [data for data in self._protocol.data_to_send() if data]
        if not hold_pongs or not self.is_open:
            return out
        if out:
            self._pong = out[-1]  # only the last ping must be answered: RFC 6455, section 5.5.3
        return []

    def held_pong(self) -> bytes:
        """Return and forget the pong that was kept; nothing once the connection is closing."""
        pong, self._pong = self._pong, b""
        return pong if self.is_open else b""

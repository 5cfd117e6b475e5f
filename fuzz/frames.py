"""A client's bytes after the handshake: through `websockets`, the socket's protocol, and its session.

No exception may escape, the output must be whole frames of JSON, and buffers, output and CPU time must stay bounded,
also when the same bytes are repeated many times.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast
from uuid import UUID

from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, State
from websockets.uri import parse_uri

from momentum_sync.domain.application import MOMENTUM
from momentum_sync.eventlog.feed import Beginning, LocalFeed
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.window import Window
from momentum_sync.gateway.caller_reads import CallerReads
from momentum_sync.gateway.connection_states import ConnectionState
from momentum_sync.gateway.conversation import Conversation
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.dialects.native import Session
from momentum_sync.gateway.dialects.realtime_services import RowServices
from momentum_sync.gateway.direct_files import DirectFiles
from momentum_sync.gateway.gateway import Gateway, GatewayOptions
from momentum_sync.gateway.handshake import Handshake
from momentum_sync.gateway.hub import Hub
from momentum_sync.gateway.receipts import Receipts
from momentum_sync.gateway.send_budget import SendBudget
from momentum_sync.gateway.topic_members import TopicMembers
from momentum_sync.gateway.websocket import WebSocketProtocol
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.event_filter import EventFilter
from momentum_sync.identity.keys import Authenticator
from momentum_sync.identity.tokens import Identity, TokenRules
from momentum_sync.limits import KeyLimits, Limits, Rate, UserLimits

_USER = UUID(int=1)
_MOST_WAITING = 256 * 1024
_FLOOD = 64 * 1024
_MOST_WRITTEN = 256 * 1024
_MOST_S = 1.0  # CPU seconds for one input: a flood is cut off within milliseconds


def sent(opcode: Opcode, payload: bytes, *, fin: bool = True) -> bytes:
    """Return a client's frame with a zero mask, so that a mutation of the frame is a mutation of the payload."""
    length = bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes((0x80 * fin | opcode,)) + length + b"\0\0\0\0" + payload


SEEDS = [
    sent(Opcode.TEXT, text.encode())
    for text in (
        '{"type":"ping","ref":"r"}',
        '{"type":"request_momentum_update"}',
        '{"type":"mark_notification_read","notification_id":"00000000-0000-4000-8000-000000000001"}',
        '{"type":"cache_invalidation_ack","cache_keys":["momentum:current:1"]}',
        '{"type":"subscribe","channels":["momentum_updates:all"],"ref":1}',
        '{"type":"unsubscribe","channels":["cache_invalidation"]}',
        '{"type":"authenticate","token":"a.b.c"}',
    )
] + [
    sent(Opcode.PING, b"x"), sent(Opcode.PING, b"x" * 125), sent(Opcode.PONG, b""), sent(Opcode.CLOSE, b"\x03\xe8"),
    sent(Opcode.BINARY, b"x"), sent(Opcode.TEXT, b"", fin=False), sent(Opcode.CONT, b"", fin=False),
    sent(Opcode.TEXT, b'{"type":', fin=False) + sent(Opcode.PING, b"") + sent(Opcode.CONT, b'"ping"}'),
]  # fmt: skip


class _Wire(asyncio.Transport):
    """A transport that records the bytes written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closing = self.half_closed = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.half_closed, "written after the last frame"
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def write_eof(self) -> None:
        self.half_closed = True

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        """Do nothing: nobody reads."""

    def resume_reading(self) -> None:
        """Do nothing: nobody reads."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: there is no buffer."""

    def get_write_buffer_size(self) -> int:
        return 0


class _Socket(WebSocketProtocol):
    """A socket that discards its work in the database instead of running it."""

    def _spawn(
        self, work: Coroutine[object, object, None], inner: Coroutine[object, object, None] | None = None
    ) -> asyncio.Task[None]:
        work.close()
        if inner is not None:
            inner.close()
        return cast("asyncio.Task[None]", None)


def _gateway() -> Gateway:
    limits = Limits(users=UserLimits(frames=Rate(1e9, 1e9)))
    feed, files = LocalFeed(Window(65_536)), DirectFiles(os.write)
    feed.begin(Beginning("abcdef01", 0, 0, 0, 0, 1))
    hub = Hub(
        feed, limit=10**9, limit_per_user=10**9, clock=lambda: 0.0, grants_changed=lambda *_: None,
        row_rights_changed=lambda _: None, grants_missed=lambda: None, delivered=lambda *_: None,
        files=files, limits=limits.delivery,
    )  # fmt: skip
    options = GatewayOptions(
        role="all", heartbeat=25.0, send_buffer=1 << 20, allowed_origins=(), loopback_origins=False,
        token_in_query=False, metrics_open=False,
    )  # fmt: skip
    return Gateway(
        options, limits, MOMENTUM, feed=feed, history=History(feed, cast(EventLog, None), limits.log),
        files=files, hub=hub,
        send_budget=SendBudget(each=1 << 20, total=1 << 28),
        authenticator=Authenticator(TokenRules(secret="x" * 32), KeyLimits()), authorizer=cast(Authorizer, None),
        event_filter=cast(EventFilter, None), reads=cast(CallerReads, None),
        rows=cast(RowServices, None),
        members=TopicMembers(
            lambda _, tell: tell(), files, 0.0, sent=lambda *_: None, received=lambda _: None, unique=lambda: "unique",
            failed=lambda *_: None,
        ),
        receipts=Receipts(10, lambda: 0),
    )  # fmt: skip


GATEWAY = _gateway()
_Socket.gateway = GATEWAY


def one(data: bytes) -> None:
    """Feed these bytes to one connection, and a flood of them to a second. Needs a running event loop."""
    for each in flooded(data):
        converse(each, _session, check_message)


def flooded(data: bytes) -> list[bytes]:
    """Return the bytes, and a flood of them."""
    return [data, (data * (_FLOOD // len(data) + 1))[:_FLOOD]] if data else [data]


def _session(socket: WebSocketProtocol) -> Conversation:
    session = Session(
        Identity("authenticated", _USER, "{}", None), _USER, "fuzz",
        Cursor(str(_USER), MOMENTUM.schema.per_user_channels), GATEWAY.native, GATEWAY.limits.sockets, heartbeat=25.0,
        now=0.0, at=0.0,
    )  # fmt: skip
    session.attach(socket)
    granted = Granted([f"notifications:{_USER}", "cache_invalidation"])
    session.begin(granted, Position("abcdef01", 0, 0), None, 0.0, 0.0)
    return session


def converse(
    data: bytes, make: Callable[[WebSocketProtocol], Conversation], check_text: Callable[[bytes], None]
) -> None:
    """Feed these bytes to one connection with a session, and check every text that the server sends."""
    began = time.process_time()
    wire = _Wire()
    socket = _Socket(ServerState(), asyncio.get_running_loop())
    socket.upgraded(wire, Handshake("/", {}), b"")
    socket._frames.begin()
    session = make(socket)
    socket._session, socket.cursor, socket.dialect = session, session.cursor, session.dialect
    socket._enter(ConnectionState.OPENING)
    GATEWAY.hub.admit(socket)
    socket._enter(ConnectionState.OPEN)
    socket.flush()
    for start in range(0, len(data), 4096):
        if not wire.closing:
            socket.data_received(data[start : start + 4096])
    if not wire.closing:
        socket.eof_received()
    socket.connection_lost(None)
    assert time.process_time() - began < _MOST_S, "this costs too much time"
    assert len(wire.written) < _MOST_WRITTEN, "this has the server write too much"
    _check(bytes(wire.written), check_text)
    assert socket._frames.size <= _MOST_WAITING
    assert len(GATEWAY.hub) == 0


def _check(written: bytes, check_text: Callable[[bytes], None]) -> None:
    """Check that the server's output is whole frames."""
    client = ClientProtocol(parse_uri("ws://fuzz"), state=State.OPEN, max_size=None)
    assert client.side is CLIENT
    client.receive_data(written)
    assert client.parser_exc is None or client.close_rcvd is not None, client.parser_exc
    for event in client.events_received():
        if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
            check_text(bytes(event.data))


def check_message(text: bytes) -> None:
    """Check that a text is a message of the native protocol."""
    message = json.loads(text)
    assert isinstance(message["type"], str)
    assert message["timestamp"].endswith("Z")

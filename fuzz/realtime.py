"""A client's bytes on Supabase's protocol: both versions of the serializer, binary broadcasts, joins and filters.

The same rules as for `frames`: no exception may escape, and every text that the server sends is a frame of the version.
Joins wait for the database, which is not here, so their payloads are parsed apart.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import cast
from uuid import UUID

from websockets.frames import Opcode

from fuzz.frames import GATEWAY, converse, flooded, sent
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.conversation import Conversation
from momentum_sync.gateway.dialects.realtime import RealtimeSession
from momentum_sync.gateway.dialects.realtime_services import LiveSession, RowServices, SharedFrames
from momentum_sync.gateway.dialects.realtime_topic import Topic, TopicEvents
from momentum_sync.gateway.websocket import WebSocketProtocol
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.phoenix import (
    MalformedFrame,
    Version,
    decode_binary,
    decode_text,
    encode_broadcast,
    encode_frame,
    encode_reply,
)
from momentum_sync.wire.realtime_filter import MalformedFilter, parse_filter
from momentum_sync.wire.realtime_join import Join, join_response, parse_join, parse_token

_CALLER = Identity("authenticated", UUID(int=1), "{}", None)
_JOIN = (
    '{"config":{"broadcast":{"ack":true,"self":false},"presence":{"key":"k","enabled":true},"private":false,'
    '"postgres_changes":[{"event":"*","schema":"public","table":"t","filter":"a=eq.1,b=not.in.(1,\\"x\\")"}]},'
    '"access_token":"a.b.c"}'
)
_FRAMES = [
    ("phoenix", "heartbeat", "{}"), ("realtime:a", "phx_join", _JOIN), ("realtime:a", "phx_leave", "{}"),
    ("realtime:a", "access_token", '{"access_token":"a.b.c"}'), ("realtime:b", "phx_join", '{"config":{}}'),
    ("realtime:a", "broadcast", '{"type":"broadcast","event":"e","payload":{"x":[1,null,"\\ud83c"]}}'),
    ("realtime:a", "presence", '{"type":"presence","event":"track","payload":{}}'),
]  # fmt: skip
_BINARY = [
    b"\x03\x01\x01\x0a\x01\x02\x01" + b"1" + b"2" + b"realtime:a" + b"e" + b"{}" + b'{"a":1}',
    b"\x03\x00\x00\x0a\x01\x00\x00" + b"realtime:a" + b"e" + b"\xff\x00",
]
_TEXTS = [
    text
    for topic, event, payload in _FRAMES
    for text in (
        f'["1","2","{topic}","{event}",{payload}]'.encode(),
        f'{{"topic":"{topic}","event":"{event}","payload":{payload},"ref":"2","join_ref":"1"}}'.encode(),
    )
]
SEEDS = [
    *[sent(Opcode.TEXT, text) for text in _TEXTS], *_TEXTS,
    *[sent(Opcode.BINARY, data) for data in _BINARY], *_BINARY, sent(Opcode.PONG, b"1"), _JOIN.encode(),
    b"a=not.in.(1,2),b=is.null,c=ilike.%x%",
]  # fmt: skip


class _Rows:
    """The services of a gateway without a database."""

    shared = SharedFrames()

    def begin(self, session: LiveSession) -> None:
        """Do nothing."""

    def end(self, session: LiveSession) -> None:
        """Do nothing."""


def one(data: bytes) -> None:
    """Feed these bytes to connections of both versions, and to everything that parses. Needs a running event loop."""
    for version in Version:
        for each in flooded(data):
            converse(each, lambda socket, version=version: _session(socket, version), _CHECKS[version])  # type: ignore[misc]
        with suppress(MalformedFrame):
            frame = decode_text(data, version)
            _CHECKS[version](encode_frame(version, frame.topic, frame.event, bytes(frame.payload)))
            _CHECKS[version](encode_reply(version, frame, b"{}"))
            json.loads(join_response(parse_join(bytes(frame.payload)).bindings))
            parse_token(bytes(frame.payload))
    json.loads(join_response(parse_join(data).bindings))
    _parse_binary(data)
    with suppress(MalformedFilter):
        parse_filter(data.decode(errors="replace"))


def _session(socket: WebSocketProtocol, version: Version) -> Conversation:
    session = RealtimeSession(
        _CALLER, "fuzz", version, cast(RowServices, _Rows()), GATEWAY.members, GATEWAY.limits.sockets, name="fuzz",
        heartbeat=25.0, at=0.0,
    )  # fmt: skip
    session.attach(socket)
    session.begin(1, Position("abcdef01", 0, 0), 0.0)
    everything = Join(sends_to_self=True, acknowledges=True, has_presence=True)
    session.add(Topic("realtime:a", "1", _CALLER, float("inf"), TopicEvents((), (), 0), everything))
    return session


def _parse_binary(data: bytes) -> None:
    with suppress(MalformedFrame):
        broadcast = decode_binary(data)
        meta = json.loads(broadcast.meta or b"{}")
        assert meta is not None or broadcast.meta.strip() == b"null"
        if broadcast.is_json:
            json.loads(broadcast.payload)
        sent_on = encode_broadcast(
            broadcast.topic, broadcast.event, broadcast.payload, is_json=broadcast.is_json, meta=broadcast.meta
        )
        assert sent_on.endswith(broadcast.payload)


def _check_v1(text: bytes) -> None:
    frame = json.loads(text)
    assert {"topic", "event", "payload", "ref"} <= frame.keys()


def _check_v2(text: bytes) -> None:
    _, _, topic, event, payload = json.loads(text)
    assert isinstance(topic, str)
    assert isinstance(event, str)
    assert isinstance(payload, dict)


_CHECKS = {Version.V1: _check_v1, Version.V2: _check_v2}

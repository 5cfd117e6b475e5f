"""Broadcasts of Supabase's protocol: read from a client's frames or from HTTP, and encoded for each version.

A broadcast that came as text goes on as text, with its payload as it was. A binary one goes on as binary to version
2.0.0, and as text to version 1.0.0, which has no place for a payload that is not JSON. Payloads are never decoded.
Source: Supabase, "Realtime Protocol", section "Broadcast".

A message from the database is in the log as the JSON of a text frame's payload. Bytes, for which that has no place,
are in it as base64.
"""

from __future__ import annotations

from base64 import b64encode

import msgspec

from momentum_sync.wire.messages import binary_frame, frame
from momentum_sync.wire.phoenix import Version, encode_broadcast, encode_frame

_MOST_NAME = 255  # bytes of a topic and an event in a binary frame
_encode = msgspec.json.Encoder().encode


class Broadcast(msgspec.Struct, frozen=True):
    """A message to the members of a topic.

    Attributes:
        topic: the topic, with `realtime:`.
        event: the name that the sender gave it; empty for a text whose payload names it, or none.
        payload: for a text, the JSON object of the frame's payload; else the sender's payload alone.
        is_json: whether the payload is JSON.
        is_text: whether `payload` is that of a text frame.
    """

    topic: str
    event: str
    payload: bytes
    is_json: bool = True
    is_text: bool = False


def broadcast_frame(message: Broadcast, version: Version) -> bytes | None:
    """Return the WebSocket frame of a broadcast; None if the version cannot carry it."""
    if message.is_text:
        return frame(encode_frame(version, message.topic, "broadcast", message.payload))
    fits = max(len(message.topic.encode()), len(message.event.encode())) <= _MOST_NAME
    if version is Version.V2 and fits:
        return binary_frame(
            encode_broadcast(message.topic, message.event, message.payload, is_json=message.is_json)
        )  # fmt: skip
    if not message.is_json:
        return None
    payload = b"".join((
        b'{"type":"broadcast","event":', _encode(message.event), b',"payload":', message.payload, b"}"
    ))  # fmt: skip
    return frame(encode_frame(version, message.topic, "broadcast", payload))


_STORED = b'{"type":"broadcast","event":'  # no event of `momentum.publish` begins with it: jsonb is printed with spaces


class _Stored(msgspec.Struct):
    """A message from the database, as the log has it."""

    event: str
    meta: msgspec.Raw = msgspec.Raw(b"{}")
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    binary: bytes | None = None


_stored = msgspec.json.Decoder(_Stored)


def encode_stored(event: str, payload: bytes, message_id: str, *, is_json: bool) -> bytes:
    """Return the JSON that the log has of a message from the database."""
    content = b',"payload":' + payload if is_json else b',"binary":"' + b64encode(payload) + b'"'
    return b"".join((_STORED, _encode(event), content, b',"meta":{"id":', _encode(message_id), b"}}"))


def stored_frame(body: bytes, event_type: str, topic: str, version: Version, *, replayed: bool = False) -> bytes | None:
    """Return the WebSocket frame of a message from the database; None if the version cannot carry it.

    Args:
        body: the event's JSON: of a row of `realtime.messages`, or what `momentum.publish` got.
        event_type: `event_type` of the latter.
        topic: the topic, with `realtime:`.
        version: of the client's serializer.
        replayed: whether the message says that it is sent again.
    """
    if body.startswith(_STORED) and not replayed and b'"binary":' not in body:
        return frame(encode_frame(version, topic, "broadcast", body))
    stored = _read_stored(body) or _Stored(event_type, payload=msgspec.Raw(body))
    meta = bytes(stored.meta)
    if replayed:
        meta = b'{"replayed":true}' if meta == b"{}" else meta[:-1] + b',"replayed":true}'
    if stored.binary is None:
        parts = (_STORED, _encode(stored.event), b',"payload":', bytes(stored.payload), b',"meta":', meta, b"}")
        return frame(encode_frame(version, topic, "broadcast", b"".join(parts)))
    if version is not Version.V2 or max(len(topic.encode()), len(stored.event.encode())) > _MOST_NAME:
        return None
    return binary_frame(encode_broadcast(topic, stored.event, stored.binary, is_json=False, meta=meta))


def _read_stored(body: bytes) -> _Stored | None:
    """Return a message of `realtime.messages`; None for an event of another kind."""
    if not body.startswith(_STORED):
        return None
    try:
        return _stored.decode(body)
    except msgspec.MsgspecError:  # written by hand into the WAL
        return None

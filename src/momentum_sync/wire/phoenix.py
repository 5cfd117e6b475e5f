"""Frames of Phoenix channels as Supabase's clients use them, in both versions of the serializer.

Version 1.0.0 frames are objects, version 2.0.0 frames are arrays `[join_ref, ref, topic, event, payload]` and, for
broadcasts, binary: Supabase, "Realtime Protocol". A server's frame of version 1.0.0 has no `join_ref`, and has `ref`
even if it is null, because clients in Python drop frames without it.
"""

from __future__ import annotations

import struct
from enum import Enum

import msgspec

Ref = str | int | None
MAX_FRAME = 5_000_000
"""Bytes of a client's frame, as at Supabase."""

USER_BROADCAST_PUSH = 3
"""First byte of a binary broadcast from a client."""
USER_BROADCAST = 4
"""First byte of a binary broadcast to a client."""
_PUSH_LENGTHS = struct.Struct("!6B")  # join_ref, ref, topic, event, meta; then the encoding
_MOST_NAME = 255  # bytes: a length has one byte


class Version(Enum):
    """A version of the serializer, which the client names as `vsn`."""

    V1 = "1.0.0"
    V2 = "2.0.0"


class MalformedFrame(ValueError):
    """A frame that the protocol does not allow. Supabase ignores it, and the connection stays open."""


class ClientFrame(msgspec.Struct, frozen=True):
    """A text frame from a client. `payload` is a JSON object that is not decoded yet."""

    topic: str
    event: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    ref: Ref = None
    join_ref: Ref = None


class ClientBroadcast(msgspec.Struct, frozen=True):
    """A broadcast in a binary frame from a client.

    Attributes:
        topic: the topic.
        event: the name of the event.
        meta: a JSON object, or nothing.
        payload: JSON if `is_json`, and any bytes otherwise.
        is_json: whether the client encoded the payload as JSON.
        ref: the number of the push.
        join_ref: the number of the join that it belongs to.
    """

    topic: str
    event: str
    meta: bytes
    payload: bytes
    is_json: bool
    ref: str | None
    join_ref: str | None


_v1 = msgspec.json.Decoder(ClientFrame)
_v2 = msgspec.json.Decoder(list[msgspec.Raw])
_ref = msgspec.json.Decoder(Ref)
_text = msgspec.json.Decoder(str)
_raw = msgspec.json.Decoder(msgspec.Raw)
_encode = msgspec.json.Encoder().encode


def decode_text(data: bytes | str, version: Version) -> ClientFrame:
    """Decode a client's text frame. Raise MalformedFrame."""
    try:
        if isinstance(data, bytes):
            data.decode()  # msgspec does not validate the inside of a Raw
        if version is Version.V1:
            frame = _v1.decode(data)
        else:
            parts = _v2.decode(data)
            if len(parts) < 5:  # further elements are ignored
                raise MalformedFrame(f"an array of {len(parts)} elements, not of 5")
            join_ref, ref, topic, event, payload = parts[:5]
            frame = ClientFrame(
                _text.decode(topic), _text.decode(event), payload, _ref.decode(ref), _ref.decode(join_ref)
            )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(str(error)) from None
    if not bytes(frame.payload).lstrip().startswith(b"{"):
        raise MalformedFrame("the payload is not an object")
    return frame


def decode_binary(data: bytes) -> ClientBroadcast:
    """Decode a client's binary frame, which only broadcasts have. Raise MalformedFrame."""
    if len(data) < 7 or data[0] != USER_BROADCAST_PUSH:
        raise MalformedFrame("a binary frame of an unknown kind")
    *lengths, encoding = _PUSH_LENGTHS.unpack_from(data, 1)
    if encoding not in (0, 1):
        raise MalformedFrame(f"an unknown encoding of a payload: {encoding}")
    parts: list[bytes] = []
    at = 1 + _PUSH_LENGTHS.size
    for length in lengths:
        parts.append(data[at : at + length])
        at += length
    if at > len(data):
        raise MalformedFrame("a binary frame is truncated")
    join_ref, ref, topic, event, meta = parts
    payload = data[at:]
    try:
        # A payload that is no JSON would break the frames of version 1.0.0 around it.
        for json_text in (meta, payload if encoding else b""):
            if json_text:
                json_text.decode()
                _raw.decode(json_text)
        if encoding and not payload:
            raise MalformedFrame("a payload of JSON is empty")
        return ClientBroadcast(
            topic.decode(), event.decode(), meta, payload, bool(encoding), ref.decode() or None,
            join_ref.decode() or None,
        )  # fmt: skip
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(str(error)) from None


def encode_frame(
    version: Version, topic: str, event: str, payload: bytes, *, ref: Ref = None, join_ref: Ref = None
) -> bytes:
    """Encode a text frame to a client around the JSON of its payload."""
    if version is Version.V1:
        return b"".join((
            b'{"topic":', _encode(topic), b',"event":', _encode(event), b',"payload":', payload, b',"ref":',
            _encode(ref), b"}",
        ))  # fmt: skip
    return b"".join((
        b"[", _encode(join_ref), b",", _encode(ref), b",", _encode(topic), b",", _encode(event), b",", payload, b"]"
    ))  # fmt: skip


def encode_reply(version: Version, to: ClientFrame | ClientBroadcast, response: bytes, *, ok: bool = True) -> bytes:
    """Encode the `phx_reply` to a client's frame around the JSON object of its response."""
    status = b'{"status":"ok","response":' if ok else b'{"status":"error","response":'
    return encode_frame(
        version, to.topic, "phx_reply", status + response + b"}", ref=to.ref, join_ref=to.join_ref
    )  # fmt: skip


def encode_broadcast(topic: str, event: str, payload: bytes, *, is_json: bool, meta: bytes = b"") -> bytes:
    """Encode a broadcast as a binary frame of version 2.0.0.

    Raises:
        ValueError: topic, event or meta has more than 255 bytes, which the format cannot carry.
    """
    parts = topic.encode(), event.encode(), meta
    if max(map(len, parts)) > _MOST_NAME:
        raise ValueError(f"a binary broadcast has room for {_MOST_NAME} bytes of topic, event and meta each")
    return b"".join((bytes((USER_BROADCAST, *map(len, parts), is_json)), *parts, payload))

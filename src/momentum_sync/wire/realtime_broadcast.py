"""Broadcasts of Supabase's protocol: read from a client's frames or from HTTP, and encoded for each version.

A broadcast that came as text goes on as text, with its payload as it was. A binary one goes on as binary to version
2.0.0, and as text to version 1.0.0, which has no place for a payload that is not JSON. Payloads are never decoded.
Source: Supabase, "Realtime Protocol", section "Broadcast".
"""

from __future__ import annotations

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

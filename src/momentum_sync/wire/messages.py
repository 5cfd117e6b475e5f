"""The messages of the contract, section 2, as bytes and back.

From a client: `decode`. To a client: one function a type, each returning the JSON text of one frame. Events are not
encoded again: their JSON comes from the database and is spliced in.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import msgspec

MAX_FRAME = 64 * 1024
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]+$"
"""What names may consist of: no control character, so that none ends a line or a text where it should not."""

_Channel = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=PRINTABLE.replace("$", r"\Z"))]
_Channels = Annotated[list[_Channel], msgspec.Meta(min_length=1, max_length=500)]
_Key = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
_Ref = str | int | float | bool | None


class BadMessage(ValueError):
    """A frame that is no message of ours. `code` is for programs; `ref` is the frame's own, where it had one."""

    def __init__(self, code: str, sentence: str, ref: object = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.ref = ref


class Ping(msgspec.Struct, tag="ping"):
    ref: _Ref = None


class RequestMomentumUpdate(msgspec.Struct, tag="request_momentum_update"):
    ref: _Ref = None


class MarkNotificationRead(msgspec.Struct, tag="mark_notification_read"):
    notification_id: UUID
    ref: _Ref = None


class CacheInvalidationAck(msgspec.Struct, tag="cache_invalidation_ack"):
    cache_key: _Key | None = None
    cache_keys: Annotated[list[_Key], msgspec.Meta(max_length=500)] = []
    ref: _Ref = None

    @property
    def keys(self) -> list[str]:
        """What was acknowledged, in either of the two fields."""
        return [*([] if self.cache_key is None else [self.cache_key]), *self.cache_keys]


class Subscribe(msgspec.Struct, tag="subscribe"):
    channels: _Channels
    ref: _Ref = None


class Unsubscribe(msgspec.Struct, tag="unsubscribe"):
    channels: _Channels
    ref: _Ref = None


class Authenticate(msgspec.Struct, tag="authenticate"):
    token: str
    ref: _Ref = None


ClientMessage = (
    Ping | RequestMomentumUpdate | MarkNotificationRead | CacheInvalidationAck | Subscribe | Unsubscribe | Authenticate
)

_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_loose = msgspec.json.Decoder(dict[str, Any])
_TYPES = frozenset(kind.__struct_config__.tag for kind in ClientMessage.__args__)


def decode(frame: bytes) -> ClientMessage:
    """The message in a text frame. BadMessage with what is wrong with it, in words that its sender can act on."""
    try:
        message = _decoder.decode(frame)
    except msgspec.ValidationError as error:
        raise _explain(frame, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadMessage("invalid_json", "The frame is not JSON.") from None
    if isinstance(message, CacheInvalidationAck) and not message.keys:
        raise BadMessage("invalid_field", "`cache_invalidation_ack` needs `cache_key` or `cache_keys`.", message.ref)
    return message


def _explain(frame: bytes, error: msgspec.ValidationError) -> BadMessage:
    try:
        loose = _loose.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return BadMessage("invalid_message", "A message is one JSON object with a `type`.")
    ref = loose.get("ref")
    if not isinstance(ref, str | int | float | bool):
        ref = None
    kind = loose.get("type")
    if not isinstance(kind, str):
        return BadMessage("invalid_message", "The message has no `type`.", ref)
    if kind not in _TYPES:
        return BadMessage("unknown_type", f"`type` is none of {', '.join(sorted(map(str, _TYPES)))}.", ref)
    return BadMessage("invalid_field", f"`{kind}` has a wrong or missing field: {error}.", ref)


def timestamp(now: float) -> str:
    """RFC 3339 in UTC with milliseconds. `now` is seconds since 1970."""
    return _millisecond(int(now * 1000)).decode()


@lru_cache(maxsize=16)
def _millisecond(milliseconds: int) -> bytes:
    """Every message has the time, and messages come by the dozen in a millisecond."""
    seconds, rest = divmod(milliseconds, 1000)
    return b"%b.%03dZ" % (datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode(), rest)


def encode(kind: str, now: float, fields: dict[str, object], ref: object = None) -> bytes:
    """A message to a client: its type, its fields, the `ref` of what it answers, and the time."""
    message = {"type": kind, **fields}
    if ref is not None:
        message["ref"] = ref
    message["timestamp"] = timestamp(now)
    return _encode(message)


def error(code: str, sentence: str, now: float, ref: object = None, **more: object) -> bytes:
    """An `error`; the connection stays open."""
    return encode("error", now, {"code": code, "error": sentence, **more}, ref)


class DeliveryIds(NamedTuple):
    """How one connection gets an event: under which id, after which, on which channel."""

    event_id: str
    previous_id: str
    channel: str


def event_object(body: bytes, delivery: DeliveryIds) -> bytes:
    """An event's own JSON object with its delivery in it. The ids are ours and need no escaping."""
    event_id, previous_id, channel = delivery
    return b"".join((
        body[:-1], b',"id":"' if len(body) > 2 else b'"id":"', event_id.encode(),
        b'","previous_id":"', previous_id.encode(), b'","channel":', _encode(channel), b"}",
    ))  # fmt: skip


def realtime_event(body: bytes, delivery: DeliveryIds, now: float) -> bytes:
    """A `realtime_event` around an event's own JSON object."""
    at = _millisecond(int(now * 1000))
    return b"".join((
        b'{"type":"realtime_event","event":', event_object(body, delivery), b',"timestamp":"', at, b'"}'
    ))  # fmt: skip


def cache_invalidation(cache_keys: tuple[str, ...], delivery: DeliveryIds, now: float) -> bytes:
    """A `cache_invalidation`."""
    fields: dict[str, object] = {
        "cache_keys": cache_keys,
        "id": delivery.event_id,
        "previous_id": delivery.previous_id,
    }
    return encode("cache_invalidation", now, fields)


PING = b"\x89\x00"
"""A ping without a payload: RFC 6455, section 5.5.2."""


def frame(payload: bytes) -> bytes:
    """A whole text frame from a server, unmasked: RFC 6455, section 5.2."""
    length = len(payload)
    if length < 126:
        return b"\x81" + bytes((length,)) + payload
    if length < 65536:
        return b"\x81\x7e" + length.to_bytes(2, "big") + payload
    return b"\x81\x7f" + length.to_bytes(8, "big") + payload

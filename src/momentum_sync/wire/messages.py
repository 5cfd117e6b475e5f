"""Messages of the native protocol as the server reads and writes them.

From a client: types, and `ClientMessages` that decodes them. To a client: functions that return the JSON of one
message. Events are not encoded again: their JSON comes from the database and is spliced in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache, reduce
from operator import or_
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]+$"
"""Names consist of anything but control characters, so that none ends a line or a string where it should not."""

TOOL = "momentum-sync "
"""The beginning of the client ids of our own commands, which are no devices of a user."""

UNKNOWN_SDK = "other"
"""The library of a client that names none."""

# In Python `$` also matches before a final newline; `\Z` does not.
_Channel = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=PRINTABLE.replace("$", r"\Z"))]
_Channels = Annotated[list[_Channel], msgspec.Meta(min_length=1, max_length=500)]
B = TypeVar("B", bound=msgspec.Struct)
Ref = str | int | float | bool | None
"""What a client may send as `ref`; the answer repeats it."""


class BadMessage(ValueError):
    """A frame that is not a message. `code` is for programs; `ref` is the frame's own, if it has one."""

    def __init__(self, code: str, sentence: str, ref: Ref = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.ref = ref


class ClientMessage(msgspec.Struct, kw_only=True):
    """A message of a client. The specification takes its summary from the docstring and its answers from `ANSWERS`."""

    ANSWERS: ClassVar[tuple[str, ...]] = ()

    ref: Ref = None

    def problem(self) -> str | None:
        """Return a sentence about missing fields that the types do not require. None if it is complete."""
        return None


class Ping(ClientMessage, tag="ping"):
    """Asks whether the connection is alive."""

    ANSWERS = ("pong",)


class Subscribe(ClientMessage, tag="subscribe", kw_only=True):
    """Asks for channels. All of them are granted, or none."""

    ANSWERS = ("subscription_confirmed", "error")

    channels: _Channels


class Unsubscribe(ClientMessage, tag="unsubscribe", kw_only=True):
    """Gives up channels."""

    ANSWERS = ("subscription_confirmed", "error")

    channels: _Channels


class Authenticate(ClientMessage, tag="authenticate", kw_only=True):
    """Brings a fresh token, without a reconnect."""

    ANSWERS = ("authenticated", "error")

    token: str


class ClientMessages:
    """Decodes the messages of one protocol, which are its own and the application's."""

    def __init__(self, types: Sequence[type[ClientMessage]]) -> None:
        union: Any = reduce(or_, types)
        self._decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(union)
        self._tags = sorted(tag_of(kind) for kind in types)

    def decode(self, frame: bytes) -> ClientMessage:
        """Decode a text frame.

        Raises:
            BadMessage: with a sentence that its sender can act on.
        """
        try:
            message = self._decoder.decode(frame)
        except msgspec.ValidationError as error:
            raise self._explain(frame, error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BadMessage("invalid_json", "The frame is not JSON.") from None
        problem = message.problem()
        if problem is not None:
            raise BadMessage("invalid_field", problem, message.ref)
        return message

    def _explain(self, frame: bytes, error: msgspec.ValidationError) -> BadMessage:
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
        if kind not in self._tags:
            return BadMessage("unknown_type", f"`type` must be one of {', '.join(self._tags)}.", ref)
        return BadMessage("invalid_field", f"`{kind}` has a wrong or missing field: {error}.", ref)


_encode = msgspec.json.Encoder().encode
_loose = msgspec.json.Decoder(dict[str, Any])


def tag_of(kind: type[msgspec.Struct]) -> str:
    """Return the `type` of a message."""
    return str(kind.__struct_config__.tag)


def declared_in(module: str, base: type[B]) -> list[type[B]]:
    """Return the message types that a module declares, in order: a type needs no entry in a list."""
    return [
        kind
        for kind in vars(sys.modules[module]).values()
        if isinstance(kind, type)
        and issubclass(kind, base)
        and kind.__module__ == module
        and kind.__struct_config__.tag is not None
    ]


def timestamp(now: float) -> str:
    """Format seconds since 1970 as RFC 3339 in UTC with milliseconds."""
    return _millisecond(int(now * 1000)).decode()


@lru_cache(maxsize=16)
def _millisecond(milliseconds: int) -> bytes:
    """Format a timestamp. Every message has one, and many messages share a millisecond."""
    seconds, rest = divmod(milliseconds, 1000)
    return b"%b.%03dZ" % (_second(seconds), rest)


@lru_cache(maxsize=16)
def _second(seconds: int) -> bytes:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


def encode(kind: str, now: float, fields: dict[str, object], ref: Ref = None) -> bytes:
    """Encode a message to a client: its type, its fields, the `ref` of the message that it answers, and the time."""
    message = {"type": kind, **fields}
    if ref is not None:
        message["ref"] = ref
    message["timestamp"] = timestamp(now)
    return _encode(message)


def error(code: str, sentence: str, now: float, ref: Ref = None, **more: object) -> bytes:
    """Encode an `error`; the connection stays open."""
    return encode("error", now, {"code": code, "error": sentence, **more}, ref)


class DeliveryIds(msgspec.Struct, frozen=True, gc=False):
    """The id under which a connection gets an event, the id of the event before it, and the channel."""

    event_id: str
    previous_id: str
    channel: str


def event_object(body: bytes, ids: DeliveryIds) -> bytes:
    """Return an event's own JSON object with its ids added. The ids need no escaping."""
    return b"".join((
        body[:-1], b',"id":"' if len(body) > 2 else b'"id":"', ids.event_id.encode(),
        b'","previous_id":"', ids.previous_id.encode(), b'","channel":', _encode(ids.channel), b"}",
    ))  # fmt: skip


def realtime_event(body: bytes, ids: DeliveryIds, now: float) -> bytes:
    """Encode a `realtime_event` around an event's own JSON object."""
    at = _millisecond(int(now * 1000))
    return b"".join((
        b'{"type":"realtime_event","event":', event_object(body, ids), b',"timestamp":"', at, b'"}'
    ))  # fmt: skip


def ping_frame(payload: bytes) -> bytes:
    """Return a server's ping with a payload of at most 125 bytes: RFC 6455, section 5.5.2."""
    return b"\x89" + bytes((len(payload),)) + payload


def frame(payload: bytes) -> bytes:
    """Wrap a payload in one text frame of a server, unmasked: RFC 6455, section 5.2."""
    return b"\x81" + _length(payload) + payload


def binary_frame(payload: bytes) -> bytes:
    """Wrap a payload in one binary frame of a server."""
    return b"\x82" + _length(payload) + payload


def _length(payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes((length,))
    if length < 65536:
        return b"\x7e" + length.to_bytes(2, "big")
    return b"\x7f" + length.to_bytes(8, "big")

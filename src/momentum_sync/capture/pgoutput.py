"""Decoder of the replication stream's messages that carry events.

Formats: PostgreSQL, "Streaming Replication Protocol" (XLogData, keepalive, standby status update) and "Logical
Replication Message Formats" (Begin, Message, Commit), protocol version 1. Times there are microseconds since
2000-01-01; here they are seconds since 1970.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

_UNIX_2000 = 946_684_800

_BEGIN = struct.Struct("!QqI")
_COMMIT = struct.Struct("!BQQq")
_LENGTH = struct.Struct("!I")
_RELATION = struct.Struct("!I")
_KEEPALIVE = struct.Struct("!QqB")
_STATUS = struct.Struct("!cQQQqB")

_PAYLOAD = 1 + 24  # after the letter and three 64-bit fields
_PREFIX = _PAYLOAD + 1 + 1 + 8  # offset in a message: after its letter, its flags and its LSN


class ProtocolError(ValueError):
    """Bytes that the protocol does not allow."""


class Begin(NamedTuple):
    """The begin of a committed transaction. `lsn` is the LSN of its commit record, `xid` its id in 32 bits."""

    lsn: int
    committed_at: float
    xid: int


class Message(msgspec.Struct, frozen=True, gc=False):
    """A logical message, as `pg_logical_emit_message` wrote it."""

    transactional: bool
    prefix: str
    content: bytes


class Commit(NamedTuple):
    """The end of a transaction. `end` is the LSN after its commit record."""

    lsn: int
    end: int


class Keepalive(NamedTuple):
    """Everything below `end` has been sent. With `reply` the server asks for a status at once."""

    end: int
    reply: bool


class Change(msgspec.Struct, frozen=True, gc=False):
    """A message about rows, not decoded yet: most are about tables that are not followed.

    Attributes:
        relation: the relation; 0 for a TRUNCATE, which may have several.
        frame: the CopyData payload.
    """

    relation: int
    frame: bytes

    @property
    def describes(self) -> bool:
        """Return whether the message describes a relation."""
        return self.frame[_PAYLOAD] == 0x52

    @property
    def payload(self) -> bytes:
        """Return the payload of the XLogData message."""
        return self.frame[_PAYLOAD:]


Frame = Begin | Message | Change | Commit | Keepalive | None


def decode(data: bytes | memoryview) -> Frame:
    """Decode one CopyData payload. Return None for a kind without events. Raise ProtocolError if it is malformed."""
    frame = bytes(data)
    try:
        match frame[0]:
            case 0x77:  # w: XLogData, its payload after three 64-bit fields
                return _payload(frame)
            case 0x6B:  # k
                end, _, reply = _KEEPALIVE.unpack(frame[1:])
                return Keepalive(end, bool(reply))
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ProtocolError(f"a frame of the replication stream is malformed: {error}") from None
    raise ProtocolError(f"unknown frame {frame[0]:#04x} in the replication stream")


def _payload(frame: bytes) -> Begin | Message | Change | Commit | None:
    match frame[_PAYLOAD]:
        case 0x4D:  # M
            end = frame.find(b"\0", _PREFIX)
            if end < 0 or len(frame) < end + 5:
                raise ProtocolError("a logical message is truncated")
            (length,) = _LENGTH.unpack_from(frame, end + 1)
            content = frame[end + 5 :]
            if len(content) != length:
                raise ProtocolError(f"a logical message declares {length} bytes but has {len(content)}")
            return Message(bool(frame[_PAYLOAD + 1] & 1), frame[_PREFIX:end].decode(), content)
        case 0x42:  # B
            lsn, at, xid = _BEGIN.unpack(frame[_PAYLOAD + 1 :])
            return Begin(lsn, at / 1_000_000 + _UNIX_2000, xid)
        case 0x43:  # C
            _, lsn, end, _ = _COMMIT.unpack(frame[_PAYLOAD + 1 :])
            return Commit(lsn, end)
        case 0x52 | 0x49 | 0x55 | 0x44:  # R, I, U, D
            (relation,) = _RELATION.unpack_from(frame, _PAYLOAD + 1)
            return Change(relation, frame)
        case 0x54:  # T
            return Change(0, frame)
    return None


def status(*, received: int, durable: int, now: float, reply: bool) -> bytes:
    """Return a standby status update: the received LSN, and the LSN below which the slot may discard WAL."""
    return _STATUS.pack(b"r", received, durable, durable, int((now - _UNIX_2000) * 1_000_000), reply)

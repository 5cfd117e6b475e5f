"""Payloads of the replication stream, from the wire to an event: malformed ones are rejected, others kept whole."""

from __future__ import annotations

import json
import struct

from momentum_sync.capture.pgoutput import Begin, Commit, Keepalive, Message, ProtocolError, decode
from momentum_sync.capture.sequencer import PREFIX, Sequencer
from momentum_sync.eventlog.envelope import Malformed
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.position import Position

_HEADER = b"w" + bytes(24)


def _message(content: bytes) -> bytes:
    return (
        _HEADER + struct.pack("!cBQ", b"M", 1, 7) + PREFIX.encode() + b"\0" + struct.pack("!I", len(content)) + content
    )


SEEDS = [
    _HEADER + struct.pack("!cQqI", b"B", 7, 0, 9),
    _HEADER + struct.pack("!cBQQq", b"C", 0, 7, 8, 0),
    b"k" + struct.pack("!QqB", 9, 0, 1),
    _message(b'{"channels": ["notifications:x"], "event": {"event_type": "a", "user_id": "b"}}'),
    _message(b'{"channels": ["cache_invalidation"], "event": {"cache_keys": ["k"], "user_id": "b"}, "rows": {"a": 1}}'),
    _message(b'{"channels": ["momentum:control"], "event": {"event_type": "revoked", "user_id": "b"}}'),
    b"abcdef01-7.10.12.10_11.0_2A", b"abcdef01-7",
]  # fmt: skip


def one(data: bytes) -> None:
    """Feed the bytes as a payload within a transaction, and as an id that a client sends."""
    sequencer = Sequencer(offset=6, place=(0, 0), near_xid=9)
    sequencer.begin(Begin(7, 0.0, 9))
    try:
        frame = decode(data)
    except ProtocolError:
        frame = None
    if isinstance(frame, Message):
        try:
            event = sequencer.message(frame)
        except Malformed:
            event = None
        if event is not None:
            _check(event)
    assert frame is None or isinstance(frame, Begin | Message | Commit | Keepalive)
    _check_id(data)


def _check(event: Event) -> None:
    body = json.loads(event.body)
    assert isinstance(body, dict)
    assert event.offset == 7
    assert len(event.channels) == len(event.keys) > 0
    assert all(len(key) <= 220 for key in event.keys if key.startswith("cache_invalidation"))
    if event.rows is not None:
        assert isinstance(json.loads(event.rows), dict)
    again = Event.build(
        offset=event.offset, place=(event.commit_lsn, event.commit_index), xid=event.xid,
        committed_at=event.committed_at, channels=event.channels, body=event.body, rows=event.rows,
    )  # fmt: skip
    assert again == event


def _check_id(data: bytes) -> None:
    try:
        found = Position.parse(data.decode())
    except ValueError:
        return
    assert Position.parse(str(found)) == found

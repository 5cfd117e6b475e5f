"""Payloads of the replication stream, from the wire to an event: malformed ones are rejected, others kept whole."""

from __future__ import annotations

import json
import struct

from momentum_sync.capture.broadcasts import Broadcasts
from momentum_sync.capture.pgoutput import Begin, Change, Commit, Keepalive, Message, ProtocolError, decode
from momentum_sync.capture.row_changes import RowChanges, UnknownRelation
from momentum_sync.capture.row_messages import Identity, Insert, Relation, RelationColumn, decode_row
from momentum_sync.capture.sequencer import PREFIX, Sequencer
from momentum_sync.capture.values import ColumnType, Kind
from momentum_sync.eventlog.envelope import Malformed
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.position import Position
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.realtime_broadcast import stored_frame

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
    _HEADER + b"R" + struct.pack("!I", 7) + b"public\0notes\0d" + struct.pack("!HB", 1, 1) + b"id\0" + bytes(8),
    _HEADER + b"I" + struct.pack("!I", 7) + b"N" + struct.pack("!HcIsc", 2, b"t", 1, b"1", b"n"),
    _HEADER + b"I" + struct.pack("!I", 9) + b"N" + struct.pack("!H", 5)
    + b"".join(b"t" + struct.pack("!I", len(each)) + each for each in (b"a", b"e", b"\\x41", b"i", b"t")),
    _HEADER + b"U" + struct.pack("!I", 7) + b"K" + struct.pack("!HcIsc", 2, b"t", 1, b"1", b"n") + b"N"
    + struct.pack("!HcIsc", 2, b"t", 1, b"2", b"u"),
    _HEADER + b"D" + struct.pack("!I", 7) + b"O" + struct.pack("!Hcc", 2, b"n", b"n"),
    _HEADER + b"T" + struct.pack("!IBI", 1, 0, 7),
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
    elif isinstance(frame, Change):
        _check_change(frame)
    assert frame is None or isinstance(frame, Begin | Message | Change | Commit | Keepalive)
    _check_id(data)


def _check_change(change: Change) -> None:
    """Decode a message about rows, and encode it if it is about relation 7, which has a number and a text."""
    rows = RowChanges()
    rows.learn({23, 25}, {23: ColumnType(name="int4", kind=Kind.NUMBER), 25: ColumnType(name="text", kind=Kind.TEXT)})
    columns = (RelationColumn("id", 23, True), RelationColumn("text", 25, False))
    rows.describe(Relation(7, "public", "notes", Identity.DEFAULT, columns))
    try:
        message = decode_row(change.payload)
        if isinstance(message, Insert):
            _check_broadcast(message)
        if message is None or isinstance(message, Relation):
            return
        body = json.loads(rows.encode(message, change.relation or 7, 0.0))
    except (ProtocolError, UnknownRelation):
        return
    assert body["type"] in ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
    assert isinstance(body.get("record", body.get("old_record")), dict)


def _check_broadcast(message: Insert) -> None:
    """Take a row for a message to a topic, and encode what comes of it for both versions."""
    broadcasts = Broadcasts()
    columns = tuple(RelationColumn(name, 25, False) for name in ("topic", "event", "binary_payload", "id", "private"))
    broadcasts.describe(Relation(message.relation, "realtime", "messages", Identity.DEFAULT, columns))
    try:
        channel, body = broadcasts.read(message)
    except Malformed:
        return
    json.loads(body)
    for version in Version:
        for replayed in (False, True):
            data = stored_frame(body, "", f"realtime:{channel.partition(':')[2]}", version, replayed=replayed)
            assert data is None or data[0] in (0x81, 0x82)


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

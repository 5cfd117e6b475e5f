"""Messages from the database: read from rows of `realtime.messages`, kept in the log, encoded for each version."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.capture.broadcasts import MOST_BYTES, Broadcasts
from momentum_sync.capture.row_messages import UNCHANGED, Identity, Insert, Relation, RelationColumn, Value
from momentum_sync.eventlog.envelope import Malformed
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.realtime_broadcast import encode_stored, stored_frame

COLUMNS = ("id", "topic", "extension", "event", "payload", "binary_payload", "private")


def described(*names: str, schema: str = "realtime", name: str = "messages_2026_11_29") -> Broadcasts:
    broadcasts = Broadcasts()
    columns = tuple(RelationColumn(each, 25, False) for each in names)
    broadcasts.describe(Relation(9, schema, name, Identity.DEFAULT, columns))
    return broadcasts


def row(**values: Value) -> Insert:
    given = {"id": "i", "topic": "a", "extension": "broadcast", "event": "e", "payload": "{}", "private": "t", **values}
    return Insert(9, tuple(given.get(name) for name in COLUMNS))


def text(data: bytes | None) -> Any:
    """Return the text of a server's frame, decoded."""
    assert data is not None
    length, start = (data[1], 2) if data[1] < 126 else (int.from_bytes(data[2:4], "big"), 4)
    assert data[0] == 0x81
    assert len(data) == start + length
    return json.loads(data[start:])


def test_a_row_is_the_payload_of_a_text_frame() -> None:
    assert described(*COLUMNS).read(row(payload='{"n": 1.0}')) == (
        "topic:a", b'{"type":"broadcast","event":"e","payload":{"n": 1.0},"meta":{"id":"i"}}',
    )  # fmt: skip
    assert described(*COLUMNS).read(row(private="f"))[0] == "public_topic:a"
    assert described(*COLUMNS).read(row(private=None))[0] == "topic:a"
    assert b'"payload":{}' in described(*COLUMNS).read(row(payload=None))[1]


def test_bytes_are_kept_as_base64() -> None:
    _, body = described(*COLUMNS).read(row(binary_payload="\\x00ff41", payload=None))
    assert body == b'{"type":"broadcast","event":"e","binary":"AP9B","meta":{"id":"i"}}'
    assert described(*COLUMNS).read(row(binary_payload="\\x"))[1].count(b'"binary":""') == 1


def test_a_table_of_before_binary_payloads_has_none() -> None:
    columns = [name for name in COLUMNS if name != "binary_payload"]
    message = Insert(9, ("i", "a", "broadcast", "e", '{"x":1}', "t"))
    assert described(*columns).read(message)[1].count(b'"payload":{"x":1}') == 1
    with pytest.raises(Malformed):
        described(*columns).read(Insert(9, ("i", "a")))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"topic": None}, "1 to 246"), ({"topic": ""}, "1 to 246"), ({"topic": "x" * 247}, "1 to 246"),
        ({"topic": UNCHANGED}, "1 to 246"), ({"event": None}, "no event"),
        ({"payload": '"' + "x" * (MOST_BYTES - 2) + '"'}, "more than"), ({"event": "x" * MOST_BYTES}, "more than"),
        ({"binary_payload": "\\\\000"}, "hexadecimal"), ({"binary_payload": "\\x0"}, "hexadecimal"),
        ({"payload": "[" * 257 + "]" * 257}, "levels"),
    ],
)  # fmt: skip
def test_what_no_client_could_get_is_malformed(values: dict[str, Value], said: str) -> None:
    with pytest.raises(Malformed, match=said):
        described(*COLUMNS).read(row(**values))


def test_bytes_need_an_event_that_a_binary_frame_has_room_for() -> None:
    assert described(*COLUMNS).read(row(binary_payload="\\x00", event="e" * 255))
    with pytest.raises(Malformed, match="255 bytes"):
        described(*COLUMNS).read(row(binary_payload="\\x00", event="é" * 128))


def test_the_largest_are_read() -> None:
    largest = '"' + "x" * (MOST_BYTES - 3) + '"'  # and a byte of the event's name
    assert described(*COLUMNS).read(row(topic="x" * 246))[0] == "topic:" + "x" * 246
    assert len(described(*COLUMNS).read(row(payload=largest))[1]) > MOST_BYTES
    assert described(*COLUMNS).read(row(payload="[" * 256 + "]" * 256))


@pytest.mark.parametrize(
    ("schema", "name", "is_one"),
    [
        ("realtime", "messages", True), ("realtime", "messages_2026_11_29", True), ("realtime", "messages_x", True),
        ("realtime", "messages2", False), ("realtime", "subscription", False), ("public", "messages", False),
    ],
)  # fmt: skip
def test_partitions_are_recognized_by_their_names(schema: str, name: str, is_one: bool) -> None:
    assert (9 in described("topic", schema=schema, name=name).places) is is_one


def test_a_relation_that_is_renamed_is_none_any_longer() -> None:
    broadcasts = described(*COLUMNS)
    broadcasts.describe(Relation(9, "realtime", "old", Identity.DEFAULT, ()))
    assert broadcasts.places == {}
    broadcasts.describe(Relation(9, "realtime", "old", Identity.DEFAULT, ()))


# Frames


def test_a_message_is_a_text_to_each_version() -> None:
    body = encode_stored("e", b'{"n": 1}', "i", is_json=True)
    payload = {"type": "broadcast", "event": "e", "payload": {"n": 1}, "meta": {"id": "i"}}
    assert text(stored_frame(body, "", "realtime:a", Version.V2)) == [None, None, "realtime:a", "broadcast", payload]
    assert text(stored_frame(body, "", "realtime:a", Version.V1))["payload"] == payload
    replayed = payload | {"meta": {"id": "i", "replayed": True}}
    assert text(stored_frame(body, "", "realtime:a", Version.V2, replayed=True))[4] == replayed


@pytest.mark.parametrize("replayed", [False, True])
def test_bytes_are_a_binary_frame_of_the_newer_version(replayed: bool) -> None:
    body = encode_stored("raw", b"\x00\xff", "i", is_json=False)
    data = stored_frame(body, "", "realtime:a", Version.V2, replayed=replayed)
    meta = b'{"id":"i","replayed":true}' if replayed else b'{"id":"i"}'
    assert data is not None
    content = bytes([4, 10, 3, len(meta), 0]) + b"realtime:araw" + meta + b"\x00\xff"
    assert data == bytes([0x82, len(content)]) + content
    assert stored_frame(body, "", "realtime:a", Version.V1, replayed=replayed) is None
    assert stored_frame(body, "", "realtime:" + "é" * 124, Version.V2) is None
    assert stored_frame(encode_stored("e" * 256, b"", "i", is_json=False), "", "realtime:a", Version.V2) is None
    assert stored_frame(encode_stored("e" * 255, b"", "i", is_json=False), "", "realtime:a", Version.V2) is not None


def test_an_event_of_publish_is_the_payload_of_a_message() -> None:
    body = b'{"event_type": "moved", "x": 1}'
    payload = {"type": "broadcast", "event": "moved", "payload": json.loads(body), "meta": {}}
    assert text(stored_frame(body, "moved", "realtime:a", Version.V2))[4] == payload
    replayed = text(stored_frame(body, "moved", "realtime:a", Version.V2, replayed=True))[4]
    assert replayed == payload | {"meta": {"replayed": True}}


@pytest.mark.parametrize(
    "body", [b'{"type":"broadcast","event":7,"binary":""}', b'{"type":"broadcast","event":"e","binary":"?"}']
)
def test_what_was_written_by_hand_into_the_wal_is_the_payload_of_a_message(body: bytes) -> None:
    assert text(stored_frame(body, "", "realtime:a", Version.V2))[4]["payload"] == json.loads(body)


@given(event=st.text(max_size=20), payload=st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["binary", "meta", "a"]), inner),
), version=st.sampled_from(Version), replayed=st.booleans())  # fmt: skip
def test_any_payload_comes_through(event: str, payload: Any, version: Version, replayed: bool) -> None:
    body = encode_stored(event, json.dumps(payload).encode(), "i", is_json=True)
    found = text(stored_frame(body, "", "realtime:a", version, replayed=replayed))
    found = found["payload"] if version is Version.V1 else found[4]
    assert (found["event"], found["payload"]) == (event, payload)
    assert found["meta"] == ({"id": "i", "replayed": True} if replayed else {"id": "i"})

"""Frames of Phoenix channels: literals from Supabase's documentation, round trips and random bytes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.wire.phoenix import (
    ClientBroadcast,
    ClientFrame,
    MalformedFrame,
    Version,
    decode_binary,
    decode_text,
    encode_broadcast,
    encode_frame,
    encode_reply,
)

HEARTBEAT = ClientFrame("phoenix", "heartbeat", msgspec.Raw(b"{}"), "26", None)
texts = st.text(st.characters(codec="utf-8"), max_size=30)
refs = st.none() | st.text("0123456789", min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (Version.V1, '{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"26"}'),
        (Version.V1, '{"ref":"26","join_ref":null,"topic":"phoenix","event":"heartbeat","payload":{},"more":1}'),
        (Version.V2, '[null,"26","phoenix","heartbeat",{}]'),
        (Version.V2, '[null,"26","phoenix","heartbeat",{},"more"]'),
    ],
)
def test_a_heartbeat_in_both_versions(version: Version, text: str) -> None:
    assert decode_text(text, version) == HEARTBEAT
    assert decode_text(text.encode(), version) == HEARTBEAT


def test_numbers_are_refs_too() -> None:
    assert decode_text('[1,2,"t","e",{}]', Version.V2).ref == 2


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize(
    "text",
    [
        "", "x", "1", "null", "[]", "{}", '["1","2","t","e"]', '["1","2",3,"e",{}]', '["1","2","t",null,{}]',
        '["1","2","t","e",[]]', '["1","2","t","e","{"]', '{"topic":"t","event":"e","payload":[],"ref":"1"}',
        '{"topic":1,"event":"e","payload":{},"ref":"1"}', '{"topic":"t","payload":{}}', "[" * 5_000, "\udcff",
        '[{},"2","t","e",{}]', b"\xff\xfe", b'["1","2","t","e",{"a":"\xff"}]',
        b'{"topic":"t","event":"e","payload":{"a":"\xff"},"ref":"1"}',
    ],
)  # fmt: skip
def test_frames_that_are_none_are_refused(version: Version, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode(errors="surrogateescape")
    with pytest.raises(MalformedFrame):
        decode_text(data, version)


@given(st.sampled_from(Version), st.binary(max_size=60))
def test_any_bytes_are_a_frame_or_refused(version: Version, data: bytes) -> None:
    for decode in (
        lambda: decode_text(data, version),
        lambda: decode_binary(data),
        lambda: decode_binary(b"\3" + data),
    ):
        try:
            decode()
        except MalformedFrame:
            pass


@given(refs, refs, texts, texts, st.dictionaries(texts, st.integers(), max_size=3))
def test_a_frame_has_the_parts_that_each_version_has(
    join_ref: str | None, ref: str | None, topic: str, event: str, payload: dict[str, int]
) -> None:
    data = msgspec.json.encode(payload)
    first = json.loads(encode_frame(Version.V1, topic, event, data, ref=ref, join_ref=join_ref))
    assert first == {"topic": topic, "event": event, "payload": payload, "ref": ref}
    second = encode_frame(Version.V2, topic, event, data, ref=ref, join_ref=join_ref)
    assert json.loads(second) == [join_ref, ref, topic, event, payload]
    assert decode_text(second, Version.V2) == ClientFrame(topic, event, msgspec.Raw(data), ref, join_ref)


@pytest.mark.parametrize(("ok", "status"), [(True, "ok"), (False, "error")])
def test_a_reply_names_the_frame_that_it_answers(ok: bool, status: str) -> None:
    join = ClientFrame("realtime:room1", "phx_join", ref="2", join_ref="1")
    payload: dict[str, Any] = {"status": status, "response": {"a": 1}}
    first = json.loads(encode_reply(Version.V1, join, b'{"a":1}', ok=ok))
    assert first == {"topic": "realtime:room1", "event": "phx_reply", "payload": payload, "ref": "2"}
    second = json.loads(encode_reply(Version.V2, join, b'{"a":1}', ok=ok))
    assert second == ["1", "2", "realtime:room1", "phx_reply", payload]


def binary(*parts: bytes, payload: bytes = b"", encoding: int = 1, kind: int = 3) -> bytes:
    return bytes((kind, *map(len, parts), encoding)) + b"".join(parts) + payload


def test_a_binary_broadcast_from_a_client() -> None:
    data = binary(b"10", b"1", b"realtime:r", b"message", b"", payload=b'{"a":1}')
    assert decode_binary(data) == ClientBroadcast("realtime:r", "message", b"", b'{"a":1}', True, "1", "10")
    data = binary(b"", b"", b"t", b"e", b'{"persist":true}', payload=b"\xff\0", encoding=0)
    assert decode_binary(data) == ClientBroadcast("t", "e", b'{"persist":true}', b"\xff\0", False, None, None)


@pytest.mark.parametrize("length", range(len(binary(b"10", b"1", b"t", b"e", b"m"))))
def test_a_binary_frame_cut_short_is_refused(length: int) -> None:
    with pytest.raises(MalformedFrame):
        decode_binary(binary(b"10", b"1", b"t", b"e", b"m")[:length])


@pytest.mark.parametrize(
    "data",
    [
        binary(b"1", b"1", b"t", b"e", b"", kind=0),
        binary(b"1", b"1", b"t", b"e", b"", encoding=2),
        binary(b"1", b"1", b"\xff", b"e", b""),
        binary(b"1", b"1", b"t", b"e", b"", payload=b'1,"event":"phx_close"}{'),
        binary(b"1", b"1", b"t", b"e", b"", payload=b""),
        binary(b"1", b"1", b"t", b"e", b"", payload=b'"\xff"'),
        binary(b"1", b"1", b"t", b"e", b"{", payload=b"{}"),
    ],
)
def test_other_binary_frames_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode_binary(data)


@given(st.binary(max_size=20), st.booleans())
def test_a_binary_broadcast_to_a_client(payload: bytes, is_json: bool) -> None:
    data = encode_broadcast("realtime:ü", "e", payload, is_json=is_json, meta=b"{}")
    assert data == b"\4\x0b\1\2" + bytes((is_json,)) + "realtime:üe{}".encode() + payload


def test_names_that_the_binary_format_cannot_carry_are_an_error() -> None:
    assert encode_broadcast("t" * 255, "e", b"", is_json=True)[1] == 255
    with pytest.raises(ValueError, match="255 bytes"):
        encode_broadcast("t" * 256, "e", b"", is_json=True)

"""Messages of the native protocol."""

from __future__ import annotations

import json
import re
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from momentum_sync.domain.commands import encode_cache_invalidation
from momentum_sync.domain.messages import PROTOCOL, CacheInvalidationAck, MarkNotificationRead, RequestMomentumUpdate
from momentum_sync.eventlog.event import Event
from momentum_sync.wire import from_server, messages
from momentum_sync.wire.close import Close

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=4,
)
DECODER = messages.ClientMessages(PROTOCOL.clients)
TYPES = [
    "ping", "request_momentum_update", "mark_notification_read", "cache_invalidation_ack", "subscribe", "unsubscribe",
    "authenticate",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"type": "ping"}', messages.Ping()),
        ('{"type": "ping", "ref": "a", "more": 1}', messages.Ping(ref="a")),
        ('{"ref": 7, "type": "request_momentum_update"}', RequestMomentumUpdate(ref=7)),
        (
            '{"type": "mark_notification_read", "notification_id": "00000000-0000-4000-8000-000000000001"}',
            MarkNotificationRead(notification_id=UUID("00000000-0000-4000-8000-000000000001")),
        ),
        ('{"type": "subscribe", "channels": ["a", "b"]}', messages.Subscribe(channels=["a", "b"])),
        ('{"type": "unsubscribe", "channels": ["a"]}', messages.Unsubscribe(channels=["a"])),
        ('{"type": "authenticate", "token": "t"}', messages.Authenticate(token="t")),
    ],
)
def test_each_message(text: str, expected: messages.ClientMessage) -> None:
    assert DECODER.decode(text.encode()) == expected


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ({"cache_key": "a"}, ["a"]),
        ({"cache_keys": ["a", "b"]}, ["a", "b"]),
        ({"cache_key": "a", "cache_keys": ["b"]}, ["a", "b"]),
    ],
)
def test_an_ack_of_one_key_or_of_several(fields: dict[str, object], keys: list[str]) -> None:
    message = DECODER.decode(json.dumps({"type": "cache_invalidation_ack", **fields}).encode())
    assert isinstance(message, CacheInvalidationAck)
    assert message.keys == keys


@pytest.mark.parametrize(
    ("text", "code", "ref"),
    [
        ("", "invalid_json", None),
        ("{", "invalid_json", None),
        ("nonsense", "invalid_json", None),
        ('{"type": "ping"} x', "invalid_json", None),
        ("[" * 100_000, "invalid_message", None),
        ("[]", "invalid_message", None),
        ("null", "invalid_message", None),
        ('"ping"', "invalid_message", None),
        ("{}", "invalid_message", None),
        ('{"type": 7, "ref": 3}', "invalid_message", 3),
        ('{"type": null}', "invalid_message", None),
        ('{"type": "dance", "ref": "r"}', "unknown_type", "r"),
        ('{"type": "Ping"}', "unknown_type", None),
        ('{"type": "ping", "ref": {}}', "invalid_field", None),
        ('{"type": "mark_notification_read"}', "invalid_field", None),
        ('{"type": "mark_notification_read", "notification_id": 5, "ref": 1.5}', "invalid_field", 1.5),
        ('{"type": "mark_notification_read", "notification_id": "\' or 1=1 --"}', "invalid_field", None),
        ('{"type": "subscribe"}', "invalid_field", None),
        ('{"type": "subscribe", "channels": []}', "invalid_field", None),
        ('{"type": "subscribe", "channels": "a"}', "invalid_field", None),
        ('{"type": "subscribe", "channels": [1]}', "invalid_field", None),
        ('{"type": "subscribe", "channels": [""]}', "invalid_field", None),
        ('{"type": "unsubscribe", "channels": null}', "invalid_field", None),
        ('{"type": "cache_invalidation_ack", "ref": true}', "invalid_field", True),
        ('{"type": "cache_invalidation_ack", "cache_key": 1}', "invalid_field", None),
        ('{"type": "cache_invalidation_ack", "cache_keys": "a"}', "invalid_field", None),
        ('{"type": "authenticate", "token": null}', "invalid_field", None),
    ],
)
def test_each_mistake_has_a_code_and_a_sentence(text: str, code: str, ref: object) -> None:
    with pytest.raises(messages.BadMessage) as bad:
        DECODER.decode(text.encode())
    assert (bad.value.code, bad.value.ref) == (code, ref)
    assert str(bad.value).endswith(".")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        DECODER.decode(data)
    except messages.BadMessage as bad:
        assert bad.code == "invalid_json" or data.strip()


@given(st.sampled_from(TYPES), st.dictionaries(st.text(max_size=20), json_values, max_size=5), st.data())
def test_any_fields_are_a_message_or_refused(kind: str, fields: dict[str, object], data: st.DataObject) -> None:
    for name in ("notification_id", "channels", "cache_key", "cache_keys", "token", "ref"):
        if data.draw(st.booleans()):
            fields[name] = data.draw(json_values)
    try:
        DECODER.decode(json.dumps({**fields, "type": kind}).encode())
    except messages.BadMessage as bad:
        assert bad.code == "invalid_field"


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(messages.BadMessage):
        DECODER.decode(b'{"type": "authenticate", "token": "\\ud800"}')


@given(st.floats(0, 4e9))
def test_timestamps_are_rfc_3339_in_milliseconds(now: float) -> None:
    text = messages.timestamp(now)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)


def test_a_timestamp() -> None:
    assert messages.timestamp(1_700_000_000.0629) == "2023-11-14T22:13:20.062Z"
    assert messages.timestamp(1_700_000_000.9999996) == "2023-11-14T22:13:20.999Z"


def test_an_answer_repeats_the_ref() -> None:
    assert json.loads(messages.encode("pong", 0.0, {}, "r")) == {
        "type": "pong", "ref": "r", "timestamp": "1970-01-01T00:00:00.000Z"
    }  # fmt: skip
    assert "ref" not in json.loads(messages.encode("pong", 0.0, {}))


@given(st.dictionaries(st.text(), json_values, max_size=4), st.text(min_size=1))
def test_an_event_is_spliced_into_valid_json(fields: dict[str, object], channel: str) -> None:
    for name in ("id", "previous_id", "channel"):
        fields.pop(name, None)
    body = json.dumps(fields).encode()
    data = messages.realtime_event(body, messages.DeliveryIds("e-2", "e-1", channel), 0.0)
    message = json.loads(data)
    assert message["type"] == "realtime_event"
    assert message["event"] == {**fields, "id": "e-2", "previous_id": "e-1", "channel": channel}


def test_a_cache_invalidation() -> None:
    invalidation = Event.build(
        offset=2, place=(2, 0), xid=1, committed_at=0.0, channels=("c",), body=b'{"cache_keys": ["a", "b"]}',
        per_user=frozenset({"c"}),
    )  # fmt: skip
    data = json.loads(encode_cache_invalidation(invalidation, messages.DeliveryIds("e-2", "e-1", "c"), 0.0))
    assert data.pop("timestamp")
    assert data == {"type": "cache_invalidation", "cache_keys": ["a", "b"], "id": "e-2", "previous_id": "e-1"}


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
def test_a_frame_is_what_websockets_would_write(length: int) -> None:
    payload = b"x" * length
    assert messages.frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)


def test_close_codes_are_those_of_the_contract() -> None:
    assert [close.code for close in Close] == [1001, 1009, 1012, 4400, 4401, 4403, 4409, 4410, 4413, 4429]
    assert {close.code for close in Close if close.verdict == "come_back"} == {1001, 1012, 4409, 4429}
    for close in Close:
        assert len(close.reason.encode()) <= 123
        assert (close.verdict == "come_back") == ("reconnect with your last_event_id" in close.reason)


def test_an_id_of_a_notification_is_a_uuid() -> None:
    notification = uuid4()
    text = json.dumps({"type": "mark_notification_read", "notification_id": str(notification)})
    assert DECODER.decode(text.encode()) == MarkNotificationRead(notification_id=notification)


def test_a_decoder_of_some_types_knows_these_and_names_them() -> None:
    decoder = messages.ClientMessages([messages.Ping, messages.Subscribe])
    assert decoder.decode(b'{"type": "ping", "ref": 1}') == messages.Ping(ref=1)
    with pytest.raises(messages.BadMessage, match=r"one of ping, subscribe\.") as unknown:
        decoder.decode(b'{"type": "authenticate", "token": "t", "ref": 2}')
    assert (unknown.value.code, unknown.value.ref) == ("unknown_type", 2)
    with pytest.raises(messages.BadMessage, match=r"`subscribe` .*channels") as wrong:
        decoder.decode(b'{"type": "subscribe", "channels": 7, "ref": 3}')
    assert (wrong.value.code, wrong.value.ref) == ("invalid_field", 3)


def test_a_decoder_of_server_messages_passes_over_types_of_newer_servers() -> None:
    decoder = from_server.ServerMessages([from_server.Pong, from_server.Error])
    pong = decoder.decode('{"type": "pong", "timestamp": "t", "ref": 1, "more": 2}')
    assert pong == from_server.Pong(timestamp="t", ref=1)
    assert decoder.decode(b'{"type": "of_tomorrow"}') is None
    for wrong in ('{"type": "pong"}', '{"type": "error", "timestamp": "t"}', "{}", '{"type": 7}', "[]", "nonsense"):
        with pytest.raises(ValueError, match=r".+"):
            decoder.decode(wrong)


def test_the_messages_of_a_module_are_those_that_it_declares_with_a_type() -> None:
    found = messages.declared_in("momentum_sync.wire.messages", messages.ClientMessage)
    assert found == [messages.Ping, messages.Subscribe, messages.Unsubscribe, messages.Authenticate]
    assert [messages.tag_of(each) for each in found] == ["ping", "subscribe", "unsubscribe", "authenticate"]
    imported = messages.declared_in("momentum_sync.domain.messages", messages.ClientMessage)
    assert RequestMomentumUpdate in imported
    assert messages.Ping not in imported


def test_an_error_has_its_parts() -> None:
    assert json.loads(messages.error("forbidden", "No.", 1.5, "r", refused=["a"])) == {
        "type": "error", "code": "forbidden", "error": "No.", "refused": ["a"], "ref": "r",
        "timestamp": "1970-01-01T00:00:01.500Z",
    }  # fmt: skip
    assert "ref" not in json.loads(messages.error("forbidden", "No.", 1.5))


@pytest.mark.parametrize("length", [0, 125, 126, 65535, 65536])
def test_the_length_of_a_frame(length: int) -> None:
    payload = b"x" * length
    assert messages.frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)


def test_an_event_gets_its_ids() -> None:
    ids = messages.DeliveryIds("e-2", "e-1", 'c"')
    assert json.loads(messages.event_object(b"{}", ids)) == {"id": "e-2", "previous_id": "e-1", "channel": 'c"'}
    whole = json.loads(messages.realtime_event(b'{"a":1}', ids, 2.0))
    assert whole == {
        "type": "realtime_event", "event": {"a": 1, "id": "e-2", "previous_id": "e-1", "channel": 'c"'},
        "timestamp": "1970-01-01T00:00:02.000Z",
    }  # fmt: skip


def test_the_format_of_a_time() -> None:
    assert messages.timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert messages.timestamp(1_800_000_000.0625) == "2027-01-15T08:00:00.062Z"

"""Positions and events: opaque to clients, exact for the server, parsed with care."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.database.visibility import Snapshot
from momentum_sync.domain.tables import SCHEMA
from momentum_sync.eventlog.envelope import (
    MAX_CHANNELS,
    MAX_DEPTH,
    MAX_EVENT,
    MAX_NAME,
    MAX_ROWS,
    Malformed,
    is_deeper,
    open_envelope,
)
from momentum_sync.eventlog.event import Event, is_row_channel, key_of, relation_of, row_channel, topic_channel
from momentum_sync.eventlog.position import Position, SnapshotBoundary
from momentum_sync.eventlog.resume import ResumeRefused, check_position, parse_position

snapshots = st.builds(
    lambda xmin, more, xids: Snapshot(xmin, xmin + more, frozenset(xmin + x for x in xids if x < more)),
    st.integers(1, 2**62),
    st.integers(0, 1000),
    st.sets(st.integers(0, 1000), max_size=5),
)
ids = st.builds(
    Position,
    st.text("0123456789abcdef", min_size=8, max_size=8),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**32 - 1),
    st.none() | st.builds(SnapshotBoundary, snapshots, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
)


@given(ids)
def test_an_id_comes_back_as_it_went(event_id: Position) -> None:
    text = str(event_id)
    assert Position.parse(text) == event_id
    assert all(character.isalnum() or character in "-._" for character in text)


@given(st.text())
def test_any_text_is_an_id_or_refused(text: str) -> None:
    try:
        Position.parse(text)
    except ValueError:
        assert reason(text, "00000000") == "unknown_id"


def reason(text: str, epoch: str, offset: int = 100) -> str | None:
    try:
        check_position(parse_position(text), Position(epoch, offset, 0), incarnation=10)
    except ResumeRefused as refused:
        return refused.reason
    return None


def test_why_there_is_no_resume() -> None:
    assert reason("1234abcd-7-1f", "1234abcd") is None
    assert reason("1234abcd-100-0", "1234abcd") is None
    assert reason("1234abcd-7-1f.5.9.6_8.0_1A.a", "1234abcd") is None
    assert reason("1234abcd-7-1f.5.9.6_8.0_1A.b", "1234abcd") == "history_changed", "another run of PostgreSQL"
    assert reason("1234abcd-7-1f", "00000000") == "history_changed"


@pytest.mark.parametrize(
    "text",
    [
        "'; drop table x",
        "1234abcd-101-1f",  # never sent
        "1234abcd-07-1f",
        "1234abcd-7",
        "1234abcd-7-01f",
        "1234abcd-7-1f.5.9.8_6.0_1A.a",
        "1234abcd-7-1f.5.9.9.0_1A.a",  # in progress, and above the snapshot
        "1234abcd-7-1f.9.5..0_1A.a",
        "1234abcd-7-1f.0.5..0_1A.a",
        "1234abcd-7-1f.5.99999999999999999999..0_1A.a",
    ],
)
def test_an_id_that_was_never_given_out(text: str) -> None:
    assert reason(text, "1234abcd") == "unknown_id"


def test_an_invalidation_goes_to_its_user_alone() -> None:
    event = Event.build(
        offset=1, place=(1, 0), xid=1, committed_at=0.0, channels=("cache_invalidation", "x:1"),
        body=b'{"event_type": "cache_invalidation", "user_id": "u", "cache_keys": ["k"]}',
        per_user=SCHEMA.per_user_channels,
    )  # fmt: skip
    assert event.keys == ("cache_invalidation:u", "x:1")
    assert event.cache_keys == ("k",)
    assert key_of("cache_invalidation", "u", SCHEMA.per_user_channels) in event.keys


def test_a_body_that_is_no_event() -> None:
    with pytest.raises(Malformed):
        Event.build(offset=1, place=(1, 0), xid=1, committed_at=0.0, channels=("c",), body=b"[]")


@pytest.mark.parametrize(
    ("event_type", "table"),
    [
        ("momentum_score_deleted", "daily_engagement_scores"),
        ("cache_invalidation", "daily_engagement_scores"),
        ("intervention_created", "coach_interventions"),
        ("push_notification", "momentum_notifications"),
        ("intervention_note_added", None),
    ],
)
def test_an_event_type_names_its_table(event_type: str, table: str | None) -> None:
    found = SCHEMA.table_of(event_type)
    assert (None if found is None else found.name) == table


def test_a_row_that_is_gone_comes_in_the_envelope() -> None:
    assert open_envelope(b'{"channels": ["a"], "event": {}, "rows": {"user_id": "u"}}').rows == b'{"user_id": "u"}'
    assert open_envelope(b'{"channels": ["a"], "event": {}}').rows is None
    for wrong in (b"7", b"null", b'"x"', b"[]"):
        with pytest.raises(Malformed):
            open_envelope(b'{"channels": ["a"], "event": {}, "rows": %s}' % wrong)


@pytest.mark.parametrize(
    ("text", "levels", "deeper"),
    [
        (b"[" * 5 + b"]" * 5, 5, False), (b"[" * 6 + b"]" * 6, 5, True), (b"[]" * 50, 5, False),
        (b'"' + b"[" * 50 + b'"', 5, False), (b'{"a\\"[[[[[[[[": ' + b"[1]" + b"}", 5, False),
        (b'["\\\\", ' + b"[" * 5 + b"]" * 6, 5, True), (b"[" * 1_000_000, 5, True),
        (b"[" * 5 + b"]" * 5 + b"[]", 5, False), (b"[]" + b"[" * 5 + b"]" * 5, 5, False),
        (b"[[]" + b"[" * 5 + b"]" * 6, 5, True), (b"[{" * 3 + b"}]" * 3, 5, True),
    ],
)  # fmt: skip
def test_depth_counts_brackets_outside_of_strings(text: bytes, levels: int, deeper: bool) -> None:
    assert is_deeper(text, levels) is deeper


def test_what_was_logged_is_never_refused() -> None:
    for body in (b"[]", b'{"event_type": ' + b"[" * 5000 + b"]" * 5000 + b"}", b"\xff"):
        event = Event.build(
            offset=1, place=(1, 0), xid=1, committed_at=0.0, channels=("c",), body=body, logged=True
        )  # fmt: skip
        assert (event.event_type, event.user_id, event.body) == ("", None, body)


@pytest.mark.parametrize("empty", [b"{}", b"{ }", b"{\n\t}"])
def test_an_object_without_fields_has_one_form(empty: bytes) -> None:
    assert open_envelope(b'{"channels": ["a"], "event": %b}' % empty).body == b"{}"


def test_a_channel_counts_once() -> None:
    assert open_envelope(b'{"channels": ["a", "b", "a"], "event": {}}').channels == ("a", "b")


def test_only_an_invalidation_has_cache_keys_and_it_has_all_of_them() -> None:
    body = json.dumps({"event_type": "x", "cache_keys": [str(offset) for offset in range(5_000)]}).encode()
    made = [
        Event.build(
            offset=1,
            place=(1, 0),
            xid=1,
            committed_at=0.0,
            channels=(channel,),
            body=body,
            per_user=SCHEMA.per_user_channels,
        )
        for channel in ("c", "cache_invalidation")
    ]
    assert [len(event.cache_keys) for event in made] == [0, 5_000]


def test_an_event_has_the_parts_that_it_was_built_from() -> None:
    body = b'{"event_type": "x", "user_id": "u", "cache_keys": ["k"], "out_of_sight": true}'
    event = Event.build(
        offset=7, place=(30, 2), xid=9, committed_at=1.5, channels=("a", "b"), body=body, rows=b'{"was": {}}'
    )  # fmt: skip
    assert (event.offset, event.commit_lsn, event.commit_index, event.xid, event.committed_at) == (7, 30, 2, 9, 1.5)
    assert (event.channels, event.keys, event.body, event.rows) == (("a", "b"), ("a", "b"), body, b'{"was": {}}')
    assert (event.event_type, event.user_id, event.cache_keys) == ("x", "u", ())
    assert (event.out_of_sight, event.places) == (True, None)


def built(body: object, channels: tuple[str, ...] = ("c",), rows: bytes | None = None) -> Event:
    return Event.build(
        offset=1, place=(1, 0), xid=1, committed_at=0.0, channels=channels, body=json.dumps(body).encode(), rows=rows,
        per_user=SCHEMA.per_user_channels,
    )  # fmt: skip


def test_fields_of_other_types_are_left_aside() -> None:
    event = built({"event_type": 7, "user_id": 7, "out_of_sight": 1})
    assert (event.event_type, event.user_id, event.out_of_sight) == ("", None, False)
    assert built({"user_id": "u" * MAX_NAME}).user_id == "u" * MAX_NAME
    assert built({"user_id": "u" * (MAX_NAME + 1)}).user_id is None
    assert built({"cache_keys": ["a", 7, "b"]}, ("cache_invalidation",)).cache_keys == ("a", "b")
    assert built({"cache_keys": "abc"}, ("cache_invalidation",)).cache_keys == ()


def test_the_size_grows_with_each_part() -> None:
    plain = built({"a": "b"})
    assert plain.size >= len(plain.body) + 500
    assert built({"a": "bcd"}).size == plain.size + 2
    assert built({"a": "b"}, ("c", "de")).size == plain.size + 2
    assert built({"a": "b"}, rows=b"{}").size == plain.size + 2


def test_places_of_many_channels_are_indexed() -> None:
    assert built({}, tuple("abcdefgh")).places is None
    assert built({}, tuple("abcdefghi")).places == {name: place for place, name in enumerate("abcdefghi")}


def content(*, channels: object = ("a",), event: object = None) -> bytes:
    return json.dumps({"channels": channels, "event": event or {}}).encode()


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("at_the_limit", "beyond"),
    [
        (content() + b" " * (MAX_EVENT + MAX_ROWS - len(content())), b" "),
        (content(event={"a": nested(MAX_DEPTH)}), None),
        (content(channels=[str(number) for number in range(MAX_CHANNELS)]), None),
        (content(channels=["\N{SNOWMAN}" * MAX_NAME]), None),
    ],
    ids=["bytes", "depth", "channels", "name"],
)
def test_an_envelope_is_taken_up_to_each_limit(at_the_limit: bytes, beyond: bytes | None) -> None:
    open_envelope(at_the_limit)
    if beyond is not None:
        with pytest.raises(Malformed, match="83886081 bytes"):
            open_envelope(at_the_limit + beyond)


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (content(event={"a": nested(MAX_DEPTH + 1)}), "256 levels"),
        (content(channels=[str(number) for number in range(MAX_CHANNELS + 1)]), "10001 channels"),
        (content(channels=["a" * (MAX_NAME + 1)]), "channel name"),
        (content(channels=[]), "no channel"),
        (content(channels=["momentum:rows:1"]), "only changes of rows"),
        (content(channels=["a", "momentum:rows:1"]), "only changes of rows"),
        (content(event={"a": "\0"}), r"U\+0000"),
        (content(event=[1]), "not an object"),
        (b'{"channels": ["a"], "event": {}, "rows": []}', "rows are not an object"),
        (b"{}", "missing required field `channels`"),
    ],
)
def test_a_refusal_says_why(refused: bytes, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        open_envelope(refused)


def test_a_backslash_before_u0000_is_text() -> None:
    assert open_envelope(content(event={"a": "\\u0000"})).body == b'{"a": "\\\\u0000"}'


def test_channels_of_rows_and_of_topics() -> None:
    assert row_channel(16_384) == "momentum:rows:16384"
    assert is_row_channel("momentum:rows:16384")
    assert not is_row_channel("topic:momentum:rows:1")
    assert relation_of(built({}, (row_channel(16_384), "c"))) == 16_384
    assert relation_of(built({}, ("c", row_channel(16_384)))) is None
    assert relation_of(built({}, ())) is None
    assert topic_channel("room", is_private=True) == "topic:room"
    assert topic_channel("room", is_private=False) == "public_topic:room"


def test_cache_keys_count_with_their_objects() -> None:
    channels = (f"cache_invalidation:{uuid4()}", next(iter(SCHEMA.per_user_channels)))
    plain = built({"user_id": "u", "cache_keys": []}, channels)
    more = built({"user_id": "u", "cache_keys": ["a", "bcd"]}, channels)
    assert more.cache_keys == ("a", "bcd")
    assert more.size - plain.size == len(more.body) - len(plain.body) + 4 + 2 * 57

"""A cursor, with literals: which events it delivers, under which ids, and which need the database."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.position import Position, SnapshotBoundary
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.identity.channels import Granted
from momentum_sync.wire.messages import DeliveryIds

PER_USER = frozenset({"keys"})
SEEN = SnapshotBoundary(Snapshot.parse("10:20:12"), 500, 1)


def cursor(*channels: str, checked: frozenset[str] = frozenset(), boundary: SnapshotBoundary | None = SEEN) -> Cursor:
    made = Cursor("u", PER_USER)
    made.subscribe(Granted(list(channels), checked))
    made.begin(Position("abcdef01", 7, 7, boundary))
    return made


def event(offset: int, *channels: str, xid: int = 30, user: str = "u") -> Event:
    body = json.dumps({"event_type": "x", "user_id": user}).encode()
    return Event.build(
        offset=offset, place=(offset, 0), xid=xid, committed_at=0.0, channels=channels, body=body, per_user=PER_USER
    )


def test_it_begins_at_a_position() -> None:
    made = cursor("a")
    assert (made.epoch, made.offset, made.boundary) == ("abcdef01", 7, SEEN)
    assert Position.parse(made.last_id) == Position("abcdef01", 7, 7, SEEN)


def test_ids_carry_the_boundary_until_the_stream_has_passed_it() -> None:
    made = cursor("a")
    assert made.deliver(event(8, "a", xid=11)) is None, "it is in the snapshot"
    first, second = made.deliver(event(9, "a", xid=12)), made.deliver(event(10, "a", xid=25))
    assert first is not None
    assert second is not None
    assert Position.parse(first.event_id) == Position("abcdef01", 9, 9, SEEN)
    assert (second.previous_id, made.last_id) == (first.event_id, second.event_id)
    made.advanced(499)
    assert made.boundary is SEEN
    made.advanced(500)
    third = made.deliver(event(11, "a", xid=11))
    assert third is not None
    assert (third.event_id, third.previous_id) == ("abcdef01-11-b", second.event_id)


def reached(made: Cursor, offset: int) -> Position | None:
    made.rewind(offset)
    return made.delivered


def test_what_was_delivered_counts_unless_the_cursor_went_back_before_it() -> None:
    made = cursor("a")
    assert reached(made, 7) == Position("abcdef01", 7, 7)
    made.deliver(event(9, "a"))
    assert reached(made, 7) is None  # the page with it is not written yet
    assert reached(made, 12) == Position("abcdef01", 9, 9)
    assert reached(made, 9) == Position("abcdef01", 9, 9)
    assert reached(made, 8) is None  # it went back for a topic that goes on from an earlier position
    made.epoch = "abcdef02"
    assert reached(made, 20) is None
    assert Cursor(None, frozenset()).delivered is None


def test_an_event_on_other_channels_is_not_delivered() -> None:
    made = cursor("a")
    before = made.last_id
    assert made.deliver(event(8, "b")) is None
    assert made.last_id == before


def test_a_channel_that_is_delivered_per_user_delivers_only_the_users_events() -> None:
    made = cursor("keys", boundary=None)
    assert made.deliver(event(8, "keys", user="other")) is None
    assert made.deliver(event(9, "keys")) is not None


def test_the_channel_of_an_event_is_its_first_that_is_subscribed_to() -> None:
    many = [f"c{number}" for number in range(100)]
    few = cursor("c70", "c30", "elsewhere")
    assert few.channel_of(event(8, *many)) == "c30"
    assert cursor("elsewhere").channel_of(event(8, *many)) is None
    assert cursor("b", "a").channel_of(event(8, "a", "b")) == "a"


def test_only_events_on_checked_channels_need_the_database() -> None:
    made = cursor("a", "shared", checked=frozenset({"shared"}))
    assert not made.must_check(event(8, "a"))
    on_checked = event(9, "shared")
    assert made.must_check(on_checked)
    assert not made.must_check(replace(on_checked, xid=1)), "it is in the snapshot"
    made.subscribe(Granted(["shared"]))
    assert not made.must_check(on_checked)


def test_a_row_out_of_sight_is_reported_only_on_checked_channels() -> None:
    gone = replace(event(8, "shared"), out_of_sight=True)
    assert cursor("shared").channel_of(gone) is None
    assert cursor("shared", checked=frozenset({"shared"})).channel_of(gone) == "shared"


def test_a_review_removes_what_is_no_longer_granted() -> None:
    made = cursor("a", "b", "c")
    assert made.review(["a", "b", "never had"], Granted(["a"], frozenset({"a"}))) == ["b"]
    assert (list(made.channels), made.checked) == (["a", "c"], {"a"})
    assert made.review(["a"], Granted(["a"])) == []
    assert made.checked == set()
    made.unsubscribe(["a", "never had"])
    assert list(made.channels) == ["c"]


def test_a_subscription_that_is_granted_again_keeps_its_place() -> None:
    made = cursor("a", "b")
    made.subscribe(Granted(["a"]))
    assert list(made.channels) == ["a", "b"]


@pytest.mark.parametrize(("most", "exceeds"), [(3, False), (2, True)])
def test_subscriptions_are_counted_once(most: int, exceeds: bool) -> None:
    assert cursor("a", "b").exceeds(["b", "c"], most) is exceeds


def test_a_quiet_subscriber_resumes_from_where_the_feed_is() -> None:
    made = cursor("a")
    assert made.resume_from(None) == made.last_id
    assert Position.parse(made.resume_from(Position("abcdef01", 50, 7))) == Position("abcdef01", 50, 7, SEEN)
    made.advanced(500)
    assert made.resume_from(Position("abcdef01", 50, 7)) == "abcdef01-50-7"
    assert made.resume_from(Position("00000002", 50, 7)) == made.last_id, "another epoch"


def test_rewinding_records_the_offset_alone() -> None:
    made = cursor("a")
    before = made.last_id
    made.rewind(42)
    assert (made.offset, made.last_id) == (42, before)


def test_a_cursor_is_at_no_position_before_it_begins() -> None:
    made = Cursor("u", PER_USER)
    assert (made.epoch, made.offset, made.last_id, made.boundary) == ("", 0, "", None)
    assert (made.channels, made.checked) == ({}, set())


def test_ids_name_the_channel_they_were_delivered_on() -> None:
    ids = cursor("b", "c", boundary=None).deliver(event(8, "a", "b", "c"))
    assert ids == DeliveryIds("abcdef01-8-8", "abcdef01-7-7", "b")


def test_an_unsubscribed_channel_is_checked_no_longer() -> None:
    made = cursor("a", "b", checked=frozenset({"a", "b"}))
    made.unsubscribe(["a"])
    assert made.checked == {"b"}


def test_a_cursor_wants_what_is_on_its_channels_and_not_in_its_snapshot() -> None:
    made = cursor("a")
    wanted = [made.wants(each) for each in (event(8, "a"), event(8, "b"), event(8, "a", xid=11), event(8, "b", xid=11))]
    assert wanted == [True, False, False, False]

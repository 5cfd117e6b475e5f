"""One event to all subscribers of its channels: encoded once, written once, in a verifiable chain."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import pytest

from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event, row_channel
from momentum_sync.eventlog.feed import Beginning, HistoryForked, LocalFeed
from momentum_sync.eventlog.position import Position, SnapshotBoundary
from momentum_sync.eventlog.row_index import Route
from momentum_sync.eventlog.window import Window
from momentum_sync.gateway.cursor import Cursor, Slot
from momentum_sync.gateway.dialects.native import NativeDialect
from momentum_sync.gateway.direct_files import DirectFile, DirectFiles
from momentum_sync.gateway.fan_out import FanOut
from momentum_sync.gateway.hub import Hub
from momentum_sync.gateway.subscriber import Dialect, Owner
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.limits import DeliveryLimits
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds

PER_USER = frozenset({"cache_invalidation"})


class Counting(NativeDialect):
    """The native dialect, with a count of encodings, which can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[str] = []
        self.fails_at = 0

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        self.encoded.append(ids.event_id)
        if len(self.encoded) == self.fails_at:
            raise ZeroDivisionError
        return super().encode(event, ids, now)


class Wire:
    """A subscriber that records the bytes written to it."""

    room = 1_000_000
    hashed = 0

    def __hash__(self) -> int:
        Wire.hashed += 1
        return id(self)

    def __init__(self, user: UUID, client_id: str, dialect: Dialect, file: DirectFile) -> None:
        self.identity = Identity("authenticated", user, "{}", None)
        self.client_id = client_id
        self.sdk = "other"
        self.cursor = Cursor(str(user), PER_USER)
        self.dialect = dialect
        self.file = file
        self.follows = False
        self.closing: Close | None = None
        self.data: list[bytes | memoryview] = []
        self.write: Callable[[bytes | memoryview], None] = self.data.append
        self.acks: list[str] = []
        self.held_back: list[tuple[int, bool]] = []
        self.began_at = ""
        self.concern = "policies_changed"

    @property
    def owner(self) -> Owner:
        return Owner("authenticated", self.identity.subject, self.identity.subject)

    def is_of(self, user: UUID) -> bool:
        return self.identity.subject == user

    def reviews(self, what: str) -> bool:
        return what == self.concern and self.identity.role != "service_role"

    def has_room(self, size: int) -> bool:
        return size <= self.room

    def hold_back(self, offset: int, *, review: bool = False) -> None:
        self.held_back.append((offset, review))

    def expect_acks(self, cache_keys: Iterable[str]) -> None:
        self.acks += cache_keys

    def close(self, why: Close) -> None:
        self.closing = self.closing or why

    def taken(self) -> list[dict[str, Any]]:
        """Return the messages so far, however many were written at once."""
        messages = []
        for data in map(bytes, self.data):
            while data:
                text, data = payload(data)
                messages.append(json.loads(text))
        self.data.clear()
        return messages


def payload(data: bytes) -> tuple[bytes, bytes]:
    """Return the content of the first frame, and the data after it."""
    begins, length = 2, data[1]
    if length > 125:
        begins = 4 if length == 126 else 10
        length = int.from_bytes(data[2:begins], "big")
    return data[begins : begins + length], data[begins + length :]


class World:
    """A feed and a hub."""

    def __init__(
        self, *, limit: int = 100, per_user: int = 100, coalesced: int = 16 * 1024, large: int = 64 * 1024
    ) -> None:
        self.feed = LocalFeed(Window(1_000_000))
        self.dialect = Counting()
        self.files = DirectFiles(os.write)
        self.changed_by: list[tuple[int, UUID | str | None]] = []
        self.missed: list[str] = []
        self.delivered: list[tuple[str, int, int, float | None]] = []
        self.hub = Hub(
            self.feed, limit=limit, limit_per_user=per_user, clock=lambda: 0.0,
            grants_changed=lambda *change: self.changed_by.append(change),
            row_rights_changed=lambda xid: self.changed_by.append((xid, "rows")),
            grants_missed=lambda: self.missed.append(self.feed.epoch),
            delivered=self.note, files=self.files, limits=DeliveryLimits(coalesced_bytes=coalesced, large_bytes=large),
        )  # fmt: skip
        self.broken: list[bool] = []
        self.feed.begin(Beginning("abcdef01", 0, 0, 100, 9, 1))

    def note(self, fan_outs: Sequence[FanOut]) -> None:
        self.delivered += [(each.event.event_type, each.frames, each.size, each.delay) for each in fan_outs]
        self.broken += [each.broken is not None for each in fan_outs]

    def wire(self, user: UUID, client_id: str) -> Wire:
        return Wire(user, client_id, self.dialect, self.files.add())

    def join(
        self,
        *channels: str,
        checked: tuple[str, ...] = (),
        boundary: SnapshotBoundary | None = None,
        client_id: str | None = None,
        user: UUID | None = None,
    ) -> Wire:
        wire = self.wire(user or uuid4(), client_id or str(uuid4()))
        assert self.hub.admit(wire)
        boundary = boundary or SnapshotBoundary(Snapshot.parse("10:10:"), 0, 0)
        keys = list(channels)
        first = self.feed.window.first_unseen(boundary.snapshot, keys)
        offset = self.feed.offset if first is None else first - 1
        wire.cursor.subscribe(Granted(keys, frozenset(checked)))
        wire.cursor.begin(Position("abcdef01", offset, self.feed.mark_of(offset) or 0, boundary))
        wire.began_at = wire.cursor.last_id
        for event in self.feed.window.after(offset, keys, most=1_000_000).events:
            if (ids := wire.cursor.deliver(event)) is not None:
                wire.write(self.dialect.encode(event, ids, 0.0))
        wire.follows = True
        self.hub.update(wire)
        self.dialect.encoded.clear()
        return wire

    def publish(self, *channels: str, xid: int = 50, body: bytes = b'{"event_type":"x"}') -> Event:
        (event,) = self.publish_together(channels, xid=xid, body=body)
        return event

    def publish_together(
        self, *each: tuple[str, ...], xid: int = 50, body: bytes = b'{"event_type":"x"}'
    ) -> list[Event]:
        """Publish events on these channels as one batch."""
        first = self.feed.offset + 1
        events = [
            Event.build(
                offset=offset, place=(200 + offset, 0), xid=xid, committed_at=0.0, channels=channels,
                body=body, per_user=PER_USER,
            )
            for offset, channels in enumerate(each, first)
        ]  # fmt: skip
        self.feed.publish(events)
        return events


def ids(messages: list[dict[str, Any]]) -> list[str]:
    """Return epoch and offset of each event."""
    return [shortened(event_id) for event_id in whole_ids(messages)]


def whole_ids(messages: list[dict[str, Any]]) -> list[str]:
    return [message["event"]["id"] for message in messages if message["type"] == "realtime_event"]


def shortened(event_id: str) -> str:
    """Return an id without the mark."""
    return "-".join(event_id.split("-")[:2])


class Together(Counting):
    """A dialect with frames that do not depend on the event before."""

    together: int | None = 0


def together(world: World, count: int, *channels: str) -> list[Wire]:
    """Subscribe wires that share every frame."""
    dialect = Together()
    wires = [world.join(*channels) for _ in range(count)]
    for wire in wires:
        wire.taken()
        wire.dialect = dialect
        world.hub.update(wire)
    return wires


def test_an_event_reaches_its_holders_and_nobody_else() -> None:
    world = World()
    one, two, three = world.join("a"), world.join("a", "b"), world.join("c")
    for wire in (one, two, three):
        wire.taken()
    world.publish("a")
    assert ids(one.taken()) == ids(two.taken()) == ["abcdef01-1"]
    assert three.taken() == []


def test_each_event_is_told_of_once_with_the_frames_it_made() -> None:
    world = World()
    wires = [world.join("a"), world.join("a"), world.join("b")]
    for wire in wires:
        wire.data.clear()
    world.publish("a")
    world.publish("nobody's")
    assert world.delivered == [("x", 2, sum(len(wire.data[0]) for wire in wires[:2]), 0.0), ("x", 0, 0, None)]


def test_an_event_on_two_channels_held_comes_once_under_the_first() -> None:
    world = World()
    wire = world.join("b", "a")
    wire.taken()
    world.publish("a", "b")
    (message,) = wire.taken()
    assert message["event"]["channel"] == "a"


def test_an_event_that_must_be_asked_about_is_held_back_for_those_who_ask() -> None:
    world = World()
    asking, holding = world.join("a", checked=("a",)), world.join("a")
    asking.taken()
    holding.taken()
    world.publish("a")
    assert asking.taken() == []
    assert asking.held_back == [(0, False)]
    assert ids(holding.taken()) == ["abcdef01-1"]


def test_changed_policies_have_everybody_reviewed_before_anything_more_is_sent() -> None:
    world = World()
    wires = [world.join("a"), world.join("b")]
    world.publish("a")
    world.publish("momentum:control", xid=77, body=b'{"event_type":"policies_changed"}')
    assert world.changed_by == [(77, None)]
    assert [wire.held_back for wire in wires] == [[(2, True)], [(2, True)]]


def test_a_revoked_user_is_closed_and_nobody_else() -> None:
    world = World()
    user = uuid4()
    mine, other, theirs = world.join("a", user=user), world.join("b", user=user), world.join("a")
    world.publish("momentum:control", body=json.dumps({"event_type": "revoked", "user_id": str(user)}).encode())
    assert [wire.closing for wire in (mine, other, theirs)] == [Close.TOKEN, Close.TOKEN, None]
    assert world.changed_by == [(50, user)]


@pytest.mark.parametrize(
    "body", [b"{}", b'{"event_type":"else"}', b'{"event_type":"revoked"}', b'{"event_type":"revoked","user_id":7}']
)
def test_control_that_says_nothing_we_know_changes_nothing(body: bytes) -> None:
    world = World()
    wire = world.join("a")
    world.publish("momentum:control", body=body)
    assert (wire.closing, wire.held_back) == (None, [])


def test_each_connection_can_prove_that_it_missed_nothing() -> None:
    world = World()
    one, two = world.join("a"), world.join("a", "b")
    for channels in (("a",), ("b",), ("a",)):
        world.publish(*channels)
    for wire, expected in ((one, ["abcdef01-1", "abcdef01-3"]), (two, ["abcdef01-1", "abcdef01-2", "abcdef01-3"])):
        events = wire.taken()
        assert ids(events) == expected
        chain = [wire.began_at, *whole_ids(events)]
        assert [message["event"]["previous_id"] for message in events] == chain[:-1]


def test_a_frame_is_encoded_once_for_all_subscribers_at_the_same_position() -> None:
    world = World()
    wires = [world.join("a") for _ in range(50)]
    world.publish("a")
    world.publish("a")
    assert [shortened(event_id) for event_id in world.dialect.encoded] == ["abcdef01-1", "abcdef01-2"]
    assert {id(wire.data[-1]) for wire in wires} == {id(wires[0].data[-1])}


def test_subscribers_of_another_dialect_get_frames_of_their_own() -> None:
    world = World()
    native, other = world.join("a"), world.join("a")
    other.dialect = Counting()
    world.publish("a")
    assert [len(wire.taken()) for wire in (native, other)] == [1, 1]
    assert (len(world.dialect.encoded), len(other.dialect.encoded)) == (1, 1)


def test_who_leaves_or_unsubscribes_gets_no_more() -> None:
    world = World()
    gone, less, stays = world.join("a"), world.join("a", "b"), world.join("a")
    for wire in (gone, less, stays):
        wire.taken()
    world.hub.leave(gone)
    world.hub.leave(gone)
    less.cursor.unsubscribe(["a"])
    world.hub.update(less)
    world.publish("a")
    assert (gone.taken(), less.taken(), len(stays.taken())) == ([], [], 1)
    assert (len(world.hub), world.hub.subscriptions) == (2, 2)
    world.hub.leave(less)
    world.hub.leave(stays)
    assert world.hub.channels == 0
    assert (world.hub._by_owner, world.hub._by_client) == ({}, {})


def test_a_second_connection_of_the_same_client_replaces_the_first() -> None:
    world = World(per_user=1)
    user = uuid4()
    first = world.join("a", client_id="phone", user=user)
    second = world.join("a", client_id="phone", user=user)
    assert first.closing is Close.REPLACED
    first.taken()
    second.taken()
    world.publish("a")
    assert (len(first.taken()), len(second.taken())) == (0, 1)
    world.join("a", client_id="phone", user=uuid4())
    assert second.closing is None


def test_connections_are_limited_over_all_and_for_each_user() -> None:
    world = World(limit=3, per_user=2)
    user = uuid4()
    world.join(user=user)
    world.join(user=user)
    assert not world.hub.admit(world.wire(user, "third"))
    world.join()
    assert not world.hub.admit(world.wire(uuid4(), "fourth"))


@pytest.mark.parametrize("joins_at", range(4))
def test_the_stitch_is_exact_wherever_the_snapshot_falls(joins_at: int) -> None:
    """The snapshot sees transactions 10 and 12, not 11 and 13; they are published in the order 11, 12, 10, 13."""
    world = World()
    boundary = SnapshotBoundary(Snapshot.parse("11:13:11"), 1000, 0)
    wire = None
    for at, xid in enumerate([11, 12, 10, 13]):
        if at == joins_at:
            wire = world.join("a", boundary=boundary)
        world.publish("a", xid=xid)
    assert wire is not None
    world.feed.advance(1000)
    world.publish("a", xid=12)
    events = wire.taken()
    offsets = [Position.parse(event_id).offset for event_id in whole_ids(events)]
    assert offsets == [1, 4, 5]
    assert Position.parse(wire.began_at).offset < 1 or joins_at == 0
    assert [message["event"]["previous_id"] for message in events] == [
        wire.began_at, *whole_ids(events)[:-1]
    ]  # fmt: skip


def test_a_stitch_ends_when_the_stream_has_passed_the_snapshot() -> None:
    world = World()
    wire = world.join("a", boundary=SnapshotBoundary(Snapshot.parse("11:13:11"), 300, 0))
    stitching = [list(world.hub._with_boundary)]
    for position in (299, 300):
        world.feed.advance(position)
        stitching.append(list(world.hub._with_boundary))
    assert stitching == [[wire], [wire], []]
    assert wire.cursor.boundary is None


def test_when_history_changes_everyone_begins_again() -> None:
    world = World()
    wire = world.join("a")
    world.feed.begin(Beginning("abcdef01", 0, 0, 400, 9, 1))
    assert (wire.closing, world.missed) == (None, [])
    world.feed.begin(Beginning("00000002", 5, 0, 500, 9, 1))
    assert (wire.closing, world.missed) == (Close.RESTART, ["00000002"])


def test_a_gap_in_the_feed_is_a_changed_history() -> None:
    world = World()
    wire = world.join("a")
    world.publish("a")
    world.feed.begin(Beginning("abcdef01", 3, 0, 500, 60, 1))
    assert wire.closing is Close.RESTART


def test_what_capture_repeats_is_published_once() -> None:
    world = World()
    wire = world.join("a")
    wire.taken()
    event = world.publish("a")
    world.feed.begin(Beginning("abcdef01", 0, 0, 100, 9, 1))
    world.feed.publish([event])
    assert len(wire.taken()) == 1
    assert len(world.feed.window) == 1


def test_a_subscriber_of_several_channels_gets_an_event_once_on_the_first() -> None:
    world = World()
    both, second = world.join("a", "b"), world.join("b")
    asked = world.join("a", "b", checked=("c",))
    for wire in (both, second, asked):
        wire.taken()
    event = world.publish("a", "b")
    channels = [[message["event"]["channel"] for message in wire.taken()] for wire in (both, second, asked)]
    assert channels == [["a"], ["b"], ["a"]]
    assert world.delivered[-1][1] == 3
    assert {wire.cursor.last_id.rpartition("-")[0] for wire in (both, second, asked)} == {f"abcdef01-{event.offset}"}


def test_a_channel_that_is_named_like_the_key_of_an_invalidation_is_not_mistaken_for_it() -> None:
    world = World()
    user = uuid4()
    named = f"cache_invalidation:{user}"
    own, operator = world.join("cache_invalidation", user=user), world.join(named, user=user)
    for wire in (own, operator):
        wire.taken()
    world.publish(named)
    assert (len(own.taken()), len(operator.taken())) == (0, 1)
    world.publish("cache_invalidation", body=b'{"event_type":"cache_invalidation","user_id":"%b"}' % str(user).encode())
    assert (len(own.taken()), len(operator.taken())) == (1, 0)


def test_what_a_connection_holds_may_change_from_plain_to_asked_and_back() -> None:
    world = World()
    wire = world.join("a")
    wire.taken()
    wire.cursor.subscribe(Granted(["a"], frozenset({"a"})))
    world.hub.update(wire)
    event = world.publish("a")
    assert (wire.taken(), wire.held_back) == ([], [(event.offset - 1, False)])
    wire.cursor.review(["a"], Granted(["a"]))
    world.hub.update(wire)
    world.publish("a")
    assert len(wire.taken()) == 1


def test_a_frame_that_could_not_be_encoded_for_one_is_encoded_for_the_next() -> None:
    world = World()
    first, second, third = world.join("a"), world.join("a"), world.join("a")
    world.publish("a")
    for wire in (first, second, third):
        wire.taken()
    world.dialect.encoded.clear()
    world.dialect.fails_at = 1
    with pytest.raises(ZeroDivisionError):
        world.publish("a")
    assert first.closing is Close.RESTART
    assert [len(wire.taken()) for wire in (first, second, third)] == [0, 1, 1]
    assert world.delivered[-1][1] == 2


def test_what_comes_together_for_a_connection_is_one_write_in_order_and_others_get_theirs() -> None:
    world = World()
    both, one, other = world.join("a", "b"), world.join("a"), world.join("c")
    for wire in (both, one, other):
        wire.taken()
    world.publish_together(("a",), ("b",), ("a",), ("nobody's",))
    assert [len(wire.data) for wire in (both, one, other)] == [1, 1, 0]
    messages = both.taken()
    assert ids(messages) == ["abcdef01-1", "abcdef01-2", "abcdef01-3"]
    assert [message["event"]["previous_id"] for message in messages][1:] == whole_ids(messages)[:-1]
    assert ids(one.taken()) == ["abcdef01-1", "abcdef01-3"]
    assert [told[1] for told in world.delivered[-4:]] == [2, 1, 2, 0]


def test_what_is_kept_for_one_write_is_bounded() -> None:
    world = World(coalesced=500)
    wire = world.join("a")
    wire.taken()
    world.publish_together(*[("a",)] * 20)
    assert max(map(len, wire.data)) < 1_000
    assert 1 < len(wire.data) < 20
    assert ids(wire.taken()) == [f"abcdef01-{offset}" for offset in range(1, 21)]


def test_a_subscriber_that_falls_behind_at_a_write_has_been_written_everything_up_to_the_feeds_offset() -> None:
    """As with `Delivery` when the send budget is exceeded: a catch-up delivers the events after the feed's offset."""
    world = World(coalesced=1)
    wire = world.join("a")
    wire.taken()
    places: list[int] = []

    def write(data: bytes | memoryview) -> None:
        wire.data.append(data)
        if wire.follows:
            places.append(world.feed.offset)
            wire.follows = False
            world.hub.update(wire)

    wire.write = write
    world.publish_together(*[("a",)] * 3)
    assert places == [1]
    assert ids(wire.taken()) == ["abcdef01-1"]


def test_a_change_of_policies_applies_between_earlier_and_later_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    wire = world.join("a")
    wire.taken()
    told: list[str] = []
    hold_back, write = wire.hold_back, wire.write

    def noted_hold_back(offset: int, *, review: bool = False) -> None:
        told.append(f"held back after {offset}")
        hold_back(offset, review=review)
        wire.follows = False
        world.hub.update(wire)

    def noted_write(data: bytes | memoryview) -> None:
        told.append("written")
        write(data)

    monkeypatch.setattr(wire, "hold_back", noted_hold_back)
    wire.write = noted_write
    before, change, after = (
        Event.build(
            offset=offset, place=(200 + offset, 0), xid=50, committed_at=0.0, channels=channels,
            body=b'{"event_type":"policies_changed"}',
        )
        for offset, channels in enumerate([("a",), ("momentum:control",), ("a",)], 1)
    )  # fmt: skip
    world.feed.publish([before, change, after])
    assert told == ["written", "held back after 2"]
    assert ids(wire.taken()) == ["abcdef01-1"]


def test_who_leaves_while_events_are_handed_over_is_written_nothing_more() -> None:
    world = World()
    first, second = world.join("a"), world.join("a")
    for wire in (first, second):
        wire.taken()
    first.write = lambda _: world.hub.leave(second)
    world.publish_together(("a",), ("nobody's",))
    assert second.taken() == []


def test_a_socket_that_fails_comes_back_and_all_others_are_written() -> None:
    world = World()
    first, second = world.join("a"), world.join("a")
    for wire in (first, second):
        wire.taken()

    def fails(_: bytes | memoryview) -> None:
        raise ZeroDivisionError

    first.write = fails
    with pytest.raises(ZeroDivisionError):
        world.publish_together(("nobody's",), ("a",), ("a",), ("nobody's",))
    assert first.closing is Close.RESTART
    assert ids(second.taken()) == ["abcdef01-2", "abcdef01-3"]
    assert world.broken == [False, False, True, False], "told of once, with an event that went to somebody"


def test_one_that_cannot_even_be_closed_keeps_nothing_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    wires = [world.join("a") for _ in range(3)]
    for wire in wires:
        wire.taken()

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    wires[0].write = fails
    monkeypatch.setattr(wires[0], "close", fails)
    with pytest.raises(ZeroDivisionError):
        world.publish("a")
    assert [ids(wire.taken()) for wire in wires] == [[], ["abcdef01-1"], ["abcdef01-1"]]
    assert world.hub._unwritten == {}


def test_a_socket_that_fails_before_a_change_of_grants_does_not_hide_it() -> None:
    world = World()
    user = uuid4()
    failing, revoked = world.join("a"), world.join("a", user=user)
    for wire in (failing, revoked):
        wire.taken()

    def fails(_: bytes | memoryview) -> None:
        raise ZeroDivisionError

    failing.write = fails
    body = json.dumps({"event_type": "revoked", "user_id": str(user)}).encode()
    with pytest.raises(ZeroDivisionError):
        world.publish_together(("a",), ("momentum:control",), body=body)
    assert ids(revoked.taken()) == ["abcdef01-1"], "what came before the revocation"
    assert (world.feed.offset, world.broken) == (1, [True]), "capture begins again, and the revocation comes again"
    world.publish("momentum:control", body=body)
    assert (revoked.closing, world.changed_by) == (Close.TOKEN, [(50, user)])


def test_a_large_frame_is_written_only_where_there_is_room_and_is_one_for_all() -> None:
    world = World()
    wires = [world.join("a") for _ in range(4)]
    for wire in wires:
        wire.taken()
    wires[0].room = wires[1].room = 10
    before = [wire.cursor.last_id for wire in wires]
    event = world.publish("a", body=b'{"event_type": "x", "text": "%b"}' % (b"x" * 100_000))
    assert [wire.held_back for wire in wires] == [[(event.offset - 1, False)]] * 2 + [[]] * 2
    assert [wire.cursor.last_id for wire in wires[:2]] == before[:2], "what comes next still follows what it had"
    assert wires[2].data[-1] is wires[3].data[-1]
    assert world.broken == [False]


def test_each_subscriber_of_each_channel_is_looked_at_once_however_many_channels_there_are() -> None:
    world = World(limit=1_000, per_user=1_000)
    channels = tuple(f"c{offset}" for offset in range(400))
    everywhere = [world.join(*channels) for _ in range(3)]
    careful = world.join(*channels, checked=channels)
    for offset in range(100):
        world.join(channels[offset])
    for wire in everywhere:
        wire.taken()
    Wire.hashed = 0
    world.publish(*channels)
    assert Wire.hashed < 5 * (4 * 400 + 100), "looking each up for each pair of channels would be 320,000"
    assert [len(wire.taken()) for wire in everywhere] == [1, 1, 1]
    assert len(careful.held_back) == 1


def test_the_channel_of_an_event_on_many_is_the_first_that_the_session_holds() -> None:
    world = World()
    channels = tuple(f"c{offset}" for offset in range(100))
    few, none = world.join("c70", "c30", "elsewhere"), world.join("elsewhere")
    event = world.publish(*channels)
    assert few.cursor.channel_of(event) == "c30"
    assert none.cursor.channel_of(event) is None


def test_a_restart_of_postgres_closes_subscribers_with_an_earlier_snapshot() -> None:
    world = World()
    stitching = world.join("a", boundary=SnapshotBoundary(Snapshot.parse("11:13:11"), 1000, 1))
    done = world.join("a", boundary=SnapshotBoundary(Snapshot.parse("10:10:"), 0, 1))
    world.feed.advance(500)
    world.feed.begin(Beginning("abcdef01", 0, 0, 100, 9, 2))
    assert (stitching.closing, done.closing) == (Close.RESTART, None)


def test_a_stream_that_repeats_other_events_than_it_brought_has_another_history() -> None:
    world = World()
    event = world.publish("a")
    world.feed.publish([event])
    again = Event.build(
        offset=1, place=(event.commit_lsn + 8, 0), xid=50, committed_at=0.0, channels=("a",), body=b"{}"
    )  # fmt: skip
    with pytest.raises(HistoryForked):
        world.feed.publish([again])


def test_a_subscriber_of_the_later_channels_gets_the_event_once() -> None:
    world = World()
    first, later, careful = world.join("a"), world.join("b", "c"), world.join("b", "c", "d", checked=("d",))
    world.publish("a", "b", "c")
    assert [len(wire.taken()) for wire in (first, later, careful)] == [1, 1, 1]
    assert world.delivered[-1][1] == 3


def test_an_event_out_of_sight_is_for_checked_channels_alone() -> None:
    world = World()
    plain, checked, elsewhere = world.join("a"), world.join("a", checked=("a",)), world.join("a", "z", checked=("z",))
    event = world.publish("a", body=b'{"event_type":"x","out_of_sight":true}')
    assert [wire.data for wire in (plain, checked, elsewhere)] == [[], [], []]
    assert [wire.held_back for wire in (plain, checked, elsewhere)] == [[], [(event.offset - 1, False)], []]


@pytest.mark.parametrize("checked", [(), ("z",)], ids=["plain", "careful"])
def test_only_a_large_event_waits_for_room(checked: tuple[str, ...]) -> None:
    body, larger = b'{"event_type":"x"}', b'{"event_type":"xx"}'
    world = World(large=len(body))
    wire = world.join("a", *checked, checked=checked)
    wire.room = 0
    world.publish("a", body=body)
    assert (len(wire.taken()), wire.held_back) == (1, [])
    event = world.publish("a", body=larger)
    assert (len(wire.taken()), wire.held_back) == (0, [(event.offset - 1, False)])
    wire.room = len(larger)
    world.publish("a", body=larger)
    assert len(wire.taken()) == 1


def test_a_large_event_that_is_not_for_a_subscriber_needs_no_room() -> None:
    world = World(large=1)
    in_snapshot = world.join("a", boundary=SnapshotBoundary(Snapshot.parse("60:60:"), 1000, 0))
    out_of_sight = world.join("a", "z", checked=("z",))
    for wire in (in_snapshot, out_of_sight):
        wire.room = 0
    world.publish("a", xid=50, body=b'{"event_type":"x","out_of_sight":true}')
    assert [(wire.taken(), wire.held_back) for wire in (in_snapshot, out_of_sight)] == [([], []), ([], [])]


@pytest.mark.parametrize("checked", [(), ("z",)], ids=["plain", "careful"])
def test_invalidated_keys_are_to_be_acknowledged(checked: tuple[str, ...]) -> None:
    world = World()
    user = uuid4()
    wire = world.join("cache_invalidation", *checked, user=user, checked=checked)
    plain = world.join("a")
    body = json.dumps({"event_type": "cache_invalidation", "user_id": str(user), "cache_keys": ["k", "l"]})
    world.publish("cache_invalidation", body=body.encode())
    world.publish("a")
    assert (wire.acks, plain.acks) == (["k", "l"], [])


def test_the_bytes_of_all_channels_are_counted() -> None:
    world = World()
    wires = [
        world.join("a"),
        world.join("b"),
        world.join("a", "z", checked=("z",)),
        world.join("a", "z", checked=("z",)),
    ]
    world.publish("a", "b")
    assert world.delivered[-1][1:3] == (4, sum(len(wire.data[0]) for wire in wires))


def test_careful_subscribers_share_frames_once_their_boundary_has_passed() -> None:
    world = World()
    wires = [world.join("a", "z", checked=("z",)) for _ in range(3)]
    world.publish("a")
    world.publish("a")
    assert len(world.dialect.encoded) == 2
    assert {id(wire.data[-1]) for wire in wires} == {id(wires[0].data[-1])}


def test_a_frame_up_to_the_limit_is_kept_for_subscribers_at_the_same_position() -> None:
    def published(limit: int) -> tuple[int, int]:
        """Return the number of encodings for three subscribers at two positions, and the longest frame's length."""
        world = World(coalesced=limit)
        wires = [world.join(*channels) for channels in (("b",), ("a", "b"), ("b",))]
        world.publish("a")
        wires[1].data.clear()
        world.dialect.encoded.clear()
        world.publish("b")
        return len(world.dialect.encoded), max(len(wire.data[0]) for wire in wires)

    encoded, longest = published(16 * 1024)
    assert (encoded, published(longest)[0], published(1)[0]) == (2, 2, 3)


def test_a_frame_as_long_as_the_limit_is_written_at_once() -> None:
    world = World()
    wire = world.join("a")
    world.publish("a")
    world = World(coalesced=len(wire.data[0]))
    wire = world.join("a")
    world.publish_together(("a",), ("a",))
    assert len(wire.data) == 2


def test_a_careful_subscriber_that_fails_is_closed_and_the_next_gets_the_event() -> None:
    world = World()
    first, second = world.join("a", "z", checked=("z",)), world.join("a", "z", checked=("z",))

    def fails(_: bytes | memoryview) -> None:
        raise ZeroDivisionError

    first.write = fails
    with pytest.raises(ZeroDivisionError):
        world.publish("a")
    assert (first.closing, second.closing) == (Close.RESTART, None)
    assert len(second.taken()) == 1
    assert world.delivered[-1][1] == 1


def test_frames_collected_for_a_subscriber_that_fails_are_dropped() -> None:
    world = World()
    wire = world.join("a")
    world.dialect.fails_at = 2
    with pytest.raises(ZeroDivisionError):
        world.publish_together(("a",), ("a",), ("nobody's",))
    assert (wire.closing, wire.data) == (Close.RESTART, [])


def test_changed_rights_on_rows_are_reviewed_by_those_whom_they_concern() -> None:
    world = World()
    user = uuid4()
    native, rows = world.wire(user, "a"), world.wire(user, "b")
    rows.concern = "row_rights_changed"
    for each in (native, rows):
        assert world.hub.admit(each)
    world.publish("momentum:control", xid=77, body=b'{"event_type":"row_rights_changed"}')
    assert world.changed_by == [(77, "rows")]
    assert (native.held_back, rows.held_back) == ([], [(1, True)])
    world.hub.review_rows()
    assert (native.held_back, rows.held_back) == ([], [(1, True), (1, True)])


def test_a_change_of_a_row_reaches_its_routes_and_those_who_get_all() -> None:
    world = World()
    mine, other, everybody = (world.wire(uuid4(), name) for name in "abc")
    channel = row_channel(7)
    for wire, slots in (
        (mine, (Route(channel, "owner", "text", "a"),)),
        (other, (Route(channel, "owner", "text", "b"),)),
        (everybody, (channel,)),
    ):  # fmt: skip
        wire.cursor = Routed(slots)
        wire.cursor.subscribe(Granted([channel], frozenset({channel})))
        wire.follows = True
        assert world.hub.admit(wire)
        world.hub.update(wire)
    assert world.hub.channels == 1
    body = (
        b'{"schema":"public","table":"t","type":"INSERT","commit_timestamp":"",'
        b'"columns":[{"name":"owner","type":"text"}],"errors":null,"record":{"owner":"a"}}'
    )
    world.publish(channel, body=body)
    # Channels that are checked hold a subscriber back, before the event.
    assert [each.held_back for each in (mine, other, everybody)] == [[(0, False)], [], [(0, False)]]
    world.hub.leave(mine)
    world.publish(channel, body=body)
    assert len(mine.held_back) == 1


class Routed(Cursor):
    """A cursor with slots of its own."""

    __slots__ = ("_given",)

    def __init__(self, given: tuple[Slot, ...]) -> None:
        super().__init__(None, frozenset())
        self._given = given

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self._given


# Written to many at once


@pytest.mark.parametrize("count", [1, 6, 7, 50])
def test_those_who_share_every_frame_are_written_to_at_once(count: int) -> None:
    world = World()
    wires, other = together(world, count, "a"), world.join("a")
    other.taken()
    world.publish("a")
    world.publish("b")
    written = [wire.data for wire in (*wires, other)]
    assert world.delivered[0][1:3] == (count + 1, sum(len(data) for (data,) in written))
    dialect = wires[0].dialect
    assert isinstance(dialect, Together)
    assert len(dialect.encoded) == 1
    moved = {wire.cursor.last_id != wire.began_at for wire in wires}
    # A group costs memory, so fewer than eight are written to one by one.
    assert (dialect.together, moved) == ((1, {False}) if count + 1 >= 8 else (0, {True}))


def test_those_written_to_at_once_get_the_event_once_on_any_of_its_channels() -> None:
    world = World()
    wires, later = together(world, 10, "a", "b"), together(world, 10, "b")
    world.publish("a", "b")
    world.publish_together(("a", "b"), ("a",), ("b",))
    world.publish("b")
    assert {tuple(ids(wire.taken())) for wire in wires} == {tuple(f"abcdef01-{n}" for n in (1, 2, 3, 4, 5))}
    assert {tuple(ids(wire.taken())) for wire in later} == {tuple(f"abcdef01-{n}" for n in (1, 2, 4, 5))}


def test_one_that_gets_another_dialect_leaves_the_group() -> None:
    world = World()
    wires = together(world, 10, "a")
    world.publish("a")
    wires[0].dialect = own = Together()
    world.hub.update(wires[0])
    world.publish("a")
    assert (len(own.encoded), own.together, wires[1].dialect.together) == (1, 1, 2)
    assert {tuple(ids(wire.taken())) for wire in wires} == {("abcdef01-1", "abcdef01-2")}


def test_one_that_leaves_or_joins_is_in_the_group_no_longer_or_from_then_on() -> None:
    world = World()
    wires = together(world, 10, "a")
    world.publish("a")
    world.hub.leave(wires[0])
    world.publish("a")
    (new,) = together(world, 1, "a")
    new.dialect = wires[1].dialect
    world.hub.update(new)
    world.publish("a")
    assert [len(wire.taken()) for wire in (*wires, new)] == [1, *[3] * 9, 1]


def test_a_group_that_cannot_be_encoded_for_comes_back_and_the_others_get_the_event() -> None:
    world = World()
    wires, other = together(world, 10, "a"), world.join("a")
    other.taken()
    dialect = wires[0].dialect
    assert isinstance(dialect, Together)
    dialect.fails_at = 1
    with pytest.raises(ZeroDivisionError):
        world.publish("a")
    assert {wire.closing for wire in wires} == {Close.RESTART}
    assert len(other.taken()) == 1


def test_one_of_a_group_that_fails_comes_back_and_the_others_get_the_event() -> None:
    world = World()
    wires = together(world, 10, "a")

    def fails(_: bytes | memoryview) -> None:
        raise ZeroDivisionError

    wires[3].write = fails
    with pytest.raises(ZeroDivisionError):
        world.publish("a")
    assert [wire.closing for wire in wires] == [*[None] * 3, Close.RESTART, *[None] * 6]
    assert [len(wire.taken()) for wire in wires] == [*[1] * 3, 0, *[1] * 6]


def test_a_large_event_waits_for_room_at_each_of_a_group() -> None:
    world = World(large=10)
    wires = together(world, 10, "a")
    wires[0].room = 0
    event = world.publish("a")
    assert [wire.held_back for wire in wires] == [[(event.offset - 1, False)], *[[]] * 9]
    assert [len(wire.taken()) for wire in wires] == [0, *[1] * 9]


def test_an_event_out_of_sight_is_for_none_of_a_group() -> None:
    world = World()
    wires = together(world, 10, "a")
    world.publish("a", body=b'{"event_type":"x","out_of_sight":true}')
    assert [wire.data for wire in wires] == [[]] * 10


@pytest.mark.parametrize("text", ["", "x" * 200], ids=["small", "larger than may be collected"])
def test_of_larger_frames_that_differ_one_at_a_time_is_in_memory(text: str) -> None:
    world = World(coalesced=100)
    wires = [world.join("a", f"own {number}") for number in range(3)]
    for number, wire in enumerate(wires):
        world.publish(f"own {number}")
        wire.taken()
    steps: list[str] = []
    encode = world.dialect.encode

    def noted(event: Event, ids: DeliveryIds, now: float) -> bytes:
        steps.append("encoded")
        return encode(event, ids, now)

    world.dialect.encode = noted  # type: ignore[method-assign]
    for wire in wires:
        wire.write = lambda _: steps.append("written")
    world.publish("a", body=b'{"event_type":"x","text":"%b"}' % text.encode())
    assert steps == (["encoded", "written"] * 3 if text else ["encoded"] * 3 + ["written"] * 3)


def test_frames_of_several_groups_are_counted_together_and_name_the_channel() -> None:
    world = World()
    wires = [*together(world, 10, "a"), *together(world, 10, "a")]
    world.publish("a")
    assert world.delivered[0][1:3] == (20, sum(len(data) for wire in wires for data in wire.data))
    assert {message["event"]["channel"] for wire in wires for message in wire.taken()} == {"a"}


@pytest.mark.parametrize("shared", [True, False], ids=["a group", "each after its own event"])
def test_the_socket_itself_takes_the_frames(shared: bool) -> None:
    world = World()
    wires = together(world, 10, "a") if shared else [world.join("a") for _ in range(10)]
    with ExitStack() as stack:
        clients = []
        for wire in wires:
            wire.data.clear()
            server, client = map(stack.enter_context, socket.socketpair())
            wire.file.open(server.fileno())
            client.setblocking(False)
            clients.append(client)
        world.publish("a")
        assert [wire.data for wire in wires] == [[]] * 10
        for client in clients:
            text, rest = payload(client.recv(1 << 16))
            assert (json.loads(text)["event"]["id"].startswith("abcdef01-1-"), rest) == (True, b"")

"""One event to all who hold its channels: built once, sent once, in a chain that each can check."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event, Position, SnapshotBoundary
from momentum_sync.eventlog.feed import Feed, HistoryForked
from momentum_sync.eventlog.window import Window
from momentum_sync.gateway import hub as module
from momentum_sync.gateway.hub import Broadcast, Hub
from momentum_sync.gateway.session import Opening, Session, State, build
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds

NULL = msgspec.Raw(b"null")


class Wire:
    """A connection that keeps what is written."""

    behind = True
    room = 1_000_000

    def __init__(self, user: UUID, client_id: str) -> None:
        identity = Identity("authenticated", user, "{}", None)
        self.session = Session(identity, user, client_id, heartbeat=25.0, now=0.0, at=0.0)
        self.data: list[bytes] = []
        self.held_back: list[tuple[int, bool]] = []

    def takes(self, size: int) -> bool:
        return size <= self.room

    def hold_back(self, offset: int, *, review: bool = False) -> None:
        self.held_back.append((offset, review))

    def write(self, data: bytes) -> None:
        self.data.append(data)

    def flush(self) -> None:
        self.data.extend(self.session.to_send())

    def taken(self) -> list[dict[str, Any]]:
        """The messages so far, whether framed or not, and however many were written at once."""
        messages = []
        for data in self.data:
            while data:
                text, data = (data, b"") if data.startswith(b"{") else payload(data)
                messages.append(json.loads(text))
        self.data.clear()
        return messages


def payload(data: bytes) -> tuple[bytes, bytes]:
    """What is in the first frame, and what follows it."""
    begins, length = 2, data[1]
    if length > 125:
        begins = 4 if length == 126 else 10
        length = int.from_bytes(data[2:begins], "big")
    return data[begins : begins + length], data[begins + length :]


class World:
    """A feed, a hub, and events on them."""

    def __init__(self, *, limit: int = 100, per_user: int = 100) -> None:
        self.feed = Feed(Window(1_000_000))
        self.changed_by: list[tuple[int, UUID | None]] = []
        self.missed: list[str] = []
        self.delivered: list[tuple[str, int, int, float | None]] = []
        self.hub = Hub(
            self.feed, limit=limit, limit_per_user=per_user, clock=lambda: 0.0,
            rights_changed=lambda *told: self.changed_by.append(told),
            rights_missed=lambda: self.missed.append(self.feed.epoch),
            delivered=self.tell,
        )  # fmt: skip
        self.broken: list[bool] = []
        self.feed.begin(epoch="abcdef01", offset=0, mark=0, position=100, ceiling=9, incarnation=1)

    def tell(self, fanouts: Sequence[Broadcast]) -> None:
        self.delivered += [(each.event.event_type, each.frames, each.size, each.delay) for each in fanouts]
        self.broken += [each.broken is not None for each in fanouts]

    def join(
        self,
        *channels: str,
        asked: tuple[str, ...] = (),
        seen: SnapshotBoundary | None = None,
        client_id: str | None = None,
        user: UUID | None = None,
    ) -> Wire:
        wire = Wire(user or uuid4(), client_id or str(uuid4()))
        assert self.hub.admit(wire)
        seen = seen or SnapshotBoundary(Snapshot.parse("10:10:"), 0, 0)
        keys = list(channels)
        first = self.feed.window.first_unseen(seen.snapshot, keys)
        offset = self.feed.offset if first is None else first - 1
        place = Position("abcdef01", offset, self.feed.mark_of(offset) or 0, seen)
        wire.session.greet(Opening(Granted(keys, frozenset(asked)), [], place, State(NULL, NULL, NULL)), 0.0, 0.0)
        events, _ = self.feed.window.after(offset, keys, most=1_000_000)
        for event in events:
            wire.session.event(event, 0.0)
        wire.behind = False
        self.hub.follow(wire)
        wire.flush()
        return wire

    def publish(self, *channels: str, xid: int = 50, body: bytes = b'{"event_type":"x"}') -> Event:
        (event,) = self.publish_together(channels, xid=xid, body=body)
        return event

    def publish_together(
        self, *each: tuple[str, ...], xid: int = 50, body: bytes = b'{"event_type":"x"}'
    ) -> list[Event]:
        """Events on these channels, of one turn."""
        first = self.feed.offset + 1
        events = [
            Event.build(
                offset=offset, place=(200 + offset, 0), xid=xid, committed_at=0.0, channels=channels,
                body=body,
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
    """Without the mark of the event's commit."""
    return "-".join(event_id.split("-")[:2])


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
    asking, holding = world.join("a", asked=("a",)), world.join("a")
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
    assert [wire.session.closing for wire in (mine, other, theirs)] == [Close.TOKEN, Close.TOKEN, None]
    assert world.changed_by == [(50, user)]


@pytest.mark.parametrize(
    "body", [b"{}", b'{"event_type":"else"}', b'{"event_type":"revoked"}', b'{"event_type":"revoked","user_id":7}']
)
def test_control_that_says_nothing_we_know_changes_nothing(body: bytes) -> None:
    world = World()
    wire = world.join("a")
    world.publish("momentum:control", body=body)
    assert (wire.session.closing, wire.held_back) == (None, [])


def test_each_connection_can_prove_that_it_missed_nothing() -> None:
    world = World()
    one, two = world.join("a"), world.join("a", "b")
    for channels in (("a",), ("b",), ("a",)):
        world.publish(*channels)
    for wire, expected in ((one, ["abcdef01-1", "abcdef01-3"]), (two, ["abcdef01-1", "abcdef01-2", "abcdef01-3"])):
        _, state, *events = wire.taken()
        assert ids(events) == expected
        chain = [state["last_event_id"], *whole_ids(events)]
        assert [message["event"]["previous_id"] for message in events] == chain[:-1]


def test_a_frame_is_built_once_for_all_who_stand_at_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    wires = [world.join("a") for _ in range(50)]
    built: list[str] = []

    def counted(event: Event, delivery: DeliveryIds, now: float) -> bytes:
        built.append(delivery.event_id)
        return build(event, delivery, now)

    monkeypatch.setattr(module, "build", counted)
    world.publish("a")
    world.publish("a")
    assert [shortened(event_id) for event_id in built] == ["abcdef01-1", "abcdef01-2"]
    assert {id(wire.data[-1]) for wire in wires} == {id(wires[0].data[-1])}


def test_who_leaves_or_unsubscribes_gets_no_more() -> None:
    world = World()
    gone, less, stays = world.join("a"), world.join("a", "b"), world.join("a")
    for wire in (gone, less, stays):
        wire.taken()
    world.hub.leave(gone)
    world.hub.leave(gone)
    del less.session.channels["a"]
    world.hub.follow(less)
    world.publish("a")
    assert (gone.taken(), less.taken(), len(stays.taken())) == ([], [], 1)
    assert (len(world.hub), world.hub.subscriptions) == (2, 2)
    world.hub.leave(less)
    world.hub.leave(stays)
    assert world.hub.channels == 0
    assert (world.hub._by_user, world.hub._by_client) == ({}, {})


def test_a_second_connection_of_the_same_client_replaces_the_first() -> None:
    world = World(per_user=1)
    user = uuid4()
    first = world.join("a", client_id="phone", user=user)
    second = world.join("a", client_id="phone", user=user)
    assert first.session.closing is Close.REPLACED
    first.taken()
    second.taken()
    world.publish("a")
    assert (len(first.taken()), len(second.taken())) == (0, 1)
    world.join("a", client_id="phone", user=uuid4())
    assert second.session.closing is None


def test_connections_are_limited_over_all_and_for_each_user() -> None:
    world = World(limit=3, per_user=2)
    user = uuid4()
    world.join(user=user)
    world.join(user=user)
    assert not world.hub.admit(Wire(user, "third"))
    world.join()
    assert not world.hub.admit(Wire(uuid4(), "fourth"))


@pytest.mark.parametrize("joins_at", range(4))
def test_the_stitch_is_exact_wherever_the_snapshot_falls(joins_at: int) -> None:
    """The snapshot sees transactions 10 and 12, not 11 and 13; they are published in the order 11, 12, 10, 13."""
    world = World()
    seen = SnapshotBoundary(Snapshot.parse("11:13:11"), 1000, 0)
    wire = None
    for at, xid in enumerate([11, 12, 10, 13]):
        if at == joins_at:
            wire = world.join("a", seen=seen)
        world.publish("a", xid=xid)
    assert wire is not None
    world.feed.advance(1000)
    world.publish("a", xid=12)
    _, state, *events = wire.taken()
    offsets = [Position.parse(event_id).offset for event_id in whole_ids(events)]
    assert offsets == [1, 4, 5]
    assert Position.parse(state["last_event_id"]).offset < 1 or joins_at == 0
    assert [message["event"]["previous_id"] for message in events] == [
        state["last_event_id"], *whole_ids(events)[:-1]
    ]  # fmt: skip


def test_a_stitch_ends_when_the_stream_has_passed_the_snapshot() -> None:
    world = World()
    wire = world.join("a", seen=SnapshotBoundary(Snapshot.parse("11:13:11"), 300, 0))
    stitching = [list(world.hub._stitching)]
    for position in (299, 300):
        world.feed.advance(position)
        stitching.append(list(world.hub._stitching))
    assert stitching == [[wire], [wire], []]
    assert wire.session.seen is None


def test_when_history_changes_everyone_begins_again() -> None:
    world = World()
    wire = world.join("a")
    world.feed.begin(epoch="abcdef01", offset=0, mark=0, position=400, ceiling=9, incarnation=1)
    assert (wire.session.closing, world.missed) == (None, [])
    world.feed.begin(epoch="00000002", offset=5, mark=0, position=500, ceiling=9, incarnation=1)
    assert (wire.session.closing, world.missed) == (Close.RESTART, ["00000002"])


def test_a_gap_in_the_feed_is_a_changed_history() -> None:
    world = World()
    wire = world.join("a")
    world.publish("a")
    world.feed.begin(epoch="abcdef01", offset=3, mark=0, position=500, ceiling=60, incarnation=1)
    assert wire.session.closing is Close.RESTART


def test_what_capture_repeats_is_published_once() -> None:
    world = World()
    wire = world.join("a")
    wire.taken()
    event = world.publish("a")
    world.feed.begin(epoch="abcdef01", offset=0, mark=0, position=100, ceiling=9, incarnation=1)
    world.feed.publish([event])
    assert len(wire.taken()) == 1
    assert len(world.feed.window) == 1


def test_who_holds_several_channels_of_an_event_gets_it_once_on_the_first() -> None:
    world = World()
    both, second = world.join("a", "b"), world.join("b")
    asked = world.join("a", "b", asked=("c",))
    for wire in (both, second, asked):
        wire.taken()
    event = world.publish("a", "b")
    channels = [[message["event"]["channel"] for message in wire.taken()] for wire in (both, second, asked)]
    assert channels == [["a"], ["b"], ["a"]]
    assert world.delivered[-1][1] == 3
    assert {wire.session.last_id.rpartition("-")[0] for wire in (both, second, asked)} == {f"abcdef01-{event.offset}"}


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
    wire.session.granted(["a"], Granted(["a"], frozenset({"a"})), 0.0, None)
    world.hub.follow(wire)
    wire.flush()
    wire.taken()
    event = world.publish("a")
    assert (wire.taken(), wire.held_back) == ([], [(event.offset - 1, False)])
    wire.session.reviewed(["a"], Granted(["a"]), 0.0)
    world.hub.follow(wire)
    world.publish("a")
    assert len(wire.taken()) == 1


def test_a_frame_that_could_not_be_built_for_one_is_built_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    first, second, third = world.join("a"), world.join("a"), world.join("a")
    world.publish("a")
    for wire in (first, second, third):
        wire.taken()
    calls: list[Event] = []

    def fails_once(event: Event, *rest: Any) -> bytes:
        calls.append(event)
        if len(calls) == 1:
            raise ZeroDivisionError
        return build(event, *rest)

    monkeypatch.setattr(module, "build", fails_once)
    with pytest.raises(ZeroDivisionError):
        world.publish("a")
    assert first.session.closing is Close.RESTART
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


def test_what_is_kept_for_one_write_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 500)
    world = World()
    wire = world.join("a")
    wire.taken()
    world.publish_together(*[("a",)] * 20)
    assert max(map(len, wire.data)) < 1_000
    assert 1 < len(wire.data) < 20
    assert ids(wire.taken()) == [f"abcdef01-{offset}" for offset in range(1, 21)]


def test_whoever_falls_behind_at_a_write_has_been_written_all_up_to_the_feeds_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `Delivery` does when too much waits: what follows the feed's place is then given another way."""
    monkeypatch.setattr(module, "_TOGETHER", 1)
    world = World()
    wire = world.join("a")
    wire.taken()
    places: list[int] = []

    def write(data: bytes) -> None:
        wire.data.append(data)
        if not wire.behind:
            places.append(world.feed.offset)
            wire.behind = True
            world.hub.follow(wire)

    monkeypatch.setattr(wire, "write", write)
    world.publish_together(*[("a",)] * 3)
    assert places == [1]
    assert ids(wire.taken()) == ["abcdef01-1"]


def test_a_change_of_policies_comes_after_what_was_before_it_and_before_what_is_after(
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
        wire.behind = True
        world.hub.follow(wire)

    def noted_write(data: bytes) -> None:
        told.append("written")
        write(data)

    monkeypatch.setattr(wire, "hold_back", noted_hold_back)
    monkeypatch.setattr(wire, "write", noted_write)
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


def test_who_leaves_while_events_are_handed_over_is_written_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    first, second = world.join("a"), world.join("a")
    for wire in (first, second):
        wire.taken()
    monkeypatch.setattr(first, "write", lambda _: world.hub.leave(second))
    world.publish_together(("a",), ("nobody's",))
    assert second.taken() == []


def test_a_socket_that_fails_comes_back_and_all_others_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    first, second = world.join("a"), world.join("a")
    for wire in (first, second):
        wire.taken()

    def fails(_: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(first, "write", fails)
    with pytest.raises(ZeroDivisionError):
        world.publish_together(("nobody's",), ("a",), ("a",), ("nobody's",))
    assert first.session.closing is Close.RESTART
    assert ids(second.taken()) == ["abcdef01-2", "abcdef01-3"]
    assert world.broken == [False, False, True, False], "told of once, with an event that went to somebody"


def test_one_that_cannot_even_be_closed_keeps_nothing_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    wires = [world.join("a") for _ in range(3)]
    for wire in wires:
        wire.taken()

    def fails(*_: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(wires[0], "write", fails)
    monkeypatch.setattr(wires[0], "flush", fails)
    with pytest.raises(ZeroDivisionError):
        world.publish("a")
    assert [ids(wire.taken()) for wire in wires] == [[], ["abcdef01-1"], ["abcdef01-1"]]
    assert world.hub._out == {}


def test_a_socket_that_fails_before_a_change_of_rights_does_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    user = uuid4()
    failing, revoked = world.join("a"), world.join("a", user=user)
    for wire in (failing, revoked):
        wire.taken()

    def fails(_: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(failing, "write", fails)
    body = json.dumps({"event_type": "revoked", "user_id": str(user)}).encode()
    with pytest.raises(ZeroDivisionError):
        world.publish_together(("a",), ("momentum:control",), body=body)
    assert ids(revoked.taken()) == ["abcdef01-1"], "what came before the revocation"
    assert (world.feed.offset, world.broken) == (1, [True]), "capture begins again, and the revocation comes again"
    world.publish("momentum:control", body=body)
    assert (revoked.session.closing, world.changed_by) == (Close.TOKEN, [(50, user)])


def test_a_large_frame_is_written_only_where_there_is_room_and_is_one_for_all() -> None:
    world = World()
    wires = [world.join("a") for _ in range(4)]
    for wire in wires:
        wire.taken()
    wires[0].room = wires[1].room = 10
    before = [wire.session.last_id for wire in wires]
    event = world.publish("a", body=b'{"event_type": "x", "text": "%b"}' % (b"x" * 100_000))
    assert [wire.held_back for wire in wires] == [[(event.offset - 1, False)]] * 2 + [[]] * 2
    assert [wire.session.last_id for wire in wires[:2]] == before[:2], "what comes next still follows what it had"
    assert wires[2].data[-1] is wires[3].data[-1]
    assert world.broken == [False]


def test_each_holder_of_each_channel_is_looked_at_once_however_many_channels_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(limit=1_000, per_user=1_000)
    channels = tuple(f"c{offset}" for offset in range(400))
    everywhere = [world.join(*channels) for _ in range(3)]
    careful = world.join(*channels, asked=channels)
    for offset in range(100):
        world.join(channels[offset])
    looked_at = 0
    real = module._without

    def counted(holders: Any, others: Any) -> Any:
        nonlocal looked_at
        looked_at += len(holders)
        return real(holders, others)

    monkeypatch.setattr(module, "_without", counted)
    for wire in everywhere:
        wire.taken()
    world.publish(*channels)
    assert looked_at <= 4 * 400 + 100
    assert [len(wire.taken()) for wire in everywhere] == [1, 1, 1]
    assert len(careful.held_back) == 1


def test_the_channel_of_an_event_on_many_is_the_first_that_the_session_holds() -> None:
    world = World()
    channels = tuple(f"c{offset}" for offset in range(100))
    few, none = world.join("c70", "c30", "elsewhere"), world.join("elsewhere")
    event = world.publish(*channels)
    assert few.session.channel_of(event) == "c30"
    assert none.session.channel_of(event) is None


def test_after_a_restart_of_postgres_those_whose_snapshot_is_from_before_come_back() -> None:
    world = World()
    stitching = world.join("a", seen=SnapshotBoundary(Snapshot.parse("11:13:11"), 1000, 1))
    done = world.join("a", seen=SnapshotBoundary(Snapshot.parse("10:10:"), 0, 1))
    world.feed.advance(500)
    world.feed.begin(epoch="abcdef01", offset=0, mark=0, position=100, ceiling=9, incarnation=2)
    assert (stitching.session.closing, done.session.closing) == (Close.RESTART, None)


def test_a_stream_that_repeats_other_events_than_it_brought_has_another_history() -> None:
    world = World()
    event = world.publish("a")
    world.feed.publish([event])
    again = Event.build(
        offset=1, place=(event.commit_lsn + 8, 0), xid=50, committed_at=0.0, channels=("a",), body=b"{}"
    )  # fmt: skip
    with pytest.raises(HistoryForked):
        world.feed.publish([again])

"""One event to all subscribers of its channels: encoded once, written once, and one failure stays with its own."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from uuid import uuid4

import pytest

from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.position import SnapshotBoundary
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds
from tests.unit.hub_world import Counting, Together, Wire, World, ids, payload, shortened, together, whole_ids


def test_each_event_is_told_of_once_with_the_frames_it_made() -> None:
    world = World()
    wires = [world.join("a"), world.join("a"), world.join("b")]
    for wire in wires:
        wire.data.clear()
    world.publish("a")
    world.publish("nobody's")
    assert world.delivered == [("x", 2, sum(len(wire.data[0]) for wire in wires[:2]), 0.0), ("x", 0, 0, None)]


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


@pytest.mark.parametrize("many", [False, True])
def test_one_that_cannot_even_be_closed_keeps_nothing_from_the_others_and_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    world = World()
    wires = [world.join("a") for _ in range(3)]
    for wire in wires:
        wire.taken()

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    wires[0].write = fails
    monkeypatch.setattr(wires[0], "close", fails)
    with pytest.raises(ZeroDivisionError):
        world.publish_together(*[("a",)] * (2 if many else 1))
    written = ["abcdef01-1", "abcdef01-2"] if many else ["abcdef01-1"]
    assert [ids(wire.taken()) for wire in wires] == [[], written, written]
    assert world.hub._unwritten == {}
    assert (world.hub.connections, [wire.aborted for wire in wires]) == (wires[1:], [True, False, False])
    world.publish("a")


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


def test_a_group_that_can_neither_be_encoded_for_nor_closed_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    wires, other = together(world, 10, "a"), world.join("a")

    def fails(_: Close) -> None:
        raise ZeroDivisionError

    for wire in wires:
        monkeypatch.setattr(wire, "close", fails)
    dialect = wires[0].dialect
    assert isinstance(dialect, Together)
    dialect.fails_at = 1
    with pytest.raises(ZeroDivisionError):
        world.publish("a")
    assert (world.hub.connections, {wire.aborted for wire in wires}) == ([other], {True})


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

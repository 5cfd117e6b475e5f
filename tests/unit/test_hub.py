"""The index from channels to subscribers, and what a change of rights or of the history does to them."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event, row_channel
from momentum_sync.eventlog.feed import Beginning, HistoryForked
from momentum_sync.eventlog.position import Position, SnapshotBoundary
from momentum_sync.eventlog.row_index import Route
from momentum_sync.gateway.cursor import Cursor, Slot
from momentum_sync.identity.channels import Granted
from momentum_sync.wire.close import Close
from tests.unit.hub_world import World, ids, whole_ids


def test_an_event_reaches_its_holders_and_nobody_else() -> None:
    world = World()
    one, two, three = world.join("a"), world.join("a", "b"), world.join("c")
    for wire in (one, two, three):
        wire.taken()
    world.publish("a")
    assert ids(one.taken()) == ids(two.taken()) == ["abcdef01-1"]
    assert three.taken() == []


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


def test_one_that_cannot_be_closed_leaves_no_other_open_when_history_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    failing, other = world.join("a"), world.join("a")

    def fails(_: Close) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(failing, "close", fails)
    with pytest.raises(ZeroDivisionError):
        world.hub.history_changed()
    assert (failing.aborted, other.closing, world.hub.connections) == (True, Close.RESTART, [other])


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

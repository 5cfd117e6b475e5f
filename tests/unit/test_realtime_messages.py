"""Broadcasts and presence between sessions of Supabase's protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest

from momentum_sync.gateway.topic_members import TopicKey
from momentum_sync.wire.close import Close
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.realtime_broadcast import Broadcast, broadcast_frame
from tests.unit.realtime_world import World

TEXT = {"type": "broadcast", "event": "moved", "payload": {"x": 1}, "more": None}
TOPIC = "realtime:a"


def room(
    *versions: Version, presence_members: int = 100, presence_topic_bytes: int = 10_000, **config: Any
) -> list[World]:
    """Return clients that have joined one topic."""
    worlds: list[World] = []
    for version in versions:
        members = worlds[0].members if worlds else None
        world = World(
            version=version,
            members=members,
            presence_members=presence_members,
            presence_topic_bytes=presence_topic_bytes,
        )
        world.join(count=0, **config)
        world.written()
        worlds.append(world)
    return worlds


def push(event: str, payload: bytes, *, is_json: bool, topic: str = TOPIC, ref: str = "9") -> bytes:
    """Return a client's binary broadcast."""
    names = [b"1", ref.encode(), topic.encode(), event.encode(), b""]
    return bytes([3, *map(len, names), is_json]) + b"".join(names) + payload


def test_a_text_comes_to_the_others_as_it_was() -> None:
    sender, new, old = room(Version.V2, Version.V2, Version.V1)
    assert sender.send(TOPIC, "broadcast", TEXT) == []
    assert new.written() == [[None, None, TOPIC, "broadcast", TEXT]]
    assert old.written() == [{"topic": TOPIC, "event": "broadcast", "payload": TEXT, "ref": None}]
    assert sender.written() == []


def test_a_binary_broadcast_is_text_where_it_can_be() -> None:
    sender, new, old = room(Version.V2, Version.V2, Version.V1)
    assert sender.send_binary(push("moved", b'{"x": 1}', is_json=True)) == []
    assert new.written() == [bytes([4, len(TOPIC), 5, 0, 1]) + TOPIC.encode() + b'moved{"x": 1}']
    payload = {"type": "broadcast", "event": "moved", "payload": {"x": 1}}
    assert old.written() == [{"topic": TOPIC, "event": "broadcast", "payload": payload, "ref": None}]
    sender.send_binary(push("raw", b"\x00\xff", is_json=False))
    assert new.written() == [bytes([4, len(TOPIC), 3, 0, 0]) + TOPIC.encode() + b"raw\x00\xff"]
    assert old.written() == []


def test_names_that_a_binary_frame_cannot_carry_go_as_text() -> None:
    long = "é" * 128
    message = Broadcast(TOPIC, long, b'{"x":1}')
    data = broadcast_frame(message, Version.V2)
    assert data is not None
    assert data[0] == 0x81
    payload = {"type": "broadcast", "event": long, "payload": {"x": 1}}
    assert json.loads(data[4:])[4] == payload
    assert broadcast_frame(Broadcast(TOPIC, long, b"\xff", is_json=False), Version.V2) is None


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("flag", [True, "true", False])
def test_self_and_ack(is_binary: bool, flag: bool | str) -> None:
    (sender,) = room(Version.V2, broadcast={"self": flag, "ack": flag})
    if is_binary:
        answers = sender.send_binary(push("moved", b"{}", is_json=True, ref="2"))
    else:
        answers = sender.send(TOPIC, "broadcast", TEXT, "1")
    assert len(sender.written()) == bool(flag)
    expected = ["1", "2", TOPIC, "phx_reply", {"status": "ok", "response": {}}]
    assert answers == ([expected] if flag else [])


def test_broadcasts_are_counted_by_the_way_they_came() -> None:
    (sender,) = room(Version.V2)
    sender.send(TOPIC, "broadcast", TEXT)
    sender.send_binary(push("moved", b"{}", is_json=True))
    sender.members.broadcast(Broadcast(TOPIC, "e", b"{}"), is_private=False, sender=None, to_sender=True)
    assert sender.received == ["socket", "socket", "http"]


def test_a_message_for_a_topic_that_was_not_joined_is_refused() -> None:
    sender, other = room(Version.V2, Version.V2)
    (reply,) = sender.send_binary(push("moved", b"{}", is_json=True, topic="realtime:b"))
    assert reply == ["1", "9", "realtime:b", "phx_reply",
                     {"status": "error", "response": {"reason": "unmatched topic"}}]  # fmt: skip
    assert sender.send_binary(b"\x03\x01") == []
    assert other.written() == []


def test_who_has_left_gets_nothing() -> None:
    sender, leaving, lost = room(Version.V2, Version.V2, Version.V2)
    leaving.send(TOPIC, "phx_leave")
    lost.session.lost()
    sender.send(TOPIC, "broadcast", TEXT)
    assert leaving.written() == lost.written() == []
    sender.session.lost()
    assert sender.members.topics == 0


@pytest.mark.parametrize("is_binary", [True, False])
def test_a_senders_own_message_follows_the_answers_before_it(is_binary: bool) -> None:
    (sender,) = room(Version.V2, broadcast={"self": True})
    sender.session.receive(b'[null, "7", "phoenix", "heartbeat", {}]', sender.gateway)
    if is_binary:
        sender.send_binary(push("moved", b"{}", is_json=True))
    else:
        sender.send(TOPIC, "broadcast", TEXT)
    reply, message = sender.written()
    assert reply[3] == "phx_reply"
    assert isinstance(message, bytes) is is_binary


def test_one_encoding_serves_all_members_of_a_version() -> None:
    sender, *others = room(Version.V2, *[Version.V2] * 5, *[Version.V1] * 5)
    sender.send(TOPIC, "broadcast", TEXT)
    assert len({id(other.outgoing.written[0]) for other in others}) == 2
    assert sender.counted == [(10, sum(len(other.outgoing.written[0]) for other in others))]


# Presence


def track(world: World, payload: dict[str, Any] | None, event: str = "track") -> list[Any]:
    return world.send(TOPIC, "presence", {"type": "presence", "event": event, "payload": payload or {}}, "1")


def metas(presence: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the metas by key, without the refs, which must be there."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key, value in presence.items():
        assert list(value) == ["metas"]
        for meta in value["metas"]:
            rest = {name: each for name, each in meta.items() if not name.startswith("phx_ref")}
            assert meta["phx_ref"]
            found.setdefault(key, []).append(rest)
    return found


def test_presence_comes_first_as_a_state_and_then_as_diffs() -> None:
    one, other = room(Version.V2, Version.V1, presence={"key": "me", "enabled": True})
    assert track(one, {"name": "A"}) == [["1", "2", TOPIC, "phx_reply", {"status": "ok", "response": {}}]]
    assert one.written() == []
    one.pass_time()
    (diff,) = one.written()
    assert diff[:4] == [None, None, TOPIC, "presence_diff"]
    assert metas(diff[4]["joins"]) == {"me": [{"name": "A"}]}
    assert diff[4]["leaves"] == {}
    (same,) = other.written()
    assert same["payload"] == diff[4]
    late = World(members=one.members)
    *_, state = late.join(count=0, presence={"key": "late"})
    assert state[:4] == ["1", None, TOPIC, "presence_state"]
    assert metas(state[4]) == {"me": [{"name": "A"}]}


def test_a_changed_meta_leaves_and_joins() -> None:
    (one,) = room(Version.V2, presence={"key": "me", "enabled": True})
    track(one, {"name": "A"})
    one.pass_time()
    (first,) = one.written()
    track(one, {"name": "B", "phx_ref": "mine"})
    one.pass_time()
    (diff,) = one.written()
    before, now = first[4]["joins"]["me"]["metas"][0], diff[4]["joins"]["me"]["metas"][0]
    assert diff[4]["leaves"] == {"me": {"metas": [before]}}
    assert now == {"phx_ref": now["phx_ref"], "phx_ref_prev": before["phx_ref"], "name": "B"}
    assert now["phx_ref"] not in ("mine", before["phx_ref"])


def test_many_changes_within_a_moment_are_one_diff() -> None:
    watcher, *others = room(Version.V2, *[Version.V2] * 20, presence={"enabled": True, "key": "k"})
    for other in others:
        track(other, {"first": True})
        track(other, {"n": 1})
    others[0].session.lost()
    track(others[1], None, "untrack")
    assert len(watcher.later) == 1
    watcher.pass_time()
    (diff,) = watcher.written()
    assert len(metas(diff[4]["joins"])["k"]) == 18
    assert diff[4]["leaves"] == {}
    assert watcher.members.present == 18


def test_who_comes_and_goes_within_a_moment_was_not_there() -> None:
    watcher, other = room(Version.V2, Version.V2, presence={"enabled": True})
    track(other, {})
    track(other, {}, "untrack")
    watcher.pass_time()
    assert watcher.written() == []
    track(other, {}, "untrack")
    assert watcher.later == []


def test_the_lost_vanish() -> None:
    watcher, other = room(Version.V2, Version.V2, presence={"enabled": True, "key": "k"})
    track(other, {"a": 1})
    watcher.pass_time()
    watcher.written()
    other.session.lost()
    watcher.pass_time()
    (diff,) = watcher.written()
    assert (diff[4]["joins"], metas(diff[4]["leaves"])) == ({}, {"k": [{"a": 1}]})
    assert watcher.members.present == 0


def test_presence_is_for_those_who_asked_or_track() -> None:
    quiet, other = room(Version.V2, Version.V2, presence={"enabled": False})
    reply, state = track(other, {"a": 1})
    assert (reply[3], state[3:]) == ("phx_reply", ["presence_state", {}])
    quiet.pass_time()
    (diff,) = other.written()
    assert len(diff[4]["joins"]) == 1
    assert quiet.written() == []


def test_without_a_key_everybody_has_an_own_one() -> None:
    one, other = room(Version.V2, Version.V2, presence={"enabled": True})
    for world in (one, other):
        track(world, {})
    one.pass_time()
    (diff,) = one.written()
    assert len(diff[4]["joins"]) == 2


def test_who_leaves_just_before_another_comes_is_told_to_have_left() -> None:
    watcher, first, second = room(*[Version.V2] * 3, presence={"enabled": True, "key": "k"})
    track(first, {"n": 1})
    watcher.pass_time()
    watcher.written()
    first.session.lost()
    track(second, {"n": 2})
    track(second, {}, "untrack")
    track(second, {"n": 3})
    watcher.pass_time()
    (diff,) = watcher.written()
    assert (metas(diff[4]["joins"]), metas(diff[4]["leaves"])) == ({"k": [{"n": 3}]}, {"k": [{"n": 1}]})


def test_bounds_of_presence_are_told() -> None:
    one, other = room(*[Version.V2] * 2, presence={"enabled": True}, presence_members=1)
    track(one, {})
    (reply,) = track(other, {})
    assert reply[4]["response"]["reason"] == "Too many members: a topic has at most 1"
    assert track(one, {"as": "before"})[0][4]["status"] == "ok"
    track(one, {}, "untrack")
    assert track(other, {})[0][4]["status"] == "ok"
    long = World()
    (refused,) = long.join(presence={"key": "k" * 256})
    assert refused[4]["response"]["reason"] == "PresenceKeyInvalid: A key has at most 255 bytes"


def test_the_presence_of_a_topic_has_a_bound_in_bytes() -> None:
    one, other = room(*[Version.V2] * 2, presence={"enabled": True}, presence_topic_bytes=300)
    for _ in range(3):  # its former payload no longer counts
        assert track(one, {"n": "x" * 150})[0][4]["status"] == "ok"
    (reply,) = track(other, {"n": "x" * 150})
    assert reply[4]["response"]["reason"] == "Presence size exceeded: 300 bytes at most in a topic; track less"
    track(one, {}, "untrack")
    assert track(other, {"n": "x" * 150})[0][4]["status"] == "ok"


def test_a_join_that_ends_after_the_socket_leaves_nothing_behind() -> None:
    world = World()
    watch = world.gateway.watch

    async def lost(*asked: Any) -> Any:
        world.session.lost()
        return await watch(*asked)

    world.gateway.watch = lost  # type: ignore[method-assign, assignment]
    world.join(count=0, presence={"enabled": True})
    assert world.members.topics == 0
    assert world.session.topics == {}


def test_a_member_that_fails_is_dropped_and_the_others_get_the_message() -> None:
    sender, broken, other = room(*[Version.V2] * 3)

    def fail(data: bytes | memoryview) -> None:
        raise OSError("no such file")

    broken.session.write = fail
    broken.join(count=0)
    other.written()
    sender.send(TOPIC, "broadcast", TEXT)
    assert len(other.written()) == 1
    assert broken.session.closing is Close.RESTART
    assert [str(error) for _, error in sender.failures] == ["no such file"]


def test_a_second_join_begins_anew() -> None:
    watcher, other = room(Version.V2, Version.V2, presence={"enabled": True, "key": "k"})
    track(other, {"a": 1})
    watcher.pass_time()
    for world in (watcher, other):
        world.written()
    *_, state = other.join(count=0, presence={"enabled": True, "key": "new"})
    assert metas(state[4]) == {"k": [{"a": 1}]}, "as of the last diff"
    watcher.pass_time()
    for world in (watcher, other):
        (diff,) = world.written()
        assert (diff[4]["joins"], metas(diff[4]["leaves"])) == ({}, {"k": [{"a": 1}]})


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"event": "stay", "payload": {}}, "PresenceUnknown"),
        ({"event": "track", "payload": 7}, "PresenceMalformed"),
        ({"event": 7}, "PresenceMalformed"),
        ({"event": "track", "payload": {"a": "x" * 4096}}, "Track message size exceeded"),
    ],
)
def test_what_cannot_be_tracked_is_refused(payload: dict[str, Any], said: str) -> None:
    (world,) = room(Version.V2, presence={"enabled": True})
    (reply,) = world.send(TOPIC, "presence", payload, "1")
    assert reply[4]["status"] == "error"
    assert reply[4]["response"]["reason"].startswith(said)
    assert world.later == []


def test_events_of_presence_have_any_case_and_the_payload_may_be_missing() -> None:
    (world,) = room(Version.V2, presence={"enabled": True})
    world.send(TOPIC, "presence", {"event": "TRACK"}, "1")
    assert world.members.present == 1
    assert world.members.watches(TopicKey(TOPIC, is_private=False), world.session)

"""The members of a topic on several gateways, and members that fail."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from typing import Any

from momentum_sync.gateway.direct_files import DirectFiles
from momentum_sync.gateway.presence import Occupied, Tracked
from momentum_sync.gateway.topic_members import TopicKey, TopicMembers
from momentum_sync.wire.close import Close
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.realtime_broadcast import Broadcast, broadcast_frame

TOPIC, PRIVATE = TopicKey("realtime:a", False), TopicKey("realtime:a", True)
TEXT = Broadcast("realtime:a", "", b'{"type":"broadcast","event":"e","payload":{}}', is_text=True)
_FILES = DirectFiles(os.write)


class One:
    """A member with the frames that it was written."""

    def __init__(self, version: Version = Version.V2) -> None:
        self.version = version
        self.file = _FILES.add()
        self.data: list[bytes] = []
        self.write: Callable[[bytes | memoryview], None] = lambda data: self.data.append(bytes(data))
        self.dropped: list[Close] = []
        self.stays = False

    def drop(self, why: Close) -> None:
        self.dropped.append(why)
        if self.stays:
            raise ZeroDivisionError

    def diffs(self) -> list[dict[str, Any]]:
        """Return the payloads of the presence diffs."""
        texts = [data[2:] if data[1] < 126 else data[4:] for data in self.data]
        self.data = []
        return [json.loads(text)[4] for text in texts]


class Others:
    """The other gateways: what they were told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def broadcast(self, message: Broadcast, *, is_private: bool) -> None:
        self.told.append((message, is_private))

    def tracked(self, topic: TopicKey, member: str, tracked: Tracked) -> None:
        self.told.append((topic, member, tracked.key, json.loads(tracked.content)))

    def untracked(self, topic: TopicKey, member: str) -> None:
        self.told.append((topic, member))


class World:
    """The members of one gateway."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.failures: list[tuple[str, str]] = []
        self.counted: list[tuple[int, int]] = []
        numbers = itertools.count(1)
        self.members = TopicMembers(
            lambda seconds, tell: self.later.append((seconds, tell)), _FILES, 0.05,
            sent=lambda *counts: self.counted.append(counts), received=lambda _: None,
            unique=lambda: f"u{next(numbers)}-",
            failed=lambda where, error: self.failures.append((where, type(error).__name__)),
        )  # fmt: skip

    def pass_time(self) -> None:
        due, self.later = self.later, []
        for _, tell in due:
            tell()


def test_other_gateways_get_broadcasts_and_presence() -> None:
    world, others, member, second = World(), Others(), One(), One()
    world.members.share(others)
    world.members.broadcast(TEXT, is_private=True, sender=None, to_sender=False)
    for number, each in enumerate((member, second, member)):
        world.members.track(PRIVATE, each, "k", b'{"n":%d}' % number)
    world.members.untrack(PRIVATE, member)
    world.members.leave(PRIVATE, second)
    world.members.leave(PRIVATE, second)
    (message, is_private), *presence = others.told
    assert (message, is_private) == (TEXT, True)
    names = [each[1] for each in presence]
    assert [names[index] for index in (0, 2, 3)] == [names[0]] * 3, "a member keeps its name"
    assert names[1] == names[4] != names[0]
    assert all(each[0] == PRIVATE for each in presence)
    assert [each[2:] for each in presence] == [
        ("k", {"phx_ref": "u1-1", "n": 0}),
        ("k", {"phx_ref": "u1-3", "n": 1}),
        ("k", {"phx_ref": "u1-5", "phx_ref_prev": "u1-1", "n": 2}),
        (),
        (),
    ]


def test_members_of_other_gateways_are_present_here() -> None:
    world, here = World(), One()
    world.members.join(TOPIC, here)
    assert world.members.watch(TOPIC, here) == b"{}"
    far = ("gateway", "1")
    world.members.present_elsewhere(TOPIC, far, None)
    assert world.later == [], "it was not present"
    world.members.present_elsewhere(TOPIC, far, Tracked("k", b'{"phx_ref":"x"}'))
    assert [seconds for seconds, _ in world.later] == [0.05]
    assert world.members.present == 1
    world.members.track(TOPIC, here, "k", b"{}")
    assert world.members.beside(TOPIC, here) == Occupied(1, 16)
    assert world.members.beside(PRIVATE, here) == Occupied(0, 0)
    world.pass_time()
    (diff,) = here.diffs()
    assert [meta["phx_ref"] for meta in diff["joins"]["k"]["metas"]] == ["x", "u1-1"]
    world.members.present_elsewhere(TOPIC, ("gateway", "2"), None)
    world.members.present_elsewhere(TOPIC, far, None)
    world.members.present_elsewhere(TOPIC, far, None)
    world.pass_time()
    (diff,) = here.diffs()
    assert diff == {"joins": {}, "leaves": {"k": {"metas": [{"phx_ref": "x"}]}}}
    assert world.later == []


def test_one_that_does_not_watch_any_longer_gets_no_presence() -> None:
    world, here, other = World(), One(), One()
    world.members.unwatch(TOPIC, here)
    for member in (here, other):
        world.members.join(TOPIC, member)
        world.members.watch(TOPIC, member)
    world.members.unwatch(TOPIC, here)
    assert [world.members.watches(TOPIC, member) for member in (here, other)] == [False, True]
    world.members.track(TOPIC, here, "k", b"{}")
    world.pass_time()
    assert [len(member.diffs()) for member in (here, other)] == [0, 1]
    world.members.unwatch(TOPIC, other)
    assert not world.members.watches(TOPIC, other)


def test_a_version_without_members_is_not_encoded_for() -> None:
    world = World()
    members = [One(Version.V2), One(Version.V2), One(Version.V1)]
    for member in members:
        world.members.join(TOPIC, member)
    binary = Broadcast("realtime:a", "e", b"\x00", is_json=False)
    world.members.broadcast(binary, is_private=False, sender=members[0], to_sender=False)
    data = broadcast_frame(binary, Version.V2)
    assert data is not None
    assert [member.data for member in members] == [[], [data], []], "version 1 has no bytes"
    assert world.counted == [(1, len(data))]
    world.members.broadcast(TEXT, is_private=False, sender=members[2], to_sender=True)
    assert [len(member.data) for member in members] == [1, 2, 1]
    assert world.counted[1][0] == 3
    world.members.broadcast(TEXT, is_private=True, sender=None, to_sender=False)
    assert len(world.counted) == 2, "nobody has joined the private topic"


def test_a_member_that_fails_is_dropped_and_a_failure_of_that_is_reported_too() -> None:
    world, failing, other = World(), One(), One()
    failing.stays = True

    def fail(_: bytes | memoryview) -> None:
        raise OSError

    failing.write = fail
    for member in (failing, other):
        world.members.join(TOPIC, member)
    world.members.broadcast(TEXT, is_private=False, sender=None, to_sender=False)
    assert failing.dropped == [Close.RESTART]
    assert world.failures == [("a broadcast", "OSError"), ("the end of a connection", "ZeroDivisionError")]
    assert len(other.data) == 1

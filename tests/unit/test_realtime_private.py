"""Private topics, messages from the database and replays, in sessions of Supabase's protocol."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from momentum_sync.errors import Unavailable
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.page import Newest
from momentum_sync.eventlog.resume import ResumeRefused
from momentum_sync.gateway.dialects.realtime_resume import Verdict
from momentum_sync.gateway.dialects.realtime_services import SharedFrames
from momentum_sync.identity.topic_access import BROADCAST, PRESENCE, TopicAccess
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.realtime_broadcast import encode_stored
from tests.unit.realtime_world import World, at, identity

TEXT = {"type": "broadcast", "event": "moved", "payload": {"x": 1}}
TRACK = {"type": "presence", "event": "track", "payload": {"a": 1}}
READER = TopicAccess(frozenset({BROADCAST}), frozenset())
NOBODY = TopicAccess(frozenset({PRESENCE}), frozenset({BROADCAST, PRESENCE}))
IDS = DeliveryIds("", "", "")


def event(offset: int, *channels: str, n: int = 0) -> Event:
    body = encode_stored("e", b'{"n":%d}' % n, "i", is_json=True)
    return Event.build(
        offset=offset, place=(offset, 0), xid=1, committed_at=0.0, channels=channels, body=body, logged=True
    )  # fmt: skip


def numbers(world: World, data: bytes) -> list[tuple[str, int]]:
    """Return topic and number of each message in frames of version 2.0.0."""
    world.outgoing.written = [data]
    found: list[tuple[str, int]] = []
    for frame in world.written():
        assert frame[:2] == [None, None]
        assert frame[3] == "broadcast"
        found.append((frame[2], frame[4]["payload"]["n"]))
    return found


def test_a_private_topic_asks_for_the_callers_rights_and_a_public_one_does_not() -> None:
    world = World()
    world.join(count=0, private=True)
    world.join("realtime:b", count=0)
    assert [call for call in world.gateway.calls if call[0] == "access"] == [("access", "a")]
    assert set(world.session.cursor.channels) == {"topic:a", "public_topic:b"}


def test_a_caller_who_may_not_get_broadcasts_cannot_join() -> None:
    world = World()
    world.gateway.access = NOBODY
    (reply,) = world.join(count=0, private=True)
    assert reply[4] == {
        "status": "error",
        "response": {"reason": "Unauthorized: You do not have permissions to read from this Channel topic: a"},
    }
    assert world.session.topics == {}
    assert world.gateway.claims == []


def test_a_caller_without_insert_policies_can_send_nothing() -> None:
    world = World()
    world.gateway.access = READER
    answers = world.join(count=0, private=True, presence={"enabled": True})
    assert [frame[3] for frame in answers if frame[3] == "presence_state"] == []
    for kind, payload in (("broadcast", TEXT), ("presence", TRACK), ("presence", TRACK | {"event": "untrack"})):
        (refused,) = world.send("realtime:a", kind, payload)
        assert refused[4]["status"] == "error"
        assert refused[4]["response"]["reason"] == (
            "Unauthorized: You do not have permissions to write to this Channel topic: a"
        )
    assert world.received == []
    assert world.members.present == 0


def test_a_caller_may_track_without_seeing_the_presence_of_others() -> None:
    world = World()
    world.gateway.access = TopicAccess(frozenset({BROADCAST}), frozenset({PRESENCE}))
    world.join(count=0, private=True, presence={"enabled": True})
    (reply,) = world.send("realtime:a", "presence", TRACK)
    assert reply[4]["status"] == "ok"
    assert world.members.present == 1
    world.pass_time()
    assert world.written() == []


def test_lost_rights_take_away_what_they_gave() -> None:
    world = World()
    world.join(count=0, private=True, presence={"enabled": True})
    world.send("realtime:a", "presence", TRACK)
    world.pass_time()
    world.written()
    world.gateway.access = READER
    asyncio.run(world.session.review(world.gateway))
    assert world.members.present == 0
    world.pass_time()
    assert world.written() == []
    assert world.send("realtime:a", "broadcast", TEXT)[0][4]["status"] == "error"
    world.gateway.access = NOBODY
    asyncio.run(world.session.review(world.gateway))
    system, closed = world.sent()
    assert system[4]["message"] == "You no longer have permission to read from this Channel topic: a"
    assert system[4]["status"] == "error"
    assert closed[3] == "phx_close"
    assert world.session.topics == {}
    assert world.session.closing is None


def test_a_fresh_token_is_looked_at() -> None:
    world = World()
    world.gateway.tokens["fresh"] = identity(9_000.0)
    world.join(count=0, private=True)
    world.gateway.access = READER
    assert world.send("realtime:a", "access_token", {"access_token": "fresh"}) == []
    assert world.session.topics["realtime:a"].access == READER
    world.gateway.tokens["third"] = identity(9_001.0)
    world.gateway.access = NOBODY
    system, closed = world.send("realtime:a", "access_token", {"access_token": "third"})
    assert system[4]["message"] == "You no longer have permission to read from this Channel topic: a"
    assert closed[3] == "phx_close"


def test_rights_that_cannot_be_read_end_the_socket() -> None:
    world = World()
    world.gateway.tokens["fresh"] = identity(9_000.0)
    world.join(count=0, private=True)
    world.gateway.access_error = Unavailable("No.")
    world.send("realtime:a", "access_token", {"access_token": "fresh"})
    assert world.session.closing is Close.RESTART


def test_a_message_goes_to_the_topics_with_its_name_and_kind() -> None:
    world = World()
    world.join(count=0, private=True)
    world.join("realtime:b", count=0)
    world.join("realtime:c", count=0)
    cursor, dialect = world.session.cursor, world.session.dialect
    for found, wanted in (
        (event(6, "topic:a", n=1), [("realtime:a", 1)]),
        (event(7, "public_topic:a"), []),
        (event(8, "other", "public_topic:c", "public_topic:b", n=2), [("realtime:c", 2), ("realtime:b", 2)]),
    ):
        assert (cursor.channel_of(found) is not None) is bool(wanted)
        assert not cursor.must_check(found)
        assert numbers(world, dialect.encode(found, IDS, 0.0)) == wanted
        assert sorted(numbers(world, world.session.encode(found, IDS, 0.0))) == sorted(wanted)


def test_each_version_has_frames_of_its_own() -> None:
    shared = SharedFrames()
    old, new = World(version=Version.V1, shared=shared), World(shared=shared)
    message = event(6, "public_topic:a", n=6)
    for world in (old, new):
        world.join(count=0)
    assert old.session.dialect is not new.session.dialect
    for encode in (old.session.dialect.encode, old.session.encode):
        old.outgoing.written = [encode(message, IDS, 0.0)]
        (frame,) = old.written()
        assert (frame["topic"], frame["event"], frame["payload"]["payload"]) == ("realtime:a", "broadcast", {"n": 6})
    assert numbers(new, new.session.dialect.encode(message, IDS, 0.0)) == [("realtime:a", 6)]


def test_a_topic_gets_no_message_from_before_its_join() -> None:
    world = World()
    world.join(count=0)
    (topic,) = world.session.topics.values()
    assert [topic.gets(event(offset, "public_topic:a")) for offset in (5, 6)] == [False, True]
    topic.skip_to(7)
    assert [topic.gets(event(offset, "public_topic:a")) for offset in (7, 8)] == [False, True]


def test_messages_and_changes_of_rows_on_one_connection() -> None:
    world = World(shared=SharedFrames())
    world.join(count=0)
    assert world.session.cursor.checked == set()
    assert world.session.cursor.slots == ("public_topic:a",)


def test_rights_that_change_during_a_join_are_looked_at_again() -> None:
    world = World()
    changes = iter([READER, NOBODY])
    real = world.gateway.topic_access

    async def access(identity: Any, topic: str) -> TopicAccess:
        found = await real(identity, topic)
        if (then := next(changes, None)) is not None:  # after the answer, and before the topic is joined
            world.gateway.access = then
            world.gateway.generation += 1
        return found

    world.gateway.topic_access = access  # type: ignore[method-assign]
    (reply,) = world.join(count=0, private=True)
    assert reply[4]["response"]["reason"].startswith("Unauthorized: ")
    assert [call for call in world.gateway.calls if call[0] == "access"] == [("access", "a")] * 3
    assert world.session.topics == {}


def test_rights_that_never_settle_refuse_the_join() -> None:
    world = World()
    real = world.gateway.topic_access

    async def access(identity: Any, topic: str) -> TopicAccess:
        world.gateway.generation += 1
        return await real(identity, topic)

    world.gateway.topic_access = access  # type: ignore[method-assign]
    (reply,) = world.join(count=0, private=True)
    assert reply[4]["response"]["reason"].startswith("UnableToConnectToProject: ")


def test_a_topic_that_is_joined_again_as_private_goes_on_with_its_own_messages() -> None:
    world = World()
    world.join(count=0)
    world.outgoing.offset = 9
    world.join(count=0, private=True)
    (topic,) = world.session.topics.values()
    assert world.outgoing.rewound == [5]
    assert [topic.gets(event(offset, "topic:a")) for offset in (5, 6)] == [False, True]
    assert [topic.gets(event(offset, "public_topic:a")) for offset in (5, 6)] == [False, False]


# Replay


def replaying(world: World, replay: dict[str, Any], **config: Any) -> list[Any]:
    return world.join(count=0, private=True, broadcast={"replay": replay}, **config)


def test_a_replay_follows_the_reply() -> None:
    world = World()
    world.gateway.replayed = Newest([event(2, "topic:a", n=2), event(4, "topic:a", n=4)], is_whole=True)
    answers = replaying(world, {"since": 1_500, "limit": 7})
    assert answers == [], "the reply was written before"
    reply, *messages = world.written()
    assert reply[4]["status"] == "ok"
    assert [each[4]["payload"]["n"] for each in messages] == [2, 4]
    assert all(each[4]["meta"] == {"id": "i", "replayed": True} for each in messages)
    assert ("newest", "topic:a", 5, 1.5, 7, 4 * 1024 * 1024) in world.gateway.calls


@pytest.mark.parametrize(("limit", "most"), [(None, 10), (10, 10), (11, 10), (9, 9), (0, 1)])
def test_a_replay_has_a_limit(limit: int | None, most: int) -> None:
    world = World(replayed=10, replayed_bytes=77)
    replaying(world, {"since": 0} | ({} if limit is None else {"limit": limit}))
    assert ("newest", "topic:a", 5, 0.0, most, 77) in world.gateway.calls


def test_a_client_is_told_of_messages_that_were_not_replayed() -> None:
    world = World()
    world.gateway.replayed = Newest([event(4, "topic:a")], is_whole=False)
    replaying(world, {"since": 0})
    said = world.said(world.written(), "replay")
    assert said == ["ReplayGap: the newest 1 messages were replayed; there may be older ones."]
    world = World()
    world.gateway.replayed = Newest([event(4, "topic:a")], is_whole=False)
    replaying(world, {"since": 0, "limit": 1})
    assert world.said(world.written(), "replay") == [], "it has what it has asked for"


def test_a_client_that_is_resumed_has_had_them() -> None:
    world = World()
    world.gateway.verdict = Verdict(cursors={"realtime:a": at(3)})
    world.gateway.replayed = Newest([event(2, "topic:a")], is_whole=False)
    assert world.said(replaying(world, {"since": 0}), "replay") == []
    assert [each for each in world.written() if each[3] == "broadcast"] == []
    assert world.outgoing.rewound == [3]


@pytest.mark.parametrize("error", [Unavailable("No."), ResumeRefused("history_changed")])
def test_a_replay_that_cannot_be_read_refuses_the_join(error: Exception) -> None:
    world = World()
    world.gateway.unread = error
    (reply,) = replaying(world, {"since": 0})
    assert reply[4]["response"]["reason"] == "UnableToReplayMessages: Realtime was unable to replay messages"
    assert world.session.topics == {}
    assert world.session.ledger.cursors == {}, "the next join gets them"


def test_a_client_of_the_older_version_gets_no_bytes_replayed() -> None:
    world = World(version=Version.V1)
    body = encode_stored("raw", b"\x00", "i", is_json=False)
    binary = Event.build(offset=2, place=(2, 0), xid=1, committed_at=0.0, channels=("topic:a",), body=body, logged=True)
    world.gateway.replayed = Newest([binary, event(4, "topic:a", n=4)], is_whole=True)
    replaying(world, {"since": 0})
    assert [each["payload"]["payload"]["n"] for each in world.written() if each["event"] == "broadcast"] == [4]


def test_a_client_can_ask_to_be_told_that_messages_come() -> None:
    world = World()
    answers = world.join(count=0, broadcast={"replication_ready": True})
    assert world.said(answers, "system") == ["Replication connection established"]
    assert world.said(World().join(count=0), "system") == []

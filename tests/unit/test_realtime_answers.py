"""The frames with which a session of Supabase's protocol answers, in both versions of the serializer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.dialects.realtime_answers import Answers
from momentum_sync.gateway.dialects.realtime_messages import Reply
from momentum_sync.gateway.dialects.realtime_place import Start
from momentum_sync.gateway.dialects.realtime_replay import NOTHING, Replayed
from momentum_sync.gateway.dialects.realtime_rights import Confirmed
from momentum_sync.gateway.dialects.realtime_services import Watched
from momentum_sync.gateway.dialects.realtime_topic import Topic, TopicEvents
from momentum_sync.identity.tokens import Identity
from momentum_sync.identity.topic_access import EVERYTHING
from momentum_sync.wire.phoenix import ClientFrame, Version
from momentum_sync.wire.realtime_join import Join, parse_join

POSITION = Position("e", 5, 1)
FRAME = ClientFrame("realtime:room", "broadcast", ref="8", join_ref="3")
BINDINGS = parse_join(b'{"config":{"postgres_changes":[{"event":"*","schema":"public","table":"t"}]}}')


@pytest.fixture(params=Version)
def version(request: pytest.FixtureRequest) -> Version:
    found: Version = request.param
    return found


@pytest.fixture
def answers(version: Version) -> Answers:
    return Answers(version)


def topic(join: Join | None = None) -> Topic:
    caller = Identity("authenticated", None, "{}", None)
    return Topic("realtime:room", "3", caller, 10.0, TopicEvents((), (), 4), join or Join())


def taken(answers: Answers, version: Version) -> list[dict[str, Any]]:
    """Return the texts as objects; version 1 has no `join_ref`."""
    names = ("join_ref", "ref", "topic", "event", "payload")
    found = [json.loads(text) for text in answers.take()]
    assert answers.take() == []
    return found if version is Version.V1 else [dict(zip(names, text, strict=True)) for text in found]


def said(version: Version, event: str, payload: object, ref: str | None = None) -> dict[str, Any]:
    """Return the text of a frame of the topic."""
    join_ref = {} if version is Version.V1 else {"join_ref": "3"}
    return {"topic": "realtime:room", "event": event, "payload": payload, "ref": ref, **join_ref}


def system(version: Version, extension: str, message: str, status: str = "ok") -> dict[str, Any]:
    payload = {"message": message, "status": status, "extension": extension, "channel": "room"}
    return said(version, "system", payload)


def test_answers_to_frames(answers: Answers, version: Version) -> None:
    answers.reply(FRAME)
    answers.refuse(FRAME, "no")
    answers.answer(FRAME, None)
    answers.answer(FRAME, Reply(True, b'{"a":1}'))
    answers.answer(FRAME, Reply(False))
    assert len(answers) == 4
    assert taken(answers, version) == [
        said(version, "phx_reply", {"status": status, "response": response}, "8")
        for status, response in [("ok", {}), ("error", {"reason": "no"}), ("ok", {"a": 1}), ("error", {})]
    ]
    assert len(answers) == 0


def confirmed(wrong: str = "", *notices: str) -> Confirmed:
    return Confirmed(EVERYTHING, Watched((), notices), wrong, 1)


def test_what_follows_the_reply_to_a_join(answers: Answers, version: Version) -> None:
    answers.joined(topic(), confirmed(), Start(POSITION, ""), NOTHING)
    assert taken(answers, version) == []
    answers.joined(topic(BINDINGS), confirmed(), Start(POSITION, ""), NOTHING)
    assert taken(answers, version) == [system(version, "postgres_changes", "Subscribed to PostgreSQL")]
    answers.joined(topic(BINDINGS), confirmed("no such table"), Start(POSITION, ""), NOTHING)
    assert taken(answers, version) == [system(version, "postgres_changes", "no such table", "error")]
    notified = msgspec.structs.replace(BINDINGS, wants_replication_notice=True)
    answers.joined(topic(notified), confirmed("", "one"), Start(POSITION, "resumed"), Replayed([], "too many"))
    assert taken(answers, version) == [
        system(version, "postgres_changes", "Subscribed to PostgreSQL"),
        system(version, "system", "Replication connection established"),
        system(version, "resume", "resumed"),
        system(version, "replay", "too many"),
        system(version, "rights", "one"),
    ]


def test_a_notice_comes_once_until_it_has_gone(answers: Answers, version: Version) -> None:
    room = topic()
    answers.tell(room, Watched((), ("one",)))
    answers.tell(room, Watched((), ("one", "two")))
    assert taken(answers, version) == [system(version, "rights", notice) for notice in ("one", "two")]
    answers.tell(room, Watched((), ()))
    answers.tell(room, Watched((), ("one",)))
    assert taken(answers, version) == [system(version, "rights", "one")]


def test_presence_and_the_end_of_a_topic(answers: Answers, version: Version) -> None:
    answers.presence(topic(), None)
    answers.presence(topic(), b'{"a":{"metas":[]}}')
    answers.end(topic())
    assert taken(answers, version) == [
        said(version, "presence_state", {"a": {"metas": []}}),
        said(version, "phx_close", {}, "3"),
    ]

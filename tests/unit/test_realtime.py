"""A session of Supabase's protocol, without its socket and without a database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any
from uuid import UUID

import pytest

from momentum_sync.errors import BadRequest, Unauthenticated, Unavailable
from momentum_sync.eventlog.event import Event, row_channel
from momentum_sync.eventlog.resume import ResumeRefused
from momentum_sync.eventlog.row_index import Route
from momentum_sync.gateway.conversation import BinaryMessage
from momentum_sync.gateway.dialects.realtime import RealtimeSession
from momentum_sync.gateway.dialects.realtime_errors import reason, refusal
from momentum_sync.gateway.dialects.realtime_resume import LOST, Verdict
from momentum_sync.gateway.dialects.realtime_services import SharedFrames, Watched
from momentum_sync.identity.decider import Decider
from momentum_sync.identity.policy import All, Column, Constant, Equal, Kind
from momentum_sync.identity.row_tables import RowTable, SeenChange
from momentum_sync.identity.tokens import Identity
from momentum_sync.limits import SocketLimits
from momentum_sync.wire import row_watch
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.realtime_filter import Condition, Operator
from momentum_sync.wire.row_watch import Watch
from tests.unit.realtime_world import ANON, USER, Gateway, World, at, identity

TABLE = RowTable.build(
    7, "public", "t", secured=True, policies=("", ""), needed=frozenset({"owner"}),
    columns=[("id", "int4", "integer", "integer", True, True), ("owner", "text", "text", "text", True, False)],
    identity=frozenset({"id"}),
)  # fmt: skip
LIKE = row_watch.Test(Condition("owner", Operator.LIKE, False, ("a%",)), "text", "text", "text", ())


def change(offset: int, owner: str = "alice", relation: int = 7) -> Event:
    body = {
        "schema": "public", "table": "t", "commit_timestamp": "", "type": "INSERT", "errors": None,
        "columns": [{"name": "id", "type": "int4"}, {"name": "owner", "type": "text"}],
        "record": {"id": offset, "owner": owner},
    }  # fmt: skip
    return Event.build(
        offset=offset, place=(offset, 0), xid=1, committed_at=0.0, channels=(row_channel(relation),),
        body=json.dumps(body).encode(),
    )  # fmt: skip


def watching(number: int = 1, *tests: row_watch.Test) -> Watch:
    return Watch(id=number, event="*", relations=frozenset({7}), tests=tests)


def frames(data: bytes) -> list[Any]:
    """Return the texts of a server's frames: RFC 6455, section 5.2."""
    found = []
    while data:
        length, start = (data[1], 2) if data[1] < 126 else (int.from_bytes(data[2:4], "big"), 4)
        found.append(json.loads(data[start : start + length]))
        data = data[start + length :]
    return found


# Topics


def test_a_join_is_answered_with_its_bindings_and_then_live() -> None:
    world = World()
    world.gateway.watched = Watched((watching(),), ("Notice.",))
    reply, live, notice = world.join()
    assert reply[:4] == ["1", "1", "realtime:a", "phx_reply"]
    assert reply[4]["status"] == "ok"
    assert len(reply[4]["response"]["postgres_changes"]) == 1
    assert live == ["1", None, "realtime:a", "system", {
        "message": "Subscribed to PostgreSQL", "status": "ok", "extension": "postgres_changes", "channel": "a",
    }]  # fmt: skip
    assert (notice[4]["extension"], notice[4]["message"]) == ("rights", "Notice.")
    channels = (row_channel(7), "public_topic:a")
    assert world.session.cursor.channels == dict(zip(channels, channels, strict=True))
    assert world.session.topics["realtime:a"].identity == identity()


def test_a_topic_without_bindings_has_the_callers_of_the_connection() -> None:
    world = World()
    (reply, *_) = world.join(count=0, token=None)
    assert reply[4] == {"status": "ok", "response": {"postgres_changes": []}}
    world.join("realtime:b", token="sb_publishable_x")
    assert [topic.identity for topic in world.session.topics.values()] == [ANON, ANON]


@pytest.mark.parametrize(
    ("topic", "config", "said"),
    [
        ("room", {}, "unmatched topic"),
        ("realtime:", {}, "TopicNameRequired: "),
        ("realtime:" + "x" * 247, {}, "TopicNameInvalid: "),
        ("realtime:a\0", {}, "TopicNameInvalid: "),
        ("realtime:c", {}, "ChannelRateLimitReached: "),
        ("realtime:a", {"count": 3}, "TooManyBindings: "),
        ("realtime:a", {"broadcast": {"replay": {"since": 1}}}, "UnableToReplayMessages: Replay is not allowed"),
        *[
            ("realtime:a", {"private": True, "broadcast": {"replay": replay}}, "UnableToReplayMessages: Replay params")
            for replay in (
                {"limit": 3},
                {"since": "2026-01-01"},
                {"since": -1},
                {"since": 1.5},
                {"since": 1, "limit": "x"},
            )
        ],
    ],
)
def test_joins_that_are_refused(topic: str, config: dict[str, Any], said: str) -> None:
    world = World(topics=2)
    world.join("realtime:a")
    world.join("realtime:b")
    (reply,) = world.join(topic, **config)
    assert reply[4]["status"] == "error"
    assert reply[4]["response"]["reason"].startswith(said)
    assert set(world.session.topics) == {"realtime:a", "realtime:b"}


def test_bindings_that_are_wrong_leave_the_topic_open() -> None:
    world = World()
    world.gateway.watched = BadRequest("bad_binding", "Unable to subscribe")
    reply, system = world.join()
    assert reply[4]["status"] == "ok"
    assert (system[4]["status"], system[4]["message"]) == ("error", "Unable to subscribe")
    assert "realtime:a" in world.session.topics


def test_a_database_that_does_not_answer_refuses_the_join() -> None:
    world = World()
    world.gateway.watched = Unavailable("Later.")
    (reply,) = world.join()
    assert reply[4]["response"]["reason"] == "UnableToConnectToProject: Later."


def test_heartbeats_and_frames_for_unknown_topics() -> None:
    world = World()
    assert world.send("phoenix", "heartbeat") == [[None, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}]]
    (reply,) = world.send("realtime:a", "anything")
    assert reply[4] == {"status": "error", "response": {"reason": "unmatched topic"}}
    # The client in Python of 2025 would take an answer for the end of a channel that it is about to join.
    assert world.send("realtime:a", "phx_leave") == []
    assert world.send("realtime:a", "phx_leave", join_ref="1")[0][4]["status"] == "ok"
    assert world.session.receive(BinaryMessage(b"\x00"), world.gateway) is None
    assert world.session.receive(b"nonsense", world.gateway) is None
    assert world.sent() == []


def test_leaving_is_answered_and_ends_the_topic() -> None:
    world = World()
    world.gateway.watched = Watched((watching(),), ())
    world.join()
    reply, close = world.send("realtime:a", "phx_leave", join_ref="1")
    assert (reply[1], reply[3], reply[4]["status"]) == ("2", "phx_reply", "ok")
    assert close == ["1", "1", "realtime:a", "phx_close", {}]
    assert world.session.cursor.channels == {}


# Tokens


def test_a_fresh_token_replaces_the_caller_and_confirms_the_bindings_anew() -> None:
    world = World()
    world.gateway.watched = Watched((watching(),), ())
    world.join()
    revision = world.session.revision
    world.gateway.tokens["u"] = identity(user=UUID(int=2))
    world.gateway.watched = Watched((watching(2),), ())
    assert world.send("realtime:a", "access_token", {"access_token": "u"}) == []
    topic = world.session.topics["realtime:a"]
    assert topic.identity.subject == UUID(int=2)
    assert [watch.id for watch in topic.events.watches] == [2]
    assert world.session.revision is not revision
    assert "rename" in world.gateway.calls


@pytest.mark.parametrize("payload", [{}, {"access_token": None}, {"access_token": "sb_x"}, {"access_token": "t"}])
def test_no_other_token_changes_nothing(payload: dict[str, Any]) -> None:
    world = World()
    world.join()
    topic = world.session.topics["realtime:a"]
    assert world.send("realtime:a", "access_token", payload) == []
    assert world.session.topics["realtime:a"] is topic


def test_a_refused_token_ends_the_topic() -> None:
    world = World()
    world.join()
    world.gateway.tokens["old"] = Unauthenticated("No.", "token_expired", fault="expired", late_s=7.5)
    system, close = world.send("realtime:a", "access_token", {"access_token": "old"})
    assert (system[4]["message"], system[4]["status"]) == ("Token has expired 7 seconds ago", "error")
    assert close[3] == "phx_close"
    world.join()
    world.gateway.tokens["old"] = Unavailable("Later.")
    assert world.send("realtime:a", "access_token", {"access_token": "old"}) == []
    assert world.session.closing is Close.RESTART


def test_bindings_that_a_fresh_token_may_not_have_are_told() -> None:
    world = World()
    world.join()
    world.gateway.tokens["u"] = identity(user=UUID(int=2))
    world.gateway.watched = BadRequest("bad_binding", "Unable to subscribe.")
    (told,) = world.send("realtime:a", "access_token", {"access_token": "u"})
    assert told[2:4] == ["realtime:a", "system"]
    assert told[4] == {
        "message": "Unable to subscribe.", "status": "error", "extension": "postgres_changes", "channel": "a",
    }  # fmt: skip
    assert world.session.topics["realtime:a"].events.watches == ()
    assert ("watch", identity(user=UUID(int=2)), 1) in world.gateway.calls


@pytest.mark.parametrize(
    ("there", "verdict", "closing"),
    [(False, Verdict(), Close.REPLACED), (True, Verdict(is_late=True), Close.REPLACED),
     (True, Unavailable("Later."), Close.RESTART)],
)  # fmt: skip
def test_a_session_that_cannot_be_found_under_the_fresh_token_closes(
    there: bool, verdict: Verdict | Exception, closing: Close
) -> None:
    world = World(name="c" if not there else None)
    if there:  # without a key so far
        world.join(token=None)
    else:
        world.join()
    world.gateway.tokens["u"] = identity(user=UUID(int=2))
    world.gateway.there, world.gateway.verdict = there, verdict
    world.send("realtime:a", "access_token", {"access_token": "u"})
    assert world.session.closing is closing


def test_a_fresh_token_ends_at_its_own_time() -> None:
    world = World()
    world.gateway.tokens |= {"t": identity(1010.0), "u": identity(1500.0, UUID(int=2))}
    world.join()
    ends = world.session.topics["realtime:a"].ends_at
    world.send("realtime:a", "access_token", {"access_token": "u"})
    assert world.session.topics["realtime:a"].ends_at == ends + 490.0


def test_a_join_without_join_ref_is_known_by_its_ref() -> None:
    world = World()
    world.send("realtime:a", "phx_join", {"config": {}, "access_token": "t"})
    assert world.session.topics["realtime:a"].join_ref == "1"
    world.send("realtime:b", "phx_join", {"config": {}, "access_token": "t"}, "7")
    assert world.session.topics["realtime:b"].join_ref == "7"


def test_messages_about_the_resume_and_the_subscription_are_no_errors() -> None:
    world = World(name=None)
    frames = world.join(token=None)
    assert [(frame[4]["extension"], frame[4]["status"]) for frame in frames if frame[3] == "system"] == [
        ("postgres_changes", "ok"), ("resume", "ok"),
    ]  # fmt: skip


def test_an_expired_token_ends_its_topic_and_keeps_the_position() -> None:
    world = World()
    world.gateway.tokens["short"] = identity(expires_at=1010.0)
    world.join(token="short")
    world.join("realtime:b")
    assert world.session.tick(1014.0, 1014.0, 0, None) == 1015.0
    assert world.sent() == []
    world.session.tick(1015.0, 1015.0, 0, None)
    system, close = world.sent()
    assert system[4]["message"] == "Token has expired 5 seconds ago"
    assert close[2:4] == ["realtime:a", "phx_close"]
    assert list(world.session.topics) == ["realtime:b"]
    assert world.session.ledger.cursors["realtime:a"] == at(5)
    assert world.session.is_of(USER)
    assert not world.session.is_of(UUID(int=3))


@pytest.mark.parametrize(
    ("error", "said", "refused"),
    [
        (Unauthenticated("x"), "MalformedJWT: The token provided is not a valid JWT",
         "The token provided is not a valid JWT"),
        (Unauthenticated("x", fault="signature"), "JwtSignatureError: Failed to validate JWT signature",
         "Failed to validate JWT signature"),
        (Unauthenticated("x", fault="claims"), "InvalidJWTToken: Fields `role` and `exp` are required in JWT",
         "Fields `role` and `exp` are required in JWT"),
        (Unauthenticated("x", fault="expired", late_s=3.9), "InvalidJWTToken: Token has expired 3 seconds ago",
         "Token has expired"),
        (Unauthenticated("Gone.", "token_revoked"), "InvalidJWTToken: Gone.", "Gone."),
        (Unavailable("Later."), "UnableToConnectToProject: Later.", "Later."),
        (BadRequest("bad", "No."), "bad: No.", "No."),
    ],
)  # fmt: skip
def test_errors_are_in_supabases_words(error: Any, said: str, refused: str) -> None:
    assert reason(error) == said
    assert refusal(error, is_realtime=True) == refused
    assert refusal(error, is_realtime=False) == {"code": error.code, "message": str(error)}


# Where a topic begins


def test_a_topic_goes_on_where_the_client_left_off() -> None:
    world = World()
    world.gateway.verdict = Verdict(claimed=(0,), cursors={"realtime:a": at(2), "realtime:b": at(3)})
    assert world.said(world.join(), "resume")[0].startswith("Resumed: ")
    assert world.outgoing.rewound == [2]
    assert world.session.topics["realtime:a"].events.since == 2
    assert world.said(world.join("realtime:b"), "resume")[0].startswith("Resumed: ")
    assert world.outgoing.rewound == [2, 3]
    assert world.session.topics["realtime:a"].events.since == 5  # it has had the events that the connection repeats
    assert [call for call in world.gateway.calls if call[0] == "claim"] == [("claim", True, 1, "realtime:a", at(5))]


def test_a_position_that_is_gone_is_told() -> None:
    world = World()
    world.gateway.verdict = Verdict(claimed=(0,), cursors={"realtime:a": at(2)})
    world.gateway.refused = ResumeRefused("expired")
    assert world.said(world.join(), "resume")[0].startswith("ResumeGap: ")
    assert world.session.ledger.cursors == {"realtime:a": LOST}  # until the client has heard of it
    assert "save" in world.gateway.calls
    world.session.pong(world.session.ping(), in_order=True)
    assert world.session.ledger.cursors == {"realtime:a": at(5)}


def test_a_gap_of_the_session_is_told_to_each_of_its_topics() -> None:
    world = World()
    world.gateway.verdict = Verdict(has_gap=True, cursors={"realtime:a": at(2)})
    for topic in ("realtime:a", "realtime:b"):
        assert world.said(world.join(topic), "resume")[0].startswith("ResumeGap: ")


def test_a_client_without_a_key_is_told_and_found_once_it_signs_in() -> None:
    world = World(name=None)
    assert world.said(world.join(token=None), "resume")[0].startswith("NotResumable: ")
    assert [call for call in world.gateway.calls if call[0] == "claim"] == []
    assert world.send("realtime:a", "access_token", {"access_token": "t"}) == []
    # With `ref` 0 there is nothing to continue.
    assert world.gateway.calls[-1] == ("claim", False, 0, "realtime:a", at(5))


@pytest.mark.parametrize(
    ("spoil", "closing"),
    [
        (lambda gateway: setattr(gateway, "verdict", Verdict(is_late=True)), Close.REPLACED),
        (lambda gateway: setattr(gateway, "verdict", Unavailable("Later.")), Close.RESTART),
    ],
)
def test_a_join_that_cannot_be_kept_closes_the_socket(spoil: Callable[[Gateway], None], closing: Close) -> None:
    world = World()
    spoil(world.gateway)
    assert world.join() == []
    assert world.session.closing is closing


def test_a_session_that_was_continued_elsewhere_closes() -> None:
    world = World()
    world.join()
    world.gateway.there = False
    assert world.join("realtime:b") == []
    assert world.session.closing is Close.REPLACED


def test_joining_again_on_the_same_socket_goes_on_from_the_last_confirmed_position() -> None:
    """The client gave up the previous join while the server worked on it, and dropped the messages of that join."""
    world = World()
    world.join()
    world.outgoing.offset, world.outgoing.position = 9, at(9)
    assert [text.partition(":")[0] for text in world.said(world.join(), "resume")] == ["Resumed"]
    assert world.session.topics["realtime:a"].events.since == 5
    assert world.outgoing.rewound == [5]
    world.session.pong(world.session.ping(), in_order=True)
    assert world.said(world.join(), "resume") == []  # it has the reply: no message about a resume
    assert world.session.topics["realtime:a"].events.since == 9
    assert world.outgoing.rewound == [5]


def test_joining_again_after_the_position_has_expired_tells_of_a_gap() -> None:
    world = World()
    world.join()
    world.gateway.refused = ResumeRefused("expired")
    world.outgoing.offset = 9
    assert [text.partition(":")[0] for text in world.said(world.join(), "resume")] == ["ResumeGap"]
    assert world.session.topics["realtime:a"].events.since == 5


def test_a_pong_behind_a_message_that_waits_confirms_nothing_yet() -> None:
    world = World()
    world.join()
    world.outgoing.position = at(9)
    ping, answered = world.session.ping(), []
    world.session.probe(lambda: answered.append(True))
    world.session.pong(ping, in_order=False)
    assert world.session.ledger.cursors == {"realtime:a": at(5)}
    assert answered == []
    world.session.pong(world.outgoing.pings[-1], in_order=False)
    assert answered == [True]
    assert world.session.ledger.cursors == {"realtime:a": at(5)}
    world.session.pong(world.outgoing.pings[-1], in_order=True)
    assert world.session.ledger.cursors == {"realtime:a": at(9)}


def test_a_leave_before_the_reply_was_confirmed_keeps_the_position() -> None:
    world = World()
    world.join()
    world.send("realtime:a", "phx_leave", join_ref="1")
    assert world.session.ledger.cursors == {"realtime:a": at(5)}
    world.join()
    world.session.pong(world.session.ping(), in_order=True)
    world.send("realtime:a", "phx_leave", join_ref="3")
    assert world.session.ledger.cursors == {}


# Pings


def test_pings_confirm_what_was_written_before_them() -> None:
    world = World()
    world.join()
    for _ in range(2):
        world.session.ping_if_due()
        assert len(world.outgoing.pings) == 1  # after the reply to the join; nothing else was written
    world.gateway.watched = Watched((watching(),), ())
    world.join("realtime:b")
    world.gateway.visible = {6: SeenChange(TABLE)}
    deliver(world, change(6))
    world.outgoing.position = at(6)
    world.session.ping_if_due()
    world.session.ping_if_due()
    assert len(world.outgoing.pings) == 2
    world.session.pong(world.outgoing.pings[1], in_order=True)
    assert world.session.ledger.cursors == {"realtime:a": at(6), "realtime:b": at(6)}


def test_before_its_first_join_a_client_is_found_under_nothing() -> None:
    cursor = World().session.cursor
    assert (cursor.slots, cursor.lookups) == ((), ())


def test_a_ping_is_due_after_an_event_that_was_written_to_many_at_once() -> None:
    world = World()
    world.join(count=0)
    world.session.ping_if_due()
    world.session.rows.follow()
    view = world.session.dialect
    assert view.together == 0
    view.together += 1
    for _ in range(2):
        world.session.ping_if_due()
        assert len(world.outgoing.pings) == 2


def test_one_that_is_behind_is_pinged_for_what_it_was_written_and_not_for_the_events_of_others() -> None:
    world = World()
    world.join(count=0)
    world.session.rows.follow()
    world.session.ping_if_due()
    view = world.session.dialect
    assert view.together is not None
    view.together += 1
    world.session.cursor.fall_behind(9)
    assert world.session.cursor.offset == 9
    for _ in range(40):
        view.together += 1
        world.session.ping_if_due()
    assert len(world.outgoing.pings) == 2, "after the one event before it fell behind"
    world.session.rows.follow()
    world.session.ping_if_due()
    assert len(world.outgoing.pings) == 2
    view.together += 1
    world.session.ping_if_due()
    assert len(world.outgoing.pings) == 3


def test_a_ping_is_due_after_events_that_come_again_after_it() -> None:
    """A join goes back, a ping goes out before the first page, and the page ends with the same event as before."""
    world = World()
    world.join(count=0)
    world.session.ping_if_due()
    world.session.cursor.passed(world.session.cursor.last_id)
    world.session.ping_if_due()
    assert len(world.outgoing.pings) == 2


def test_news_of_a_view_that_was_left_are_pinged_for() -> None:
    world = World()
    for topic in ("realtime:a", "realtime:b"):
        world.join(topic, count=0)
    world.session.rows.follow()
    world.session.ping_if_due()
    view = world.session.dialect
    assert view.together is not None
    view.together += 1
    world.send("realtime:b", "phx_leave", join_ref="2")
    assert world.session.dialect is not view
    world.session.ping_if_due()
    world.session.ping_if_due()
    assert len(world.outgoing.pings) == 2


def test_a_ping_of_a_client_that_has_everything_is_written_along_with_others() -> None:
    world = World()
    world.join(count=0)
    world.outgoing.follows = True
    world.session.receive(b'[null, "9", "phoenix", "heartbeat", {}]', world.gateway)
    assert not world.session.ping_if_due(), "an answer waits, and comes first"
    assert len(world.outgoing.pings) == 1
    world.session.cursor.passed("another")
    assert world.session.ping_if_due()
    assert len(world.outgoing.pings) == 1
    world.session.note_ping(7, at(6))
    assert not world.session.ping_if_due()
    assert world.session.pong(b"7", in_order=True)
    assert world.session.ledger.cursors == {"realtime:a": at(6)}


def test_a_probe_is_answered_by_its_ping_or_a_later_one() -> None:
    world = World()
    told: list[int] = []
    world.session.probe(lambda: told.append(1))
    world.session.probe(lambda: told.append(2))
    world.session.pong(b"nonsense", in_order=True)
    world.session.pong(world.outgoing.pings[0], in_order=True)
    assert told == [1]
    world.session.pong(world.session.ping(), in_order=True)
    assert told == [1, 2]


# Changes


def deliver(world: World, *events: Event) -> list[Any]:
    """Check events and deliver them, as a connection does."""
    cursor = world.session.cursor
    asked = [event for event in events if cursor.must_check(event)]
    visible = asyncio.run(world.session.check(asked, world.gateway)).visible if asked else set()
    found: list[Any] = []
    for event in events:
        if event in asked and event.offset not in visible:
            continue
        ids = cursor.deliver(event)
        if ids is not None:
            found += frames(world.session.encode(event, ids, 0.0))
    return found


def test_the_database_decides_where_nothing_else_does() -> None:
    world = World()
    world.gateway.watched = Watched((watching(1), watching(2, LIKE)), ())
    world.join()
    world.gateway.visible = {6: SeenChange(TABLE), 7: SeenChange(TABLE)}
    world.gateway.truths = {b'"alice"': True, b'"bob"': False}
    first, second = deliver(world, change(5), change(6), change(7, "bob"), change(8), change(9, relation=8))
    assert (first[4]["ids"], first[4]["data"]["record"]["id"]) == ([1, 2], 6)
    assert (second[4]["ids"], second[4]["data"]["record"]["id"]) == ([1], 7)
    assert [call for call in world.gateway.calls if call[0] == "seen"] == [
        ("seen", identity(), [(6, 7), (7, 7), (8, 7)])  # one question, and none about events before the join
    ]


def test_a_decider_needs_no_database_and_gives_routes() -> None:
    world = World()
    own = Equal(Column("owner", Kind.TEXT), Constant("alice", Kind.TEXT))
    world.gateway.deciders = {7: Decider(TABLE, own)}
    world.gateway.watched = Watched((watching(),), ())
    world.join()
    assert world.session.cursor.slots == ("public_topic:a", Route(row_channel(7), "owner", "text", "alice"))
    (frame,) = deliver(world, change(6), change(7, "bob"))
    assert frame[4]["data"]["record"]["id"] == 6
    assert [call for call in world.gateway.calls if call[0] == "seen"] == []


class Counted(SharedFrames):
    """Counts encoded frames."""

    encoded = 0

    def get(self, event: Event, view: Hashable, encode: Callable[[], bytes]) -> bytes:
        def counted() -> bytes:
            self.encoded += 1
            return encode()

        return super().get(event, view, counted)


def test_topics_that_see_the_same_share_a_frame() -> None:
    shared = Counted()
    worlds = [World(shared=shared) for _ in range(3)]
    event, ids = change(6), DeliveryIds("", "", "")
    for world in worlds:
        world.gateway.deciders = {7: Decider(TABLE, Equal(Column("owner", Kind.TEXT), Constant("alice", Kind.TEXT)))}
        world.gateway.watched = Watched((watching(),), ())
        world.join()
    assert len({world.session.encode(event, ids, 0.0) for world in worlds}) == 1
    assert shared.encoded == 1
    worlds[0].session.encode(change(6), ids, 0.0)  # another event at the same offset, of another epoch
    assert shared.encoded == 2


def whole(shared: SharedFrames, version: Version = Version.V2, *watches: Watch, **config: Any) -> World:
    """Return a client that gets every change of a table."""
    world = World(shared=shared, version=version)
    world.gateway.deciders = {7: Decider(TABLE, All(()))}
    world.gateway.watched = Watched(watches or (watching(),), ())
    world.join(**config)
    return world


def test_connections_that_get_every_change_share_a_dialect_and_are_not_asked_about() -> None:
    shared = SharedFrames()
    one, other = whole(shared), whole(shared)
    assert one.session.dialect is other.session.dialect
    assert one.session.cursor.checked == set()
    event, ids = change(6), DeliveryIds("", "", "")
    assert one.session.dialect.encode(event, ids, 0.0) == one.session.encode(event, ids, 0.0) != b""
    inserts = Watch(id=1, event="INSERT", relations=frozenset({7}), tests=())
    assert whole(shared, Version.V2, inserts).session.dialect is not one.session.dialect
    assert whole(shared, Version.V1).session.dialect is not one.session.dialect
    deletes = whole(shared, Version.V2, Watch(id=1, event="DELETE", relations=frozenset({7}), tests=()))
    assert deletes.session.dialect.encode(event, ids, 0.0) == b""
    elsewhere = World(shared=shared)
    elsewhere.gateway.deciders, elsewhere.gateway.watched = one.gateway.deciders, one.gateway.watched
    elsewhere.join("realtime:b")
    assert elsewhere.session.dialect is not one.session.dialect


def test_the_hub_is_told_at_once_that_a_topic_has_ended() -> None:
    """With a shared dialect, nothing else is checked before a frame is written."""
    world = World()
    world.gateway.deciders = {7: Decider(TABLE, All(()))}
    world.gateway.watched = Watched((watching(),), ())
    world.gateway.tokens["t"] = identity(1010.0)
    world.join()
    assert world.outgoing.indexed[-1] == ["momentum:rows:7", "public_topic:a"]
    world.session.tick(1100.0, 1100.0, 0, None)
    assert world.session.topics == {}
    assert world.outgoing.indexed[-1] == []


@pytest.mark.parametrize("why", ["a filter", "a policy", "no decider", "a second topic"])
def test_other_connections_have_a_dialect_of_their_own(why: str) -> None:
    world = World()
    world.gateway.deciders = {7: Decider(TABLE, All(()))}
    if why == "a policy":
        world.gateway.deciders = {7: Decider(TABLE, Equal(Column("owner", Kind.TEXT), Constant("a", Kind.TEXT)))}
    if why == "no decider":
        world.gateway.deciders = {}
    world.gateway.watched = Watched((watching(1, LIKE) if why == "a filter" else watching(),), ())
    world.join()
    if why == "a second topic":
        world.join("realtime:b")
    assert world.session.dialect is world.session.rows
    assert world.session.cursor.checked == set(world.session.cursor.channels)


def test_topics_without_changes_of_rows_share_a_dialect() -> None:
    shared = SharedFrames()
    one, same, more = World(shared=shared), World(shared=shared), World(shared=shared)
    for world in (one, same, more):
        world.join(count=0)
    more.join("realtime:b", count=0)
    assert one.session.dialect is same.session.dialect
    assert one.session.dialect is not one.session.rows
    assert more.session.dialect is not one.session.dialect


def test_rights_are_reviewed_when_they_change() -> None:
    world = World()
    world.gateway.watched = Watched((watching(),), ())
    world.join()
    assert world.session.reviews("row_rights_changed")
    assert not world.session.reviews("policies_changed")
    world.gateway.again = Watched((watching(3),), ("Notice",), ("Unable",))
    asyncio.run(world.session.review(world.gateway))
    assert ("watch_again", (watching(),)) in world.gateway.calls
    sent = world.sent()
    assert world.said(sent, "postgres_changes") == ["Unable"]
    assert world.said(sent, "rights") == ["Notice"]
    asyncio.run(world.session.review(world.gateway))
    assert world.said(world.sent(), "rights") == []  # once
    world.gateway.again = Watched((), ())
    asyncio.run(world.session.review(world.gateway))
    world.sent()
    world.gateway.again = Watched((watching(3),), ())
    asyncio.run(world.session.review(world.gateway))
    assert world.said(world.sent(), "postgres_changes") == ["Subscribed to PostgreSQL"]
    assert world.session.topics["realtime:a"].events.watches == (watching(3),)


def test_an_answer_about_other_topics_does_not_count() -> None:
    world = World()
    world.gateway.watched = Watched((watching(),), ())
    world.join()
    world.gateway.visible = {6: SeenChange(TABLE)}

    async def leave(identity: Identity, events: Sequence[tuple[Event, int]]) -> dict[int, SeenChange]:
        world.session.receive(json.dumps(["1", "9", "realtime:a", "phx_leave", {}]).encode(), world.gateway)
        return world.gateway.visible

    world.gateway.seen = leave  # type: ignore[method-assign]
    assert asyncio.run(world.session.check([change(6)], world.gateway)).visible == set()


# Bounds


def test_too_many_frames_end_the_session() -> None:
    world = World()
    assert all(world.session.take_frame(1000.0) for _ in range(500))
    assert not world.session.take_frame(1000.0)
    assert world.session.closing is Close.TOO_MANY_MESSAGES


def test_silence_is_noticed() -> None:
    world = World()
    assert not world.session.is_silent(1040.0)
    assert world.session.is_silent(1040.1)
    world.session.heard(1030.0)
    assert not world.session.is_silent(1070.0)


def test_callers_with_one_public_key_have_no_common_limit() -> None:
    assert World().session.owner.is_public
    session = RealtimeSession(
        identity(), "x", Version.V2, Gateway(), World().members, SocketLimits(), name=None, heartbeat=25.0, at=0.0
    )  # fmt: skip
    assert not session.owner.is_public
    assert session.owner.subject == USER


def test_a_replaced_socket_is_closed_at_once() -> None:
    world = World()
    world.session.drop(Close.REPLACED)
    assert world.outgoing.flushes == 1
    assert world.session.closing is Close.REPLACED
    world.session.lost()
    assert world.gateway.calls[-1] == "end"

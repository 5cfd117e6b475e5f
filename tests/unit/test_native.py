"""A native session, with literals: no socket, no database, no clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.database.visibility import Snapshot
from momentum_sync.domain.application import MOMENTUM
from momentum_sync.domain.commands import commands
from momentum_sync.domain.reads import MomentumReads
from momentum_sync.domain.tables import SCHEMA
from momentum_sync.errors import Forbidden, NotFound, RequestError
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.position import Position, SnapshotBoundary
from momentum_sync.gateway.conversation import BinaryMessage, Work
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.dialects.native import COMMANDS, Command, NativeDialect, Session
from momentum_sync.identity.channels import Filtered, Granted
from momentum_sync.identity.tokens import LEEWAY_S, Identity
from momentum_sync.limits import SocketLimits
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds

USER = UUID("00000000-0000-4000-8000-000000000001")
CHANNELS = SCHEMA.own(USER)
SEEN = SnapshotBoundary(Snapshot.parse("10:20:12"), 500, 1)
NULL = msgspec.Raw(b"null")
CHECKED = Granted(["notifications:x", "interventions:coaches"], frozenset({"interventions:coaches"}))
STATE = {"momentum": msgspec.Raw(b'{"has_data": true}'), "interventions": NULL, "notifications": msgspec.Raw(b"[]")}


class Reads(MomentumReads):
    """The app's reads, which answer at once."""

    def __init__(self) -> None:
        self.marked: list[UUID] = []

    async def momentum(self, identity: Identity, user_id: UUID) -> msgspec.Raw:
        return msgspec.Raw(b'{"final_score": 1.50}')

    async def mark_read(self, identity: Identity, user_id: UUID, notification_id: UUID) -> None:
        if notification_id.int == 0:
            raise NotFound("The notification does not exist.")
        self.marked.append(notification_id)


class Gateway:
    """The services of handlers, without a database."""

    def __init__(self, *, granted: Granted | None = None, renewed: Identity | None = None) -> None:
        self.granted = granted
        self.renewed = renewed
        self.time = 1001.0
        self.forbids = False
        self.calls: list[object] = []

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def authenticate(self, token: str) -> Identity:
        assert self.renewed is not None
        self.calls.append(token)
        return self.renewed

    async def grants(self, identity: Identity, user_id: UUID | None, channels: Sequence[str]) -> Granted:
        self.calls.append((identity, user_id, list(channels)))
        if self.forbids:
            raise Forbidden("This token does not allow acting for that user.")
        return self.granted or Granted(list(channels))

    async def filter(self, identity: Identity, events: Sequence[tuple[Event, str | None]]) -> Filtered:
        self.calls.append((identity, [channel for _, channel in events]))
        return Filtered({event.offset for event, _ in events[:1]}, [])


GATEWAY = Gateway()
READS = Reads()
DIALECT = NativeDialect(commands(READS), MOMENTUM.encoders)


def identity(expires_at: float | None = 10_000.0, user: UUID = USER) -> Identity:
    return Identity("authenticated", user, "{}", expires_at)


def make(
    *,
    now: float = 1000.0,
    expires_at: float | None = 10_000.0,
    heartbeat: float = 25.0,
    user_id: UUID | None = USER,
    dialect: NativeDialect = DIALECT,
) -> Session:
    cursor = Cursor(str(USER), SCHEMA.per_user_channels)
    return Session(
        identity(expires_at), user_id, "phone", cursor, dialect, SocketLimits(), heartbeat=heartbeat, now=now, at=now
    )


def begin(session: Session, now: float = 1000.0, **more: Any) -> None:
    session.begin(Granted(list(CHANNELS)), Position("abcdef01", 7, 7, SEEN), STATE, now, now, **more)


def live(**more: Any) -> Session:
    session = make(**more)
    begin(session)
    session.to_send()
    return session


def sent(session: Session) -> list[dict[str, Any]]:
    return [json.loads(text) for text in session.to_send()]


def deliver(session: Session, *events: Event) -> list[dict[str, Any]]:
    """Deliver events as a connection does. Return the messages."""
    messages = []
    for each in events:
        ids = session.cursor.deliver(each)
        if ids is not None:
            messages.append(json.loads(payload(DIALECT.encode(each, ids, 1001.0))))
            session.expect_acks(each.cache_keys)
    return messages


def payload(frame: bytes) -> bytes:
    """Return the content of a server's frame: RFC 6455, section 5.2."""
    return frame[2 if frame[1] < 126 else 4 if frame[1] == 126 else 10 :]


def receive(session: Session, message: dict[str, Any] | bytes, gateway: Gateway = GATEWAY) -> list[dict[str, Any]]:
    """Handle a message completely. Return the answers."""
    text = message if isinstance(message, bytes) else json.dumps(message).encode()
    request = session.receive(text, gateway)
    if request is not None:
        try:
            asyncio.run(finish(request.work))
        except RequestError as error:
            request.failed(error, 1001.0)
    return sent(session)


async def finish(work: Work) -> None:
    await work


def event(offset: int, *, xid: int = 30, channel: str = CHANNELS[0]) -> Event:
    body = json.dumps({"event_type": "x", "user_id": str(USER)}).encode()
    return Event.build(
        offset=offset, place=(offset, 0), xid=xid, committed_at=0.0, channels=(channel, "momentum_updates:all"),
        body=body, per_user=SCHEMA.per_user_channels,
    )  # fmt: skip


def invalidation(offset: int, *keys: str) -> Event:
    body = json.dumps({"event_type": "cache_invalidation", "user_id": str(USER), "cache_keys": keys}).encode()
    return Event.build(
        offset=offset, place=(offset, 0), xid=30, committed_at=0.0, channels=("cache_invalidation",), body=body,
        per_user=SCHEMA.per_user_channels,
    )  # fmt: skip


def test_the_opening_is_the_confirmation_then_the_state() -> None:
    session = make()
    begin(session)
    confirmed, state = sent(session)
    assert confirmed == {
        "type": "subscription_confirmed", "channels": CHANNELS, "user_id": str(USER), "client_id": "phone",
        "resumed": False, "replayed": 0, "timestamp": "1970-01-01T00:16:40.000Z",
    }  # fmt: skip
    assert state["type"] == "initial_state"
    assert state["momentum"] == {"has_data": True}
    assert (state["interventions"], state["notifications"]) == (None, [])
    assert Position.parse(state["last_event_id"]) == Position("abcdef01", 7, 7, SEEN)


def test_a_resume_is_the_confirmation_alone() -> None:
    session = make()
    session.begin(Granted(list(CHANNELS)), Position("abcdef01", 7, 7), None, 1000.0, 1000.0, replayed=3)
    (confirmed,) = sent(session)
    assert (confirmed["resumed"], confirmed["replayed"]) == (True, 3)


def test_refused_channels_and_the_reason_for_no_resume_are_reported() -> None:
    session = make()
    begin(session, refused=["momentum_updates:all"], reason="history_changed")
    confirmed = sent(session)[0]
    assert (confirmed["refused"], confirmed["reason"]) == (["momentum_updates:all"], "history_changed")


def test_missed_events_follow_the_state_in_a_chain() -> None:
    session = make()
    begin(session)
    _, state = sent(session)
    first, second = deliver(session, event(8), event(9))
    assert first["event"]["previous_id"] == state["last_event_id"]
    assert second["event"]["previous_id"] == first["event"]["id"]
    assert session.cursor.last_id == second["event"]["id"]


def test_ping() -> None:
    session = live()
    assert receive(session, b'{"type": "ping", "ref": 1}') == [
        {"type": "pong", "ref": 1, "timestamp": "1970-01-01T00:16:41.000Z"}
    ]


def test_messages_that_need_the_database_are_answered_when_it_has_answered() -> None:
    session = live()
    assert session.to_send() == []
    (state,) = receive(session, b'{"type": "request_momentum_update", "ref": 2}')
    assert (state["type"], state["data"], state["ref"]) == ("momentum_state_update", {"final_score": 1.5}, 2)
    notification = UUID(int=2)
    mark = {"type": "mark_notification_read", "notification_id": str(notification), "ref": "a"}
    (marked,) = receive(session, mark)
    assert (marked["type"], marked["notification_id"], marked["ref"]) == (
        "notification_marked_read", str(notification), "a"
    )  # fmt: skip
    assert READS.marked[-1] == notification
    (refused,) = receive(session, {**mark, "notification_id": str(UUID(int=0)), "ref": 3})
    assert (refused["type"], refused["code"], refused["ref"]) == ("error", "not_found", 3)
    assert session.closing is None


@pytest.mark.parametrize("kind", ["request_momentum_update", "mark_notification_read"])
def test_a_connection_without_a_user_cannot_ask_for_one(kind: str) -> None:
    session = live(user_id=None)
    (refused,) = receive(session, {"type": kind, "notification_id": str(UUID(int=2))})
    assert (refused["type"], refused["code"]) == ("error", "no_user")


def test_an_acknowledgement_is_confirmed_once_and_only_if_it_was_expected() -> None:
    session = live()
    (invalidated,) = deliver(session, invalidation(8, "a", "b"))
    assert (invalidated["type"], invalidated["cache_keys"]) == ("cache_invalidation", ["a", "b"])
    acknowledged = {"type": "cache_invalidation_ack", "cache_keys": ["b", "c"], "cache_key": "a"}
    assert [message["cache_key"] for message in receive(session, acknowledged)] == ["a", "b"]
    assert receive(session, {"type": "cache_invalidation_ack", "cache_key": "a"}) == []
    deliver(session, invalidation(9, "a"))
    (confirmed,) = receive(session, {"type": "cache_invalidation_ack", "cache_key": "a", "ref": 5})
    assert (confirmed["type"], confirmed["cache_key"], confirmed["ref"]) == ("cache_invalidation_confirmed", "a", 5)


def test_expected_acknowledgements_are_bounded_and_the_oldest_are_forgotten() -> None:
    session = live()
    for offset in range(8, 258):
        deliver(session, invalidation(offset, *(f"{offset}:{key}" for key in range(4))))
    assert session.take_ack("8:0")
    deliver(session, invalidation(258, "last", "but one", "more"))
    acknowledged = {"type": "cache_invalidation_ack", "cache_keys": ["8:1", "8:2", "8:3", "last"]}
    assert [message["cache_key"] for message in receive(session, acknowledged)] == ["8:3", "last"]


def test_subscribing_is_all_or_nothing() -> None:
    session = live()
    asked = {"type": "subscribe", "channels": ["a", "b", "a"], "ref": "r"}
    (refused,) = receive(session, asked, Gateway(granted=Granted(["a"])))
    assert (refused["type"], refused["code"], refused["refused"], refused["ref"]) == ("error", "forbidden", ["b"], "r")
    assert list(session.cursor.channels) == CHANNELS
    (confirmed,) = receive(session, asked)
    assert (confirmed["type"], confirmed["channels"]) == ("subscription_confirmed", [*CHANNELS, "a", "b"])


def test_channels_of_a_connection_are_bounded() -> None:
    session = live()
    for start in range(0, 3000, 499):
        answers = receive(session, {"type": "subscribe", "channels": [str(n) for n in range(start, start + 499)]})
    assert len(session.cursor.channels) == 4 + 4 * 499 == 2000
    assert answers[0]["code"] == "too_many_channels"


def test_unsubscribing_is_answered_with_the_other_channels() -> None:
    session = live()
    (confirmed,) = receive(session, {"type": "unsubscribe", "channels": [CHANNELS[0], "never had"], "ref": 1})
    assert (confirmed["channels"], confirmed["ref"]) == (CHANNELS[1:], 1)


def test_a_fresh_token_drops_what_it_does_not_grant() -> None:
    session = live(expires_at=1030.0)
    session.tick(1000.0, 1000.0, 0, None)
    gateway = Gateway(granted=Granted(CHANNELS[:2]), renewed=identity(9000.0))
    warned, answer = receive(session, {"type": "authenticate", "token": "t", "ref": 1}, gateway)
    assert warned["type"] == "token_expiring"
    assert (answer["type"], answer["expires_at"]) == ("authenticated", "1970-01-01T02:30:00.000Z")
    assert (answer["refused"], answer["ref"]) == (CHANNELS[2:], 1)
    assert list(session.cursor.channels) == CHANNELS[:2]
    session.tick(1031.0, 1031.0, 0, None)
    assert session.closing is None
    sent(session)
    session.tick(8940.0, 8940.0, 0, None)
    assert sent(session)[0]["type"] == "token_expiring"


def test_a_fresh_token_of_another_user_changes_nothing() -> None:
    session = live()
    before = session.identity
    gateway = Gateway(renewed=identity(user=UUID(int=9)))
    (refused,) = receive(session, {"type": "authenticate", "token": "t"}, gateway)
    assert refused["code"] == "forbidden"
    assert session.identity is before


def test_a_fresh_token_that_may_not_act_for_the_user_ends_the_connection() -> None:
    session = live()
    gateway = Gateway(renewed=identity())
    gateway.forbids = True
    assert receive(session, {"type": "authenticate", "token": "t"}, gateway) == []
    assert session.closing is Close.NOT_ALLOWED


def test_one_unreadable_message_after_another_ends_it() -> None:
    session = live()
    for _ in range(4):
        session.receive(b"nonsense", GATEWAY)
    session.receive(b'{"type": "ping"}', GATEWAY)
    for _ in range(4):
        session.receive(BinaryMessage(b"\x00"), GATEWAY)
    assert session.closing is None
    session.receive(b"[]", GATEWAY)
    closing: Close | None = session.closing
    assert closing is Close.UNREADABLE
    codes = [message["code"] for message in sent(session) if message["type"] == "error"]
    assert codes == ["invalid_json"] * 4 + ["binary_frame"] * 4 + ["invalid_message"]


def test_too_many_messages_end_it_and_patience_is_rewarded() -> None:
    patient = live()
    for second in range(300):
        for _ in range(20):
            assert patient.take_frame(1001.0 + second)
    assert patient.closing is None
    flood = live()
    assert [flood.take_frame(1001.0) for _ in range(101)] == [True] * 100 + [False]
    assert flood.closing is Close.TOO_MANY_MESSAGES


def test_heartbeats() -> None:
    session = live()
    assert session.tick(1001.0, 1001.0, 0, None) == 1025.0
    assert sent(session) == []
    assert session.tick(1025.0, 1025.0, 40, None) == 1050.0
    (heartbeat,) = sent(session)
    assert (heartbeat["type"], heartbeat["lag_ms"], heartbeat["last_event_id"]) == (
        "heartbeat",
        40,
        session.cursor.last_id,
    )
    assert heartbeat["position"] == session.cursor.last_id, "it does not follow the feed"


def test_a_heartbeat_says_how_far_the_feed_has_come_and_carries_the_snapshot_until_that_is_passed() -> None:
    session = live()
    session.tick(1025.0, 1025.0, 0, Position("abcdef01", 50, 7))
    (stitching,) = sent(session)
    assert Position.parse(stitching["position"]) == Position("abcdef01", 50, 7, SEEN)
    session.cursor.advanced(500)
    session.tick(1050.0, 1050.0, 0, Position("abcdef01", 60, 8))
    (passed,) = sent(session)
    assert (passed["position"], passed["last_event_id"]) == ("abcdef01-60-8", session.cursor.last_id)
    session.tick(1075.0, 1075.0, 0, Position("00000002", 70, 9))
    (other,) = sent(session)
    assert other["position"] == session.cursor.last_id, "of another history"


def test_a_clock_that_is_set_while_a_client_is_connected_ends_nothing_and_starves_nobody() -> None:
    session = live(expires_at=5000.0)
    session.tick(1000.0 + 86_400, 1025.0, 0, None)
    assert [message["type"] for message in sent(session)] == ["heartbeat"]
    session.tick(1000.0 - 86_400, 1050.0, 0, None)
    assert [message["type"] for message in sent(session)] == ["heartbeat"]
    assert session.closing is None
    session.tick(1000.0, 5005.0, 0, None)
    assert session.closing is Close.TOKEN


def test_a_token_is_warned_of_once_and_then_expires() -> None:
    session = live(expires_at=1090.0)
    assert session.tick(1000.0, 1000.0, 0, None) == 1025.0
    session.tick(1025.0, 1025.0, 0, None)
    sent(session)
    assert session.tick(1029.0, 1029.0, 0, None) == 1030.0
    assert session.tick(1030.0, 1030.0, 0, None) == 1050.0
    (warning,) = sent(session)
    assert (warning["type"], warning["expires_at"]) == ("token_expiring", "1970-01-01T00:18:10.000Z")
    session.tick(1031.0, 1031.0, 0, None)
    assert sent(session) == []
    session.tick(1094.9, 1094.9, 0, None)
    assert session.closing is None  # the issuer's clock may be behind
    session.tick(1095.0, 1095.0, 0, None)
    assert session.closing is Close.TOKEN


def test_lost_channels_are_reported_once() -> None:
    session = live()
    session.cursor.subscribe(Granted(["b"]))
    session.lose(["b"], 1002.0)
    (error,) = sent(session)
    assert (error["type"], error["code"], error["refused"]) == ("error", "forbidden", ["b"])
    session.lose(["b"], 1003.0)
    assert sent(session) == []


def test_the_database_is_asked_as_the_caller_and_with_the_channels_of_delivery() -> None:
    session, gateway = live(), Gateway()
    events = [event(8), event(9, channel="elsewhere")]
    assert asyncio.run(session.check(events, gateway)) == Filtered({8}, [])
    assert gateway.calls == [(session.identity, [session.cursor.channel_of(each) for each in events])]


def test_a_review_ends_channels_that_are_no_longer_granted() -> None:
    session = live()
    session.cursor.subscribe(Granted(["b", "c"]))
    held = list(session.cursor.channels)
    gateway = Gateway(granted=Granted([channel for channel in held if channel != "b"], frozenset({"c"})))
    asyncio.run(session.review(gateway))
    assert gateway.calls == [(session.identity, session.user_id, held)]
    (error,) = sent(session)
    assert (error["code"], error["refused"]) == ("forbidden", ["b"])
    assert session.cursor.checked == {"c"}


def test_an_api_key_does_not_expire() -> None:
    session = live(expires_at=None)
    session.tick(1e11, 1e11, 0, None)
    assert session.closing is None


def test_silence() -> None:
    session = live()
    assert not session.is_silent(1040.0)
    assert session.is_silent(1041.0)
    session.heard(1020.0)
    assert not session.is_silent(1041.0)


def test_a_client_that_waited_long_for_its_greeting_was_not_silent() -> None:
    session = make(now=0.0, expires_at=None)
    begin(session, 60.0)
    assert not session.is_silent(100.0)
    assert session.is_silent(101.0)


@pytest.mark.parametrize("heartbeat", [0.5, 25.0, 300.0])
def test_half_open_is_noticed_within_a_minute_whatever_the_heartbeat(heartbeat: float) -> None:
    session = make(now=0.0, expires_at=None, heartbeat=heartbeat)
    begin(session, 0.0)
    now = 0.0
    while not session.is_silent(now):
        now = session.tick(now, now, 0, None)
    assert 5.0 < now <= 60.0


def test_the_first_reason_to_close_stands() -> None:
    session = live()
    session.close(Close.REPLACED)
    session.close(Close.TOO_SLOW)
    assert session.closing is Close.REPLACED


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b'{"type": "ping"}', b'{"type": "subscribe"}', b"{}"])))
def test_whatever_is_received_every_answer_is_json_and_the_session_stands_or_ends(frames: list[bytes]) -> None:
    session = live()
    for frame in frames:
        for message in receive(session, frame):
            assert message["type"] in ("pong", "error")
        if session.closing is not None:
            assert session.closing is Close.UNREADABLE
            break


@pytest.mark.parametrize("now", [1000.0, 999.0])
def test_a_clock_that_goes_back_costs_nothing(now: float) -> None:
    session = live()
    assert session.take_frame(now)
    assert session.closing is None


def test_a_dialect_has_the_messages_of_the_protocol_and_of_the_application() -> None:
    dialect = NativeDialect([*commands(READS), *(Command(each.kind, each.run) for each in COMMANDS)], MOMENTUM.encoders)
    session = make(dialect=dialect)
    begin(session)
    session.to_send()
    assert receive(session, {"type": "ping", "ref": 1})[0]["type"] == "pong"
    assert receive(session, {"type": "mark_notification_read", "notification_id": str(UUID(int=3))})
    for channel, kind in (("cache_invalidation", "cache_invalidation"), (CHANNELS[0], "realtime_event")):
        ids = DeliveryIds("e-2", "e-1", channel)
        assert json.loads(payload(dialect.encode(event(8, channel=channel), ids, 1.0)))["type"] == kind
    bare = NativeDialect()
    ids = DeliveryIds("e-2", "e-1", "cache_invalidation")
    assert json.loads(payload(bare.encode(event(8), ids, 1.0)))["type"] == "realtime_event"
    session = make(dialect=bare)
    assert receive(session, {"type": "request_momentum_update"})[0]["code"] == "unknown_type"


def test_every_answer_repeats_the_ref() -> None:
    session = live()
    (confirmed,) = receive(session, {"type": "subscribe", "channels": ["a"], "ref": 1})
    assert (confirmed["ref"], confirmed["resumed"], confirmed["replayed"]) == (1, False, 0)
    (error,) = receive(session, {"type": "nonsense", "ref": 2})
    assert (error["code"], error["ref"]) == ("unknown_type", 2)
    many = [str(number) for number in range(499)]
    for start in "abcde":
        answers = receive(session, {"type": "subscribe", "channels": [start + name for name in many], "ref": start})
    assert (answers[0]["code"], answers[0]["ref"]) == ("too_many_channels", "e")
    session.receive(BinaryMessage(b"\x00"), GATEWAY)
    (error,) = sent(session)
    assert (error["code"], error.get("ref")) == ("binary_frame", None)
    session.lose(["a"], 1001.0)
    assert sent(session)[0].get("ref") is None


def test_errors_say_in_a_sentence_what_is_wrong() -> None:
    session = live()
    said = [
        *receive(session, {"type": "nonsense"}),
        *receive(session, {"type": "subscribe", "channels": ["a"]}, Gateway(granted=Granted([]))),
        *receive(
            session, {"type": "subscribe", "channels": ["a"]}, Gateway(granted=Granted([str(n) for n in range(2001)]))
        ),
        *receive(session, {"type": "authenticate", "token": "t"}, Gateway(renewed=identity(user=UUID(int=9)))),
        *receive(session, {"type": "mark_notification_read", "notification_id": str(UUID(int=0))}),
    ]
    session.receive(BinaryMessage(b"\x00"), GATEWAY)
    session.lose(["a"], 1001.0)
    for error in (*said, *sent(session)):
        assert error["type"] == "error"
        assert error["error"].endswith("."), error


def test_grants_are_asked_for_the_callers_identity_and_user() -> None:
    session = live()
    gateway = Gateway(renewed=identity(9000.0))
    receive(session, {"type": "subscribe", "channels": ["a", "b", "a"]}, gateway)
    before = session.identity
    receive(session, {"type": "authenticate", "token": "fresh"}, gateway)
    held = [*CHANNELS, "a", "b"]
    assert gateway.calls == [(before, USER, ["a", "b"]), "fresh", (session.identity, USER, held)]
    assert session.identity is gateway.renewed


def test_a_token_without_an_end_takes_over() -> None:
    session = live(expires_at=1030.0)
    (answer,) = receive(session, {"type": "authenticate", "token": "t"}, Gateway(renewed=identity(None)))
    assert answer["expires_at"] is None
    session.tick(1e9, 1000.0, 0, None)
    assert session.closing is None


def test_before_it_is_open_a_session_counts_silence_and_sends_no_heartbeat() -> None:
    session = make()
    assert (session.is_silent(1001.0), session.is_silent(1041.0)) == (False, True)
    session.tick(1030.0, 1030.0, 0, None)
    assert sent(session) == []


def test_the_next_tick_is_no_later_than_the_tokens_end() -> None:
    session = live(expires_at=1030.0)
    due = session.tick(1000.0, 1000.0, 0, None)
    assert due <= 1030.0
    at = 1000.0
    while session.closing is None:
        at = session.tick(at, at, 0, None)
    assert session.closing is Close.TOKEN
    assert at == 1030.0 + LEEWAY_S

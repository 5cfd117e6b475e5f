"""A conversation, with literals: no socket, no database, no clock."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import NotFound
from momentum_sync.eventlog.event import Event, Position, SnapshotBoundary
from momentum_sync.gateway.session import CheckToken, Grant, MarkRead, Opening, ReadState, Session, State
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.close import Close

USER = UUID("00000000-0000-4000-8000-000000000001")
CHANNELS = [f"momentum_updates:{USER}", f"interventions:{USER}", f"notifications:{USER}", "cache_invalidation"]
SEEN = SnapshotBoundary(Snapshot.parse("10:20:12"), 500, 1)
NULL = msgspec.Raw(b"null")
ASKED = Granted(["notifications:x", "interventions:coaches"], frozenset({"interventions:coaches"}))


def identity(expires_at: float | None = 10_000.0) -> Identity:
    return Identity("authenticated", USER, "{}", expires_at)


def make(*, now: float = 1000.0, expires_at: float | None = 10_000.0) -> Session:
    return Session(identity(expires_at), USER, "phone", heartbeat=25.0, now=now, at=now)


def greeting(*, refused: list[str] | None = None, reason: str | None = None) -> Opening:
    state = State(msgspec.Raw(b'{"has_data": true}'), NULL, msgspec.Raw(b"[]"))
    return Opening(Granted(list(CHANNELS)), refused or [], Position("abcdef01", 7, 7, SEEN), state, reason=reason)


def live(**more: Any) -> Session:
    session = make(**more)
    session.greet(greeting(), 1000.0, 1000.0)
    session.to_send()
    return session


def sent(session: Session) -> list[dict[str, Any]]:
    return [json.loads(text) for text in session.to_send()]


def event(offset: int, *, xid: int = 30, channel: str = CHANNELS[0]) -> Event:
    body = json.dumps({"event_type": "x", "user_id": str(USER)}).encode()
    return Event.build(
        offset=offset, place=(offset, 0), xid=xid, committed_at=0.0, channels=(channel, "momentum_updates:all"),
        body=body,
    )  # fmt: skip


def invalidation(offset: int, *keys: str) -> Event:
    body = json.dumps({"event_type": "cache_invalidation", "user_id": str(USER), "cache_keys": keys}).encode()
    return Event.build(
        offset=offset, place=(offset, 0), xid=30, committed_at=0.0, channels=("cache_invalidation",), body=body
    )  # fmt: skip


def test_a_greeting_is_the_confirmation_then_the_state() -> None:
    session = make()
    session.greet(greeting(), 1000.0, 1000.0)
    confirmed, state = sent(session)
    assert confirmed == {
        "type": "subscription_confirmed", "channels": CHANNELS, "user_id": str(USER), "client_id": "phone",
        "resumed": False, "replayed": 0, "timestamp": "1970-01-01T00:16:40.000Z",
    }  # fmt: skip
    assert state["type"] == "initial_state"
    assert state["momentum"] == {"has_data": True}
    assert (state["interventions"], state["notifications"]) == (None, [])
    assert Position.parse(state["last_event_id"]) == Position("abcdef01", 7, 7, SEEN)


def test_what_was_refused_and_why_there_was_no_resume_is_said() -> None:
    session = make()
    session.greet(greeting(refused=["momentum_updates:all"], reason="history_changed"), 1000.0, 1000.0)
    confirmed = sent(session)[0]
    assert (confirmed["refused"], confirmed["reason"]) == (["momentum_updates:all"], "history_changed")


def test_missed_events_follow_the_state_in_a_chain() -> None:
    session = make()
    session.greet(greeting(), 1000.0, 1000.0)
    session.event(event(8), 1000.0)
    session.event(event(9), 1000.0)
    _, state, first, second = sent(session)
    assert first["event"]["previous_id"] == state["last_event_id"]
    assert second["event"]["previous_id"] == first["event"]["id"]
    assert session.last_id == second["event"]["id"]


def test_until_the_stream_has_passed_the_snapshot_ids_carry_it_and_what_it_holds_is_dropped() -> None:
    session = live()
    session.event(event(8, xid=11), 1001.0)
    assert sent(session) == []
    session.event(event(9, xid=12), 1001.0)
    session.event(event(10, xid=25), 1001.0)
    first, second = sent(session)
    assert Position.parse(first["event"]["id"]) == Position("abcdef01", 9, 9, SEEN)
    assert Position.parse(second["event"]["id"]) == Position("abcdef01", 10, 10, SEEN)
    session.advanced(499)
    assert session.seen is SEEN
    session.advanced(500)
    session.event(event(11, xid=11), 1001.0)
    (third,) = sent(session)
    assert third["event"]["id"] == "abcdef01-11-b"
    assert third["event"]["previous_id"] == second["event"]["id"]


def test_an_event_on_no_channel_held_is_not_sent() -> None:
    session = live()
    session.event(event(8, channel="notifications:somebody"), 1001.0)
    assert sent(session) == []


def test_ping() -> None:
    session = live()
    assert session.receive(b'{"type": "ping", "ref": 1}', 1001.0) is None
    assert sent(session) == [{"type": "pong", "ref": 1, "timestamp": "1970-01-01T00:16:41.000Z"}]


def test_work_for_the_database_comes_out_as_values() -> None:
    session = live()
    notification = UUID("00000000-0000-4000-8000-000000000002")
    mark = {"type": "mark_notification_read", "notification_id": str(notification), "ref": "a"}
    assert session.receive(b'{"type": "request_momentum_update", "ref": 2}', 1001.0) == ReadState(2)
    assert session.receive(json.dumps(mark).encode(), 1001.0) == MarkRead(notification, "a")
    assert session.receive(b'{"type": "subscribe", "channels": ["a", "b", "a"]}', 1001.0) == Grant(["a", "b"], None)
    assert session.receive(b'{"type": "authenticate", "token": "secret"}', 1001.0) == CheckToken("secret", None)
    assert "secret" not in repr(CheckToken("secret", None))
    assert sent(session) == []


def test_answers_to_work() -> None:
    session = live()
    notification = UUID("00000000-0000-4000-8000-000000000002")
    session.state(msgspec.Raw(b'{"final_score": 1.50}'), 1001.0, 1)
    session.marked_read(notification, 1001.0, 2)
    session.refuse(NotFound("There is no such notification."), 1001.0, 3)
    state, marked, refused = sent(session)
    assert (state["type"], state["data"], state["ref"]) == ("momentum_state_update", {"final_score": 1.5}, 1)
    assert (marked["type"], marked["notification_id"]) == ("notification_marked_read", str(notification))
    assert (refused["type"], refused["code"], refused["ref"]) == ("error", "not_found", 3)
    assert session.closing is None


def test_a_key_is_confirmed_once_and_only_if_it_was_pending() -> None:
    session = live()
    session.event(invalidation(8, "a", "b"), 1001.0)
    (sent_keys,) = sent(session)
    assert sent_keys["cache_keys"] == ["a", "b"]
    session.receive(b'{"type": "cache_invalidation_ack", "cache_keys": ["b", "c"], "cache_key": "a"}', 1001.0)
    assert [message["cache_key"] for message in sent(session)] == ["a", "b"]
    session.receive(b'{"type": "cache_invalidation_ack", "cache_key": "a"}', 1001.0)
    assert sent(session) == []
    session.event(invalidation(9, "a"), 1001.0)
    sent(session)
    session.receive(b'{"type": "cache_invalidation_ack", "cache_key": "a", "ref": 5}', 1001.0)
    ((kind, key, ref),) = [(message["type"], message["cache_key"], message["ref"]) for message in sent(session)]
    assert (kind, key, ref) == ("cache_invalidation_confirmed", "a", 5)


def test_pending_keys_are_bounded() -> None:
    session = live()
    for offset in range(8, 508):
        session.event(invalidation(offset, *(f"{offset}:{key}" for key in range(4))), 1001.0)
    sent(session)
    session.receive(b'{"type": "cache_invalidation_ack", "cache_keys": ["8:0", "507:3"]}', 1001.0)
    assert [message["cache_key"] for message in sent(session)] == ["507:3"]


def test_subscribing_is_all_or_nothing() -> None:
    session = live()
    session.granted(["a", "b"], Granted(["a"]), 1001.0, "r")
    (refused,) = sent(session)
    assert (refused["type"], refused["code"], refused["refused"]) == ("error", "forbidden", ["b"])
    assert list(session.channels) == CHANNELS
    session.granted(["a", "b"], Granted(["a", "b"]), 1001.0, "r")
    (confirmed,) = sent(session)
    assert (confirmed["type"], confirmed["channels"]) == ("subscription_confirmed", [*CHANNELS, "a", "b"])


def test_channels_are_bounded() -> None:
    session = live()
    for start in range(0, 3000, 500):
        asked = [str(offset) for offset in range(start, start + 500)]
        session.granted(asked, Granted(asked), 1001.0, None)
    assert len(session.channels) == 1504
    assert sent(session)[-1]["code"] == "too_many_channels"


def test_unsubscribing_answers_with_what_is_left() -> None:
    session = live()
    text = json.dumps({"type": "unsubscribe", "channels": [CHANNELS[0], "never held"], "ref": 1})
    assert session.receive(text.encode(), 1001.0) is None
    (confirmed,) = sent(session)
    assert (confirmed["channels"], confirmed["ref"]) == (CHANNELS[1:], 1)


def test_a_fresh_token_drops_what_it_does_not_grant() -> None:
    session = live(expires_at=1030.0)
    session.tick(1000.0, 1000.0, 0, None)
    session.renewed(identity(9000.0), Granted(CHANNELS[:2]), 1001.0, 1001.0, 1)
    warned, answer = sent(session)
    assert warned["type"] == "token_expiring"
    assert (answer["type"], answer["expires_at"]) == ("authenticated", "1970-01-01T02:30:00.000Z")
    assert answer["refused"] == CHANNELS[2:]
    assert list(session.channels) == CHANNELS[:2]
    session.tick(1031.0, 1031.0, 0, None)
    assert session.closing is None


def test_one_unreadable_message_after_another_ends_it() -> None:
    session = live()
    for _ in range(4):
        session.receive(b"nonsense", 1001.0)
    session.receive(b'{"type": "ping"}', 1001.0)
    for _ in range(4):
        session.receive_binary(1001.0)
    assert session.closing is None
    session.receive(b"[]", 1001.0)
    closing: Close | None = session.closing
    assert closing is Close.UNREADABLE
    codes = [message["code"] for message in sent(session) if message["type"] == "error"]
    assert codes == ["invalid_json"] * 4 + ["binary_frame"] * 4 + ["invalid_message"]


def test_too_many_messages_end_it_and_patience_is_rewarded() -> None:
    patient = live()
    for second in range(300):
        for _ in range(20):
            assert patient.frame(1001.0 + second)
    assert patient.closing is None
    flood = live()
    assert [flood.frame(1001.0) for _ in range(101)] == [True] * 100 + [False]
    assert flood.closing is Close.TOO_MANY_MESSAGES


def test_heartbeats() -> None:
    session = live()
    assert session.tick(1001.0, 1001.0, 0, None) == 1025.0
    assert sent(session) == []
    assert session.tick(1025.0, 1025.0, 40, None) == 1050.0
    (heartbeat,) = sent(session)
    assert (heartbeat["type"], heartbeat["lag_ms"], heartbeat["last_event_id"]) == ("heartbeat", 40, session.last_id)
    assert heartbeat["position"] == session.last_id, "it does not follow the feed"


def test_a_heartbeat_says_how_far_the_feed_has_come_and_carries_the_snapshot_until_that_is_passed() -> None:
    session = live()
    session.tick(1025.0, 1025.0, 0, Position("abcdef01", 50, 7))
    (stitching,) = sent(session)
    assert Position.parse(stitching["position"]) == Position("abcdef01", 50, 7, SEEN)
    session.advanced(500)
    session.tick(1050.0, 1050.0, 0, Position("abcdef01", 60, 8))
    (passed,) = sent(session)
    assert (passed["position"], passed["last_event_id"]) == ("abcdef01-60-8", session.last_id)
    session.tick(1075.0, 1075.0, 0, Position("00000002", 70, 9))
    (other,) = sent(session)
    assert other["position"] == session.last_id, "of another history"


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


def test_events_on_a_channel_that_is_asked_are_asked_about() -> None:
    session = live()
    session.granted(["notifications:x", "interventions:coaches"], ASKED, 1001.0, None)
    assert not session.asks(event(20, xid=40))
    on_asked = event(21, xid=40, channel="interventions:coaches")
    assert session.asks(on_asked)
    assert not session.asks(replace(on_asked, xid=1))  # which is in its snapshot
    session.granted(["interventions:coaches"], Granted(["interventions:coaches"]), 1001.0, None)
    assert not session.asks(on_asked)


def test_what_left_somebodys_sight_is_told_only_where_it_is_asked() -> None:
    session = live()
    session.granted(["interventions:coaches"], Granted(["interventions:coaches"]), 1001.0, None)
    gone = replace(event(20, xid=40, channel="interventions:coaches"), out_of_sight=True)
    assert session.channel_of(gone) is None
    session.granted(["interventions:coaches"], ASKED, 1001.0, None)
    assert session.channel_of(gone) == "interventions:coaches"


def test_a_review_takes_what_is_no_longer_granted_and_says_so_once() -> None:
    session = live()
    session.granted(["a", "b"], Granted(["a", "b"]), 1001.0, None)
    sent(session)
    session.reviewed(["a", "b", "never had"], Granted(["a"], frozenset({"a"})), 1002.0)
    (error,) = sent(session)
    assert (error["type"], error["code"], error["refused"]) == ("error", "forbidden", ["b"])
    assert "b" not in session.channels
    assert session.asked == {"a"}
    session.reviewed(["a"], Granted(["a"]), 1003.0)
    assert sent(session) == []
    assert session.asked == set()


def test_an_api_key_does_not_expire() -> None:
    session = live(expires_at=None)
    session.tick(1e11, 1e11, 0, None)
    assert session.closing is None


def test_silence() -> None:
    session = live()
    assert not session.silent(1040.0)
    assert session.silent(1041.0)
    session.heard(1020.0)
    assert not session.silent(1041.0)


def test_a_client_that_waited_long_for_its_greeting_was_not_silent() -> None:
    session = Session(identity(None), USER, "phone", heartbeat=25.0, now=0.0, at=0.0)
    session.greet(greeting(), 60.0, 60.0)
    assert not session.silent(100.0)
    assert session.silent(101.0)


@pytest.mark.parametrize("heartbeat", [0.5, 25.0, 300.0])
def test_half_open_is_noticed_within_a_minute_whatever_the_heartbeat(heartbeat: float) -> None:
    session = Session(identity(None), USER, "phone", heartbeat=heartbeat, now=0.0, at=0.0)
    session.greet(greeting(), 0.0, 0.0)
    now = 0.0
    while not session.silent(now):
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
    for at, frame in enumerate(frames):
        session.receive(frame, 1001.0 + at)
        for message in sent(session):
            assert message["type"] in ("pong", "error")
        if session.closing is not None:
            assert session.closing is Close.UNREADABLE
            break


@pytest.mark.parametrize("now", [1000.0, 999.0])
def test_a_clock_that_goes_back_costs_nothing(now: float) -> None:
    session = live()
    session.receive(b'{"type": "ping"}', now)
    assert session.closing is None

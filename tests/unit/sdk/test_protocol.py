"""The client's side of the protocol, beyond the vectors: the events for the program, and the age of the data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from momentum_sync.errors import Gap, NotUnderstood
from momentum_sync.sdk.protocol import Answer, ClientStatus, Event, Output, Protocol, Resync, pause, verdict
from momentum_sync.wire import from_server as wire

MOMENTUM = {
    "user_id": "u",
    "has_data": True,
    "score_date": "2026-01-02",
    "momentum_state": "Steady",
    "final_score": 5.0,
}
NOTIFICATIONS = [
    {
        "id": key, "notification_type": "n", "title": "t", "message": "m", "action_type": None, "action_data": None,
        "status": "sent", "created_at": "2026-01-01T00:00:00.000Z",
    }
    for key in ("n1", "n2")
]  # fmt: skip


def receive(protocol: Protocol, kind: str, at: float, **fields: Any) -> list[Output]:
    text = json.dumps({"type": kind, "timestamp": "2026-01-01T00:00:00.000Z", **fields})
    return protocol.receive(text, at, at)


def confirm(protocol: Protocol, at: float, *, replayed: int | None = None, **more: Any) -> list[Output]:
    fields: dict[str, Any] = {"channels": ["c"], "user_id": "u", "client_id": "k", "refused": []}
    return receive(
        protocol,
        "subscription_confirmed",
        at,
        **{**fields, "resumed": replayed is not None, "replayed": replayed or 0, **more},
    )


def begin(protocol: Protocol, at: float, last: str = "e-1") -> list[Output]:
    return receive(
        protocol, "initial_state", at, momentum=MOMENTUM, interventions=None, notifications=NOTIFICATIONS,
        last_event_id=last,
    )  # fmt: skip


def event(protocol: Protocol, at: float, event_id: str, previous: str, **fields: Any) -> list[Output]:
    return receive(
        protocol, "realtime_event", at, event={"id": event_id, "previous_id": previous, "channel": "c", **fields}
    )


def heartbeat(protocol: Protocol, at: float, last: str, lag_ms: int = 0, **more: Any) -> None:
    assert receive(protocol, "heartbeat", at, last_event_id=last, lag_ms=lag_ms, **more) == []


def live(at: float = 100.0) -> Protocol:
    protocol = Protocol(None)
    protocol.connecting()
    protocol.opened(at, at)
    confirm(protocol, at)
    begin(protocol, at)
    return protocol


def test_a_new_client_has_nothing() -> None:
    protocol = Protocol("u")
    assert (protocol.user_id, protocol.state.user_id, protocol.channels, protocol.lag_ms) == ("u", "u", (), 0)
    assert (protocol.status, protocol.online, protocol.connecting()) == (ClientStatus.OFFLINE, False, None)
    assert Protocol(None).state.user_id == ""
    assert protocol.known(without=()) == (ClientStatus.OFFLINE, None, None, (), ())
    assert not protocol.frozen(10.0, 10.0)
    assert protocol.frozen(10.1, 10.0)


def test_the_present_data() -> None:
    protocol = live()
    known = protocol.known(without={"n2"})
    assert (known.status, known.since, known.interventions) == (ClientStatus.LIVE, None, ())
    assert known.momentum is not None
    assert (known.momentum.final_score, [one.id for one in known.notifications]) == (5.0, ["n1"])
    protocol.lost(105.0)
    assert protocol.known(without=())[:2] == (ClientStatus.OFFLINE, 100.0)
    assert len(protocol.known(without=()).notifications) == 2


def test_what_the_program_receives_of_an_event() -> None:
    protocol = live()
    (one,) = event(protocol, 101.0, "e-2", "e-1", event_type="x", user_id="u", timestamp="t", more=7)
    assert one == Event("e-2", "c", "x", "u", "t", {"event_type": "x", "user_id": "u", "timestamp": "t", "more": 7})
    (bare,) = event(protocol, 101.0, "e-3", "e-2")
    assert bare == Event("e-3", "c", "", None, "", {})
    (odd,) = event(protocol, 101.0, "e-4", "e-3", user_id=7, event_type=0)
    assert isinstance(odd, Event)
    assert (odd.user_id, odd.type) == ("7", "")


def test_answers_are_passed_on_whole() -> None:
    protocol = Protocol(None)
    protocol.connecting()
    (confirmed,) = confirm(protocol, 1.0, ref="r")
    assert isinstance(confirmed, Answer)
    assert isinstance(confirmed.message, wire.SubscriptionConfirmed)
    assert (confirmed.message.ref, protocol.channels) == ("r", ("c",))
    begin(protocol, 1.0)
    (pong,) = receive(protocol, "pong", 2.0, ref=3)
    assert isinstance(pong, Answer)
    assert isinstance(pong.message, wire.Pong)
    (error,) = receive(protocol, "error", 2.0, code="forbidden", error="No.", refused=["c"])
    assert isinstance(error, Answer)
    assert isinstance(error.message, wire.Error)
    assert protocol.channels == ()


def test_a_resync_has_the_state() -> None:
    protocol = Protocol(None)
    protocol.connecting()
    confirm(protocol, 1.0)
    (resync,) = begin(protocol, 1.0)
    assert isinstance(resync, Resync)
    assert (resync.id, resync.reason, resync.state) == ("e-1", None, protocol.state.saved())


def test_while_it_catches_up_data_are_as_old_as_they_were() -> None:
    protocol = live()
    protocol.lost(110.0)
    assert protocol.since == 100.0
    protocol.connecting()
    protocol.opened(200.0, 200.0)
    confirm(protocol, 200.0, replayed=2)
    assert (protocol.status, protocol.since) == (ClientStatus.CATCHING_UP, 100.0)
    event(protocol, 201.0, "e-2", "e-1")
    protocol.lost(202.0)
    assert (protocol.status, protocol.since) == (ClientStatus.OFFLINE, 100.0)
    protocol.connecting()
    confirm(protocol, 300.0, replayed=1)
    event(protocol, 301.0, "e-3", "e-2")
    assert protocol.known(without=())[:2] == (ClientStatus.LIVE, None)


def test_a_clock_that_was_set_back_does_not_make_data_current_in_the_future() -> None:
    protocol = live(100.0)
    protocol.lost(50.0)
    assert protocol.since == 50.0


def test_a_late_feed() -> None:
    protocol = live()
    heartbeat(protocol, 120.0, "e-1", 10_000)
    assert (protocol.status, protocol.lag_ms) == (ClientStatus.LIVE, 10_000)
    heartbeat(protocol, 140.0, "e-1", 12_000)
    assert (protocol.status, protocol.since) == (ClientStatus.CATCHING_UP, 128.0)
    heartbeat(protocol, 160.0, "e-1", 15_000)
    assert protocol.since == 128.0
    protocol.lost(161.0)
    assert protocol.since == 128.0


def test_a_connection_that_is_lost_before_it_was_confirmed_changes_nothing() -> None:
    protocol = Protocol(None)
    protocol.connecting()
    protocol.opened(5.0, 5.0)
    protocol.lost(6.0)
    assert (protocol.status, protocol.since) == (ClientStatus.OFFLINE, None)


def test_without_a_resume_nothing_is_to_come_before_the_snapshot_is_live() -> None:
    protocol = live()
    protocol.lost(101.0)
    protocol.connecting()
    confirm(protocol, 102.0, resumed=False, replayed=7, reason="expired")
    assert protocol.status is ClientStatus.CATCHING_UP
    (resync,) = begin(protocol, 102.0, "e-9")
    assert isinstance(resync, Resync)
    assert (resync.reason, protocol.status) == ("expired", ClientStatus.LIVE)


@pytest.mark.parametrize("break_it", ["event", "heartbeat"])
def test_the_reason_of_a_gap_is_told_with_the_next_snapshot(break_it: str) -> None:
    protocol = live()
    with pytest.raises(Gap):
        if break_it == "event":
            event(protocol, 101.0, "e-3", "e-2")
        else:
            heartbeat(protocol, 101.0, "e-2")
    protocol.lost(101.0)
    assert protocol.connecting() is None
    confirm(protocol, 102.0)
    (resync,) = begin(protocol, 102.0, "e-3")
    assert isinstance(resync, Resync)
    assert resync.reason == "gap"


def test_the_token_of_another_user_drops_the_state_and_says_so() -> None:
    protocol = live()
    protocol.lost(101.0)
    protocol.connecting()
    with pytest.raises(Gap):
        confirm(protocol, 102.0, user_id="other")
    assert (protocol.user_id, protocol.state.user_id, protocol.connecting()) == ("other", "other", None)
    confirm(protocol, 103.0, user_id="other")
    (resync,) = begin(protocol, 103.0)
    assert isinstance(resync, Resync)
    assert resync.reason == "another_user"


def test_what_is_no_event_is_told_apart() -> None:
    with pytest.raises(NotUnderstood, match="without 'channel'"):
        receive(live(), "realtime_event", 101.0, event={"id": "e-2", "previous_id": "e-1"})


@pytest.mark.parametrize(("failures", "seconds"), [(0, 0.5), (1, 0.5), (2, 1.0), (6, 16.0), (7, 20.0), (5000, 20.0)])
def test_the_longest_pause_after_failures(failures: int, seconds: float) -> None:
    assert (pause(failures, 1.0), pause(failures, 0.5), pause(failures, 0.0)) == (seconds, seconds / 2, 0.0)


@pytest.mark.parametrize("code", [None, "4401", 4401.5, [4401]])
def test_what_is_no_code_is_a_reason_to_come_back(code: object) -> None:
    assert verdict(code) == "come_back"

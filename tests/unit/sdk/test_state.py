"""The state of a user, beyond the vectors: its bounds, and the parts that each kind of event does not change."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from momentum_sync.domain.messages import InitialState, Momentum, Notification
from momentum_sync.sdk.state import UserState

USER = "u"
SNAPSHOT: dict[str, Any] = {
    "type": "initial_state", "timestamp": "", "last_event_id": "e-1", "momentum": None, "interventions": None,
    "notifications": [],
}  # fmt: skip


def state(**snapshot: Any) -> UserState:
    made = UserState(USER)
    made.begin(msgspec.convert({**SNAPSHOT, **snapshot}, InitialState))
    return made


def momentum(day: str, score: float = 50.0, **more: Any) -> dict[str, Any]:
    return {
        "user_id": USER, "has_data": True, "score_date": day, "momentum_state": "Steady", "final_score": score, **more
    }  # fmt: skip


def scored(day: str, score: float = 50.0, kind: str = "momentum_score_updated", **more: Any) -> dict[str, Any]:
    return {
        "event_type": kind, "user_id": USER, "timestamp": "2026-01-01T00:00:00.000Z", "score_date": day,
        "momentum_state": "Steady", "final_score": score, "previous_state": None, "state_changed": False, **more,
    }  # fmt: skip


def notified(number: int, status: str = "sent") -> dict[str, Any]:
    return {
        "event_type": "push_notification", "user_id": USER, "timestamp": "2026-01-01T00:00:00.000Z",
        "notification_id": str(number), "notification_type": "n", "title": "t", "message": "m", "action_type": None,
        "action_data": None, "status": status, "created_at": f"2026-01-01T00:00:{number:02}.000Z",
    }  # fmt: skip


def test_a_new_state_is_empty_and_sure() -> None:
    made = UserState(USER)
    assert (made.momentum, made.interventions, made.notifications, made.unsure) == (None, (), (), False)
    made.fold(notified(1))
    assert len(made.notifications) == 1


def test_a_snapshot_without_interventions_has_none() -> None:
    assert state().interventions == ()


def test_a_score_that_was_too_large_for_an_event_must_be_read() -> None:
    made = state(momentum=momentum("2026-01-02"))
    made.fold(scored("2026-01-02", momentum_state=None, omitted=["momentum_state"]))
    assert made.unsure
    assert made.momentum is not None
    assert made.momentum.final_score == 50.0


def test_a_notification_that_is_forgotten_is_gone_and_others_stay() -> None:
    made = state()
    for number in (1, 2):
        made.fold(notified(number))
    made.forget_notification("1")
    made.forget_notification("never there")
    assert [each.id for each in made.notifications] == ["2"]


@pytest.mark.parametrize(
    "gone", [notified(9, "clicked"), {"event_type": "notification_removed", "notification_id": "9"}]
)
def test_the_end_of_what_is_not_there_changes_nothing(gone: dict[str, Any]) -> None:
    made = state()
    made.fold(notified(1))
    before = made.saved()
    made.fold({"user_id": USER, "timestamp": "", **gone})
    assert made.saved() == before


def test_the_end_of_an_intervention_that_is_not_there_changes_nothing() -> None:
    made = state()
    made.fold(
        {
            "event_type": "intervention_updated",
            "user_id": USER,
            "timestamp": "",
            "intervention_id": "i",
            "intervention_type": "check_in",
            "status": "completed",
            "previous_status": None,
            "scheduled_date": None,
            "trigger_reason": "fell",
        }
    )
    assert made.interventions == ()


def test_notifications_are_bounded_and_the_oldest_goes() -> None:
    made = UserState(USER, most_notifications=3)
    for number in (2, 1, 3):
        made.fold(notified(number))
    assert [each.id for each in made.notifications] == ["3", "2", "1"]
    made.fold(notified(4))
    assert [each.id for each in made.notifications] == ["4", "3", "2"]


def test_what_is_read_of_the_day_of_the_last_event_is_no_earlier_day() -> None:
    made = state(momentum=momentum("2026-01-02"))
    made.fold(scored("2026-01-03", 60.0))
    read = msgspec.convert(momentum("2026-01-03", 60.0), Momentum)
    assert made.read_again(read)
    assert made.momentum == read


def test_an_earlier_day_is_believed_when_it_is_read_twice() -> None:
    made = state(momentum=momentum("2026-01-02"))
    made.fold(scored("2026-01-03", 60.0))
    made.fold(scored("2026-01-02", 70.0))
    assert made.unsure
    first = msgspec.convert(momentum("2026-01-02", 70.0, timestamp="1"), Momentum)
    again = msgspec.convert(momentum("2026-01-02", 70.0, timestamp="2"), Momentum)
    assert not made.read_again(first) or made.momentum == first
    made.read_again(again)
    assert made.momentum in (first, again)
    assert not made.unsure


def test_a_snapshot_forgets_doubts() -> None:
    made = state(momentum=momentum("2026-01-02"))
    made.fold(scored("2026-01-02", kind="momentum_score_deleted"))
    found = [made.unsure]
    made.begin(msgspec.convert({**SNAPSHOT, "momentum": momentum("2026-01-01")}, InitialState))
    found.append(made.unsure)
    made.begin(msgspec.structs.replace(made.saved(), unsure=True))
    assert [*found, made.unsure] == [True, False, True]


def test_a_notification_of_the_same_time_has_a_fixed_place() -> None:
    made = state()
    for key in ("b", "a"):
        made.fold({**notified(1), "notification_id": key})
    assert [each.id for each in made.notifications] == ["a", "b"]
    assert all(isinstance(each, Notification) for each in made.notifications)

"""A user's state: a snapshot, folded with the events after it.

The rules are those of `spec/vectors/state.json`, which the JavaScript SDK follows as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from momentum_sync.domain.messages import (
    EVENTS,
    InitialState,
    Intervention,
    InterventionChanged,
    Momentum,
    Notification,
    NotificationRemoved,
    PushNotification,
    ScoreChanged,
)

# Both lists are those of the server's snapshot; otherwise a resync would change the display.
_OPEN = ("scheduled", "in_progress")
_UNREAD = ("pending", "sent", "delivered")
_KINDS: Mapping[Any, type[ScoreChanged | InterventionChanged | PushNotification | NotificationRemoved]] = EVENTS


class Saved(msgspec.Struct, frozen=True):
    """A state as it is stored. `unsure`: the momentum must be read again."""

    momentum: Momentum | None
    interventions: list[Intervention]
    notifications: list[Notification]
    unsure: bool = False


class UserState:
    """One user's momentum, open interventions, and unread notifications.

    `unsure` is set where events do not determine the latest score: it was deleted, or moved to another day. The
    momentum must be read again then.
    """

    def __init__(self, user_id: str, *, most_notifications: int = 1_000) -> None:
        self.user_id = user_id
        self._most_notifications = most_notifications
        self.momentum: Momentum | None = None
        self.unsure = False
        self._interventions: dict[str, Intervention] = {}
        self._notifications: dict[str, Notification] = {}
        # The last event of each day since the last read. They reveal a read that is older.
        self._days: dict[str, ScoreChanged] = {}
        self._doubtful: Momentum | None = None

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """Return those that are scheduled or in progress, by date; those without a date last."""
        return tuple(sorted(self._interventions.values(), key=_by_date))

    @property
    def notifications(self) -> tuple[Notification, ...]:
        """Return the unread notifications, newest first."""
        # Sorting is stable, also in reverse: the order is the server's, `created_at desc, id`.
        by_id = sorted(self._notifications.values(), key=lambda one: one.id)
        return tuple(sorted(by_id, key=lambda one: one.created_at or "", reverse=True))

    def begin(self, snapshot: InitialState | Saved) -> None:
        """Take over a snapshot, or a stored state."""
        self.momentum = snapshot.momentum
        found = snapshot.interventions
        interventions = found if isinstance(found, list) else [] if found is None else found.interventions
        self._interventions = {one.id: one for one in interventions}
        self._notifications = {one.id: one for one in snapshot.notifications}
        self._days.clear()
        self._doubtful = None
        self.unsure = isinstance(snapshot, Saved) and snapshot.unsure

    def saved(self) -> Saved:
        """Return the state to store."""
        return Saved(self.momentum, list(self.interventions), list(self.notifications), self.unsure)

    def fold(self, fields: Mapping[str, Any]) -> None:
        """Apply the next event. Events of other users change nothing."""
        kind = _KINDS.get(fields.get("event_type"))
        if kind is None or fields.get("user_id") != self.user_id:
            return
        try:
            event = msgspec.convert(fields, kind)
        except msgspec.ValidationError:  # an operator's own event with one of these types: it describes no row
            return
        match event:
            case ScoreChanged(event_type="momentum_score_deleted"):
                self._score_deleted(event)
            case ScoreChanged(momentum_state=None):  # too large for an event, so it must be read
                self.unsure = True
            case ScoreChanged():
                self._score(event)
            case InterventionChanged():
                self._intervention(event)
            case PushNotification():
                self._notification(event)
            case NotificationRemoved():
                self.forget_notification(event.notification_id)

    def forget_notification(self, notification_id: str) -> None:
        """Remove a notification, if it is there."""
        self._notifications.pop(notification_id, None)

    def read_again(self, momentum: Momentum) -> bool:
        """Take over a momentum that was read after the last event; False if it may be older than that event.

        An event may arrive before its change is visible to readers. Where a later day may have been moved away, the
        same momentum must be read twice.
        """
        if self._is_older(momentum):
            return False
        self.momentum = momentum
        self._days.clear()
        self._doubtful = None
        self.unsure = False
        return True

    def _is_older(self, momentum: Momentum) -> bool:
        day = momentum.score_date or ""
        known = self._days.get(day)
        if known is not None:
            # A read with other values than the day's last event is older than that event, and so is one that still has
            # a deleted day.
            same = (momentum.momentum_state, momentum.final_score) == (known.momentum_state, known.final_score)
            return not same or known.event_type == "momentum_score_deleted"
        if not any(later > day for later, one in self._days.items() if one.event_type != "momentum_score_deleted"):
            return False
        # `timestamp` is the time of the read, so it differs between equal reads.
        before, self._doubtful = self._doubtful, msgspec.structs.replace(momentum, timestamp=None)
        return not self.unsure or before != self._doubtful

    def _score(self, event: ScoreChanged) -> None:
        self._days[event.score_date] = event
        now = self.momentum
        if now is not None and now.has_data and now.score_date is not None and event.score_date < now.score_date:
            self.unsure = True  # an earlier day changed, or the latest score was moved there
            return
        # An event carries no breakdown and no count, and the known ones belong to the older score.
        self.momentum = Momentum(
            user_id=self.user_id,
            has_data=True,
            score_date=event.score_date,
            momentum_state=event.momentum_state,
            final_score=event.final_score,
            last_updated=event.timestamp,
        )

    def _score_deleted(self, event: ScoreChanged) -> None:
        self._days[event.score_date] = event
        if self.momentum is not None and self.momentum.score_date == event.score_date:
            self.momentum = None
            self.unsure = True

    def _intervention(self, event: InterventionChanged) -> None:
        key = event.intervention_id
        if event.event_type == "intervention_deleted" or event.status not in _OPEN:
            self._interventions.pop(key, None)
            return
        known = self._interventions.get(key)
        created = (
            event.timestamp if event.event_type == "intervention_created" else None
        )  # sent by servers before 0.1.0
        self._interventions[key] = Intervention(
            id=key,
            intervention_type=event.intervention_type,
            status=event.status,
            scheduled_date=event.scheduled_date,
            trigger_reason=event.trigger_reason,
            created_at=event.created_at or (created if known is None else known.created_at),
        )

    def _notification(self, event: PushNotification) -> None:
        key = event.notification_id
        if event.status not in _UNREAD:
            self._notifications.pop(key, None)
            return
        known = self._notifications.get(key)
        self._notifications[key] = Notification(
            id=key,
            notification_type=event.notification_type,
            title=event.title,
            message=event.message,
            action_type=event.action_type,
            action_data=event.action_data,
            status=event.status,
            created_at=event.created_at or (known.created_at if known is not None else event.timestamp),
        )
        if len(self._notifications) > self._most_notifications:
            del self._notifications[self.notifications[-1].id]


def _by_date(one: Intervention) -> tuple[str, str, str]:
    late = "~"  # sorts after every date
    return (one.scheduled_date or late, one.created_at or late, one.id)

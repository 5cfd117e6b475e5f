"""Messages and events of the momentum app: contract, section 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from momentum_sync.wire import from_server, messages
from momentum_sync.wire.from_server import ServerAnswer, ServerMessage, ServerMessages
from momentum_sync.wire.messages import ClientMessage, declared_in
from momentum_sync.wire.spec import Protocol

# Messages from clients

_Key = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class RequestMomentumUpdate(ClientMessage, tag="request_momentum_update"):
    """Asks for the momentum as it is now."""

    ANSWERS = ("momentum_state_update", "error")


class MarkNotificationRead(ClientMessage, tag="mark_notification_read", kw_only=True):
    """Marks a notification as opened. Doing it again changes nothing."""

    ANSWERS = ("notification_marked_read", "error")

    notification_id: UUID


class CacheInvalidationAck(ClientMessage, tag="cache_invalidation_ack", kw_only=True):
    """Acknowledges that keys were dropped from a cache. Confirmed once for each key that was pending."""

    ANSWERS = ("cache_invalidation_confirmed", "error")

    cache_key: _Key | None = None
    cache_keys: Annotated[tuple[_Key, ...], msgspec.Meta(max_length=500)] = ()

    @property
    def keys(self) -> list[str]:
        """Return the acknowledged keys, in either of the two fields."""
        return [*([] if self.cache_key is None else [self.cache_key]), *self.cache_keys]

    def problem(self) -> str | None:
        """Require a key."""
        return None if self.keys else "`cache_invalidation_ack` needs `cache_key` or `cache_keys`."


# Messages from the server


class Momentum(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user's latest score. Fields are None where they are not known: an event carries no count and no breakdown."""

    user_id: str
    has_data: bool
    score_date: str | None = None
    momentum_state: str | None = None
    final_score: float | None = None
    events_count: int | None = None
    breakdown: dict[str, Any] | None = None
    last_updated: str | None = None
    message: str | None = None
    timestamp: str | None = None


class Intervention(msgspec.Struct, frozen=True):
    """An intervention that is scheduled or in progress."""

    id: str
    intervention_type: str
    status: str
    scheduled_date: str | None
    trigger_reason: str
    created_at: str | None = None


class Interventions(msgspec.Struct, frozen=True):
    """A user's interventions that are scheduled or in progress, by scheduled date."""

    user_id: str
    interventions: list[Intervention]
    timestamp: str


class Notification(msgspec.Struct, frozen=True):
    """A notification that has not been read."""

    id: str
    notification_type: str
    title: str
    message: str
    action_type: str | None
    action_data: Any
    status: str
    created_at: str | None = None
    opened_at: str | None = None


class ScoreChanged(msgspec.Struct, kw_only=True):
    """A score was created, changed or deleted; a deleted one has its last values."""

    event_type: Literal["momentum_score_created", "momentum_score_updated", "momentum_score_deleted"]
    user_id: str
    timestamp: str
    score_date: str
    final_score: float
    state_changed: bool
    momentum_state: Literal["Rising", "Steady", "NeedsCare"] | None = None
    previous_state: str | None = None
    omitted: list[str] = []


class InterventionChanged(msgspec.Struct, kw_only=True):
    """An intervention was created, changed or deleted, or is no longer visible to the caller."""

    event_type: Literal["intervention_created", "intervention_updated", "intervention_deleted"]
    user_id: str
    timestamp: str
    intervention_id: str
    intervention_type: str
    status: str
    status_changed: bool
    scheduled_date: str | None
    trigger_reason: str = ""
    previous_status: str | None = None
    created_at: str | None = None
    out_of_sight: bool = False
    omitted: list[str] = []


class PushNotification(msgspec.Struct, kw_only=True):
    """A user-facing notification was created or changed. Fields that are too large are listed in `omitted`."""

    event_type: Literal["push_notification"]
    user_id: str
    timestamp: str
    notification_id: str
    notification_type: str
    action_type: str | None
    status: str
    title: str = ""
    message: str = ""
    action_data: Any = None
    created_at: str | None = None
    omitted: list[str] = []


class NotificationRemoved(msgspec.Struct, kw_only=True):
    """A notification was deleted, moved to another user, withdrawn, or is no longer visible to the caller."""

    event_type: Literal["notification_removed"]
    user_id: str
    timestamp: str
    notification_id: str
    out_of_sight: bool = False


EVENTS: Mapping[str, type[ScoreChanged | InterventionChanged | PushNotification | NotificationRemoved]] = {
    "momentum_score_created": ScoreChanged,
    "momentum_score_updated": ScoreChanged,
    "momentum_score_deleted": ScoreChanged,
    "intervention_created": InterventionChanged,
    "intervention_updated": InterventionChanged,
    "intervention_deleted": InterventionChanged,
    "push_notification": PushNotification,
    "notification_removed": NotificationRemoved,
}
"""The events of the app's own tables. Whatever else is published comes with the fields it was published with."""


class InitialState(ServerMessage, tag="initial_state", kw_only=True):
    """The snapshot after which events follow. `momentum` and `interventions` are null without a user."""

    momentum: Momentum | None
    interventions: Interventions | None
    notifications: list[Notification]
    last_event_id: str


class CacheInvalidation(ServerMessage, tag="cache_invalidation", kw_only=True):
    """The values of these cache keys are stale. The message is ordered among the events."""

    cache_keys: list[str]
    id: str
    previous_id: str


class CacheInvalidationConfirmed(ServerAnswer, tag="cache_invalidation_confirmed", kw_only=True):
    """An acknowledgement was recorded."""

    cache_key: str


class MomentumStateUpdate(ServerAnswer, tag="momentum_state_update", kw_only=True):
    """The requested momentum."""

    data: Momentum


class NotificationMarkedRead(ServerAnswer, tag="notification_marked_read", kw_only=True):
    """The notification is marked as opened."""

    notification_id: str


PROTOCOL = Protocol(
    clients=[*declared_in(messages.__name__, ClientMessage), *declared_in(__name__, ClientMessage)],
    servers=[*declared_in(from_server.__name__, ServerMessage), *declared_in(__name__, ServerMessage)],
    events=EVENTS,
)
"""The native protocol with the app's messages."""

SERVER_MESSAGES = ServerMessages(PROTOCOL.servers)
"""Decodes everything that a server of the app sends."""

"""What a server sends, as types: for the SDK, which reads it, and for the specification, which is printed from it.

The server itself splices JSON that the database made; its tests hold every message that it sends against these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec


class Momentum(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user's latest score. What is None is not known: an event carries no count and no breakdown."""

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
    """A score was made, changed or deleted; a deleted one is as it was."""

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
    """An intervention was made, changed or deleted, or has left the caller's sight."""

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
    """A user-facing notification was made, or has changed. Fields that are too large are left out: see `omitted`."""

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
    """A notification was deleted, is another user's now, is no longer shown, or has left the caller's sight."""

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


class _Message(msgspec.Struct, kw_only=True):
    timestamp: str


class _Answer(_Message, kw_only=True):
    ref: str | int | float | bool | None = None


class SubscriptionConfirmed(_Answer, tag="subscription_confirmed", kw_only=True):
    """The subscription is live; these are all channels now held.

    `reason` is why there was no resume: `expired`, `history_changed` or `unknown_id`.
    """

    channels: list[str]
    user_id: str | None
    client_id: str
    resumed: bool
    replayed: int
    refused: list[str] = []
    reason: str | None = None


class InitialState(_Message, tag="initial_state", kw_only=True):
    """The snapshot after which events follow. `momentum` and `interventions` are null for nobody's connection."""

    momentum: Momentum | None
    interventions: Interventions | None
    notifications: list[Notification]
    last_event_id: str


class RealtimeEvent(_Message, tag="realtime_event", kw_only=True):
    """A committed change. `event` has what was published, and `id`, `previous_id` and `channel`."""

    event: dict[str, Any]


class CacheInvalidation(_Message, tag="cache_invalidation", kw_only=True):
    """These keys hold what is no longer true. It has its place in the order of the events."""

    cache_keys: list[str]
    id: str
    previous_id: str


class CacheInvalidationConfirmed(_Answer, tag="cache_invalidation_confirmed", kw_only=True):
    """An acknowledgement was taken."""

    cache_key: str


class Heartbeat(_Message, tag="heartbeat", kw_only=True):
    """The feed runs, and is late by so many milliseconds.

    `position` is how far it has come for this client, with no event for it in between: resume from there.
    """

    last_event_id: str
    lag_ms: int
    position: str | None = None


class TokenExpiring(_Message, tag="token_expiring", kw_only=True):
    """The token expires in a minute."""

    expires_at: str


class Authenticated(_Answer, tag="authenticated", kw_only=True):
    """A fresh token was taken; channels that it does not give are `refused`."""

    expires_at: str | None
    refused: list[str] = []


class MomentumStateUpdate(_Answer, tag="momentum_state_update", kw_only=True):
    """The momentum as it was asked for."""

    data: Momentum


class NotificationMarkedRead(_Answer, tag="notification_marked_read", kw_only=True):
    """The notification stands as opened."""

    notification_id: str


class Pong(_Answer, tag="pong", kw_only=True):
    """The answer to a ping."""


class Error(_Answer, tag="error", kw_only=True):
    """A message could not be met; the connection stays open."""

    code: str
    error: str
    refused: list[str] = []


ServerMessage = (
    SubscriptionConfirmed
    | InitialState
    | RealtimeEvent
    | CacheInvalidation
    | CacheInvalidationConfirmed
    | Heartbeat
    | TokenExpiring
    | Authenticated
    | MomentumStateUpdate
    | NotificationMarkedRead
    | Pong
    | Error
)

TYPES = frozenset(kind.__struct_config__.tag for kind in ServerMessage.__args__)
_decoder: msgspec.json.Decoder[ServerMessage] = msgspec.json.Decoder(ServerMessage)
_kind = msgspec.json.Decoder(dict[str, Any])


def decode(text: str | bytes) -> ServerMessage | None:
    """A server's message; None for a type that is not known, as of a newer server. ValueError if it is none."""
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError:
        message = _kind.decode(text)
        if isinstance(message.get("type"), str) and message["type"] not in TYPES:
            return None
        raise

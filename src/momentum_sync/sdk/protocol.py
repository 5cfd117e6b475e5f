"""The client's side of the protocol, without its socket: position, received messages, and their meaning.

The socket's side passes connections, messages and times in; it returns the events and answers for the program. The
rules are those of `spec/vectors/following.json`, `close.json` and `backoff.json`, which the JavaScript SDK follows as
well.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from momentum_sync.domain import messages as domain
from momentum_sync.domain.messages import Intervention, Momentum, Notification
from momentum_sync.errors import Gap, NotUnderstood
from momentum_sync.sdk.state import Saved, UserState
from momentum_sync.states import enter
from momentum_sync.wire import from_server as wire
from momentum_sync.wire.close import Close, Verdict


class ClientStatus(StrEnum):
    """State of a client. It compares equal to its value, such as `"live"`."""

    OFFLINE = "offline"
    CATCHING_UP = "catching_up"
    LIVE = "live"
    ENDED = "ended"


CLIENT_TRANSITIONS: Mapping[ClientStatus, Set[ClientStatus]] = {
    ClientStatus.OFFLINE: {ClientStatus.CATCHING_UP, ClientStatus.LIVE, ClientStatus.ENDED},
    ClientStatus.CATCHING_UP: {ClientStatus.LIVE, ClientStatus.OFFLINE, ClientStatus.ENDED},
    ClientStatus.LIVE: {ClientStatus.CATCHING_UP, ClientStatus.OFFLINE, ClientStatus.ENDED},
    ClientStatus.ENDED: set(),
}
"""`catching_up`: subscribed, and events that were missed are still to come, or the feed is late."""

NOBODY = ""
"""Whose data a connection without a user has, as of `service_role`."""
LONGEST_PAUSE_S = 20.0
_SHORTEST_PAUSE_S = 0.5
_LATE_MS = 10_000
_VERDICTS: Mapping[int, Verdict] = {
    **{close.code: close.verdict for close in Close},
    400: "end", 403: "end", 422: "end", 401: "fresh_token", 429: "later",
}  # fmt: skip


def verdict(code: object) -> Verdict:
    """Return the reaction to a close code, or to an HTTP status of a failed handshake."""
    return _VERDICTS.get(code, "come_back") if isinstance(code, int) else "come_back"


def pause(failures: int, chance: float) -> float:
    """Return the seconds to wait after a number of failures in a row. Full jitter, at most 20 s.

    Args:
        failures: failures in a row.
        chance: a random number between 0 and 1.
    """
    # A restart disconnects all clients at once, and full jitter spreads them. The exponent is bounded because 2.0 **
    # 1024 raises OverflowError.
    return float(min(LONGEST_PAUSE_S, _SHORTEST_PAUSE_S * 2.0 ** min(max(failures, 1) - 1, 10)) * chance)


@dataclass(frozen=True, slots=True)
class Event:
    """A committed change, on the channel that delivered it. `event["final_score"]` is one of its own fields.

    `type`, `user_id` and `timestamp` are those fields, too, and empty where an operator published without them.
    """

    id: str
    channel: str
    type: str
    user_id: str | None
    timestamp: str
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


@dataclass(frozen=True, slots=True)
class Resync:
    """The stream starts afresh here: events before it may be missing, and the state was read again.

    `reason` is None at the first start, else why the stream could not continue: `expired`, `history_changed`,
    `unknown_id` or `gap`.
    """

    id: str
    reason: str | None
    state: Saved


@dataclass(frozen=True, slots=True)
class Invalidated:
    """Cache keys that were invalidated; to be acknowledged once they are dropped."""

    id: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the server to a message, or its notice that the token expires."""

    message: wire.ServerMessage


class State(NamedTuple):
    """The present data of the user, and how current they are.

    `status` is `live`, `catching_up`, `offline` or `ended`. Where it is not `live`, everything was current at `since`,
    seconds since 1970 (None: never).
    """

    status: ClientStatus
    since: float | None
    momentum: Momentum | None
    interventions: tuple[Intervention, ...]
    notifications: tuple[Notification, ...]


Output = Event | Resync | Invalidated | Answer


class Protocol:
    """One client's position in the stream.

    Times are seconds: `now` since 1970, `at` on a monotonic clock.

    Attributes:
        last_event_id: id of the last received event.
        position: how far the server's stream has come for this client, with no event for it in between. A reconnect
            resumes from there.
        since: when the data were last known to be current, while the status is not `live`.
        user_id: the user; None until known.
    """

    def __init__(self, user_id: str | None) -> None:
        self.user_id = user_id
        self.state = UserState(user_id or "")
        self.last_event_id: str | None = None
        self.position: str | None = None
        self.status = ClientStatus.OFFLINE
        self.since: float | None = None
        self.channels: tuple[str, ...] = ()
        self.lag_ms = 0
        self._heard_at = 0.0
        self._steady = 0.0
        self._to_come = 0
        # Cleared by each heartbeat: a heartbeat without an event since the last one ends a replay, because the caller
        # may not see the rest.
        self._came = False
        self._asked_with: str | None = None
        self._reason: str | None = None

    def _enter(self, status: ClientStatus) -> None:
        self.status = enter(self.status, status, CLIENT_TRANSITIONS)

    def restore(self, user_id: str, last_event_id: str | None, since: float | None) -> None:
        """Continue from a stored position."""
        self.user_id = self.state.user_id = user_id
        self.last_event_id = self.position = last_event_id
        self.since = since

    # The connection

    def connecting(self) -> str | None:
        """Begin connecting. Return the id to resume from."""
        self._asked_with = self.position
        return self.position

    def opened(self, now: float, at: float) -> None:
        """Note that the socket is open, and the subscription is not confirmed yet."""
        self._heard_at, self._steady = now, at

    def lost(self, now: float) -> None:
        """Note that the socket is closed."""
        if self.online:
            # If the clock was set back, the last message would lie in the future.
            self.since = (
                min(self._heard_at, now) if self.status is ClientStatus.LIVE or self.since is None else self.since
            )
            self._enter(ClientStatus.OFFLINE)

    def ended(self, now: float) -> None:
        """Note that the client does not reconnect any more."""
        self.lost(now)
        self._enter(ClientStatus.ENDED)

    def frozen(self, at: float, patience: float) -> bool:
        """Return whether nothing arrived for longer than `patience` seconds."""
        return at - self._steady > patience

    def forget(self, reason: str) -> None:
        """Drop the position; the next connection begins with a snapshot."""
        self.last_event_id = self.position = None
        self._reason = reason

    @property
    def online(self) -> bool:
        """Return whether the subscription is confirmed."""
        return self.status in (ClientStatus.LIVE, ClientStatus.CATCHING_UP)

    def known(self, *, without: Container[str]) -> State:
        """Return the present data, without notifications that the user has read."""
        state = self.state
        unread = tuple(one for one in state.notifications if one.id not in without)
        return State(self.status, self.since, state.momentum, state.interventions, unread)

    # Messages

    def receive(self, text: str | bytes, now: float, at: float) -> list[Output]:
        """Handle a message. Raise Gap if an event is missing before it, NotUnderstood if it is not a message."""
        try:
            message = domain.SERVER_MESSAGES.decode(text)
        except (ValueError, RecursionError) as error:
            raise NotUnderstood(f"The server sent an invalid message: {error}.") from error
        self._heard_at, self._steady = now, at
        match message:
            case None:
                # A newer server may send types that this version does not know.
                return []
            case wire.SubscriptionConfirmed():
                return self._confirmed(message, now)
            case domain.InitialState():
                return self._begin(message)
            case wire.RealtimeEvent():
                return self._event(message.event)
            case domain.CacheInvalidation():
                self._follow(message.id, message.previous_id)
                return [Invalidated(message.id, tuple(message.cache_keys))]
            case wire.Heartbeat():
                self._heartbeat(message)
                return []
            case wire.Authenticated() | wire.Error():
                if message.refused:
                    self.channels = tuple(one for one in self.channels if one not in message.refused)
                return [Answer(message)]
            case _:
                return [Answer(message)]

    def _confirmed(self, message: wire.SubscriptionConfirmed, now: float) -> list[Output]:
        self.channels = tuple(message.channels)
        # Later confirmations answer `subscribe`; only the first one of a connection begins the stream.
        if not self.online:
            user_id = message.user_id or NOBODY
            if self.user_id is None:
                self.user_id = self.state.user_id = user_id
            if user_id != self.user_id:
                self.user_id, self.state = user_id, UserState(user_id)
                self.forget("another_user")
                raise Gap("The token belongs to another user than the stored state.")
            self._to_come = message.replayed if message.resumed else 0
            self.since = self.since if self.since is not None else now
            self._enter(ClientStatus.CATCHING_UP)
            if message.resumed:
                self.last_event_id = self._asked_with  # the next event follows the position that was sent
                self._caught_up()
            elif self._asked_with is not None:
                self._reason = message.reason or "unknown_id"
        return [Answer(message)]

    def _begin(self, message: domain.InitialState) -> list[Output]:
        self.state.begin(message)
        self.last_event_id = self.position = message.last_event_id
        reason, self._reason = self._reason, None
        self._to_come = 0
        self._caught_up()
        return [Resync(message.last_event_id, reason, self.state.saved())]

    def _event(self, body: dict[str, Any]) -> list[Output]:
        try:
            event_id, previous, channel = body.pop("id"), body.pop("previous_id"), body.pop("channel")
        except KeyError as error:
            raise NotUnderstood(f"The server sent an event without {error}.") from error
        self._follow(event_id, previous)
        self.state.fold(body)
        kind, user_id, at = body.get("event_type"), body.get("user_id"), body.get("timestamp")
        return [
            Event(event_id, channel, str(kind or ""), None if user_id is None else str(user_id), str(at or ""), body)
        ]

    def _follow(self, event_id: str, previous: str) -> None:
        # A lost and a repeated event both show in `previous_id`; after either, the client begins again with a snapshot.
        if previous != self.last_event_id:
            self.forget("gap")
            raise Gap(f"The event {event_id} follows {previous}, which was not received.")
        self.last_event_id = self.position = event_id
        self._came = True
        if self._to_come:
            self._to_come -= 1
            self._caught_up()

    def _heartbeat(self, message: wire.Heartbeat) -> None:
        self.lag_ms = message.lag_ms
        if message.last_event_id != self.last_event_id:
            self.forget("gap")
            raise Gap(f"The server has sent the event {message.last_event_id}, which was not received.")
        # The position moves without events, so a quiet client's does not fall out of the retention.
        self.position = message.position or message.last_event_id
        if message.lag_ms > _LATE_MS:
            self.since = self._heard_at - message.lag_ms / 1000 if self.since is None else self.since
            self._enter(ClientStatus.CATCHING_UP)
        elif not (self._to_come and self._came):  # some of the replayed events may be for others
            self._to_come = 0
            self._caught_up()
        self._came = False

    def _caught_up(self) -> None:
        if self._to_come == 0:
            self._enter(ClientStatus.LIVE)
            self.since = None

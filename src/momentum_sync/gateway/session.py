"""One connection's conversation, without its socket: what comes in, what goes out, when it ends.

The socket's side feeds it frames (`receive`), hands back what the database said (`greet`, `state`, …), lets it look at
the clock (`tick`), and writes what `to_send` gives. Work that needs the database comes out of `receive` as a value.
Once a session is live and its stitch is done, the router writes prebuilt frames past it and moves `last_id` along.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import msgspec

from momentum_sync.errors import RequestError
from momentum_sync.eventlog.event import CACHE_INVALIDATION, Event, Position, SnapshotBoundary, route
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import LEEWAY_S, Identity
from momentum_sync.wire import messages
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds

_BURST = 100.0
_FRAMES_A_SECOND = 20.0
_UNREADABLE_IN_A_ROW = 5
_PENDING_KEYS = 1_000
_MAX_CHANNELS = 2_000
_WARN_BEFORE_EXPIRY_S = 60.0
_LONGEST_PING_S = 25.0
_ANSWER_WITHIN = 0.6  # of the time between pings
_ANSWER_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class ReadState:
    """Work: read the momentum state."""

    ref: object


@dataclass(frozen=True, slots=True)
class MarkRead:
    """Work: mark a notification as opened."""

    notification_id: UUID
    ref: object


@dataclass(frozen=True, slots=True)
class Grant:
    """Work: ask which of the channels the caller may have."""

    channels: list[str]
    ref: object


@dataclass(frozen=True, slots=True)
class CheckToken:
    """Work: verify a token, and ask again for the channels held."""

    token: str = field(repr=False)
    ref: object


Work = ReadState | MarkRead | Grant | CheckToken


@dataclass(frozen=True, slots=True)
class State:
    """A snapshot, as JSON."""

    momentum: msgspec.Raw
    interventions: msgspec.Raw
    notifications: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Opening:
    """What a connection begins with: the channels it got, and the place after which everything is to come.

    With a `state`, the place is the snapshot's, and `reason` says why there was no resume where one was asked for.
    Without one it is the place that the client brought, and `replayed` events follow it already.
    """

    granted: Granted
    refused: list[str]
    place: Position
    state: State | None
    replayed: int = 0
    reason: str | None = None


class Session:
    """A conversation with one client. `heartbeat` and all times are seconds.

    `now` is since 1970 and stands in messages; `at` is on a clock that only goes forward, and decides what is due.

    `last_id` is the id of the last event that was sent. While the connection does not follow the feed, `place` is the
    offset up to which it has been given everything. `asked` are those of its channels on which the database is asked
    about each event before it is delivered.
    """

    __slots__ = (
        "_allowance", "_ends_at", "_heartbeat", "_last_heard", "_next_heartbeat", "_out", "_pending_keys",
        "_received_at",
        "_unreadable", "_warned", "asked", "channels", "client_id", "closing", "epoch", "identity", "last_id", "live",
        "place", "seen", "user_id",
    )  # fmt: skip

    def __init__(
        self, identity: Identity, user_id: UUID | None, client_id: str, *, heartbeat: float, now: float, at: float
    ) -> None:
        self.identity = identity
        self._ends_at = _ends_at(identity, now, at)
        self.user_id = user_id
        self.client_id = client_id
        self.closing: Close | None = None
        self.live = False
        self.last_id = ""
        self.seen: SnapshotBoundary | None = None
        self.place = 0
        self.channels: dict[str, str] = {}
        self.asked: set[str] = set()
        self.epoch = ""
        self._heartbeat = heartbeat
        self._out: list[bytes] = []
        self._pending_keys: dict[str, None] = {}
        self._allowance = _BURST
        self._received_at = at
        self._unreadable = 0
        self._next_heartbeat = at + heartbeat
        self._warned = False
        self._last_heard = at

    def to_send(self) -> list[bytes]:
        """The messages to write since the last call, as JSON texts."""
        out, self._out = self._out, []
        return out

    def close(self, why: Close) -> None:
        """Ends the conversation; the first reason stands."""
        self.closing = self.closing or why

    # From the client

    def heard(self, at: float) -> None:
        """Bytes of any kind came from the client."""
        self._last_heard = at

    def frame(self, at: float) -> bool:
        """Count a frame of any kind. Return False, and close the session, when there are too many."""
        passed = max(0.0, at - self._received_at)
        self._allowance = min(_BURST, self._allowance + passed * _FRAMES_A_SECOND)
        self._received_at = at
        if self._allowance < 1.0:
            self.close(Close.TOO_MANY_MESSAGES)
        self._allowance -= 1.0
        return self.closing is None

    def receive(self, text: bytes, now: float) -> Work | None:
        """A text message. Answers what it can; returns the work it cannot do itself."""
        try:
            message = messages.decode(text)
        except messages.BadMessage as bad:
            self._unreadable_frame(bad.code, str(bad), now, bad.ref)
            return None
        self._unreadable = 0
        match message:
            case messages.Ping():
                self._out.append(messages.encode("pong", now, {}, message.ref))
            case messages.CacheInvalidationAck():
                for key in message.keys:
                    if self._pending_keys.pop(key, "absent") is None:
                        fields: dict[str, object] = {"cache_key": key}
                        self._out.append(messages.encode("cache_invalidation_confirmed", now, fields, message.ref))
            case messages.Unsubscribe():
                self._release(message.channels)
                self._confirm(now, message.ref)
            case messages.RequestMomentumUpdate():
                return ReadState(message.ref)
            case messages.MarkNotificationRead():
                return MarkRead(message.notification_id, message.ref)
            case messages.Subscribe():
                return Grant(list(dict.fromkeys(message.channels)), message.ref)
            case messages.Authenticate():
                return CheckToken(message.token, message.ref)
        return None

    def receive_binary(self, now: float) -> None:
        """Answer a binary message with an error: the protocol has text messages only."""
        self._unreadable_frame("binary_frame", "Messages are text frames; this one was binary.", now, None)

    def _unreadable_frame(self, code: str, sentence: str, now: float, ref: object) -> None:
        self._out.append(messages.error(code, sentence, now, ref))
        self._unreadable += 1
        if self._unreadable >= _UNREADABLE_IN_A_ROW:
            self.close(Close.UNREADABLE)

    # From the database

    def greet(self, greeting: Opening, now: float, at: float) -> None:
        """The subscription is live: confirms it and hands over the snapshot; events follow."""
        self._hold(greeting.granted)
        self.live = True
        self._last_heard = at  # it waited for us, and could say nothing
        self.seen = greeting.place.seen
        self.place = greeting.place.offset
        self.epoch = greeting.place.epoch
        self.last_id = str(greeting.place)
        fields = self._subscription(resumed=greeting.state is None, replayed=greeting.replayed)
        if greeting.refused:
            fields["refused"] = greeting.refused
        if greeting.reason is not None:
            fields["reason"] = greeting.reason
        self._out.append(messages.encode("subscription_confirmed", now, fields))
        if greeting.state is not None:
            state: dict[str, object] = {
                "momentum": greeting.state.momentum,
                "interventions": greeting.state.interventions,
                "notifications": greeting.state.notifications,
                "last_event_id": self.last_id,
            }
            self._out.append(messages.encode("initial_state", now, state))

    def state(self, data: msgspec.Raw, now: float, ref: object) -> None:
        """The momentum state that was asked for."""
        self._out.append(messages.encode("momentum_state_update", now, {"data": data}, ref))

    def marked_read(self, notification_id: UUID, now: float, ref: object) -> None:
        """The notification stands as opened."""
        fields: dict[str, object] = {"notification_id": notification_id}
        self._out.append(messages.encode("notification_marked_read", now, fields, ref))

    def granted(self, wanted: Sequence[str], granted: Granted, now: float, ref: object) -> None:
        """The answer to a Grant: all of the channels or, naming the refused ones, none."""
        refused = [channel for channel in wanted if channel not in granted.channels]
        if refused:
            sentence = "Not allowed to have these channels; the others are unchanged."
            self._out.append(messages.error("forbidden", sentence, now, ref, refused=refused))
            return
        if len(self.channels.keys() | set(granted.channels)) > _MAX_CHANNELS:
            sentence = f"A connection holds at most {_MAX_CHANNELS} channels; the others are unchanged."
            self._out.append(messages.error("too_many_channels", sentence, now, ref))
            return
        self._hold(granted)
        self._confirm(now, ref)

    def renewed(self, identity: Identity, granted: Granted, now: float, at: float, ref: object) -> None:
        """A fresh token was good; channels that it no longer grants are gone."""
        self.identity = identity
        self._ends_at = _ends_at(identity, now, at)
        self._warned = False
        lost = self._keep(list(self.channels), granted)
        fields: dict[str, object] = {"expires_at": _expiry(identity.expires_at)}
        if lost:
            fields["refused"] = lost
        self._out.append(messages.encode("authenticated", now, fields, ref))

    def reviewed(self, wanted: Sequence[str], granted: Granted, now: float) -> None:
        """What the caller may have was asked again: those of the channels that are not granted any more are gone."""
        lost = self._keep(wanted, granted)
        if lost:
            sentence = "Not allowed to have these channels any longer; the others are unchanged."
            self._out.append(messages.error("forbidden", sentence, now, None, refused=lost))

    def refuse(self, error: RequestError, now: float, ref: object) -> None:
        """Work failed; the client is told, and the connection stays."""
        self._out.append(messages.error(error.code, str(error), now, ref))

    def _hold(self, granted: Granted) -> None:
        user_id = None if self.user_id is None else str(self.user_id)
        for channel in granted.channels:
            self.channels[channel] = route(channel, user_id)
            (self.asked.add if channel in granted.asked else self.asked.discard)(channel)

    def _keep(self, wanted: Iterable[str], granted: Granted) -> list[str]:
        """Holds on to what is granted of the channels wanted; returns those that it held and loses."""
        held = [channel for channel in wanted if channel in self.channels]
        self._hold(Granted([channel for channel in held if channel in granted.channels], granted.asked))
        lost = [channel for channel in held if channel not in granted.channels]
        self._release(lost)
        return lost

    def _release(self, channels: Iterable[str]) -> None:
        for channel in channels:
            self.channels.pop(channel, None)
            self.asked.discard(channel)

    def _subscription(self, *, resumed: bool = False, replayed: int = 0) -> dict[str, object]:
        return {
            "channels": list(self.channels),
            "user_id": self.user_id,
            "client_id": self.client_id,
            "resumed": resumed,
            "replayed": replayed,
        }

    def _confirm(self, now: float, ref: object) -> None:
        fields = self._subscription()
        self._out.append(messages.encode("subscription_confirmed", now, fields, ref))

    # From the feed

    def advanced(self, position: int) -> None:
        """The stream has come this far."""
        if self.seen is not None and position >= self.seen.upto:
            self.seen = None

    def event(self, event: Event, now: float) -> None:
        """An event that the connection does not have yet, while it catches up or its stitch is not done."""
        delivery = self.deliver(event)
        if delivery is not None:
            self._out.append(build(event, delivery, now))

    def deliver(self, event: Event) -> DeliveryIds | None:
        """How the event goes to the client, which has it from now on; None if it is not for it, or in its snapshot."""
        if self.seen is not None and self.seen.snapshot.sees(event.xid):
            return None
        channel = self.channel_of(event)
        if channel is None:
            return None
        delivery = DeliveryIds(str(Position(self.epoch, event.offset, event.mark, self.seen)), self.last_id, channel)
        self.delivered(event, delivery.event_id)
        return delivery

    def channel_of(self, event: Event) -> str | None:
        """The first of the event's channels that this session holds."""
        places = event.places
        if places is not None and len(self.channels) < len(places):
            held = sorted([places[channel] for channel in self.channels.keys() & places.keys()])
            pairs = [(event.channels[place], event.keys[place]) for place in held]
        else:
            pairs = list(zip(event.channels, event.keys, strict=True))
        for channel, key in pairs:
            if self.channels.get(channel) == key and (not event.out_of_sight or channel in self.asked):
                return channel
        return None

    def asks(self, event: Event) -> bool:
        """Whether the database has to say if this event may be delivered."""
        if not self.asked or (self.seen is not None and self.seen.snapshot.sees(event.xid)):
            return False
        return self.channel_of(event) in self.asked

    def delivered(self, event: Event, event_id: str) -> None:
        """The event was written to the client under this id."""
        self.last_id = event_id
        self.owe(event.cache_keys)

    def owe(self, cache_keys: Iterable[str]) -> None:
        """The client was told that these are invalid, and may say that they are gone: that will be confirmed, once."""
        for key in cache_keys:
            self._pending_keys[key] = None
        while len(self._pending_keys) > _PENDING_KEYS:
            del self._pending_keys[next(iter(self._pending_keys))]

    # From the clock

    def tick(self, now: float, at: float, lag_ms: int, reached: Position | None) -> float:
        """Does what is due; returns when, on the clock of `at`, to look again, which is when to ping again, too.

        `reached` is the position of the feed while the connection follows it: the client has all there was for it.
        """
        warn_at = self._ends_at - LEEWAY_S - _WARN_BEFORE_EXPIRY_S
        if at >= self._ends_at:
            self.close(Close.TOKEN)
        elif not self._warned and at >= warn_at:
            self._warned = True
            expires_at = _expiry(self.identity.expires_at)
            self._out.append(messages.encode("token_expiring", now, {"expires_at": expires_at}))
        if at >= self._next_heartbeat:
            self._next_heartbeat = at + self._heartbeat
            if self.live:
                fields: dict[str, object] = {
                    "last_event_id": self.last_id, "position": self._position(reached), "lag_ms": lag_ms,
                }  # fmt: skip
                self._out.append(messages.encode("heartbeat", now, fields))
        return min(
            self._next_heartbeat, at + self._ping_every, self._ends_at, float("inf") if self._warned else warn_at
        )  # fmt: skip

    def _position(self, reached: Position | None) -> str:
        """Return the position to resume from, so that a client without events does not expire."""
        if reached is None or reached.epoch != self.epoch:
            return self.last_id
        return str(reached if self.seen is None else replace(reached, seen=self.seen))

    def silent(self, at: float) -> bool:
        """Whether the client has sent nothing, not even a pong, although it was pinged: noticed within 50 s."""
        return at - self._last_heard > self._ping_every + max(_ANSWER_WITHIN_S, self._ping_every * _ANSWER_WITHIN)

    @property
    def _ping_every(self) -> float:
        return min(self._heartbeat, _LONGEST_PING_S)


def build(event: Event, delivery: DeliveryIds, now: float) -> bytes:
    """The message that carries an event."""
    if delivery.channel == CACHE_INVALIDATION:
        return messages.cache_invalidation(event.cache_keys, delivery, now)
    return messages.realtime_event(event.body, delivery, now)


def _ends_at(identity: Identity, now: float, at: float) -> float:
    """When the token ends, on the clock of `at`: a clock that is set while the client is connected ends nothing."""
    return float("inf") if identity.expires_at is None else at + identity.expires_at + LEEWAY_S - now


def _expiry(expires_at: float | None) -> str | None:
    return None if expires_at is None else messages.timestamp(expires_at)

"""The native protocol: a session without its socket. Messages come in, messages and work come out, times pass.

A message type is declared in `wire/messages.py` (or by the application) and handled by one function here (or by the
application); nothing else names it. A handler that needs the database is a coroutine, which the socket runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar
from uuid import UUID

import msgspec

from momentum_sync.errors import Forbidden, RequestError
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.conversation import BinaryMessage, Nowhere, Outgoing, Request, Services, Work
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.receipts import Device
from momentum_sync.gateway.subscriber import Owner
from momentum_sync.identity.channels import Filtered, Granted
from momentum_sync.identity.tokens import LEEWAY_S, Identity
from momentum_sync.limits import SocketLimits
from momentum_sync.token_bucket import TokenBucket
from momentum_sync.wire import messages
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import UNKNOWN_SDK, ClientMessage, ClientMessages, DeliveryIds, Ref

M = TypeVar("M", bound=ClientMessage)
M_contra = TypeVar("M_contra", bound=ClientMessage, contravariant=True)


class Encoder(Protocol):
    """Encodes an event of one channel as a message of its own."""

    def __call__(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Return the message's JSON. `now` is seconds since 1970."""


class _Handle(Protocol[M_contra]):
    def __call__(self, session: Session, message: M_contra, services: Services, /) -> Work | None: ...


class Command:
    """A message type with its handler."""

    def __init__(self, kind: type[M], handle: _Handle[M]) -> None:
        self.kind: type[ClientMessage] = kind

        def run(session: Session, message: ClientMessage, services: Services) -> Work | None:
            assert isinstance(message, kind)
            return handle(session, message, services)

        self.run = run


class NativeDialect:
    """The native protocol with an application's messages. Its connections share frames after the same event.

    Attributes:
        together: None, because a frame names the event before.
    """

    together: int | None = None

    def __init__(self, commands: Sequence[Command] = (), encoders: Mapping[str, Encoder] | None = None) -> None:
        every = [*COMMANDS, *commands]
        self.commands = {command.kind: command for command in every}
        self.messages = ClientMessages([command.kind for command in every])
        self._encoders = dict(encoders or {})

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Return the frame that carries an event."""
        encoder = self._encoders.get(ids.channel)
        if encoder is None:
            return messages.frame(messages.realtime_event(event.body, ids, now))
        return messages.frame(encoder(event, ids, now))


class Session:
    """A conversation with one client.

    `now` is seconds since 1970 and stands in messages; `at` is seconds on a monotonic clock and decides when something
    is due.

    Attributes:
        identity: the caller.
        user_id: the user of the connection.
        client_id: the client's name for itself.
        cursor: its position and subscriptions.
        dialect: the application's messages.
        sdk: the client's library, by name and version.
        closing: why the connection is to end; None while it is not.
    """

    __slots__ = (
        "_device", "_ends_at", "_frames", "_heartbeat", "_last_heard", "_limits", "_next_heartbeat", "_open", "_out",
        "_outgoing", "_pending_keys", "_unreadable", "_warned", "client_id", "closing", "cursor", "dialect", "identity",
        "sdk", "user_id",
    )  # fmt: skip

    def __init__(
        self,
        identity: Identity,
        user_id: UUID | None,
        client_id: str,
        cursor: Cursor,
        dialect: NativeDialect,
        limits: SocketLimits,
        *,
        heartbeat: float,
        now: float,
        at: float,
        sdk: str = UNKNOWN_SDK,
        device: Device | None = None,
    ) -> None:
        self.identity = identity
        self.user_id = user_id
        self.client_id = client_id
        self.sdk = sdk
        self.cursor = cursor
        self.closing: Close | None = None
        self.dialect = dialect
        self._limits = limits
        self._ends_at = _ends_at(identity, now, at)
        self._heartbeat = heartbeat
        self._out: list[bytes] = []
        self._pending_keys: dict[str, None] = {}
        self._frames = TokenBucket(limits.frames, at)
        self._unreadable = 0
        self._next_heartbeat = at + heartbeat
        self._warned = False
        self._last_heard = at
        self._open = False
        self._device = device
        self._outgoing: Outgoing

    @property
    def owner(self) -> Owner:
        """Return the owner of the connection."""
        return Owner(self.identity.role, self.identity.subject, self.user_id)

    @property
    def revision(self) -> object:
        """Return the caller, which a fresh token replaces."""
        return self.identity

    def reviews(self, what: str) -> bool:
        """Return whether policies of the app's tables have changed, which do not apply to service_role."""
        return what == "policies_changed" and self.identity.role != "service_role"

    def is_of(self, user: UUID) -> bool:
        """Return whether the token is the user's. An admin's connection for that user is not."""
        return self.identity.subject == user

    @property
    def most_bytes(self) -> int:
        """Return the size of the largest message that the client may send."""
        return self._limits.frame_bytes

    def attach(self, outgoing: Outgoing) -> None:
        """Take the connection's outgoing side."""
        self._outgoing = outgoing

    def lost(self) -> None:
        """Note that the socket is closed."""
        if self._device is not None:
            self._device.lost()
        self._outgoing = Nowhere(self._outgoing.file)

    # Out

    def to_send(self) -> list[bytes]:
        """Return the messages to write since the last call, as JSON."""
        out, self._out = self._out, []
        return out

    def send(self, kind: str, fields: dict[str, object], now: float, ref: Ref = None) -> None:
        """Send a message."""
        self._out.append(messages.encode(kind, now, fields, ref))

    def send_error(self, code: str, sentence: str, now: float, ref: Ref = None, **more: object) -> None:
        """Send an `error`; the connection stays open."""
        self._out.append(messages.error(code, sentence, now, ref, **more))

    def refuse(self, error: RequestError, now: float, ref: Ref) -> None:
        """Send the `error` that answers a failed message."""
        self.send_error(error.code, str(error), now, ref)

    def close(self, why: Close) -> None:
        """End the conversation; the first reason stands."""
        self.closing = self.closing or why

    def confirm(self, now: float, ref: Ref, **more: object) -> None:
        """Send `subscription_confirmed` with all subscribed channels."""
        fields: dict[str, object] = {
            "channels": list(self.cursor.channels), "user_id": self.user_id, "client_id": self.client_id,
            "resumed": False, "replayed": 0, **more,
        }  # fmt: skip
        self.send("subscription_confirmed", fields, now, ref)

    # In

    def heard(self, at: float) -> None:
        """Note that bytes of any kind arrived."""
        self._last_heard = at

    def take_frame(self, at: float) -> bool:
        """Count a frame of any kind. Return False, and close the session, when there are too many."""
        if not self._frames.take(at):
            self.close(Close.TOO_MANY_MESSAGES)
        return self.closing is None

    def receive(self, message: bytes, services: Services) -> Request | None:
        """Handle a message. Return the work that it needs."""
        if isinstance(message, BinaryMessage):
            sentence = "Messages must be text frames; this frame is binary."
            self._receive_unreadable("binary_frame", sentence, services.now(), None)
            return None
        try:
            decoded = self.dialect.messages.decode(message)
        except messages.BadMessage as bad:
            self._receive_unreadable(bad.code, str(bad), services.now(), bad.ref)
            return None
        self._unreadable = 0
        work = self.dialect.commands[type(decoded)].run(self, decoded, services)
        if work is None:
            return None
        return Request(work, lambda error, now: self.refuse(error, now, decoded.ref))

    def _receive_unreadable(self, code: str, sentence: str, now: float, ref: Ref) -> None:
        self.send_error(code, sentence, now, ref)
        self._unreadable += 1
        if self._unreadable >= self._limits.unreadable_in_a_row:
            self.close(Close.UNREADABLE)

    # State

    def begin(
        self,
        granted: Granted,
        position: Position,
        state: dict[str, msgspec.Raw] | None,
        now: float,
        at: float,
        *,
        refused: Sequence[str] = (),
        replayed: int = 0,
        reason: str | None = None,
    ) -> None:
        """Confirm the subscription and send the snapshot; see `Opening`. Events follow."""
        self.cursor.subscribe(granted)
        self.cursor.begin(position)
        self._open = True
        self._last_heard = at  # until now the client had to wait for the server
        more: dict[str, object] = {"resumed": state is None, "replayed": replayed}
        if refused:
            more["refused"] = refused
        if reason is not None:
            more["reason"] = reason
        self.confirm(now, None, **more)
        if self._device is not None:
            brought = position if state is None else None
            self._device.begin(self.cursor.last_id, brought, self.cursor.channels.values(), self._ping_if_due)
        if state is not None:
            self.send("initial_state", {**state, "last_event_id": self.cursor.last_id}, now)

    def subscribe(self, wanted: Sequence[str], granted: Granted, now: float, ref: Ref) -> None:
        """Subscribe to all wanted channels or, if some are not granted, to none."""
        refused = [channel for channel in wanted if channel not in granted.channels]
        if refused:
            sentence = "Not allowed to subscribe to these channels; the other channels are unchanged."
            self.send_error("forbidden", sentence, now, ref, refused=refused)
        elif self.cursor.exceeds(granted.channels, self._limits.channels):
            sentence = f"A connection holds at most {self._limits.channels} channels; the others are unchanged."
            self.send_error("too_many_channels", sentence, now, ref)
        else:
            self.cursor.subscribe(granted)
            self.confirm(now, ref)

    def renew(self, identity: Identity, granted: Granted, now: float, at: float, ref: Ref) -> None:
        """Go on with a fresh token. Channels that it does not grant are removed."""
        self.identity = identity
        self._ends_at = _ends_at(identity, now, at)
        self._warned = False
        lost = self.cursor.review(list(self.cursor.channels), granted)
        fields: dict[str, object] = {"expires_at": _expiry(identity.expires_at)}
        if lost:
            fields["refused"] = lost
        self.send("authenticated", fields, now, ref)

    async def check(self, events: Sequence[Event], services: Services) -> Filtered:
        """Ask the database which events the caller may see."""
        return await services.filter(self.identity, [(event, self.cursor.channel_of(event)) for event in events])

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Return the frame that carries an event."""
        return self.dialect.encode(event, ids, now)

    def lose(self, channels: Sequence[str], now: float) -> None:
        """Remove channels, and report it."""
        self._report_lost(self.cursor.review(channels, Granted()), now)

    async def review(self, services: Services) -> None:
        """Ask again which of its channels the caller may have."""
        identity, channels = self.identity, list(self.cursor.channels)
        granted = await services.grants(identity, self.user_id, channels)
        if self.identity is identity:  # else the grants of a new token were asked for
            self._report_lost(self.cursor.review(channels, granted), services.now())

    def _report_lost(self, channels: Sequence[str], now: float) -> None:
        if channels:
            sentence = "No longer allowed on these channels; the other channels are unchanged."
            self.send_error("forbidden", sentence, now, None, refused=channels)

    def expect_acks(self, cache_keys: Iterable[str]) -> None:
        """Expect acknowledgements of cache keys; each is confirmed once."""
        for key in cache_keys:
            self._pending_keys[key] = None
        while len(self._pending_keys) > self._limits.pending_keys:
            del self._pending_keys[next(iter(self._pending_keys))]

    def take_ack(self, cache_key: str) -> bool:
        """Return whether an acknowledgement of the key was expected. It is not expected again."""
        return self._pending_keys.pop(cache_key, "absent") is None

    # Time

    def ping(self) -> bytes:
        """Return the payload of a ping that is written now. Its pong is a receipt, if the client is a named device."""
        if self._device is None or not self._open:
            return b""
        return self._device.ping(self.cursor.last_id, self._outgoing.position, self.cursor.channels.values())

    def pong(self, payload: bytes, *, in_order: bool) -> bool:
        """Take a pong: the client has everything that was written before its ping."""
        return self._device is not None and self._device.pong(payload)

    def _ping_if_due(self) -> None:
        """Send a ping if something was sent since the last one."""
        if self._device is not None and self.closing is None and self._device.has_news(self.cursor.last_id):
            self._outgoing.flush(ping=True)

    def tick(self, now: float, at: float, lag_ms: int, reached: Position | None) -> float:
        """Send and close as is due. Return the monotonic time of the next tick, which is that of the next ping, too.

        `reached` is the feed's position while the connection follows it.
        """
        warn_at = self._ends_at - LEEWAY_S - self._limits.expiry_notice_s
        if at >= self._ends_at:
            self.close(Close.TOKEN)
        elif not self._warned and at >= warn_at:
            self._warned = True
            self.send("token_expiring", {"expires_at": _expiry(self.identity.expires_at)}, now)
        if at >= self._next_heartbeat:
            self._next_heartbeat = at + self._heartbeat
            if self._open:
                fields: dict[str, object] = {
                    "last_event_id": self.cursor.last_id, "position": self.cursor.resume_from(reached),
                    "lag_ms": lag_ms,
                }  # fmt: skip
                self.send("heartbeat", fields, now)
        return min(
            self._next_heartbeat, at + self._ping_every, self._ends_at, float("inf") if self._warned else warn_at
        )  # fmt: skip

    def is_silent(self, at: float) -> bool:
        """Return whether the client has sent nothing, not even a pong, for too long: noticed within 50 s."""
        limits = self._limits
        return at - self._last_heard > self._ping_every + max(limits.pong_s, self._ping_every * limits.pong_share)

    @property
    def _ping_every(self) -> float:
        return min(self._heartbeat, self._limits.ping_interval_s)


# Handlers of the protocol's own messages


def _ping(session: Session, message: messages.Ping, services: Services) -> None:
    session.send("pong", {}, services.now(), message.ref)


def _unsubscribe(session: Session, message: messages.Unsubscribe, services: Services) -> None:
    session.cursor.unsubscribe(message.channels)
    session.confirm(services.now(), message.ref)


async def _subscribe(session: Session, message: messages.Subscribe, services: Services) -> None:
    wanted = list(dict.fromkeys(message.channels))
    granted = await services.grants(session.identity, session.user_id, wanted)
    session.subscribe(wanted, granted, services.now(), message.ref)


async def _authenticate(session: Session, message: messages.Authenticate, services: Services) -> None:
    identity = await services.authenticate(message.token)
    # The hub counts connections by role, subject and user, and could not release one whose owner has changed.
    if (identity.role, identity.subject) != (session.identity.role, session.identity.subject):
        raise Forbidden("The new token has another user or role; open a new connection.")
    try:
        granted = await services.grants(identity, session.user_id, list(session.cursor.channels))
    except Forbidden:  # the caller may no longer act for the connection's user
        session.close(Close.NOT_ALLOWED)
        return
    session.renew(identity, granted, services.now(), services.monotonic(), message.ref)


COMMANDS = (
    Command(messages.Ping, _ping),
    Command(messages.Subscribe, _subscribe),
    Command(messages.Unsubscribe, _unsubscribe),
    Command(messages.Authenticate, _authenticate),
)


def _ends_at(identity: Identity, now: float, at: float) -> float:
    """Return when the token ends, on the monotonic clock: setting the system clock ends no connection."""
    return float("inf") if identity.expires_at is None else at + identity.expires_at + LEEWAY_S - now


def _expiry(expires_at: float | None) -> str | None:
    return None if expires_at is None else messages.timestamp(expires_at)

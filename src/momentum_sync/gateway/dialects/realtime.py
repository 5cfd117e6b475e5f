"""Supabase's protocol: a session without its socket. Frames come in, frames and work come out, times pass.

A client joins topics on one socket, each with its own token and its own bindings of `postgres_changes`. Frames, error
texts and the order of answers: Supabase, "Realtime Protocol". Broadcast and presence are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol
from uuid import UUID

import msgspec

from momentum_sync.errors import BadRequest, RequestError, Unauthenticated
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.conversation import Request, Services
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.dialects.realtime_topic import Topic, TopicEvents
from momentum_sync.gateway.subscriber import Owner
from momentum_sync.identity.channels import Filtered, Granted
from momentum_sync.identity.row_tables import SeenChange, SeenRows
from momentum_sync.identity.tokens import LEEWAY_S, Identity
from momentum_sync.limits import SocketLimits
from momentum_sync.token_bucket import TokenBucket
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds
from momentum_sync.wire.phoenix import (
    ClientFrame,
    MalformedFrame,
    Version,
    decode_text,
    encode_frame,
    encode_reply,
)  # fmt: skip
from momentum_sync.wire.realtime_join import Binding, join_response, parse_join
from momentum_sync.wire.row_watch import Test, Watch

_PREFIX = "realtime:"
_FOREIGN = "sb_"  # an API key in place of a token means the token of the connection
_encode = msgspec.json.Encoder().encode


class RowServices(Protocol):
    """The work that sessions ask of the gateway."""

    async def authenticate_realtime(self, token: str) -> Identity:
        """Verify a token or API key. Raise Unauthenticated."""

    async def watch(self, identity: Identity, bindings: Sequence[Binding]) -> list[Watch]:
        """Confirm bindings with the database, and have their tables' changes become events.

        Raises:
            BadRequest: a table, column or filter is wrong, or the caller may not select it.
        """

    async def seen(self, identity: Identity, events: Sequence[tuple[Event, int]]) -> SeenRows:
        """Decide about changes of rows, each with the id of its relation."""

    async def tested(self, identity: Identity, tests: Sequence[tuple[Test, bytes]]) -> list[bool]:
        """Return for each test and value whether it holds."""

    @property
    def offset(self) -> int:
        """Return the offset of the last event."""


class RealtimeDialect:
    """Encodes nothing: each event is checked for its caller, and `RealtimeSession.encode` has its frames."""

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Raise: no connection gets an event without a check."""
        raise AssertionError(f"event {event.offset} was not checked")


_DIALECT = RealtimeDialect()


class RowCursor(Cursor):
    """A cursor of a connection whose topics decide what it wants. All of its channels are checked."""

    __slots__ = ("_topics",)

    def __init__(self, topics: Mapping[str, Topic]) -> None:
        super().__init__(None, frozenset())
        self._topics = topics

    def channel_of(self, event: Event) -> str | None:
        """Return the channel of a change that a topic may want."""
        channel = super().channel_of(event)
        if channel is None or not any(topic.events.may_want(event) for topic in self._topics.values()):
            return None
        return channel


class RealtimeSession:
    """A conversation with one client; see `gateway/conversation: Conversation`.

    Attributes:
        identity: the caller whose API key opened the connection.
        client_id: a name of its own for each connection.
        cursor: its position, and the channels of all topics.
        topics: the joined topics by name.
        closing: why the connection is to end; None while it is not.
        revision: replaced when topics, their tokens or their bindings change.
    """

    __slots__ = (
        "_checked", "_ends_at", "_frames", "_heartbeat", "_last_heard", "_limits", "_out", "_rows", "_version",
        "client_id", "closing", "cursor", "dialect", "identity", "revision", "topics",
    )  # fmt: skip

    def __init__(
        self,
        identity: Identity,
        client_id: str,
        version: Version,
        rows: RowServices,
        limits: SocketLimits,
        *,
        heartbeat: float,
        now: float,
        at: float,
    ) -> None:
        self.identity = identity
        self.client_id = client_id
        self.topics: dict[str, Topic] = {}
        self.cursor: Cursor = RowCursor(self.topics)
        self.dialect = _DIALECT
        self.closing: Close | None = None
        self.revision: object = object()
        self._version = version
        self._rows = rows
        self._limits = limits
        self._heartbeat = heartbeat
        self._frames = TokenBucket(limits.realtime_frames, at)
        self._last_heard = at
        self._ends_at = _ends_at(identity, now, at)
        self._out: list[bytes] = []
        self._checked: dict[int, bytes] = {}

    @property
    def owner(self) -> Owner:
        """Return the owner of the connection."""
        subject = self.identity.subject
        return Owner(self.identity.role, subject, subject, is_public=subject is None)

    def is_of(self, user: UUID) -> bool:
        """Return whether a user's token is in use on the connection or on a topic."""
        return user in (self.identity.subject, *(topic.identity.subject for topic in self.topics.values()))

    def begin(self, position: Position, at: float) -> None:
        """Start after a position. Nothing is sent until the client joins."""
        self.cursor.begin(position)
        self._last_heard = at  # until now the client had to wait for the server

    # Out

    def to_send(self) -> list[bytes]:
        """Return the texts to write since the last call."""
        out, self._out = self._out, []
        return out

    def close(self, why: Close) -> None:
        """End the conversation; the first reason stands."""
        self.closing = self.closing or why

    def _reply(self, to: ClientFrame, response: bytes = b"{}", *, ok: bool = True) -> None:
        self._out.append(encode_reply(self._version, to, response, ok=ok))

    def _refuse(self, to: ClientFrame, reason: str) -> None:
        self._reply(to, _encode({"reason": reason}), ok=False)

    def _system(self, topic: Topic, extension: str, message: str, *, ok: bool = False) -> None:
        """Send a `system` message, which clients report to the app."""
        payload = _encode({
            "message": message, "status": "ok" if ok else "error", "extension": extension,
            "channel": topic.name.removeprefix(_PREFIX),
        })  # fmt: skip
        self._out.append(encode_frame(self._version, topic.name, "system", payload, join_ref=topic.join_ref))

    def _end_topic(self, topic: Topic) -> None:
        """Send the `phx_close` of a topic, after which clients do not join it again."""
        self.topics.pop(topic.name, None)
        self._subscribed()
        self._out.append(
            encode_frame(
                self._version, topic.name, "phx_close", b"{}", ref=topic.join_ref, join_ref=topic.join_ref
            )
        )  # fmt: skip

    # In

    def receive(self, message: bytes | None, services: Services) -> Request | None:
        """Handle a message; None stands for a binary one. Return the work that it needs.

        As at Supabase, malformed frames are ignored.
        """
        if message is None:
            return None
        try:
            frame = decode_text(message, self._version)
        except MalformedFrame:
            return None
        if frame.topic == "phoenix":
            self._reply(frame)
        elif frame.event == "phx_join":
            return Request(self._join(frame, services), lambda error, _: self._refuse_join(frame, error))
        elif (topic := self.topics.get(frame.topic)) is None:
            self._refuse(frame, "unmatched topic")
        elif frame.event == "phx_leave":
            self._reply(frame)
            self._end_topic(topic)
        elif frame.event == "access_token":
            return Request(
                self._renew(topic, frame, services), lambda error, _: self._lose_token(topic, error)
            )  # fmt: skip
        elif frame.event in ("broadcast", "presence"):
            self._refuse(frame, f"NotAvailable: this server does not offer {frame.event} yet")
        return None

    async def _join(self, frame: ClientFrame, services: Services) -> None:
        if not frame.topic.startswith(_PREFIX):
            self._refuse(frame, "unmatched topic")
            return
        if frame.topic == _PREFIX:
            self._refuse(frame, "TopicNameRequired: You must provide a topic name")
            return
        if len(self.topics) >= self._limits.topics and frame.topic not in self.topics:
            self._refuse(frame, "ChannelRateLimitReached: Too many channels")
            return
        join = parse_join(bytes(frame.payload))
        if join.is_private:
            self._refuse(frame, "NotAvailable: this server does not offer private channels yet")
            return
        identity = self.identity
        if join.access_token is not None and not join.access_token.startswith(_FOREIGN):
            identity = await self._rows.authenticate_realtime(join.access_token)
        watches: list[Watch] = []
        wrong = None
        try:
            watches = await self._rows.watch(identity, join.bindings)
        except BadRequest as error:
            wrong = str(error)
        # Everything that was committed before the tables became events' tables, or before this offset, precedes the
        # reply; everything after it follows.
        now, at = services.now(), services.monotonic()
        topic = Topic(
            frame.topic, frame.join_ref if frame.join_ref is not None else frame.ref, identity,
            _ends_at(identity, now, at), TopicEvents(tuple(watches), self._rows.offset),
        )  # fmt: skip
        self.topics[topic.name] = topic
        self._subscribed()
        self._reply(frame, join_response(join.bindings))
        if wrong is not None:
            self._system(topic, "postgres_changes", wrong)
        elif join.bindings:
            self._system(topic, "postgres_changes", "Subscribed to PostgreSQL", ok=True)

    def _refuse_join(self, frame: ClientFrame, error: RequestError) -> None:
        self._refuse(frame, _reason(error))

    async def _renew(self, topic: Topic, frame: ClientFrame, services: Services) -> None:
        """Take a fresh token for a topic. As at Supabase, there is no reply."""
        token = _token(bytes(frame.payload))
        if token is None or token.startswith(_FOREIGN):
            return
        identity = await self._rows.authenticate_realtime(token)
        if self.topics.get(topic.name) is topic and identity != topic.identity:
            self.topics[topic.name] = topic.renewed(
                identity, _ends_at(identity, services.now(), services.monotonic())
            )  # fmt: skip
            self._subscribed()

    def _lose_token(self, topic: Topic, error: RequestError) -> None:
        if not isinstance(error, Unauthenticated):
            self.close(Close.RESTART)  # the client reconnects, and sends the token again
        elif self.topics.get(topic.name) is topic:
            self._system(topic, "system", _reason(error).partition(": ")[2])
            self._end_topic(topic)

    def _subscribed(self) -> None:
        """Have the cursor follow the tables of the present topics."""
        wanted = {channel for topic in self.topics.values() for channel in topic.events.channels}
        self.cursor.unsubscribe([channel for channel in self.cursor.channels if channel not in wanted])
        self.cursor.subscribe(Granted(sorted(wanted), frozenset(wanted)))
        self.revision = object()

    def expect_acks(self, cache_keys: Iterable[str]) -> None:
        """Expect nothing: changes of rows have no cache keys."""

    # Events

    async def check(self, events: Sequence[Event], services: Services) -> Filtered:
        """Decide which topics get which changes, and encode those."""
        revision = self.revision
        frames: dict[int, list[bytes]] = {}
        by_caller: dict[Identity, list[Topic]] = {}
        for topic in self.topics.values():
            by_caller.setdefault(topic.identity, []).append(topic)
        notices: list[tuple[Topic, str]] = []
        for identity, topics in by_caller.items():
            wanted = {
                event.offset: (event, relation)
                for event in events
                for topic in topics
                if (relation := topic.events.may_want(event)) is not None
            }
            seen = await self._rows.seen(identity, list(wanted.values())) if wanted else SeenRows({}, {})
            await self._ask_tests(identity, topics, wanted, seen.changes)
            for topic in topics:
                for offset, change in seen.changes.items():
                    frames.setdefault(offset, []).extend(
                        topic.frames(self._version, wanted[offset][0], wanted[offset][1], change)
                    )  # fmt: skip
                notices += [(topic, notice) for notice in topic.notices(seen.unchecked)]
        if self.revision is revision:  # else the page is checked again
            self._checked = {offset: b"".join(each) for offset, each in frames.items() if each}
            for topic, notice in notices:
                self._system(topic, "rights", notice, ok=True)
        return Filtered(set(self._checked), [])

    async def _ask_tests(
        self,
        identity: Identity,
        topics: Sequence[Topic],
        wanted: Mapping[int, tuple[Event, int]],
        seen: Mapping[int, SeenChange],
    ) -> None:
        """Have the database decide the tests of filters that only it can decide, for visible changes."""
        asked: dict[tuple[Test, bytes], None] = {}
        for topic in topics:
            topic.events.forget_answers()
            for offset, change in seen.items():
                asked.update(dict.fromkeys(topic.events.open_tests(*wanted[offset], change)))
        answers = dict(zip(asked, await self._rows.tested(identity, list(asked)), strict=True))
        for topic in topics:
            topic.events.learn(answers)

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Return the frames of a change that was checked."""
        return self._checked.pop(event.offset, b"")

    def lose(self, channels: Sequence[str], now: float) -> None:
        """Lose nothing: a caller without rights on a table gets no changes of it."""

    async def review(self, services: Services) -> None:
        """Ask for nothing: each change is checked."""

    # Time

    def heard(self, at: float) -> None:
        """Note that bytes of any kind arrived."""
        self._last_heard = at

    def take_frame(self, at: float) -> bool:
        """Count a frame of any kind. Return False, and close the session, when there are too many."""
        if not self._frames.take(at):
            self.close(Close.TOO_MANY_MESSAGES)
        return self.closing is None

    def tick(self, now: float, at: float, lag_ms: int, reached: Position | None) -> float:
        """End topics whose token has expired; the socket stays open, as at Supabase."""
        for topic in list(self.topics.values()):
            if at >= topic.ends_at:
                late = 0 if topic.identity.expires_at is None else max(0, int(now - topic.identity.expires_at))
                self._system(topic, "system", f"Token has expired {late} seconds ago")
                self._end_topic(topic)
        return min([at + self._ping_every, *(topic.ends_at for topic in self.topics.values())])

    def is_silent(self, at: float) -> bool:
        """Return whether the client has sent nothing, not even a pong, for too long."""
        limits = self._limits
        return at - self._last_heard > self._ping_every + max(limits.pong_s, self._ping_every * limits.pong_share)

    @property
    def _ping_every(self) -> float:
        return min(self._heartbeat, self._limits.ping_interval_s)


_REASONS = {
    "claims": "InvalidJWTToken: Fields `role` and `exp` are required in JWT",
    "signature": "JwtSignatureError: Failed to validate JWT signature",
    "malformed": "MalformedJWT: The token provided is not a valid JWT",
}


def _reason(error: RequestError) -> str:
    """Return an error in Supabase's words, where it has some."""
    if isinstance(error, Unauthenticated):
        if error.code in ("token_revoked", "missing_api_key"):
            return f"InvalidJWTToken: {error}"
        if error.fault == "expired":
            return f"InvalidJWTToken: Token has expired {int(error.late_s)} seconds ago"
        return _REASONS[error.fault]
    if error.status == 503:
        return f"UnableToConnectToProject: {error}"
    return f"{error.code}: {error}"


def refusal(error: RequestError) -> str:
    """Return the text of an HTTP refusal: as at Supabase, the words without the code of a reply."""
    reason = _reason(error)
    if isinstance(error, Unauthenticated):
        return "Token has expired" if error.fault == "expired" else reason.partition(": ")[2]
    return str(error)


def _token(payload: bytes) -> str | None:
    """Return the token of an `access_token` message; None where it names none."""
    try:
        token = msgspec.json.decode(payload, type=dict[str, object]).get("access_token")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return token if isinstance(token, str) else None


def _ends_at(identity: Identity, now: float, at: float) -> float:
    """Return when a token ends, on the monotonic clock."""
    return float("inf") if identity.expires_at is None else at + identity.expires_at + LEEWAY_S - now

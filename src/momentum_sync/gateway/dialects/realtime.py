"""Supabase's protocol: a session without its socket. Frames come in, frames and work come out, times pass.

A client joins topics on one socket, each with its own token and its own bindings of `postgres_changes`, and sends and
gets the topics' broadcasts and presence. Frames, error texts and the order of answers: Supabase, "Realtime Protocol".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from momentum_sync.errors import Forbidden, RequestError, Unauthenticated, Unavailable
from momentum_sync.eventlog.event import Event, topic_channel
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.conversation import BinaryMessage, Nowhere, Outgoing, Request, Services
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.dialects.realtime_answers import Answers
from momentum_sync.gateway.dialects.realtime_errors import PREFIX, reason, why_not
from momentum_sync.gateway.dialects.realtime_messages import Messages
from momentum_sync.gateway.dialects.realtime_place import Places, Start
from momentum_sync.gateway.dialects.realtime_replay import NOTHING, replay
from momentum_sync.gateway.dialects.realtime_resume import Ledger
from momentum_sync.gateway.dialects.realtime_rights import access, confirm, lost_right, settle
from momentum_sync.gateway.dialects.realtime_rows import RowCursor, check_rows, take_deciders
from momentum_sync.gateway.dialects.realtime_services import RowServices
from momentum_sync.gateway.dialects.realtime_topic import Topic, TopicEvents, ends_at
from momentum_sync.gateway.subscriber import Dialect, Owner
from momentum_sync.gateway.topic_members import TopicMembers
from momentum_sync.identity.channels import Filtered, Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.limits import SocketLimits
from momentum_sync.token_bucket import TokenBucket
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds
from momentum_sync.wire.phoenix import ClientFrame, MalformedFrame, Version, decode_binary, decode_text
from momentum_sync.wire.realtime_join import join_response, parse_join, parse_token

_API_KEY = "sb_"  # an API key in place of a token means the token of the connection


class RealtimeSession:
    """A conversation with one client; see `gateway/conversation: Conversation`.

    Attributes:
        identity: the caller of the API key that opened the connection.
        client_id: a name of its own for each connection.
        cursor: its position, and the channels of all topics.
        rows: the same object.
        topics: the joined topics by name.
        closing: why the connection is to end; None while it is not.
        revision: replaced when topics, their tokens or their bindings change.
        version: of the serializer.
        sdk: the protocol and that version: these clients do not name themselves.
        file: the connection's file, for writes to many at once.
        write: writes frames, or their rest, before the answers that wait.
    """

    __slots__ = (
        "__weakref__", "_checked", "_frames", "_heartbeat", "_is_lost", "_last_heard", "_limits", "_messages", "_name",
        "_out", "_outgoing", "_places", "_probes", "_rows", "client_id", "closing", "cursor", "file", "identity",
        "revision", "rows", "sdk", "topics", "version", "write",
    )  # fmt: skip

    def __init__(
        self,
        identity: Identity,
        client_id: str,
        version: Version,
        rows: RowServices,
        members: TopicMembers,
        limits: SocketLimits,
        *,
        name: str | None,
        heartbeat: float,
        at: float,
    ) -> None:
        self.identity = identity
        self.client_id = client_id
        self.sdk = f"supabase-{version.value}"
        self._places = Places(rows, 0, name, version)
        self.topics: dict[str, Topic] = {}
        self.rows = RowCursor(self.topics, version, rows.shared)
        self.cursor: Cursor = self.rows
        self.closing: Close | None = None
        self.revision: object = object()
        self.version = version
        self._rows = rows
        self._messages = Messages(members, self, limits)
        self._limits = limits
        self._heartbeat = heartbeat
        self._frames = TokenBucket(limits.realtime_frames, at)
        self._last_heard = at
        self._name = name
        self._outgoing: Outgoing
        self._is_lost = False
        self._probes: list[tuple[int, Callable[[], None]]] = []
        self._out = Answers(version)
        self._checked: dict[int, bytes] = {}

    @property
    def ledger(self) -> Ledger:
        """Return the session's positions."""
        return self._places.ledger

    @property
    def dialect(self) -> Dialect:
        """Return the encoding of events while the connection follows the feed."""
        return self.rows.view or self.rows

    @property
    def owner(self) -> Owner:
        """Return the owner of the connection."""
        subject = self.identity.subject
        return Owner(self.identity.role, subject, subject, is_public=subject is None)

    def is_of(self, user: UUID) -> bool:
        """Return whether a user's token is in use on the connection or on a topic."""
        return user in (self.identity.subject, *(topic.identity.subject for topic in self.topics.values()))

    def attach(self, outgoing: Outgoing) -> None:
        """Take the connection's outgoing side."""
        self._outgoing = outgoing
        self.file, self.write = outgoing.file, outgoing.write

    def begin(self, session: int, position: Position, at: float) -> None:
        """Start after a position, as the session of this number. Nothing is sent until the client joins."""
        self._places = Places(self._rows, session, self._name, self.version)
        self.cursor.begin(position)
        self.rows.pinged()
        self._last_heard = at  # until now the client had to wait for the server
        self._rows.begin(self)

    def lost(self) -> None:
        """Leave the record to the sessions that may continue it, and the topics to the others."""
        self._rows.end(self)
        self._is_lost = True
        for topic in self.topics.values():
            self._messages.leave(topic)
        self.attach(Nowhere(self.file))

    # Out

    def to_send(self) -> list[bytes]:
        """Return the texts to write since the last call."""
        return self._out.take()

    @property
    def most_bytes(self) -> int:
        """Return the size of the largest message that the client may send."""
        return self._limits.realtime_frame_bytes

    def close(self, why: Close) -> None:
        """End the conversation; the first reason stands."""
        self.closing = self.closing or why

    def drop(self, why: Close) -> None:
        """End the connection now."""
        self.close(why)
        self._outgoing.flush()

    def _end_topic(self, topic: Topic) -> None:
        """Send the `phx_close` of a topic, after which clients do not join it again."""
        self.topics.pop(topic.name, None)
        self._messages.leave(topic)
        self.ledger.end(topic.name)
        self._subscribed()
        self._out.end(topic)

    # In

    def receive(self, message: bytes, services: Services) -> Request | None:
        """Handle a message. Return the work that it needs.

        As at Supabase, malformed frames are ignored.
        """
        if isinstance(message, BinaryMessage):
            self._receive_binary(message)
            return None
        try:
            frame = decode_text(message, self.version)
        except MalformedFrame:
            return None
        self.ledger.saw(frame.ref)
        if frame.topic == "phoenix":
            self._out.reply(frame)
        elif frame.event == "phx_join":
            return Request(self._join(frame, services), lambda error, _: self._out.refuse(frame, reason(error)))
        elif (topic := self.topics.get(frame.topic)) is not None:
            return self._receive_on(topic, frame, services)
        elif frame.event != "phx_leave":
            self._out.refuse(frame, "unmatched topic")
        elif frame.join_ref is not None:
            # Phoenix answers this always. But the client in Python of 2025 leaves each topic before it joins it on a
            # new socket, with `join_ref` null, and takes an answer for the end of the channel.
            self._out.reply(frame)
        return None

    def _receive_on(self, topic: Topic, frame: ClientFrame, services: Services) -> Request | None:
        """Handle a frame for a joined topic."""
        match frame.event:
            case "phx_leave":
                self._out.reply(frame)
                self._leave(topic)
            case "access_token":
                return Request(
                    self._renew(topic, frame, services), lambda error, _: self._lose_token(topic, error)
                )  # fmt: skip
            case "broadcast":
                self._outgoing.flush()  # earlier answers come before the message
                self._out.answer(frame, self._messages.text(frame, topic))
            case "presence":
                answer, state = self._messages.presence(frame, topic)
                self._out.answer(frame, answer)
                self._out.presence(topic, state)
        return None

    def _receive_binary(self, message: bytes) -> None:
        try:
            frame = decode_binary(message)
        except MalformedFrame:
            return
        self.ledger.saw(frame.ref)
        topic = self.topics.get(frame.topic)
        if topic is None:
            self._out.refuse(frame, "unmatched topic")
        else:
            self._outgoing.flush()
            self._out.answer(frame, self._messages.binary(frame, topic))

    def _leave(self, topic: Topic) -> None:
        position = self.ledger.cursors.get(topic.name)
        self._end_topic(topic)
        if position is not None and not topic.is_confirmed and len(self.ledger.cursors) < self._limits.topics:
            # The reply to the join has not arrived in time. The client joins again, and has to find its position.
            self.ledger.begin(topic.name, position)

    async def _join(self, frame: ClientFrame, services: Services) -> None:
        join = parse_join(bytes(frame.payload))
        wrong_join = why_not(frame.topic, join, self.topics, self._limits)
        if wrong_join is not None:
            self._out.refuse(frame, wrong_join)
            return
        identity = self.identity
        if join.access_token is not None and not join.access_token.startswith(_API_KEY):
            identity = await self._rows.authenticate_realtime(join.access_token)
        head = self._rows.position  # everything up to here precedes the reply; everything after it follows
        confirmed = await confirm(frame.topic, join, identity, self._rows)
        channel = topic_channel(frame.topic.removeprefix(PREFIX), is_private=join.is_private)
        # Before the record is written: a client that joins again after a failure has had nothing.
        replayed = await replay(channel, frame.topic, join, head.offset, self.version, self._rows, self._limits)
        start = await self._start(frame, identity, head)
        if start is None:
            return
        topic = Topic(
            frame.topic, frame.join_ref if frame.join_ref is not None else frame.ref, identity,
            ends_at(identity, services.now(), services.monotonic()),
            TopicEvents(join.bindings, confirmed.watched.watches, start.position.offset), join, confirmed.access,
        )  # fmt: skip
        confirmed = await settle(topic, confirmed, self._rows)
        if self._is_lost:
            return
        self._go_back(topic.name, start.position.offset)
        if start.is_resumed:  # it repeats its first join, and has had these
            replayed = NOTHING
        state = self.add(topic)
        self._subscribed()
        self.rows.has_news = True  # the next ping is due: its pong confirms the reply
        self._out.reply(frame, join_response(join.bindings))
        self._out.joined(topic, confirmed, start, replayed)
        self._out.presence(topic, state)
        if replayed.frames:
            self._outgoing.flush()  # the reply comes first
            self.write(b"".join(replayed.frames))

    def add(self, topic: Topic) -> bytes | None:
        """Have a topic be joined. Return the JSON of its presence, if the client wants that."""
        replaced = self.topics.get(topic.name)
        if replaced is not None:
            self._messages.leave(replaced)
        self.topics[topic.name] = topic
        return self._messages.join(topic)

    async def _start(self, frame: ClientFrame, identity: Identity, head: Position) -> Start | None:
        """Return where a topic begins, once that is in the session's record. None: the socket is closed instead."""
        try:
            topic = self.topics.get(frame.topic)
            if topic is None:
                start = await self._places.start(frame.topic, frame.ref, identity, head, is_alone=not self.topics)
            else:
                start = await self._places.again(frame.topic, identity, head, is_known=topic.is_confirmed)
        except Unavailable:
            # The database may have written the record or not. The next socket finds it.
            self.close(Close.RESTART)
            return None
        if start is None:
            self.close(Close.REPLACED)
        return start

    def _go_back(self, name: str, offset: int) -> None:
        """Have the connection deliver from an offset on, and no other topic get anything twice."""
        reached = self._outgoing.offset
        if offset < reached:
            for topic in self.topics.values():
                if topic.name != name:
                    topic.skip_to(reached)
            self._outgoing.rewind(offset)

    async def _renew(self, topic: Topic, frame: ClientFrame, services: Services) -> None:
        """Take a fresh token for a topic. As at Supabase, there is no reply."""
        token = parse_token(bytes(frame.payload))
        if token is None or token.startswith(_API_KEY):
            return
        identity = await self._rows.authenticate_realtime(token)
        if self.topics.get(topic.name) is not topic or identity == topic.identity:
            return
        confirmed = await confirm(topic.name, topic.join, identity, self._rows)
        renewed = topic.renewed(
            identity, ends_at(identity, services.now(), services.monotonic()), confirmed.access
        )  # fmt: skip
        renewed.events.watch(confirmed.watched.watches)
        confirmed = await settle(renewed, confirmed, self._rows)
        if self.topics.get(topic.name) is not topic:
            return
        self.topics[topic.name] = renewed
        self._messages.renew(renewed)
        self._subscribed()
        if confirmed.wrong:
            self._out.system(renewed, "postgres_changes", confirmed.wrong)
        self._out.tell(renewed, confirmed.watched)
        try:
            if not await self._places.rename(topic.name, identity):
                self.close(Close.REPLACED)
        except Unavailable:
            self.close(Close.RESTART)

    def _lose_token(self, topic: Topic, error: RequestError) -> None:
        if not isinstance(error, Unauthenticated | Forbidden):
            self.close(Close.RESTART)  # the client reconnects, and sends the token again
        elif self.topics.get(topic.name) is topic:
            said = lost_right(topic) if isinstance(error, Forbidden) else reason(error).partition(": ")[2]
            self._out.system(topic, "system", said)
            self._end_topic(topic)

    def _subscribed(self) -> None:
        """Have the cursor follow the tables of the present topics."""
        wanted = {channel for topic in self.topics.values() for channel in topic.channels}
        self.cursor.unsubscribe([channel for channel in self.cursor.channels if channel not in wanted])
        self.rows.topics_changed()
        self.cursor.subscribe(Granted(sorted(wanted), frozenset(wanted if self.rows.view is None else ())))
        self._checked = {}
        self.revision = object()
        self._outgoing.index()  # the hub may write to a shared view without asking

    def expect_acks(self, cache_keys: Iterable[str]) -> None:
        """Expect nothing: changes of rows have no cache keys."""

    # Events

    async def check(self, events: Sequence[Event], services: Services) -> Filtered:
        """Decide which topics get which changes, and encode those."""
        revision = self.revision
        frames = await check_rows(events, list(self.topics.values()), self.version, self._rows)
        if self.revision is revision:  # else the page is checked again
            self._checked = frames
        return Filtered(set(self._checked), [])

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Return the frames of a change, whether the database decided about it or not."""
        checked = self._checked.pop(event.offset, None)
        return self.rows.encode(event, ids, now) if checked is None else checked

    def lose(self, channels: Sequence[str], now: float) -> None:
        """Lose nothing: a caller without rights on a table gets no changes of it."""

    def reviews(self, what: str) -> bool:
        """Return whether rights on rows have changed. service_role has all, but tables may have been published."""
        return what == "row_rights_changed"

    async def review(self, services: Services) -> None:
        """Confirm all bindings again: tables, columns and rights may be others now."""
        for topic in list(self.topics.values()):
            try:
                topic.access = await access(topic.name, topic.join, topic.identity, self._rows)
            except Forbidden as error:
                self._lose_token(topic, error)
                continue
            self._messages.renew(topic)
            events = topic.events
            was_live = bool(events.watches)
            watched = await self._rows.watch_again(topic.identity, events.bindings, events.watches)
            events.watch(watched.watches)
            if self.topics.get(topic.name) is topic:
                for wrong in watched.wrong:
                    self._out.system(topic, "postgres_changes", wrong)
                if watched.watches and not was_live:
                    self._out.system(topic, "postgres_changes", "Subscribed to PostgreSQL", ok=True)
                self._out.tell(topic, watched)
        await take_deciders(list(self.topics.values()), self._rows)
        self._subscribed()

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
        """End topics with an expired token; the socket stays open, as at Supabase."""
        for topic in list(self.topics.values()):
            if at >= topic.ends_at:
                late = 0 if topic.identity.expires_at is None else max(0, int(now - topic.identity.expires_at))
                self._out.system(topic, "system", f"Token has expired {late} seconds ago")
                position = self.ledger.cursors.get(topic.name)
                self._end_topic(topic)
                if position is not None and len(self.ledger.cursors) < self._limits.topics:
                    self.ledger.begin(topic.name, position)  # with a fresh token, the client joins again
        return min([at + self._ping_every, *(topic.ends_at for topic in self.topics.values())])

    def ping(self) -> bytes:
        """Return the payload of a ping that is written now. It names the position up to here."""
        return self.ledger.ping(self._outgoing.position, self.rows.pinged())

    def note_ping(self, number: int, position: Position | None) -> None:
        """Note that a ping is written, after everything up to a position."""
        self.ledger.note_ping(number, position, self.rows.pinged())

    def ping_if_due(self) -> bool:
        """Return whether a ping is due, because events were written, that may be written along with others'.

        Any other is sent at once.
        """
        if self.rows.is_ahead_of_ping() and (self._out or not self._outgoing.follows):
            self._outgoing.flush(ping=True)
        return self.rows.is_ahead_of_ping()

    def probe(self, answered: Callable[[], None]) -> None:
        """Send a ping, and call `answered` when it or a later one is answered."""
        self._outgoing.flush(ping=True)
        self._probes.append((self.ledger.pinged, answered))

    def pong(self, payload: bytes, *, in_order: bool) -> bool:
        """Take a pong: the client has everything that was written before its ping.

        A message that waits was sent before the pong, and may be a join. Its topic goes on from the position that the
        client had confirmed before, so this pong is only a sign of life. The next one confirms.
        """
        number, confirmed = self.ledger.pong(payload, moves=in_order)
        for name in confirmed:
            if (topic := self.topics.get(name)) is not None:
                topic.is_confirmed = True
        if self._probes:
            waiting, self._probes = self._probes, []
            for wanted, answered in waiting:
                if number >= wanted:
                    answered()
                else:
                    self._probes.append((wanted, answered))
        return number > 0

    def is_silent(self, at: float) -> bool:
        """Return whether the client has sent nothing, not even a pong, for too long."""
        limits = self._limits
        return at - self._last_heard > self._ping_every + max(limits.pong_s, self._ping_every * limits.pong_share)

    @property
    def _ping_every(self) -> float:
        return min(self._heartbeat, self._limits.ping_interval_s)

"""Shares connections, presence, broadcasts and rates with the other gateways.

A client id is unique among the connections of its owner on all gateways: of two, the later stays. Stamps order them:
milliseconds, moved on by each stamp that is heard, so that a client that moves to a gateway with a slow clock is later
there all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from uuid import UUID

import msgspec

from momentum_sync import observe
from momentum_sync.gateway.hub import Hub
from momentum_sync.gateway.peers import Ask, Bye, Key, Message, Page, Peers, Report, Update
from momentum_sync.gateway.presence import Tracked
from momentum_sync.gateway.realtime_sessions import RealtimeSessions
from momentum_sync.gateway.subscriber import Owner, Subscriber
from momentum_sync.gateway.topic_members import TopicKey, TopicMembers
from momentum_sync.limits import PeerLimits
from momentum_sync.token_bucket import TokenBuckets
from momentum_sync.wire.close import Close
from momentum_sync.wire.realtime_broadcast import Broadcast

Later = Callable[[float, Callable[[], None]], object]
_CONNECTION, _PRESENCE = "c", "p"


class _Sent(msgspec.Struct, frozen=True, array_like=True, tag="broadcast"):
    """A broadcast of a client of another gateway."""

    origin: str
    message: Broadcast
    is_private: bool


class _Spent(msgspec.Struct, frozen=True, array_like=True, tag="spent"):
    """Usage of rates on another gateway within a second: by rate, and by user."""

    origin: str
    taken: dict[str, dict[str, int]]


class _Claimed(msgspec.Struct, frozen=True, array_like=True, tag="claimed"):
    """Sessions of Supabase's protocol that sockets of another gateway continue."""

    origin: str
    sessions: tuple[int, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Update | Report | Ask | Page | Bye | _Sent | _Spent | _Claimed).decode
_stamp = msgspec.msgpack.Decoder(tuple[int, str]).decode
_tracked = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


class Sharing:
    """The other gateways, as one gateway needs them.

    Args:
        origin: a name that no other run of a gateway has.
        publish: sends a message to all others, or drops it.
        hub: the connections.
        members: the members of topics.
        sessions: the sessions of Supabase's protocol.
        rates: the rates of users that hold on all gateways together, by name.
        later: calls a function after seconds, such as `loop.call_later`.
        limits: bounds.
    """

    def __init__(
        self,
        origin: str,
        publish: Callable[[bytes], object],
        hub: Hub,
        members: TopicMembers,
        sessions: RealtimeSessions,
        rates: Mapping[str, TokenBuckets],
        later: Later,
        limits: PeerLimits,
    ) -> None:
        self._publish = publish
        self._hub = hub
        self._members = members
        self._sessions = sessions
        self._rates = rates
        self._later = later
        self._limits = limits
        self._peers = Peers(origin, self._send, self._changed, limits)
        self._own: dict[Key, tuple[Subscriber, tuple[int, str]]] = {}
        self._theirs: dict[str, dict[Key, set[str]]] = {}  # connections of an owner, and the gateways that have them
        self._clock = 0
        self._is_due = False
        for buckets in rates.values():
            buckets.record()
        hub.share(self)
        members.share(self)
        sessions.share(self._claim)

    @property
    def others(self) -> int:
        """Return the number of other gateways that are heard."""
        return self._peers.others

    # Of the hub

    def count(self, owner: Owner, client_id: str) -> int:
        """Return the number of an owner's connections on other gateways, without those that this client replaces."""
        theirs = self._theirs.get(_text(owner), {})
        return len(theirs) - (_connection(owner, client_id) in theirs)

    def admitted(self, subscriber: Subscriber) -> None:
        """Tell the others of a connection, in whose favor they close an earlier one of the same client."""
        self._clock = max(self._clock + 1, int(time.time() * 1000))
        stamp = (self._clock, self._peers.origin)
        key = _connection(subscriber.owner, subscriber.client_id)
        self._own[key] = subscriber, stamp
        self._put(key, _encode(stamp))

    def left(self, subscriber: Subscriber) -> None:
        """Tell the others that a connection has ended."""
        key = _connection(subscriber.owner, subscriber.client_id)
        known = self._own.get(key)
        if known is not None and known[0] is subscriber:
            del self._own[key]
            self._peers.remove(key)
            self._soon()

    # Of the topics

    def broadcast(self, message: Broadcast, *, is_private: bool) -> None:
        """Send a broadcast to the members on other gateways."""
        self._publish(_encode(_Sent(self._peers.origin, message, is_private)))

    def tracked(self, topic: TopicKey, member: str, tracked: Tracked) -> None:
        """Have a member be present on other gateways."""
        self._put(_present(topic, member), _encode((tracked.key, tracked.content)))

    def untracked(self, topic: TopicKey, member: str) -> None:
        """Have a member be absent on other gateways."""
        self._peers.remove(_present(topic, member))
        self._soon()

    def _claim(self, sessions: Sequence[int]) -> None:
        # If this message is lost, the other gateway closes the socket when it next saves the session.
        self._publish(_encode(_Claimed(self._peers.origin, tuple(sessions))))

    def _send(self, message: Message) -> None:
        self._publish(_encode(message))

    def _put(self, key: Key, value: bytes) -> None:
        self._peers.put(key, value)
        self._soon()

    def _soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._later(self._limits.flush_s, self._flush)

    def _flush(self) -> None:
        self._is_due = False
        self._peers.flush()

    # From the others

    def hear(self, payload: bytes) -> None:
        """Take a message of another gateway."""
        try:
            message = _decode(payload)
        except msgspec.MsgspecError as error:
            observe.failed("a message of another gateway", error)
            return
        if message.origin == self._peers.origin:
            return
        match message:
            case _Sent(_, broadcast, is_private):
                self._members.deliver(broadcast, is_private=is_private)
            case _Spent(_, taken):
                self._debit(taken)
            case _Claimed(_, sessions):
                self._sessions.claimed(sessions)
            case _:
                self._peers.heard(message, time.monotonic())

    def _changed(self, origin: str, key: Key, value: bytes | None, is_new: bool) -> None:
        try:
            match key:
                case (kind, owner, _) if kind == _CONNECTION:
                    self._connection_changed(origin, key, owner, value, is_new=is_new)
                case (kind, name, private, member) if kind == _PRESENCE:
                    tracked = None if value is None else Tracked(*_tracked(value))
                    self._members.present_elsewhere(TopicKey(name, private == "1"), (origin, member), tracked)
        except msgspec.MsgspecError as error:
            observe.failed("an item of another gateway", error)

    def _connection_changed(
        self, origin: str, key: Key, owner: str, value: bytes | None, *, is_new: bool
    ) -> None:  # fmt: skip
        theirs = self._theirs.setdefault(owner, {})
        gateways = theirs.setdefault(key, set())
        if value is None:
            gateways.discard(origin)
            if not gateways:
                del theirs[key]
            if not theirs:
                del self._theirs[owner]
            return
        gateways.add(origin)
        stamp = _stamp(value)
        self._clock = max(self._clock, stamp[0])
        own = self._own.get(key)
        if own is not None and own[1] < stamp:
            subscriber, _ = own
            self._hub.leave(subscriber)
            # Clocks alone order connections that began while the gateways did not hear each other. They may be wrong,
            # so the client is asked to come back, and is the later one then.
            subscriber.close(Close.REPLACED if is_new else Close.RESTART)

    def _debit(self, taken: Mapping[str, Mapping[str, int]]) -> None:
        now = time.monotonic()
        for name, users in taken.items():
            buckets = self._rates.get(name)
            if buckets is not None:
                for user, count in users.items():
                    buckets.debit(_user(user), now, count)

    async def run(self) -> None:
        """Report once a second, until cancelled."""
        while True:
            self.report()
            await asyncio.sleep(self._limits.report_s)

    def report(self) -> None:
        """Report this gateway, and the use of its users' rates. Once a second."""
        taken = {}
        for name, buckets in self._rates.items():
            spent = {str(user): count for user, count in buckets.taken(self._limits.share).items()}
            if spent:
                taken[name] = spent
        if taken and self._peers.others:
            self._publish(_encode(_Spent(self._peers.origin, taken)))
        self._peers.report(time.monotonic())

    def leave(self) -> None:
        """Say that this gateway stops."""
        self._peers.leave()


def _text(owner: Owner) -> str:
    return f"{owner.role}/{owner.subject}/{owner.user_id}"


def _connection(owner: Owner, client_id: str) -> Key:
    return (_CONNECTION, _text(owner), client_id)


def _present(topic: TopicKey, member: str) -> Key:
    return (_PRESENCE, topic.name, "1" if topic.is_private else "0", member)


def _user(text: str) -> Hashable:
    """Return the key of a user's rates: an id, or a role for callers without one."""
    try:
        return UUID(text)
    except ValueError:
        return text

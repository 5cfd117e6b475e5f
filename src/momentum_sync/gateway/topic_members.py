"""The members of topics, and their messages to each other: broadcasts and presence.

Nothing is stored. A message is encoded once for each version of the protocol, and written to each member at once; a
member that does not read is closed as too slow, like one that asks and does not read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple, Protocol

from momentum_sync.gateway.direct_files import DirectFile, DirectFiles, Owners
from momentum_sync.gateway.presence import Occupied, Presence, Tracked
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import frame
from momentum_sync.wire.phoenix import Version, encode_frame
from momentum_sync.wire.realtime_broadcast import Broadcast, broadcast_frame

Later = Callable[[float, Callable[[], None]], object]


class TopicKey(NamedTuple):
    """A topic. A private one and a public one of the same name are two."""

    name: str
    is_private: bool


class Member(Protocol):
    """A connection that has joined topics."""

    @property
    def version(self) -> Version:
        """Return the version of its protocol."""

    @property
    def file(self) -> DirectFile:
        """Return the connection's file."""

    @property
    def write(self) -> Callable[[bytes | memoryview], None]:
        """Return the function that writes whole WebSocket frames, or their rest."""

    def drop(self, why: Close) -> None:
        """End the connection now."""


class Elsewhere(Protocol):
    """The members of topics on other gateways."""

    def broadcast(self, message: Broadcast, *, is_private: bool) -> None:
        """Have them get a broadcast."""

    def tracked(self, topic: TopicKey, member: str, tracked: Tracked) -> None:
        """Have a member of this gateway be present there. `member` is its name on this gateway."""

    def untracked(self, topic: TopicKey, member: str) -> None:
        """Have a member of this gateway be absent there."""


class _Listeners:
    """Receivers of messages, by the version of their protocol."""

    __slots__ = ("by_version",)

    def __init__(self) -> None:
        self.by_version: dict[Version, Owners[Member]] = {version: Owners() for version in Version}

    def __bool__(self) -> bool:
        return any(self.by_version.values())

    def __contains__(self, member: Member) -> bool:
        return member in self.by_version[member.version]

    def add(self, member: Member) -> None:
        self.by_version[member.version].add(member)

    def remove(self, member: Member) -> None:
        self.by_version[member.version].remove(member)


class TopicMembers:
    """The members of all topics.

    Args:
        later: calls a function after seconds, such as `loop.call_later`.
        files: the files of all connections.
        presence_s: seconds for which changes of presence are collected.
        sent: called with the number of frames that were written, and their bytes.
        received: called for each broadcast, with `socket` or `http`.
        unique: returns a text that no other call returns, on any gateway.
        failed: called with the name and the error of a failure that concerns one member.
    """

    def __init__(
        self,
        later: Later,
        files: DirectFiles,
        presence_s: float,
        *,
        sent: Callable[[int, int], None],
        received: Callable[[str], None],
        unique: Callable[[], str],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._later = later
        self._files = files
        self._presence_s = presence_s
        self._sent = sent
        self._received = received
        self._failed = failed
        self._members: dict[TopicKey, _Listeners] = {}
        self._presence: dict[TopicKey, Presence] = {}
        self._watchers: dict[TopicKey, _Listeners] = {}
        self._due: dict[TopicKey, None] = {}
        self._counter = itertools.count(1)
        self._origin = unique()
        self._elsewhere: Elsewhere | None = None
        self._names: dict[tuple[TopicKey, Member], str] = {}  # of present members, for other gateways
        self.unique = unique

    def share(self, elsewhere: Elsewhere) -> None:
        """Have the members on other gateways get messages and presence, too. Before the first member joins."""
        self._elsewhere = elsewhere

    @property
    def topics(self) -> int:
        """Return the number of topics with members."""
        return len(self._members)

    @property
    def present(self) -> int:
        """Return the number of tracked members of all topics."""
        return sum(presence.members for presence in self._presence.values())

    def join(self, topic: TopicKey, member: Member) -> None:
        """Have a member get the topic's broadcasts."""
        self._members.setdefault(topic, _Listeners()).add(member)

    def leave(self, topic: TopicKey, member: Member) -> None:
        """Have a member get nothing more of a topic, and be absent."""
        for known in (self._members, self._watchers):
            listeners = known.get(topic)
            if listeners is not None:
                listeners.remove(member)
                if not listeners:
                    del known[topic]
        self.untrack(topic, member)

    # Broadcast

    def broadcast(self, message: Broadcast, *, is_private: bool, sender: Member | None, to_sender: bool) -> None:
        """Write a message to the members of its topic.

        Args:
            message: the message.
            is_private: whether the topic is.
            sender: the member that sends it; None if it came by HTTP.
            to_sender: whether the sender gets it, too.
        """
        self._received("http" if sender is None else "socket")
        if self._elsewhere is not None:
            self._elsewhere.broadcast(message, is_private=is_private)
        self.deliver(message, is_private=is_private, left_out=None if to_sender else sender)

    def deliver(self, message: Broadcast, *, is_private: bool, left_out: Member | None = None) -> None:
        """Write a message to the members on this gateway, but not to the one that is left out."""
        listeners = self._members.get(TopicKey(message.topic, is_private))
        if listeners is not None:
            self._write(listeners, lambda version: broadcast_frame(message, version), left_out)

    def _write(
        self, listeners: _Listeners, encode: Callable[[Version], bytes | None], left_out: Member | None = None
    ) -> None:  # fmt: skip
        count = size = 0
        for version, members in listeners.by_version.items():
            data = encode(version) if members else None
            if data is None:
                continue
            receivers = len(members) - (left_out is not None and left_out in members)
            count += receivers
            size += receivers * len(data)
            unwritten = self._files.write(members.numbers(left_out), data)
            for member, rest in [
                (members[number], rest) for number, rest in unwritten
            ]:  # a write may end its connection
                try:
                    member.write(rest)
                except Exception as error:  # the others get the message all the same
                    self._failed("a broadcast", error)
                    self._drop(member)
        if count:
            self._sent(count, size)

    def _drop(self, member: Member) -> None:
        try:
            member.drop(Close.RESTART)
        except Exception as error:
            self._failed("the end of a connection", error)

    # Presence

    def watch(self, topic: TopicKey, member: Member) -> bytes:
        """Have a member get the topic's presence. Return the JSON of the state, which comes first."""
        self._watchers.setdefault(topic, _Listeners()).add(member)
        presence = self._presence.get(topic)
        return b"{}" if presence is None else presence.state()

    def unwatch(self, topic: TopicKey, member: Member) -> None:
        """Have a member get nothing more of the topic's presence."""
        listeners = self._watchers.get(topic)
        if listeners is not None:
            listeners.remove(member)
            if not listeners:
                del self._watchers[topic]

    def watches(self, topic: TopicKey, member: Member) -> bool:
        """Return whether a member gets the topic's presence."""
        return member in self._watchers.get(topic, ())

    def track(self, topic: TopicKey, member: Member, key: str, payload: bytes) -> None:
        """Have a member be present. Raise BadPresence."""
        presence = self._presence.get(topic)
        if presence is None:
            presence = Presence(self._new_ref)
        presence.track(member, key, payload)
        self._presence[topic] = presence
        self._tell_later(topic)
        if self._elsewhere is not None:
            name = self._names.setdefault((topic, member), str(next(self._counter)))
            self._elsewhere.tracked(topic, name, presence.of(member))

    def present_elsewhere(self, topic: TopicKey, member: tuple[str, str], tracked: Tracked | None) -> None:
        """Have a member of another gateway be present here; None: be absent. It is named by gateway and name."""
        presence = self._presence.get(topic)
        if tracked is not None:
            if presence is None:
                presence = self._presence[topic] = Presence(self._new_ref)
            presence.put(member, tracked)
        elif presence is None or not presence.untrack(member):
            return
        self._tell_later(topic)

    def beside(self, topic: TopicKey, member: Member) -> Occupied:
        """Return how many other members of a topic are tracked, and the bytes of their payloads."""
        presence = self._presence.get(topic)
        return Occupied(0, 0) if presence is None else presence.beside(member)

    def untrack(self, topic: TopicKey, member: Member) -> None:
        """Have a member be absent."""
        presence = self._presence.get(topic)
        if presence is not None and presence.untrack(member):
            self._tell_later(topic)
            if self._elsewhere is not None:
                self._elsewhere.untracked(topic, self._names.pop((topic, member)))

    def _new_ref(self) -> str:
        return f"{self._origin}{next(self._counter)}"

    def _tell_later(self, topic: TopicKey) -> None:
        if not self._due:
            self._later(self._presence_s, self._tell)
        self._due[topic] = None

    def _tell(self) -> None:
        due, self._due = self._due, {}
        for topic in due:
            self._tell_of(topic)

    def _tell_of(self, topic: TopicKey) -> None:
        presence, watchers = self._presence[topic], self._watchers.get(topic)
        diff = presence.diff()
        if presence.is_idle:
            del self._presence[topic]
        if diff is not None and watchers is not None:
            self._write(watchers, lambda version: frame(encode_frame(version, topic.name, "presence_diff", diff)))

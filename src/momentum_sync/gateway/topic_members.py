"""Who has joined which topic on this gateway, and what members send each other: broadcasts and presence.

None of it is stored. A message is encoded once for each version of the protocol, and written to each member at once; a
member that does not read is closed as too slow, like one that asks and does not read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple, Protocol

from momentum_sync.gateway.presence import Presence
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

    def write(self, data: bytes) -> None:
        """Write a whole WebSocket frame, after what waits to be written."""


class TopicMembers:
    """The members of all topics.

    Args:
        later: calls a function after seconds, such as `loop.call_later`.
        presence_s: seconds for which changes of presence are collected.
        sent: called with the number of frames that were written, and their bytes.
        unique: returns a text that no other call returns, on any gateway.
    """

    def __init__(
        self, later: Later, presence_s: float, sent: Callable[[int, int], None], unique: Callable[[], str]
    ) -> None:
        self._later = later
        self._presence_s = presence_s
        self._sent = sent
        # A dict in place of a set: messages reach members in the order in which these joined.
        self._members: dict[TopicKey, dict[Member, None]] = {}
        self._presence: dict[TopicKey, Presence] = {}
        self._watchers: dict[TopicKey, dict[Member, None]] = {}
        self._due: dict[TopicKey, None] = {}
        self._counter = itertools.count(1)
        self._origin = unique()
        self.unique = unique

    @property
    def topics(self) -> int:
        """Return the number of topics with members."""
        return len(self._members)

    @property
    def present(self) -> int:
        """Return the number of tracked members of all topics."""
        return sum(map(len, self._presence.values()))

    def join(self, topic: TopicKey, member: Member) -> None:
        """Have a member get the topic's broadcasts."""
        self._members.setdefault(topic, {})[member] = None

    def leave(self, topic: TopicKey, member: Member) -> None:
        """Have a member get nothing more of a topic, and be absent."""
        for known in (self._members, self._watchers):
            members = known.get(topic, {})
            members.pop(member, None)
            if not members:
                known.pop(topic, None)
        presence = self._presence.get(topic)
        if presence is not None and presence.untrack(member):
            self._tell_later(topic)

    # Broadcast

    def broadcast(self, message: Broadcast, *, is_private: bool, sender: Member | None, to_sender: bool) -> None:
        """Write a message to the members of its topic.

        Args:
            message: the message.
            is_private: whether the topic is.
            sender: the member that sends it; None if it came by HTTP.
            to_sender: whether the sender gets it, too.
        """
        members = self._members.get(TopicKey(message.topic, is_private))
        if members is None:
            return
        others = [member for member in members if to_sender or member is not sender]
        self._write(others, {version: broadcast_frame(message, version) for version in Version})

    def _write(self, members: list[Member], frames: dict[Version, bytes | None]) -> None:
        count = size = 0
        for member in members:
            data = frames[member.version]
            if data is not None:
                member.write(data)
                count += 1
                size += len(data)
        if count:
            self._sent(count, size)

    # Presence

    def watch(self, topic: TopicKey, member: Member) -> bytes:
        """Have a member get the topic's presence. Return the JSON of the state, which comes first."""
        self._watchers.setdefault(topic, {})[member] = None
        presence = self._presence.get(topic)
        return b"{}" if presence is None else presence.state()

    def watches(self, topic: TopicKey, member: Member) -> bool:
        """Return whether a member gets the topic's presence."""
        return member in self._watchers.get(topic, {})

    def track(self, topic: TopicKey, member: Member, key: str, payload: bytes) -> None:
        """Have a member be present. Raise BadPresence."""
        presence = self._presence.get(topic) or Presence(self._new_ref)
        presence.track(member, key, payload)
        self._presence[topic] = presence
        self._tell_later(topic)

    def untrack(self, topic: TopicKey, member: Member) -> None:
        """Have a member be absent."""
        presence = self._presence.get(topic)
        if presence is not None and presence.untrack(member):
            self._tell_later(topic)

    def _new_ref(self) -> str:
        return f"{self._origin}{next(self._counter)}"

    def _tell_later(self, topic: TopicKey) -> None:
        if not self._due:
            self._later(self._presence_s, self._tell)
        self._due[topic] = None

    def _tell(self) -> None:
        due, self._due = self._due, {}
        for topic in due:
            presence = self._presence[topic]
            diff = presence.diff()
            if presence.is_idle:
                del self._presence[topic]
            if diff is not None:
                watchers = list(self._watchers.get(topic, {}))
                frames: dict[Version, bytes | None] = {
                    version: frame(encode_frame(version, topic.name, "presence_diff", diff)) for version in Version
                }
                self._write(watchers, frames)

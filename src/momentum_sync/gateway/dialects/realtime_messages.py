"""Broadcasts and presence of one connection of Supabase's protocol: its frames, and their answers."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import msgspec

from momentum_sync.gateway.dialects.realtime_errors import PREFIX
from momentum_sync.gateway.dialects.realtime_topic import Topic
from momentum_sync.gateway.presence import BadPresence
from momentum_sync.gateway.topic_members import Member, TopicKey, TopicMembers
from momentum_sync.identity.topic_access import BROADCAST, PRESENCE
from momentum_sync.limits import SocketLimits
from momentum_sync.wire.phoenix import ClientBroadcast, ClientFrame
from momentum_sync.wire.realtime_broadcast import Broadcast

_encode = msgspec.json.Encoder().encode


class _Presence(msgspec.Struct):
    """The payload of a `presence` frame."""

    event: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")


_presence = msgspec.json.Decoder(_Presence)


class Reply(NamedTuple):
    """The answer to a frame: its status, and the JSON object of its response."""

    ok: bool
    response: bytes = b"{}"


class Messages:
    """The messages of one connection.

    Args:
        members: the members of all topics.
        member: the connection.
        limits: bounds.
    """

    __slots__ = ("_keys", "_limits", "_members", "_weak_member")

    def __init__(self, members: TopicMembers, member: Member, limits: SocketLimits) -> None:
        self._members = members
        self._weak_member = weakref.ref(member)  # which refers to this object
        self._limits = limits
        self._keys: dict[str, str] = {}

    @property
    def _member(self) -> Member:
        member = self._weak_member()
        assert member is not None
        return member

    def join(self, topic: Topic) -> bytes | None:
        """Have the connection get a topic's messages. Return the JSON of its presence, if the client wants that."""
        key = topic_key(topic)
        self._members.join(key, self._member)
        self._keys.pop(topic.name, None)
        return self._members.watch(key, self._member) if topic.join.has_presence and _sees_presence(topic) else None

    def renew(self, topic: Topic) -> None:
        """Take away the rights that the caller of a joined topic has lost."""
        key = topic_key(topic)
        if PRESENCE not in topic.access.writes:
            self._members.untrack(key, self._member)
        if not _sees_presence(topic):
            self._members.unwatch(key, self._member)

    def leave(self, topic: Topic) -> None:
        """Have the connection get nothing more of a topic."""
        self._members.leave(topic_key(topic), self._member)
        self._keys.pop(topic.name, None)

    def text(self, frame: ClientFrame, topic: Topic) -> Reply | None:
        """Send a broadcast of a text frame. Return the answer, if the client wants one."""
        return self._send(Broadcast(topic.name, "", bytes(frame.payload), is_text=True), topic)

    def binary(self, frame: ClientBroadcast, topic: Topic) -> Reply | None:
        """Send a broadcast of a binary frame. Return the answer, if the client wants one."""
        return self._send(Broadcast(topic.name, frame.event, frame.payload, is_json=frame.is_json), topic)

    def _send(self, message: Broadcast, topic: Topic) -> Reply | None:
        if BROADCAST not in topic.access.writes:
            return _refused(not_allowed(topic.name))  # also without `ack`, so that nothing is lost silently
        self._members.broadcast(
            message, is_private=topic.join.is_private, sender=self._member, to_sender=topic.join.sends_to_self
        )
        return Reply(ok=True) if topic.join.acknowledges else None

    def presence(self, frame: ClientFrame, topic: Topic) -> tuple[Reply, bytes | None]:
        """Track or untrack. Return the answer, and the JSON of the presence if the client gets it from now on."""
        key = topic_key(topic)
        try:
            message = _presence.decode(frame.payload)
            event, payload = message.event.lower(), bytes(message.payload)
            if PRESENCE not in topic.access.writes:
                return _refused(not_allowed(topic.name)), None
            if event == "untrack":
                self._members.untrack(key, self._member)
                return Reply(ok=True), None
            if event != "track":
                return _refused("PresenceUnknown: the event is neither track nor untrack"), None
            if (excess := self._excess(key, len(payload))) is not None:
                return _refused(excess), None
            name = self._keys.get(topic.name) or topic.join.presence_key or self._members.unique()
            self._keys[topic.name] = name
            self._members.track(key, self._member, name, payload)
        except (msgspec.MsgspecError, BadPresence, RecursionError):
            return _refused("PresenceMalformed: the payload is no JSON object"), None
        # As at Supabase, a client that tracks gets the presence, too.
        gets_it = self._members.watches(key, self._member) or not _sees_presence(topic)
        return Reply(ok=True), None if gets_it else self._members.watch(key, self._member)

    def _excess(self, key: TopicKey, size: int) -> str | None:
        """Return which bound a payload of this size would exceed; None if it fits."""
        limits, others = self._limits, self._members.beside(key, self._member)
        if size > limits.presence_bytes:
            return f"Track message size exceeded: {limits.presence_bytes} bytes at most"
        if others.members >= limits.presence_members:
            return f"Too many members: a topic has at most {limits.presence_members}"
        if others.size + size > limits.presence_topic_bytes:
            return f"Presence size exceeded: {limits.presence_topic_bytes} bytes at most in a topic; track less"
        return None


def topic_key(topic: Topic) -> TopicKey:
    """Return the topic's place among the members."""
    return TopicKey(topic.name, topic.join.is_private)


def not_allowed(name: str) -> str:
    """Return the error of a message that the caller may not send to a topic."""
    return f"Unauthorized: You do not have permissions to write to this Channel topic: {name.removeprefix(PREFIX)}"


def _sees_presence(topic: Topic) -> bool:
    return PRESENCE in topic.access.reads


def _refused(why: str) -> Reply:
    return Reply(ok=False, response=_encode({"reason": why}))

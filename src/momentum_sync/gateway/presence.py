"""The presence of one topic: its members, and the changes since the last diff.

Semantics of `Phoenix.Presence`, which Supabase's clients merge: a key has one meta for each member that tracks under
it, a meta has a `phx_ref` of its own, and a changed meta leaves and joins in one diff. Diffs are collected, so that
many changes within a moment are one frame. A state is as of the last diff, so that the next one fits it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RESERVED = ("phx_ref", "phx_ref_prev")


class BadPresence(ValueError):
    """A payload that is no JSON object."""


class Tracked(NamedTuple):
    """A meta of a member. `content` is its JSON, with `phx_ref`."""

    key: str
    content: bytes

    @property
    def size(self) -> int:
        """Return its approximate size in the presence's JSON; escaping may lengthen the key."""
        return len(self.key.encode()) + len(self.content)


class Occupied(NamedTuple):
    """Members of a topic, and the bytes of their metas."""

    members: int
    size: int


class Presence:
    """The tracked members of a topic.

    Args:
        new_ref: makes a `phx_ref` that no other has, on any gateway.
    """

    __slots__ = ("_changed", "_new_ref", "_refs", "_shown", "_size", "_state", "_tracked")

    def __init__(self, new_ref: Callable[[], str]) -> None:
        self._new_ref = new_ref
        self._tracked: dict[object, Tracked] = {}
        self._shown: dict[object, Tracked] = {}  # the same as of the last diff
        self._changed: dict[object, None] = {}  # members that have changed since
        self._state: bytes | None = None
        self._refs: dict[object, str] = {}
        self._size = 0

    def beside(self, member: object) -> Occupied:
        """Return how many other members are tracked, and the bytes of their payloads."""
        own = self._tracked.get(member)
        if own is None:
            return Occupied(len(self._tracked), self._size)
        return Occupied(len(self._tracked) - 1, self._size - own.size)

    @property
    def members(self) -> int:
        """Return the number of members."""
        return len(self._tracked)

    @property
    def is_idle(self) -> bool:
        """Return whether the topic has no members, and no diff is due."""
        return not self._tracked and not self._changed

    def track(self, member: object, key: str, payload: bytes) -> None:
        """Add a member, or replace its meta.

        Args:
            member: the member.
            key: the name under which it is listed.
            payload: a JSON object.

        Raises:
            BadPresence: the payload is none.
        """
        try:
            given = _object.decode(payload)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BadPresence(str(error)) from None
        ref, before = self._new_ref(), self._refs.get(member)
        own: dict[str, object] = {"phx_ref": ref}
        if before is not None:
            own["phx_ref_prev"] = before
        rest = {name: value for name, value in given.items() if name not in _RESERVED}
        self._changed[member] = None
        self._refs[member] = ref
        self._set(member, Tracked(key, _encode({**own, **rest})))

    def put(self, member: object, tracked: Tracked) -> None:
        """Add a member of another gateway, which has made its meta, or replace that."""
        self._changed[member] = None
        self._set(member, tracked)

    def _set(self, member: object, tracked: Tracked) -> None:
        before = self._tracked.get(member)
        self._size += tracked.size - (0 if before is None else before.size)
        self._tracked[member] = tracked

    def of(self, member: object) -> Tracked:
        """Return a member's meta. Raise KeyError without one."""
        return self._tracked[member]

    def untrack(self, member: object) -> bool:
        """Remove a member. Return whether it was there."""
        if member not in self._tracked:
            return False
        self._changed[member] = None
        self._size -= self._tracked.pop(member).size
        self._refs.pop(member, None)
        return True

    def state(self) -> bytes:
        """Return the JSON of a `presence_state`: all metas by key, as of the last diff."""
        if self._state is None:
            self._state = _by_key(self._shown.values())
        return self._state

    def diff(self) -> bytes | None:
        """Return the JSON of a `presence_diff` since the last call; None if nothing has changed."""
        joins: list[Tracked] = []
        leaves: list[Tracked] = []
        for member in self._changed:
            before, now = self._shown.pop(member, None), self._tracked.get(member)
            if before is not None:
                leaves.append(before)
            if now is not None:
                joins.append(now)
                self._shown[member] = now
        self._changed = {}
        self._state = None
        if not joins and not leaves:  # members that came and went in between
            return None
        return b'{"joins":' + _by_key(joins) + b',"leaves":' + _by_key(leaves) + b"}"


def _by_key(all_tracked: Iterable[Tracked]) -> bytes:
    metas: dict[str, list[msgspec.Raw]] = {}
    for tracked in all_tracked:
        metas.setdefault(tracked.key, []).append(msgspec.Raw(tracked.content))
    listed: Mapping[str, object] = {key: {"metas": each} for key, each in metas.items()}
    return _encode(listed)

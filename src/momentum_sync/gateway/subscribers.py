"""The subscribers of one slot of the hub, and those of them that get equal frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from momentum_sync.gateway.direct_files import Owners
from momentum_sync.gateway.subscriber import Dialect, Subscriber

_FEW = 8  # fewer subscribers are written to one by one: most slots have one or two, and a group costs memory


class Groups(NamedTuple):
    """The subscribers of a slot.

    Attributes:
        together: those that share every frame, by dialect.
        apart: all others.
    """

    together: dict[Dialect, Owners[Subscriber]]
    apart: tuple[Subscriber, ...]


class Subscribers:
    """An ordered set of subscribers."""

    __slots__ = ("_groups", "_members")

    def __init__(self) -> None:
        self._members: dict[Subscriber, None] = {}
        self._groups: Groups | None = None

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(self._members)

    def add(self, subscriber: Subscriber) -> None:
        """Add a subscriber."""
        self._members[subscriber] = None
        self._groups = None

    def remove(self, subscriber: Subscriber) -> None:
        """Remove a subscriber."""
        del self._members[subscriber]
        self._groups = None

    @property
    def groups(self) -> Groups:
        """Return the subscribers by dialect."""
        if len(self._members) < _FEW:
            return Groups({}, tuple(self._members))
        if self._groups is None:
            self._groups = self._grouped()
        return self._groups

    def _grouped(self) -> Groups:
        together: dict[Dialect, list[Subscriber]] = {}
        apart: list[Subscriber] = []
        for subscriber in self._members:
            if subscriber.dialect.together is None:
                apart.append(subscriber)
            else:
                together.setdefault(subscriber.dialect, []).append(subscriber)
        return Groups({dialect: Owners(members) for dialect, members in together.items()}, tuple(apart))

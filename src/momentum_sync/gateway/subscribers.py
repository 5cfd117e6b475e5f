"""The subscribers of one slot of the hub, and those of them that get equal frames."""

from __future__ import annotations

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


class Subscribers(dict[Subscriber, None]):
    """An ordered set of subscribers: the keys. A dict inside of an object would cost 64 bytes more for each channel."""

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        super().__init__()
        self._groups: Groups | None = None

    def add(self, subscriber: Subscriber) -> None:
        """Add a subscriber."""
        self[subscriber] = None
        self._groups = None

    def remove(self, subscriber: Subscriber) -> None:
        """Remove a subscriber."""
        del self[subscriber]
        self._groups = None

    @property
    def groups(self) -> Groups:
        """Return the subscribers by dialect."""
        if len(self) < _FEW:
            return Groups({}, tuple(self))
        if self._groups is None:
            self._groups = self._grouped()
        return self._groups

    def _grouped(self) -> Groups:
        together: dict[Dialect, list[Subscriber]] = {}
        apart: list[Subscriber] = []
        for subscriber in self:
            if subscriber.dialect.together is None:
                apart.append(subscriber)
            else:
                together.setdefault(subscriber.dialect, []).append(subscriber)
        return Groups({dialect: Owners(members) for dialect, members in together.items()}, tuple(apart))

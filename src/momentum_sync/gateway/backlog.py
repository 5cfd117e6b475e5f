"""What waits unsent, over all connections, and how much of it may.

A connection is known here from the moment when something of it waits until all of it has gone. Whoever holds more than
its part, or holds anything more while the whole is full, falls behind: nothing is pushed to it until it has read.
"""

from __future__ import annotations

from collections.abc import Hashable


class Backlog:
    """Bytes unsent. `each` bounds a connection's, `total` all of them together."""

    def __init__(self, *, each: int, total: int) -> None:
        self._each = each
        self._most = total
        self._waiting: dict[Hashable, int] = {}
        self.total = 0

    @property
    def full(self) -> bool:
        """Whether all connections together hold as much as they may."""
        return self.total >= self._most

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may wait, of whichever connection."""
        return self.total + size <= self._most

    def grew(self, connection: Hashable, size: int) -> bool:
        """`size` bytes of the connection wait now; whether that is more than may."""
        self.total += size - self._waiting.get(connection, 0)
        self._waiting[connection] = size
        return size > self._each or self.total > self._most

    def gone(self, connection: Hashable) -> None:
        """Nothing of the connection waits any more."""
        self.total -= self._waiting.pop(connection, 0)

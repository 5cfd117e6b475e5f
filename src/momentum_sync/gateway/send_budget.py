"""What waits unsent, over all connections, and how much of it may.

A connection is known here from the moment when something of it waits until all of it has gone. Whoever holds more than
its part, or holds anything more while the whole is full, falls behind: nothing is pushed to it until it has read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

_LET_IN = 16


class SendBudget:
    """Bytes unsent. `each` bounds a connection's, `total` all of them together."""

    def __init__(self, *, each: int, total: int) -> None:
        self._each = each
        self._most = total
        self._waiting: dict[Hashable, int] = {}
        self._queue: dict[Hashable, Callable[[], None]] = {}
        self._turn: Hashable | None = None
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
        self.given(connection)
        if not self.full:
            for waiting in list(self._queue)[:_LET_IN]:
                self._queue.pop(waiting)()

    # A turn: for what has no room

    def wait_for_turn(self, connection: Hashable, ready: Callable[[], None]) -> None:
        """Call `ready` when it is the connection's turn or when there may be room.

        One connection at a time goes beyond the limit, so that those who read are never stopped by those who do not:
        its turn ends when it was given what it waited for and nothing of it waits, or when it is gone.
        """
        self._queue[connection] = ready
        self._next()

    def has_turn(self, connection: Hashable) -> bool:
        """Whether the connection may go beyond the limit now."""
        return self._turn is connection

    def given(self, connection: Hashable) -> None:
        """End the connection's turn once it has been sent the event and has read it."""
        if self._turn is connection and connection not in self._waiting:
            self._turn = None
            self._next()

    def lost(self, connection: Hashable) -> None:
        """Forget a connection that is gone."""
        self._queue.pop(connection, None)
        self.gone(connection)

    def _next(self) -> None:
        if self._turn is None and self._queue:
            self._turn = next(iter(self._queue))
            self._queue.pop(self._turn)()

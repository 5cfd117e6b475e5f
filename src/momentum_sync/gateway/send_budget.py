"""The send budget: unsent bytes over all connections, and their limits.

A connection is known here from the moment some of its bytes wait until all have been sent. One that exceeds its own
limit, or waits at all while the total is exceeded, falls behind: nothing more is written to it until it has read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable


class SendBudget:
    """Unsent bytes.

    Args:
        each: limit of one connection.
        total: limit of all together.
        admitted_at_once: waiting connections that may continue when there is room again.

    Attributes:
        total: bytes unsent now.
    """

    def __init__(self, *, each: int, total: int, admitted_at_once: int = 16) -> None:
        self._each = each
        self._most = total
        self._admitted_at_once = admitted_at_once
        self._unsent: dict[Hashable, int] = {}
        self._queue: dict[Hashable, Callable[[], None]] = {}
        self._turn: Hashable | None = None
        self.total = 0

    @property
    def full(self) -> bool:
        """Return whether all connections together hold as much as they may."""
        return self.total >= self._most

    def has_room(self, size: int) -> bool:
        """Return whether `size` more bytes may wait, on any connection."""
        return self.total + size <= self._most

    def grew(self, connection: Hashable, size: int) -> bool:
        """Record that `size` bytes of the connection are unsent. Return whether that exceeds a limit."""
        self.total += size - self._unsent.get(connection, 0)
        self._unsent[connection] = size
        return size > self._each or self.total > self._most

    def drained(self, connection: Hashable) -> None:
        """Record that all bytes of the connection have been sent."""
        self.total -= self._unsent.pop(connection, 0)
        self.done(connection)
        if not self.full:
            # Each of them writes a page, so admitting all at once would exceed the limit again.
            for waiting in list(self._queue)[: self._admitted_at_once]:
                self._queue.pop(waiting)()

    # A turn, for an event that exceeds the total limit

    def wait_for_turn(self, connection: Hashable, ready: Callable[[], None]) -> None:
        """Call `ready` when it is the connection's turn, or when there may be room.

        One connection at a time may exceed the total limit, so that clients that read never wait for those that do not.
        Its turn ends when the event has been sent and read, or the connection is closed.
        """
        # A connection that asks again keeps its place, because a dict keeps the position of an existing key.
        self._queue[connection] = ready
        self._next()

    def is_waiting(self, connection: Hashable) -> bool:
        """Return whether the connection waits for its turn or for room."""
        return connection in self._queue

    def has_turn(self, connection: Hashable) -> bool:
        """Return whether the connection may exceed the total limit now."""
        return self._turn is connection

    def done(self, connection: Hashable) -> None:
        """End the connection's turn once it has been sent the event and has read it."""
        if self._turn is connection and connection not in self._unsent:
            self._turn = None
            self._next()

    def lost(self, connection: Hashable) -> None:
        """Forget a closed connection."""
        self._queue.pop(connection, None)
        self.drained(connection)

    def _next(self) -> None:
        if self._turn is None and self._queue:
            self._turn = next(iter(self._queue))
            self._queue.pop(self._turn)()

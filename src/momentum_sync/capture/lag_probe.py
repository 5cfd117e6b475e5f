"""The lag probe: a message that the server writes into the WAL and reads back.

A probe takes an event's whole way: a transaction, its commit, the slot, the stream. When it returns, everything
committed before it has been read. One probe is under way at a time; how long it takes is the lag.
"""

from __future__ import annotations

PREFIX = "momentum_sync.beat"


class LagProbe:
    """The probes of one capture process.

    All times are seconds on a monotonic clock; `name` tells the probes of this process from those of others.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._under_way: str | None = None
        self._due_since: float | None = None
        self._took = 0.0

    def next(self, now: float) -> str | None:
        """Return the probe to write now; None while one is under way."""
        if self._under_way is not None:
            return None
        self._count += 1
        self._under_way = f"{self._name}:{self._count}"
        self._due_since = now if self._due_since is None else self._due_since
        return self._under_way

    def read(self, content: bytes, now: float) -> bool:
        """Take a probe that the stream brought. Return whether it is the one under way."""
        if self._under_way is None or content != self._under_way.encode():
            return False
        assert self._due_since is not None
        self._took = max(0.0, now - self._due_since)
        self._under_way = self._due_since = None
        return True

    def lost(self, now: float) -> None:
        """Note that the stream broke: the probe under way will not return, and another is due from now on."""
        self._under_way = None
        # Kept when the stream breaks, so that the lag grows until a probe has returned.
        self._due_since = now if self._due_since is None else self._due_since

    def lag(self, now: float) -> float:
        """Return the seconds by which the feed is behind: the last probe's, or those of the one under way if longer."""
        return self._took if self._due_since is None else max(self._took, now - self._due_since)

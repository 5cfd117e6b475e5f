"""The lag_probe: a message that the server writes into the WAL and reads back, and what it says of the feed.

A beat goes an event's whole way: a transaction, its commit, the slot, the stream. When it comes back, everything that
committed before it has been read. One beat at a time is under way; how long it takes, or has been taking, is the lag.
"""

from __future__ import annotations

PREFIX = "momentum_sync.beat"


class LagProbe:
    """The beats of one capture. All times are seconds since 1970; `name` tells its beats from those of others."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._under_way: str | None = None
        self._owed_since: float | None = None
        self._took = 0.0

    def next(self, now: float) -> str | None:
        """The beat to write now; None while one is under way."""
        if self._under_way is not None:
            return None
        self._count += 1
        self._under_way = f"{self._name}:{self._count}"
        self._owed_since = now if self._owed_since is None else self._owed_since
        return self._under_way

    def read(self, content: bytes, now: float) -> bool:
        """A beat came out of the stream; whether it is the one under way."""
        if self._under_way is None or content != self._under_way.encode():
            return False
        assert self._owed_since is not None
        self._took = max(0.0, now - self._owed_since)
        self._under_way = self._owed_since = None
        return True

    def lost(self, now: float) -> None:
        """The stream broke: the beat under way will not come back, and from now on one is owed."""
        self._under_way = None
        self._owed_since = now if self._owed_since is None else self._owed_since

    def lag(self, now: float) -> float:
        """Seconds by which the feed is behind: what the last beat took, or longer if the next is taking longer."""
        return self._took if self._owed_since is None else max(self._took, now - self._owed_since)

"""How much one user may ask for, over all connections and requests: token buckets, forgotten once they are full."""

from __future__ import annotations

from collections.abc import Hashable


class RateLimit:
    """So many `a_second`, and a `burst` of them at once. Times are seconds on any clock that only goes forward."""

    def __init__(self, *, burst: int, a_second: float) -> None:
        self._burst = float(burst)
        self._a_second = a_second
        self._buckets: dict[Hashable, tuple[float, float]] = {}  # what is left, and when that was; the oldest first

    def __len__(self) -> int:
        """Who is remembered: those who asked within the time in which a bucket fills."""
        return len(self._buckets)

    def allows(self, user: Hashable, now: float) -> bool:
        """Whether the user may have one more, which is counted."""
        left, at = self._buckets.pop(user, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._a_second)
        allowed = left >= 1.0
        self._buckets[user] = (left - 1.0 if allowed else left, now)
        self._forget(now)
        return allowed

    def _forget(self, now: float) -> None:
        while self._buckets:
            user, (_, at) = next(iter(self._buckets.items()))
            if (now - at) * self._a_second < self._burst:
                return
            del self._buckets[user]

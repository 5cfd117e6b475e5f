"""Token buckets: an average rate with bursts. Times are seconds on a monotonic clock."""

from __future__ import annotations

from collections.abc import Hashable

from momentum_sync.limits import Rate


class TokenBucket:
    """Tokens of one user, or of one connection."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate.burst)
        self._at = now

    def take(self, now: float, count: int = 1) -> bool:
        """Take tokens, all or none. Return False if there are not enough."""
        passed = max(0.0, now - self._at)
        self._tokens = min(self._rate.burst, self._tokens + passed * self._rate.per_second)
        self._at = now
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    def is_full(self, now: float) -> bool:
        """Return whether the bucket is full at `now`, as a new one is."""
        return self._tokens + (now - self._at) * self._rate.per_second >= self._rate.burst


class TokenBuckets:
    """A bucket for each key, forgotten once it is full again. While there are `most` of them, other keys have none."""

    def __init__(self, rate: Rate, *, most: int | None = None) -> None:
        self._rate = rate
        self._most = most
        self._buckets: dict[Hashable, TokenBucket] = {}  # the least recently used first

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, now: float, count: int = 1) -> bool:
        """Take tokens of a key's bucket, all or none. Return False if there are not enough."""
        self._forget(now)
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            if self._most is not None and len(self._buckets) >= self._most:
                return False
            bucket = TokenBucket(self._rate, now)
        self._buckets[key] = bucket
        return bucket.take(now, count)

    def _forget(self, now: float) -> None:
        """Forget the least recently used buckets that are full."""
        while self._buckets:
            oldest = next(iter(self._buckets))
            if not self._buckets[oldest].is_full(now):
                break
            del self._buckets[oldest]

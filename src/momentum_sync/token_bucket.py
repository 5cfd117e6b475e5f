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

    def debit(self, now: float, count: int) -> None:
        """Take tokens that were used elsewhere, as many as there are and up to a burst more."""
        self.take(now, 0)
        self._tokens = max(-float(self._rate.burst), self._tokens - count)

    def is_full(self, now: float) -> bool:
        """Return whether the bucket is full at `now`, as a new one is."""
        return self._tokens + (now - self._at) * self._rate.per_second >= self._rate.burst


class TokenBuckets:
    """A bucket for each key, forgotten once it is full again. While there are `most` of them, other keys have none."""

    def __init__(self, rate: Rate, *, most: int | None = None) -> None:
        self._rate = rate
        self._most = most
        self._buckets: dict[Hashable, TokenBucket] = {}  # the least recently used first
        self._taken: dict[Hashable, int] | None = None

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, now: float, count: int = 1) -> bool:
        """Take tokens of a key's bucket, all or none. Return False if there are not enough."""
        bucket = self._bucket(key, now)
        is_there = bucket is not None and bucket.take(now, count)
        if is_there and self._taken is not None:
            self._taken[key] = self._taken.get(key, 0) + count
        return is_there

    def debit(self, key: Hashable, now: float, count: int) -> None:
        """Take tokens of a key that were used elsewhere."""
        bucket = self._bucket(key, now)
        if bucket is not None:
            bucket.debit(now, count)

    def _bucket(self, key: Hashable, now: float) -> TokenBucket | None:
        self._forget(now)
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            if self._most is not None and len(self._buckets) >= self._most:
                return None
            bucket = TokenBucket(self._rate, now)
        self._buckets[key] = bucket
        return bucket

    # Together with others

    def record(self) -> None:
        """Record from now on the tokens taken, for `taken`."""
        self._taken = {}

    def taken(self, share: float) -> dict[Hashable, int]:
        """Return what was taken since the last call by keys that took at least this share of the rate per second."""
        taken, self._taken = self._taken or {}, {}
        least = share * self._rate.per_second
        return {key: count for key, count in taken.items() if count and count >= least}

    def _forget(self, now: float) -> None:
        """Forget the least recently used buckets that are full."""
        while self._buckets:
            oldest = next(iter(self._buckets))
            if not self._buckets[oldest].is_full(now):
                break
            del self._buckets[oldest]

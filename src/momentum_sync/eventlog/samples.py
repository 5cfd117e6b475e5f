"""Samples for `realtime_event_metrics`: delivered events, rate-limited, and all failures.

They are collected here on the way of the events, and written later, in batches, by `lifecycle.writing_metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple
from uuid import UUID

from momentum_sync.eventlog.event import Event
from momentum_sync.limits import Rate
from momentum_sync.token_bucket import TokenBucket

_MOST = 2_000
_MOST_DELIVERED = 1_000  # leaves room for failures
_LONGEST_MESSAGE = 500
_BURST_S = 10.0


class Sample(NamedTuple):
    """A row of the table. `channel` is the event's first; times are milliseconds from the commit to the last socket."""

    event_type: str
    channel: str
    user_id: UUID | None
    size: int
    milliseconds: int | None
    success: bool
    error: str | None


class Samples:
    """Rows that wait to be written, bounded.

    Args:
        per_second: delivered events that are sampled on average, and ten times as many at once: all of them while
            there are few, so that each of them can be found.
        clock: seconds on a monotonic clock.

    Attributes:
        dropped: rows that had no room, because they could not be written.
    """

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._bucket = TokenBucket(Rate(per_second * _BURST_S, per_second), clock())
        self._waiting: list[Sample] = []
        self.dropped = 0

    def delivered(self, events: Iterable[tuple[Event, float | None]]) -> None:
        """Sample events delivered together, each with its seconds after the commit (None: it had no subscribers)."""
        now = self._clock()
        for event, delay in events:
            if not self._bucket.take(now):
                return
            if len(self._waiting) >= _MOST_DELIVERED:
                self.dropped += 1
                continue
            milliseconds = None if delay is None else max(0, round(delay * 1000))
            self._keep(event.event_type, event.channels, event.user_id, len(event.body), milliseconds, None)

    def failed(self, event: Event, error: str) -> None:
        """Record an event that could not be delivered, or not be stored. `error` says why and quotes nothing of it."""
        self._keep(event.event_type, event.channels, event.user_id, len(event.body), None, error)

    def unreadable(self, size: int, error: str) -> None:
        """Record a message of `size` bytes that was not an event."""
        self._keep("unreadable", (), None, size, None, error)

    def take(self) -> list[Sample]:
        """Return and forget all rows."""
        taken, self._waiting = self._waiting, []
        return taken

    def _keep(
        self, event_type: str, channels: tuple[str, ...], user_id: str | None, size: int, milliseconds: int | None,
        error: str | None,
    ) -> None:  # fmt: skip
        if len(self._waiting) >= _MOST:
            self.dropped += 1
            return
        self._waiting.append(
            Sample(
                event_type or "unknown",
                channels[0] if channels else "",
                _uuid(user_id),
                size,
                milliseconds,
                error is None,
                None if error is None else error[:_LONGEST_MESSAGE],
            )
        )


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text or "")
    except ValueError:
        return None

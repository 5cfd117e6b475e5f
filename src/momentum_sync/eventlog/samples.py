"""Samples for `realtime_event_metrics`: delivered events, rate-limited, and all failures.

It is gathered here, on the way of the events, at the price of a comparison; somebody else writes it, in batches, later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from momentum_sync.eventlog.event import Event

_MOST = 2_000
_MOST_DELIVERED = 1_000  # so that they leave room for failures
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
    """What waits to be written, bounded.

    Of the delivered events up to `per_second` are kept, and ten times as many at once: all of them while there are
    few, so that whoever looks for one finds it. `clock` gives seconds and only goes forward. `dropped` counts what
    had no room, because nobody could write.
    """

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._clock = clock
        self._allowance = per_second * _BURST_S
        self._at = clock()
        self._waiting: list[Sample] = []
        self.dropped = 0

    def delivered(self, event: Event, delay: float | None) -> None:
        """An event was handed on, `delay` seconds after its commit; None: to nobody."""
        if self._allows():
            if len(self._waiting) >= _MOST_DELIVERED:
                self.dropped += 1
                return
            milliseconds = None if delay is None else max(0, round(delay * 1000))
            self._keep(event.event_type, event.channels, event.user_id, len(event.body), milliseconds, None)

    def _allows(self) -> bool:
        if self._allowance < 1.0:
            now = self._clock()
            self._allowance = min(self._per_second * _BURST_S, self._allowance + (now - self._at) * self._per_second)
            self._at = now
            if self._allowance < 1.0:
                return False
        self._allowance -= 1.0
        return True

    def failed(self, event: Event, error: str) -> None:
        """An event could not be delivered to everybody, or not be kept; `error` says why, and quotes nothing of it."""
        self._keep(event.event_type, event.channels, event.user_id, len(event.body), None, error)

    def unreadable(self, size: int, error: str) -> None:
        """A message of so many bytes was no event."""
        self._keep("unreadable", (), None, size, None, error)

    def take(self) -> list[Sample]:
        """All that waits."""
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

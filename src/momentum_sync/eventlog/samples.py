"""What `realtime_event_metrics` is to be told: a sample of what was delivered, and the failures.

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
    """What waits to be written, bounded. `rate` is the part of the delivered events that is kept, from 0 to 1, and
    `chance` a source of numbers evenly spread over 0 to 1, without 1.

    `dropped` counts what had no room, because nobody could write.
    """

    def __init__(self, rate: float, chance: Callable[[], float]) -> None:
        self._rate = rate
        self._chance = chance
        self._waiting: list[Sample] = []
        self.dropped = 0

    def delivered(self, event: Event, delay: float | None) -> None:
        """An event was handed on, `delay` seconds after its commit; None: to nobody."""
        if self._chance() < self._rate:  # not every hundredth: events come in pairs, and one of each would never be it
            if len(self._waiting) >= _MOST_DELIVERED:
                self.dropped += 1
                return
            milliseconds = None if delay is None else max(0, round(delay * 1000))
            self._keep(event.event_type, event.channels, event.user_id, len(event.body), milliseconds, None)

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

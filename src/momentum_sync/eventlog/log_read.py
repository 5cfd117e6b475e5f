"""The result of one read of the log by a gateway that follows it."""

from __future__ import annotations

from typing import NamedTuple

from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import Beginning


class LogRead(NamedTuple):
    """The end of the log, and the events after the offset that was asked for; from one snapshot of the database.

    Attributes:
        beginning: where a gateway would begin now: epoch, last event, newest events.
        live: whether the epoch may be served.
        events: events after the asked position, without a gap, as many as a page has. None: they are of another
            history, or the log no longer has them, and `beginning` has its newest events.
    """

    beginning: Beginning
    live: bool
    events: list[Event] | None

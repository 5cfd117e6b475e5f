"""The stitch between a snapshot and the events that follow it.

A snapshot and the stream know nothing of each other: an event may have reached the gateway before the snapshot
was read and still not be in it, because a commit is in the WAL before it is visible; and it may come long after and
be in it. Only the transaction id decides: an event belongs after a snapshot exactly when the snapshot does not see its
transaction. Once the stream has passed the place behind which the snapshot can hold nothing, all that comes is new.
"""

from __future__ import annotations

from collections.abc import Iterable

from momentum_sync.eventlog.event import Event, EventId, Seen
from momentum_sync.eventlog.window import Window


def missed(window: Window, older: Iterable[Event], seen: Seen, keys: Iterable[str]) -> list[Event]:
    """What was published already and the snapshot does not hold: from the log (`older`), then from the window."""
    found = {event.number: event for event in older}
    found.update((event.number, event) for event in window.unseen(seen.snapshot, keys))
    return [found[number] for number in sorted(found)]


def place(epoch: str, number: int, seen: Seen, after: list[Event]) -> EventId:
    """Where a client stands who has the snapshot and none of the events `after` it; `number` is the feed's."""
    return EventId(epoch, after[0].number - 1 if after else number, seen)

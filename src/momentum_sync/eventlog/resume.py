"""Whether a client's last event id is a place in the history that goes on."""

from __future__ import annotations

from momentum_sync.eventlog.event import Position


class Refused(ValueError):
    """There is no resume from here. `reason` is for programs: `unknown_id`, `history_changed` or `expired`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def place(last_event_id: str, last: Position, incarnation: int) -> Position:
    """Return the position that an id names in the history that has come to `last`.

    Refused for an id that was never given out (`unknown_id`) and for one of another history (`history_changed`),
    which one with a snapshot of an earlier run of PostgreSQL is, too. Whether its event is the one of this history is
    for `History.verify` to say.
    """
    try:
        brought = Position.parse(last_event_id)
    except ValueError:
        raise Refused("unknown_id") from None
    if brought.epoch != last.epoch:
        raise Refused("history_changed")
    if brought.seen is not None and brought.seen.incarnation != incarnation:
        raise Refused("history_changed")
    if brought.offset > last.offset or str(brought) != last_event_id:
        raise Refused("unknown_id")
    return brought

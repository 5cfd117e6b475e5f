"""Decides whether a client's last event id is a position in the history that goes on."""

from __future__ import annotations

from momentum_sync.eventlog.position import Position


class ResumeRefused(ValueError):
    """The position cannot be resumed. `reason` is `unknown_id`, `history_changed` or `expired`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_position(last_event_id: str) -> Position:
    """Parse a client's last event id.

    Raises:
        ResumeRefused: the server never sent this id (`unknown_id`).
    """
    try:
        position = Position.parse(last_event_id)
    except ValueError:
        raise ResumeRefused("unknown_id") from None
    # The server sends one spelling of a position only; leading zeros or unsorted ids are forged.
    if str(position) != last_event_id:
        raise ResumeRefused("unknown_id")
    return position


def check_position(position: Position, last: Position, incarnation: int) -> None:
    """Check that a position is in the history that has come to `last`.

    Whether the event at that offset is the one that the client had is for `History.verify` to say.

    Raises:
        ResumeRefused: the server never sent it (`unknown_id`), or it belongs to another history, or its snapshot to an
            earlier run of PostgreSQL (`history_changed`).
    """
    if position.epoch != last.epoch:
        raise ResumeRefused("history_changed")
    if position.boundary is not None and position.boundary.incarnation != incarnation:
        raise ResumeRefused("history_changed")
    if position.offset > last.offset:
        raise ResumeRefused("unknown_id")

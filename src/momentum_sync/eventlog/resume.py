"""Whether a client's last event id still leads to the events after it.

Events are not replayed yet: whatever the id, the answer is a reason and the client begins with a snapshot.
"""

from __future__ import annotations

from momentum_sync.eventlog.event import EventId


def refusal(last_event_id: str, epoch: str) -> str:
    """Why there is no resume: `unknown_id`, `history_changed`, or `not_supported` for an id that would lead on."""
    try:
        brought = EventId.parse(last_event_id)
    except ValueError:
        return "unknown_id"
    return "not_supported" if brought.epoch == epoch else "history_changed"

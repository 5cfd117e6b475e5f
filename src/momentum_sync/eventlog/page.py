"""A page of events."""

from __future__ import annotations

from typing import NamedTuple

from momentum_sync.eventlog.event import Event


class Page(NamedTuple):
    """Events in order, and the last offset that was searched for them: the next page begins after it."""

    events: list[Event]
    through: int


class Newest(NamedTuple):
    """The newest events on a key, in order. `is_whole` tells whether there are no older ones since the given time."""

    events: list[Event]
    is_whole: bool

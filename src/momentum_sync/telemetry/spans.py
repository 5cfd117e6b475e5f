"""Spans of an event: read from the database, appended to the log, written to sockets.

No message between the processes carries a trace context. Capture and gateways choose the same events by their offsets,
and compute the same trace id, and the id of its first span, from epoch and offset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

from momentum_sync.eventlog.event import Event

_MOST_UNLOGGED = 1_000


class Span(NamedTuple):
    """A span. Times are seconds since 1970; `parent` is None for the first of a trace."""

    name: str
    trace: int
    number: int
    parent: int | None
    begins: float
    ends: float
    attributes: Mapping[str, str | int]


class Written(Protocol):
    """An event that was written to its subscribers.

    Attributes:
        began: seconds since 1970 at which the first frame was made.
        delay: seconds from the commit to the last write; None if it had no subscribers.
        frames: frames written.
    """

    @property
    def event(self) -> Event:
        """Return the event."""

    began: float
    delay: float | None
    frames: int


class EventSpans:
    """Makes the spans of a share of all events, without any content, channel or user.

    Args:
        share: of the events, above 0 and up to 1.
        take: receives each span.
        clock: seconds since 1970.
        process: a name of this process that no other has; several gateways deliver the same event.
    """

    def __init__(self, share: float, take: Callable[[Span], None], clock: Callable[[], float], process: str) -> None:
        self._every = max(1, round(1 / share))
        self._take = take
        self._clock = clock
        self._process = process
        self._unlogged: dict[int, tuple[str, float]] = {}

    def published(self, epoch: str, events: Iterable[Event]) -> None:
        """Note events that capture passes on to the gateways."""
        for event in events:
            if event.offset % self._every:
                continue
            now = self._clock()
            trace, first = _ids(epoch, event.offset)
            about: dict[str, str | int] = {
                "messaging.system": "momentum-sync",
                "messaging.message.id": f"{epoch}-{event.offset}",
                "messaging.message.body.size": len(event.body),
                "momentum.event_type": event.event_type,
            }
            self._take(Span("momentum capture", trace, first, None, event.committed_at, now, about))
            self._unlogged[event.offset] = epoch, now
            if len(self._unlogged) > _MOST_UNLOGGED:
                del self._unlogged[next(iter(self._unlogged))]

    def logged(self, offset: int) -> None:
        """Note that the log has all events up to this offset."""
        if not self._unlogged:
            return
        now = self._clock()
        for each in [each for each in self._unlogged if each <= offset]:
            epoch, since = self._unlogged.pop(each)
            trace, first = _ids(epoch, each)
            self._take(Span("momentum log", trace, self._id(trace, "log"), first, since, now, {}))

    def delivered(self, epoch: str, fan_outs: Sequence[Written]) -> None:
        """Note events that a gateway has written to its sockets."""
        for each in fan_outs:
            event = each.event
            if event.offset % self._every or each.delay is None:
                continue
            trace, first = _ids(epoch, event.offset)
            ends = event.committed_at + each.delay
            number = self._id(trace, "deliver")
            self._take(
                Span("momentum deliver", trace, number, first, each.began, ends, {"momentum.frames": each.frames})
            )

    def _id(self, trace: int, name: str) -> int:
        return int.from_bytes(blake2b(f"{trace}-{name}-{self._process}".encode(), digest_size=8).digest())


def _ids(epoch: str, offset: int) -> tuple[int, int]:
    """Return the id of an event's trace, 16 bytes, and of the first span in it, 8 bytes."""
    digest = blake2b(f"{epoch}-{offset}".encode(), digest_size=24).digest()
    return int.from_bytes(digest[:16]), int.from_bytes(digest[16:])

"""The feed: events on their way from capture to the gateways.

Capture sees a `FeedPublisher`, a gateway subscribes with a `FeedSubscriber` and reads the status. `LocalFeed` connects
the two within one process, and keeps the newest events in a window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import CaptureError
from momentum_sync.eventlog.event import CONTROL, Event
from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.status import UNKNOWN_SLOT, CaptureState, FeedStatus, Triggers
from momentum_sync.eventlog.window import Window

_REMEMBERED = 1_000  # transactions; older ones have long been visible


class HistoryForked(CaptureError):
    """The stream repeats offsets with other events than those published: the database was restored from a copy."""


class FeedState(NamedTuple):
    """A feed's last event, and the last event that it knows to be in the log."""

    epoch: str
    offset: int
    logged: int
    logged_mark: int


class Beginning(NamedTuple):
    """The position at which capture takes up the stream.

    Attributes:
        epoch: the epoch.
        offset: offset of the last event before.
        mark: its mark.
        lsn: no event below this LSN is still to come.
        ceiling: a transaction id above those of all events up to `offset`.
        incarnation: the run of PostgreSQL that assigns transaction ids.
        fence: place of the writer's token in the order of writers.
        newest: the last events up to `offset`, with which the window begins.
        before: mark of the event before those.
    """

    epoch: str
    offset: int
    mark: int
    lsn: int
    ceiling: int
    incarnation: int
    fence: int = 0
    newest: Sequence[Event] = ()
    before: int | None = None


class FeedPublisher(Protocol):
    """The end of the feed that capture writes to."""

    @property
    def state(self) -> FeedState:
        """Return how far the feed has come: a log that continues this history must contain it."""

    def begin(self, beginning: Beginning) -> None:
        """Continue, or start another history, after `beginning.offset`."""

    def publish(self, events: Sequence[Event]) -> None:
        """Pass on the events not published before, in order. Raise HistoryForked if a repeated one differs."""

    def logged(self, event: Event) -> None:
        """Record that the log holds everything up to the event."""

    def advance(self, lsn: int) -> None:
        """Record that every event committed below the LSN has been published."""

    def elsewhere(self) -> None:
        """Tell subscribers that another instance has taken over the stream, so that their clients reconnect there."""

    def report(self, status: Callable[[], FeedStatus]) -> None:
        """Take the status of the feed from this function from now on."""


class FeedSubscriber(Protocol):
    """The end of the feed that a gateway reads. Calls come in order and must not block."""

    def event(self, event: Event, *, more: bool = False) -> None:
        """Deliver the next event; `more` if others of the same batch follow."""

    def published(self) -> None:
        """Finish a batch of events."""

    def advanced(self, lsn: int) -> None:
        """Note that every event committed below the LSN has been delivered."""

    def restarted(self) -> None:
        """Discard snapshots of the previous run of PostgreSQL: their transaction ids are no longer valid."""

    def history_changed(self) -> None:
        """Close all clients: the feed has a gap, another epoch, or continues on another instance."""


def _starting() -> FeedStatus:
    return FeedStatus(CaptureState.STARTING, 0.0, UNKNOWN_SLOT, Triggers([], []))


class LocalFeed:
    """A feed within one process: one history, its newest events, and the subscribers.

    Capture may repeat events after a break; those up to the last one published are dropped.

    Attributes:
        window: the newest events.
        epoch: the epoch.
        offset: offset of the last event.
        mark: its mark.
        incarnation: the run of PostgreSQL that assigns transaction ids.
        fence: place of the writer's token in the order of writers.
        generation: changes with each history, also where the epoch is the same.
        lsn: every event committed below has been published.
        logged_offset: the log holds everything up to this offset, as a gateway knows it.
        status: function that returns the status.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.epoch = ""
        self.offset = 0
        self.mark = 0
        self.incarnation = 0
        self.fence = 0
        self.generation = 0
        self.lsn = 0
        self.logged_offset = 0
        self.status: Callable[[], FeedStatus] = _starting
        self._logged = (0, 0)
        self._subscribers: list[FeedSubscriber] = []
        self._recent: deque[tuple[int, set[str | None]]] = deque(maxlen=_REMEMBERED)

    @property
    def position(self) -> Position:
        """Return the position of the last event."""
        return Position(self.epoch, self.offset, self.mark)

    @property
    def state(self) -> FeedState:
        """Return how far the feed has come."""
        return FeedState(self.epoch, self.offset, *self._logged)

    def mark_of(self, offset: int) -> int | None:
        """Return the mark of the event at an offset; None if only the log knows it."""
        return self.mark if offset == self.offset else self.window.mark(offset)

    def subscribe(self, subscriber: FeedSubscriber) -> None:
        """Call the subscriber from now on."""
        self._subscribers.append(subscriber)

    def report(self, status: Callable[[], FeedStatus]) -> None:
        """Take the status from this function from now on."""
        self.status = status

    def begin(self, beginning: Beginning) -> None:
        """Continue where the feed stands if it has followed this history so far; otherwise start afresh.

        A history that another instance continued meanwhile starts afresh, too.
        """
        restarted = bool(self.incarnation) and beginning.incarnation != self.incarnation
        self.incarnation, self.fence = beginning.incarnation, beginning.fence
        if restarted:
            # PostgreSQL may assign the transaction ids of the previous run again, from the new counter on.
            kept = (each for each in self._recent if each[0] < beginning.ceiling)
            self._recent = deque(kept, maxlen=_REMEMBERED)
            for subscriber in self._subscribers:
                subscriber.restarted()
        if beginning.epoch != self.epoch or beginning.offset > self.offset:
            self.begin_afresh(beginning)

    def begin_afresh(self, beginning: Beginning) -> None:
        """Start another history, also in the same epoch: its events were replaced by others, from a copy."""
        self.incarnation, self.fence = beginning.incarnation, beginning.fence
        self.generation += 1
        followed = bool(self.epoch)
        self._recent.clear()
        self.epoch, self.offset, self.mark = beginning.epoch, beginning.offset, beginning.mark
        self.lsn = beginning.lsn
        self._logged = (beginning.offset, beginning.mark)
        self.logged_offset = beginning.offset
        newest = beginning.newest
        if newest:
            self.window.restart(first=newest[0].offset, ceiling=beginning.ceiling, before=beginning.before)
        else:
            self.window.restart(first=beginning.offset + 1, ceiling=beginning.ceiling, before=beginning.mark)
        for event in newest:
            self.window.add(event)
            self._remember(event)  # whether snapshots see them is as uncertain as for new events
        self.window.durable(beginning.offset)
        if followed:
            for subscriber in self._subscribers:
                subscriber.history_changed()

    def elsewhere(self) -> None:
        """Tell subscribers that another instance has taken over the stream."""
        for subscriber in self._subscribers:
            subscriber.history_changed()

    def publish(self, events: Sequence[Event]) -> None:
        """Pass events on, without those published before. An event on `CONTROL` ends the batch before it.

        Raises:
            HistoryForked: an event published before was another one.
        """
        try:
            for event in events:
                if event.offset <= self.offset:
                    self._compare(event)
                else:
                    if CONTROL in event.channels:
                        # A control event may close connections, which must first get the events before it.
                        self._end_batch()
                    # Moved before the subscribers are called: if one of them fails, this event is not published again.
                    self.offset = event.offset
                    self.mark = event.mark
                    self.window.add(event)
                    self._remember(event)
                    for subscriber in self._subscribers:
                        subscriber.event(event, more=event is not events[-1])
        finally:
            # Also after an error: cursors have moved past collected frames, which would otherwise never be written.
            self._end_batch()

    def _compare(self, event: Event) -> None:
        # The window holds every event that the slot can repeat, because it evicts only logged ones.
        published = self.window.at(event.offset)
        if published is not None and (published.mark, published.commit_lsn, published.commit_index) != (
            event.mark, event.commit_lsn, event.commit_index
        ):  # fmt: skip
            raise HistoryForked("the stream repeated offsets with different events; a new epoch begins")

    def logged(self, event: Event) -> None:
        """Record that the log holds everything up to the event."""
        self._logged = (event.offset, event.mark)
        self.window.durable(event.offset)

    def logged_up_to(self, offset: int) -> None:
        """Record that the log holds everything up to an offset: the window may evict that."""
        self.logged_offset = max(self.logged_offset, min(offset, self.offset))
        self.window.durable(self.logged_offset)

    def has_other(self, event: Event) -> bool:
        """Return whether another event was published at the offset of this one, as far as that is known."""
        mark = self.mark_of(event.offset) if event.offset <= self.offset else None
        return mark is not None and mark != event.mark

    def _end_batch(self) -> None:
        for subscriber in self._subscribers:
            subscriber.published()

    def _remember(self, event: Event) -> None:
        recent = self._recent
        if not recent or recent[-1][0] != event.xid:
            recent.append((event.xid, set()))
        recent[-1][1].add(event.user_id)

    def recent(self, user_id: str | None = None) -> list[int]:
        """Return the transactions of the latest events, of a user or of all, that no snapshot is known to have seen."""
        return [xid for xid, users in self._recent if user_id is None or user_id in users]

    def seen(self, snapshot: Snapshot) -> None:
        """Forget recent transactions that a snapshot sees: every later snapshot sees them, too."""
        while self._recent and snapshot.sees(self._recent[0][0]):
            self._recent.popleft()

    def advance(self, lsn: int) -> None:
        """Record that every event committed below the LSN has been published."""
        # A new run of capture begins at the slot's confirmed LSN, which is behind this one.
        if lsn > self.lsn:
            self.lsn = lsn
            for subscriber in self._subscribers:
                subscriber.advanced(lsn)

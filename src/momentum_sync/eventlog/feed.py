"""The feed: numbered events on their way from capture to whoever serves clients, within one process.

Capture may repeat itself after a break: offsets up to the last one published are dropped here. `position` is the
place in the WAL up to which everything has been published.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import CaptureError
from momentum_sync.eventlog.event import CONTROL, Event, Position
from momentum_sync.eventlog.window import Window


class Listener(Protocol):
    """Whoever follows a feed. The calls come in order and must not block."""

    def event(self, event: Event, *, more: bool = False) -> None:
        """The next event, which is the feed's last; whether `more` of those that came together follow at once."""

    def published(self) -> None:
        """Those events that came together have been handed over."""

    def advanced(self, position: int) -> None:
        """Everything that committed below `position` has been handed over."""

    def restarted(self) -> None:
        """PostgreSQL has restarted, so transaction ids in older snapshots are no longer valid."""

    def history_changed(self) -> None:
        """The feed has a gap, another epoch, or goes on elsewhere: clients must come back and be told."""


class HistoryForked(CaptureError):
    """The stream brings other events than those that were published: the database was restored from a copy."""


class FeedState(NamedTuple):
    """A feed's last event, and the last event that it knows to be in the log."""

    epoch: str
    offset: int
    logged: int
    logged_mark: int


_REMEMBERED = 1_000  # transactions; whatever is older than so many has long been visible


class Feed:
    """One history, its newest events, and who listens."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.epoch = ""
        self.offset = 0
        self.mark = 0
        self.incarnation = 0
        self.position = 0
        self._logged = (0, 0)
        self._listeners: list[Listener] = []
        self._recent: deque[tuple[int, set[str | None]]] = deque(maxlen=_REMEMBERED)

    @property
    def last_id(self) -> Position:
        """The position that the feed has reached."""
        return Position(self.epoch, self.offset, self.mark)

    @property
    def known(self) -> FeedState:
        """Return what a log that continues this history must contain."""
        return FeedState(self.epoch, self.offset, *self._logged)

    def mark_of(self, offset: int) -> int | None:
        """The mark of the event with this offset; None if only the log knows it."""
        return self.mark if offset == self.offset else self.window.mark(offset)

    def listen(self, listener: Listener) -> None:
        """From now on the listener is told of everything."""
        self._listeners.append(listener)

    def begin(
        self, *, epoch: str, offset: int, mark: int, position: int, ceiling: int, incarnation: int,
        newest: Sequence[Event] = (), before: int | None = None,
    ) -> None:  # fmt: skip
        """Capture holds the slot and will go on after `offset`, whose event has this mark.

        `position` is a place below which nothing is left to come, `ceiling` no less than any transaction id of
        events up to `offset`, `newest` the last of them, which the window begins with, `before` the mark of the one
        before those. A history that the feed has followed this far goes on where the feed stands. Another one, or one
        that was written elsewhere meanwhile, starts afresh. `incarnation` names the run of PostgreSQL.
        """
        restarted = bool(self.incarnation) and incarnation != self.incarnation
        self.incarnation = incarnation
        if restarted:
            # Transaction ids of the run before that are not below the new counter are given again.
            self._recent = deque((each for each in self._recent if each[0] < ceiling), maxlen=_REMEMBERED)
            for listener in self._listeners:
                listener.restarted()
        if epoch == self.epoch and offset <= self.offset:
            return
        followed = bool(self.epoch)
        self._recent.clear()
        self.epoch = epoch
        self.offset = offset
        self.mark = mark
        self.position = position
        self._logged = (offset, mark)
        if newest:
            self.window.restart(first=newest[0].offset, ceiling=ceiling, before=before)
        else:
            self.window.restart(first=offset + 1, ceiling=ceiling, before=mark)
        for event in newest:
            self.window.add(event)
            self._remember(event)  # whether a snapshot sees them yet is no better known than of new ones
        self.window.durable(offset)
        if followed:
            for listener in self._listeners:
                listener.history_changed()

    def elsewhere(self) -> None:
        """Another instance has taken up the stream: whoever is served here must go there."""
        for listener in self._listeners:
            listener.history_changed()

    def publish(self, events: Sequence[Event]) -> None:
        """Hands events on, one after the other, but those that have been; on `CONTROL`, when all before are written.

        Raises HistoryForked if one that has been was another.
        """
        try:
            for event in events:
                if event.offset <= self.offset:
                    self._compare(event)
                else:
                    if CONTROL in event.channels:
                        self._published()
                    self.offset = event.offset
                    self.mark = event.mark
                    self.window.add(event)
                    self._remember(event)
                    for listener in self._listeners:
                        listener.event(event, more=event is not events[-1])
        finally:
            self._published()

    def _compare(self, event: Event) -> None:
        published = self.window.at(event.offset)
        if published is not None and (published.mark, published.commit_lsn, published.commit_index) != (
            event.mark, event.commit_lsn, event.commit_index
        ):  # fmt: skip
            raise HistoryForked("the stream repeated offsets with different events; a new epoch begins")

    def logged(self, event: Event) -> None:
        """The log holds everything up to the event."""
        self._logged = (event.offset, event.mark)
        self.window.durable(event.offset)

    def _published(self) -> None:
        for listener in self._listeners:
            listener.published()

    def _remember(self, event: Event) -> None:
        recent = self._recent
        if not recent or recent[-1][0] != event.xid:
            recent.append((event.xid, set()))
        recent[-1][1].add(event.user_id)

    def recent(self, user_id: str | None = None) -> list[int]:
        """The transactions of the latest events, a user's or all, that no snapshot is known to have seen yet."""
        return [xid for xid, users in self._recent if user_id is None or user_id in users]

    def seen(self, snapshot: Snapshot) -> None:
        """A snapshot was taken: what it sees, later ones see, too."""
        while self._recent and snapshot.sees(self._recent[0][0]):
            self._recent.popleft()

    def advance(self, position: int) -> None:
        """Everything that committed below `position` has been published."""
        if position > self.position:
            self.position = position
            for listener in self._listeners:
                listener.advanced(position)

"""The window: the newest events in memory, bounded by bytes.

It returns the events after an offset, and the first event that a snapshot does not see. Every entry has the highest
transaction id up to it, so the search for the latter, from the newest event backwards, ends where all older events were
visible to the snapshot anyway.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice

from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event, is_row_channel
from momentum_sync.eventlog.page import Page
from momentum_sync.eventlog.row_index import Found, Held, Route, RowIndex


class Window:
    """Events in order of their offsets.

    Args:
        limit: bytes; events that the log does not have yet stay beyond it.
        rows: the index of changes of rows.
    """

    def __init__(self, limit: int, rows: RowIndex | None = None) -> None:
        self._limit = limit
        self._events: deque[Held] = deque()
        self._by_key: dict[str, deque[Held]] = {}
        self._rows = rows or RowIndex()
        self._size = 0
        self._ceiling = 0
        self._durable = 0
        self._evicted_ceiling = 0
        self._first = 1
        self._before: int | None = 0

    def __len__(self) -> int:
        return len(self._events)

    @property
    def size(self) -> int:
        """Return the bytes held."""
        return self._size

    @property
    def first(self) -> int:
        """Return the offset of the oldest event that the window would hold; earlier ones are in the log only."""
        return self._first

    @property
    def last(self) -> int:
        """Return the offset of the newest event, held or not."""
        return self._events[-1][0].offset if self._events else self._first - 1

    def restart(self, *, first: int, ceiling: int, before: int | None = None) -> None:
        """Empty the window.

        Args:
            first: offset of the next event.
            ceiling: a transaction id not below those of earlier events.
            before: mark of the event before `first`, if it is known.
        """
        self._before = before
        self._events.clear()
        self._by_key.clear()
        self._rows.clear()
        self._size = 0
        self._ceiling = self._evicted_ceiling = ceiling
        self._first = first
        self._durable = first - 1

    def add(self, event: Event) -> None:
        """Add the next event."""
        self._ceiling = max(self._ceiling, event.xid)
        entry = (event, self._ceiling)
        self._events.append(entry)
        for key in event.keys:
            held = self._by_key.get(key)
            if held is None:
                held = self._by_key[key] = deque()
            held.append(entry)
            if is_row_channel(key):
                self._rows.add(key, entry)
        self._size += event.size
        if self._size > self._limit:
            self._evict()

    def durable(self, offset: int) -> None:
        """Record that the log holds everything up to `offset`."""
        self._durable = max(self._durable, offset)
        self._evict()

    def at(self, offset: int) -> Event | None:
        """Return the event at this offset; None if it is not held."""
        index = offset - self._first
        return self._events[index][0] if 0 <= index < len(self._events) else None

    def mark(self, offset: int) -> int | None:
        """Return the mark of an event, or of the one before the first; None if it is unknown."""
        event = self.at(offset)
        if event is not None:
            return event.mark
        return self._before if offset == self._first - 1 else None

    def holds_after(self, offset: int) -> bool:
        """Return whether every event after `offset` is held."""
        return offset + 1 >= self._first

    def after(self, offset: int, keys: Sequence[str | Route], *, most: int) -> Page:
        """Return held events on any of the keys or routes after `offset`, in order, each once, up to `most` bytes.

        A route may find further changes of its table, where its column is not indexed.
        """
        found: list[Event] = []
        size = 0
        for event in self._following(offset, keys):
            # Checked before an event is added, so that every page has one and the reader makes progress.
            if size > most:
                return Page(found, found[-1].offset)
            found.append(event)
            size += len(event.body)
        return Page(found, self.last)

    def count_after(self, offset: int, keys: Sequence[str], snapshot: Snapshot | None) -> int:
        """Count the events after `offset` on any of the keys, without those that the snapshot sees."""
        return sum(snapshot is None or not snapshot.sees(event.xid) for event in self._following(offset, keys))

    def _following(self, offset: int, keys: Sequence[str | Route]) -> Iterator[Event]:
        last = offset
        lists = [] if offset == self.last else list(self._lists(offset, keys))
        for event in lists[0] if len(lists) == 1 else merge(*lists, key=_number):
            if event.offset > last:
                last = event.offset
                yield event

    def _lists(self, offset: int, keys: Sequence[str | Route]) -> Iterator[Iterator[Event]]:
        """Yield iterators over the events on any of the keys after an offset, and perhaps others of their tables."""
        looked_up: list[tuple[deque[Held], Found]] = []
        for key in keys:
            held = self._by_key.get(key if isinstance(key, str) else key.channel)
            if held is None:
                continue
            if isinstance(key, str):
                yield _held_after(offset, held)
            else:
                looked_up.append((held, self._rows.find(key, held)))
        # A look-up adds to lists that others have found, too, so no iterator over them begins before the last one.
        for held, found in looked_up:
            for each in found.lists:
                yield _held_after(offset, each)
            missing = len(held) - found.covered
            start = bisect_right(held, offset, key=_offset) if missing else 0
            if start < missing:
                yield (event for event, _ in islice(held, start, missing))

    def reaches(self, snapshot: Snapshot) -> bool:
        """Return whether every event that the snapshot does not see is still held."""
        return self._evicted_ceiling < snapshot.xmin

    def first_unseen(self, snapshot: Snapshot, keys: Iterable[str]) -> int | None:
        """Return the offset of the oldest held event on any of the keys that the snapshot does not see."""
        found: int | None = None
        for key in keys:
            for event, ceiling in reversed(self._by_key.get(key, ())):
                if ceiling < snapshot.xmin:
                    break
                if not snapshot.sees(event.xid) and (found is None or event.offset < found):
                    found = event.offset
        return found

    def _evict(self) -> None:
        while self._size > self._limit and self._events and self._events[0][0].offset <= self._durable:
            event, ceiling = self._events.popleft()
            self._size -= event.size
            # The event's own xid is not enough: transactions do not commit in the order of their ids.
            self._evicted_ceiling = ceiling
            self._before = event.mark
            self._first = event.offset + 1
            for key in event.keys:
                held = self._by_key[key]
                held.popleft()
                if not held:
                    del self._by_key[key]
                if is_row_channel(key):
                    self._rows.evict(key, event, len(held))


def _held_after(offset: int, held: Sequence[Held]) -> Iterator[Event]:
    start = bisect_right(held, offset, key=_offset)
    return (event for event, _ in islice(held, start, None))


def _offset(entry: Held) -> int:
    return entry[0].offset


def _number(event: Event) -> int:
    return event.offset

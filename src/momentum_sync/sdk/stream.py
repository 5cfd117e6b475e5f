"""What has come and the program has not taken yet, and who waits for it."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

from momentum_sync.errors import Ended, Offline
from momentum_sync.sdk.protocol import Event, Output, Resync

_MOST_WAITING = 10_000


class Stream:
    """Outputs in order. `settle` is called with each once the program has had it.

    Once `finished`, no more will come: because of `end`, or because the program wanted it so.
    """

    def __init__(self, settle: Callable[[Output], None]) -> None:
        self._settle = settle
        self._waiting: deque[Output] = deque()
        self._iterator: weakref.ref[Events] | None = None
        self._changed = asyncio.Condition()
        self.finished = False
        self.end: Ended | None = None

    @property
    def _iterating(self) -> bool:
        """Whether there is an iterator that the program still holds."""
        return self._iterator is not None and self._iterator() is not None

    @property
    def empty(self) -> bool:
        """Whether the program has had everything."""
        return not self._waiting

    @property
    def full(self) -> bool:
        """Whether no more should come before the program takes some."""
        return self._iterating and len(self._waiting) >= _MOST_WAITING

    @property
    def filled(self) -> bool:
        """Whether the program still has half of it to take."""
        return self._iterating and len(self._waiting) > _MOST_WAITING // 2

    def add(self, output: Output) -> None:
        """It came. Where nobody iterated, the program has had it; where nobody does any longer, it waits a while."""
        if not self._iterating and not self._waiting:
            self._settle(output)
            return
        self._waiting.append(output)
        if not self._iterating and len(self._waiting) > _MOST_WAITING:
            self._settle(self._waiting.popleft())

    def ack(self, output: Output) -> None:
        """The program has had everything up to this."""
        if output in self._waiting:
            last = None
            while last is not output:
                last = self._waiting.popleft()
                self._settle(last)

    def forget(self) -> None:
        """What waits is another user's."""
        self._waiting.clear()

    def begin(self) -> Events:
        """What comes from now on, and what waits. It takes over from another iterator, if there is one."""
        events = Events(self)
        self._iterator = weakref.ref(events)
        return events

    def holds(self, events: Events) -> bool:
        """Whether this is the iterator."""
        return self._iterator is not None and self._iterator() is events

    def release(self, events: Events) -> None:
        """The program has left its loop."""
        if self.holds(events):
            self._iterator = None

    async def next(self, events: Events, last: Output | None) -> Event | Resync | None:
        """What comes after `last`, which the program has had; None at the end. Raises Ended."""
        if last is not None and self._waiting and self._waiting[0] is last:
            self._settle(self._waiting.popleft())
        while True:
            await self.until(lambda: bool(self._waiting) or not self.holds(events))
            if not self.holds(events):
                return None
            if not self._waiting:
                if self.end is not None:
                    raise self.end
                return None  # the program has closed the client
            output = self._waiting[0]
            if isinstance(output, Event | Resync):
                return output
            self._settle(self._waiting.popleft())

    async def tell(self) -> None:
        """Something may have changed for those who wait."""
        async with self._changed:
            self._changed.notify_all()

    async def finish(self, why: Ended | None) -> None:
        """No more will come: the reason, or None where the program wanted it so."""
        self.finished = True
        self.end = self.end or why
        await self.tell()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Waits until something is so, or no more will come."""
        async with self._changed:
            await self._changed.wait_for(lambda: reached() or self.finished)

    async def surely(self, reached: Callable[[], bool]) -> None:
        """Waits until something is so. Raises Ended, or Offline where the client was closed, if it will not be."""
        await self.until(reached)
        if not reached():
            raise self.end or Offline("The client was closed.")


class Events(AsyncIterator[Event | Resync]):
    """The events of a client, in order. Ends where another iterator takes over, or the client is closed."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._last: Event | Resync | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | Resync:
        last, self._last = self._last, None
        self._last = await self._stream.next(self, last)
        if self._last is None:
            raise StopAsyncIteration
        return self._last

    async def aclose(self) -> None:
        """Leaves the rest to the next iterator."""
        self._stream.release(self)
        await self._stream.tell()

"""Events that have arrived and that the program has not read yet."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

from momentum_sync.errors import Ended, Offline
from momentum_sync.sdk.protocol import Event, Output, Resync


class Stream:
    """Events and resyncs in order. `settle` is called with each once the program has processed it.

    An iterator that has `most` of them to read stops the reading from the socket; without one the oldest go.

    Once `finished`, no more will come: because of `end`, or because the program closed the client.
    """

    def __init__(self, settle: Callable[[Output], None], *, most: int = 10_000) -> None:
        self._settle = settle
        self._most = most
        self._waiting: deque[Output] = deque()
        # A weak reference: a program that breaks out of its loop only drops the iterator, which must not stop the
        # reading.
        self._iterator: weakref.ref[Events] | None = None
        self._changed = asyncio.Condition()
        self.finished = False
        self.end: Ended | None = None

    @property
    def _iterating(self) -> bool:
        """Return whether there is an iterator that the program still references."""
        return self._iterator is not None and self._iterator() is not None

    @property
    def empty(self) -> bool:
        """Return whether the program has processed everything."""
        return not self._waiting

    @property
    def full(self) -> bool:
        """Return whether reading from the socket should pause until the program catches up."""
        return self._iterating and len(self._waiting) >= self._most

    @property
    def filled(self) -> bool:
        """Return whether the program still has half of the limit to read."""
        return self._iterating and len(self._waiting) > self._most // 2

    def add(self, output: Output) -> None:
        """Add an event. Without any iterator so far it counts as processed; if there was one, it waits for a while."""
        if not self._iterating and not self._waiting:
            self._settle(output)
            return
        self._waiting.append(output)
        if not self._iterating and len(self._waiting) > self._most:
            self._settle(self._waiting.popleft())

    def ack(self, output: Output) -> None:
        """Record that the program has processed everything up to this."""
        # By identity: an equal copy is no entry, and would empty the queue.
        if any(output is each for each in self._waiting):
            last = None
            while last is not output:
                last = self._waiting.popleft()
                self._settle(last)

    def forget(self) -> None:
        """Drop everything that waits: it is another user's."""
        self._waiting.clear()

    def begin(self) -> Events:
        """Start an iterator of everything that waits or comes; it replaces an earlier one."""
        events = Events(self)
        self._iterator = weakref.ref(events)
        return events

    def holds(self, events: Events) -> bool:
        """Return whether this is the current iterator."""
        return self._iterator is not None and self._iterator() is events

    def release(self, events: Events) -> None:
        """Note that the program has left its loop."""
        if self.holds(events):
            self._iterator = None

    async def next(self, events: Events, last: Output | None) -> Event | Resync | None:
        """Return the entries after `last`, which the program has processed; None at the end. Raise Ended."""
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
            # It stays in the queue until the next request, so a program that fails while processing it gets it again.
            output = self._waiting[0]
            if isinstance(output, Event | Resync):
                return output
            self._settle(self._waiting.popleft())

    async def tell(self) -> None:
        """Wake the callers that wait for a condition."""
        async with self._changed:
            self._changed.notify_all()

    async def finish(self, why: Ended | None) -> None:
        """End the stream with an error, or with None if the program closed it."""
        self.finished = True
        self.end = self.end or why
        await self.tell()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until a condition holds, or the stream ends."""
        async with self._changed:
            await self._changed.wait_for(lambda: reached() or self.finished)

    async def surely(self, reached: Callable[[], bool]) -> None:
        """Wait until a condition holds. Raise Ended, or Offline if the client was closed, when it cannot."""
        await self.until(reached)
        if not reached():
            raise self.end or Offline("The client was closed.")


class Events(AsyncIterator[Event | Resync]):
    """The events of a client, in order. It ends when another iterator replaces it, or the client is closed."""

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
        """Leave the rest to the next iterator."""
        self._stream.release(self)
        await self._stream.tell()

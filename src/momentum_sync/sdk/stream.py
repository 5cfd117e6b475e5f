"""What has come and the program has not taken yet, and who waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from momentum_sync.errors import Ended, Offline
from momentum_sync.sdk.following import Event, Output, Resync

_MOST_WAITING = 10_000


class Stream:
    """Outputs in order. `settle` is called with each once the program has had it.

    Once `finished`, no more will come: because of `end`, or because the program wanted it so.
    """

    def __init__(self, settle: Callable[[Output], None]) -> None:
        self._settle = settle
        self._waiting: deque[Output] = deque()
        self._iterating = False
        self._changed = asyncio.Condition()
        self.finished = False
        self.end: Ended | None = None

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

    def had(self, output: Output) -> None:
        """The program has had everything up to this."""
        if output in self._waiting:
            last = None
            while last is not output:
                last = self._waiting.popleft()
                self._settle(last)

    def forget(self) -> None:
        """What waits is another user's."""
        self._waiting.clear()

    def begin(self) -> AsyncIterator[Event | Resync]:
        """What comes from now on. RuntimeError while another iterates."""
        if self._iterating:
            raise RuntimeError("The events are being iterated already.")
        self._iterating = True
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Event | Resync]:
        try:
            while True:
                await self.until(lambda: bool(self._waiting))
                if not self._waiting:
                    if self.end is not None:
                        raise self.end
                    return  # the program has closed the client
                output = self._waiting[0]
                if isinstance(output, Event | Resync):
                    yield output
                if self._waiting and self._waiting[0] is output:  # else they were another user's
                    self._settle(self._waiting.popleft())
        finally:
            self._iterating = False

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

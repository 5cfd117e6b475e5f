"""When full garbage collections run: every hour, and when closed connections are not freed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from momentum_sync.lifecycle import collect_garbage
from momentum_sync.limits import LifecycleLimits
from momentum_sync.tasks import end

LIMITS = LifecycleLimits(garbage_look_s=0.0, garbage_connections=20)
HOUR = LIMITS.garbage_s


class World:
    """Closed connections, a clock, and the collections."""

    def __init__(self) -> None:
        self.unfreed = 0
        self.found = 0  # by a collection
        self.now = 0.0
        self.looks = 0
        self.collections = 0

    def look(self) -> int:
        self.looks += 1
        return self.unfreed

    def collect(self) -> None:
        self.collections += 1
        self.unfreed -= self.found
        self.found = 0

    async def after(self, change: Callable[[], None]) -> int:
        """Make a change. Return the collections that it causes."""
        change()
        before, looks = self.collections, self.looks
        while self.looks < looks + 5:
            await asyncio.sleep(0)
        return self.collections - before


async def test_they_run_every_hour_and_when_closed_connections_are_not_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    def pass_time(seconds: float) -> None:
        world.now += seconds

    def close(count: int, *, found: int) -> None:
        world.unfreed, world.found = world.unfreed + count, found

    monkeypatch.setattr(gc, "collect", world.collect)
    task = asyncio.ensure_future(collect_garbage(world.look, LIMITS, lambda: world.now))
    assert await world.after(lambda: None) == 0
    assert await world.after(lambda: pass_time(HOUR - 1)) == 0
    assert await world.after(lambda: pass_time(1)) == 1
    assert await world.after(lambda: pass_time(HOUR / 2)) == 0
    assert await world.after(lambda: close(19, found=19)) == 0
    assert await world.after(lambda: close(1, found=20)) == 1
    assert await world.after(lambda: pass_time(HOUR - 1)) == 0, "an hour after the last one"
    assert await world.after(lambda: close(30, found=10)) == 1
    assert await world.after(lambda: close(0, found=0)) == 0, "none for what a collection has not freed"
    assert await world.after(lambda: close(19, found=0)) == 0
    assert await world.after(lambda: close(1, found=0)) == 1
    await end(task)

"""The cache: one fetch for all callers, and no stale value kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from momentum_sync.sdk.cache import Cache
from momentum_sync.sdk.store import Entry


class Source:
    """A fetch function: each call waits to be released, and returns the next number."""

    def __init__(self) -> None:
        self.fetches = 0
        self.gates: list[asyncio.Future[None]] = []

    async def fetch(self) -> int:
        self.fetches += 1
        number = self.fetches
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        await gate
        return number

    async def began(self, count: int) -> None:
        async with asyncio.timeout(1):
            while self.fetches < count:
                await asyncio.sleep(0)


@pytest.fixture
def kept() -> list[None]:
    return []


@pytest.fixture
def cache(kept: list[None]) -> Cache:
    return Cache(lambda: 7.0, lambda: kept.append(None))


async def test_one_fetch_for_all_who_ask(cache: Cache) -> None:
    source = Source()
    asked = [asyncio.ensure_future(cache.get("k", source.fetch)) for _ in range(5)]
    await source.began(1)
    asked[0].cancel()  # a cancelled caller does not affect the others
    source.gates[0].set_result(None)
    assert await asyncio.gather(*asked[1:]) == [1, 1, 1, 1]
    assert (source.fetches, cache.peek("k")) == (1, Entry(1, 7.0))


async def test_a_fetch_that_fails_fails_for_all_and_nothing_is_kept(cache: Cache) -> None:
    source = Source()
    asked = [asyncio.ensure_future(cache.get("k", source.fetch)) for _ in range(2)]
    await source.began(1)
    source.gates[0].set_exception(OSError("no network"))
    assert [type(error) for error in await asyncio.gather(*asked, return_exceptions=True)] == [OSError, OSError]
    assert cache.peek("k") is None
    again = asyncio.ensure_future(cache.get("k", source.fetch))
    await source.began(2)
    source.gates[1].set_result(None)
    assert await again == 2


@pytest.mark.parametrize("drop", [lambda cache: cache.drop(["k"]), lambda cache: cache.clear()], ids=["drop", "clear"])
async def test_what_is_invalidated_while_it_is_fetched_is_fetched_again(
    cache: Cache, drop: Callable[[Cache], object]
) -> None:
    source = Source()
    first = asyncio.ensure_future(cache.get("k", source.fetch))
    await source.began(1)
    drop(cache)
    source.gates[0].set_result(None)
    await source.began(2)
    assert cache.peek("k") is None
    source.gates[1].set_result(None)
    assert await first == 2
    assert cache.peek("k") == Entry(2, 7.0)


async def test_whoever_comes_after_an_invalidation_does_not_share_the_fetch_from_before(cache: Cache) -> None:
    source = Source()
    before = asyncio.ensure_future(cache.get("k", source.fetch))
    await source.began(1)
    cache.drop(["k"])
    after = asyncio.ensure_future(cache.get("k", source.fetch))
    await source.began(2)
    source.gates[0].set_result(None)
    source.gates[1].set_result(None)
    assert await after == 2
    assert await before == 2


async def test_what_is_invalidated_all_the_time_is_given_and_not_kept(cache: Cache) -> None:
    source = Source()
    asked = asyncio.ensure_future(cache.get("k", source.fetch))
    for turn in range(3):
        await source.began(turn + 1)
        cache.drop(["k"])
        source.gates[turn].set_result(None)
    assert await asked == 3
    assert cache.peek("k") is None


async def test_only_what_is_persistent_is_saved(cache: Cache, kept: list[None]) -> None:
    source = Source()
    for key, persistent in (("a", True), ("b", False)):
        asked = asyncio.ensure_future(cache.get(key, source.fetch, persistent=persistent))
        await source.began(len(source.gates) + 1)
        source.gates[-1].set_result(None)
        await asked
    assert (cache.saved(), len(kept)) == ({"a": Entry(1, 7.0)}, 1)
    assert cache.drop(["b"]) is False
    assert cache.drop(["a"]) is True
    assert cache.saved() == {}
    cache.restore({"c": Entry(3, 1.0)})
    assert await cache.get("c", source.fetch) == 3
    assert cache.saved() == {"c": Entry(3, 1.0)}


async def test_a_listener_that_raises_is_told_of_and_changes_nothing(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[frozenset[str]] = []

    def bad(_: frozenset[str]) -> None:
        raise ValueError("bad")

    cache.listen(bad)
    stop = cache.listen(heard.append)
    cache.drop(["k"])
    stop()
    cache.drop(["l"])
    assert heard == [frozenset({"k"})]
    assert "a listener of the cache raised" in caplog.text

"""A cache of values that the program fetches, dropped when the server invalidates them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

from momentum_sync.errors import FetchFailed
from momentum_sync.sdk.callbacks import Cancelled, carefully, done_by
from momentum_sync.sdk.store import Entry

_LOG = logging.getLogger("momentum_sync.sdk")
# A key that is invalidated during every fetch must still return a value.
_MOST_FETCHES = 3


class Cache:
    """Values by key. Concurrent requests for a key share one fetch.

    Values stay available while the client is offline. On reconnect, keys that were invalidated meanwhile are dropped
    before anything else happens; if they cannot be known, all keys are dropped.
    """

    def __init__(self, clock: Callable[[], float], kept: Callable[[], None]) -> None:
        self._clock = clock
        self._kept = kept
        self._entries: dict[str, Entry] = {}
        self._persistent: set[str] = set()
        self._fetching: dict[str, asyncio.Task[Any]] = {}
        self._generation = 0
        self._listeners: list[Callable[[frozenset[str]], None]] = []

    async def get(
        self, key: str, fetch: Callable[[], Awaitable[Any]], *, persistent: bool = False, within: float = 60.0
    ) -> Any:
        """Return the value of a key, fetching it if it is missing.

        Args:
            key: the cache key, as in `cache_invalidation` messages.
            fetch: function without arguments, plain or async, that returns the value.
            persistent: keep the value in the client's store across restarts. It must survive JSON unchanged: None,
                bool, int, finite float, str, list, and dict with str keys.
            within: deadline of the fetch in seconds.

        Raises:
            FetchFailed: the fetch exceeded the deadline or was cancelled.
            TypeError: a persistent value does not survive JSON.
            Exception: `fetch` raised it; nothing is cached.

        Example:
            profile = await client.cache.get("momentum:current:" + user_id, load_profile, persistent=True)
        """
        entry = self._entries.get(key)
        if entry is not None:
            return entry.value
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = asyncio.ensure_future(self._fetch(key, fetch, persistent, within))
            task.add_done_callback(_read)
        return await asyncio.shield(task)

    def peek(self, key: str) -> Entry | None:
        """Return the cached value and the time of its fetch; None if there is none."""
        return self._entries.get(key)

    def listen(self, listener: Callable[[frozenset[str]], None]) -> Callable[[], None]:
        """Call a listener with the keys that were just dropped. Return a function that removes the listener."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def drop(self, keys: Iterable[str]) -> bool:
        """Drop keys. Return whether one of them was persistent."""
        gone = set(keys)
        for key in gone:
            self._entries.pop(key, None)
            self._fetching.pop(key, None)  # its result is not cached
        persistent = bool(self._persistent & gone)
        self._persistent -= gone
        if persistent:
            self._kept()
        for listener in list(self._listeners):
            carefully(partial(listener, frozenset(gone)), lambda: _LOG.exception("a listener of the cache raised"))
        return persistent

    def clear(self) -> bool:
        """Drop all keys. Return whether one of them was persistent."""
        return self.drop([*self._entries, *self._fetching])

    def forget(self) -> None:
        """Drop all keys for another user: running fetches are neither cached nor repeated."""
        self._generation += 1
        self.clear()

    def restore(self, entries: Mapping[str, Entry]) -> None:
        """Add the entries of a store, where there is nothing newer."""
        kept = {key: entry for key, entry in entries.items() if key not in self._entries}  # the cached value is newer
        self._entries.update(kept)
        self._persistent |= kept.keys()

    def saved(self) -> dict[str, Entry]:
        """Return the entries to store."""
        return {key: self._entries[key] for key in self._persistent if key in self._entries}

    async def _fetch(self, key: str, fetch: Callable[[], Awaitable[Any]], persistent: bool, within: float) -> Any:
        task, generation = asyncio.current_task(), self._generation
        try:
            for _ in range(_MOST_FETCHES):
                at = self._clock()
                try:
                    value = await done_by(fetch, within)
                except (Cancelled, TimeoutError) as error:
                    raise FetchFailed(f"The fetch of {key} failed: {error}.") from error
                if persistent and not _is_json(value):  # raise to this caller, not later when everything is saved
                    raise TypeError(f"the persistent value for {key} does not survive a JSON round trip")
                if self._fetching.get(key) is task:
                    self._entries[key] = Entry(value, at)
                    if persistent:
                        self._persistent.add(key)
                        self._kept()
                    return value
                if generation != self._generation:
                    return value
                # The key was invalidated during the fetch, so the value may be stale.
                if key in self._entries:
                    return self._entries[key].value
                if key in self._fetching:  # by a caller that came after the invalidation
                    return await asyncio.shield(self._fetching[key])
                assert task is not None
                self._fetching[key] = task
            return value
        finally:
            if self._fetching.get(key) is task:
                del self._fetching[key]


def _is_json(value: Any) -> bool:
    """Return whether a value survives JSON unchanged: NaN, tuples, dates and keys other than str do not."""
    if isinstance(value, dict):
        return all(type(key) is str and _is_json(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def _read(task: asyncio.Task[Any]) -> None:
    """Mark an exception as retrieved: the callers that were waiting for it have received it."""
    if not task.cancelled():
        task.exception()

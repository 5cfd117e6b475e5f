"""What a program has fetched, until the server says that it is no longer true."""

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
_MOST_FETCHES = 3


class Cache:
    """Values by key. Whoever asks for a key while it is being fetched shares the fetch.

    What is there stays good while the client is offline, for want of better; when it is back, whatever was invalidated
    meanwhile is dropped before anything else happens, and everything where that cannot be known.
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
        """The value of a key, fetched if it is not there. What `fetch` raises is raised, and nothing is kept.

        FetchFailed if it does not come `within` so many seconds, or was cancelled. A `persistent` value outlives the
        program, in the client's store, and must come back from JSON as it was (None, bool, int, finite float, str,
        list, dict with keys of str): TypeError if it does not.
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
        """What is there, and when it was fetched; None if nothing is."""
        return self._entries.get(key)

    def listen(self, listener: Callable[[frozenset[str]], None]) -> Callable[[], None]:
        """Calls with the keys that have just been dropped. Returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def drop(self, keys: Iterable[str]) -> bool:
        """Lets go of keys; whether one of them was persistent."""
        gone = set(keys)
        for key in gone:
            self._entries.pop(key, None)
            self._fetching.pop(key, None)  # what it brings is not kept
        persistent = bool(self._persistent & gone)
        self._persistent -= gone
        if persistent:
            self._kept()
        for listener in list(self._listeners):
            carefully(partial(listener, frozenset(gone)), lambda: _LOG.exception("a listener of the cache raised"))
        return persistent

    def clear(self) -> bool:
        """Lets go of everything; whether any of it was persistent."""
        return self.drop([*self._entries, *self._fetching])

    def forget(self) -> None:
        """As `clear`, because it is another user's now: what is being fetched is neither kept nor fetched again."""
        self._generation += 1
        self.clear()

    def restore(self, entries: Mapping[str, Entry]) -> None:
        """What a store had kept."""
        kept = {key: entry for key, entry in entries.items() if key not in self._entries}  # what is there is newer
        self._entries.update(kept)
        self._persistent |= kept.keys()

    def saved(self) -> dict[str, Entry]:
        """What a store is to keep."""
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
                if persistent and not _is_json(value):  # rather now, to whoever asks, than when all of it is saved
                    raise TypeError(f"what was fetched for {key} is not what comes back from JSON, and cannot be kept")
                if self._fetching.get(key) is task:
                    self._entries[key] = Entry(value, at)
                    if persistent:
                        self._persistent.add(key)
                        self._kept()
                    return value
                if generation != self._generation:
                    return value
                # It was invalidated meanwhile, and may be from before.
                if key in self._entries:
                    return self._entries[key].value
                if key in self._fetching:  # by whoever came after that
                    return await asyncio.shield(self._fetching[key])
                assert task is not None
                self._fetching[key] = task
            return value
        finally:
            if self._fetching.get(key) is task:
                del self._fetching[key]


def _is_json(value: Any) -> bool:
    """Whether it comes back from JSON as it was: NaN, tuples, dates and keys that are no texts do not."""
    if isinstance(value, dict):
        return all(type(key) is str and _is_json(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def _read(task: asyncio.Task[Any]) -> None:
    """An exception that nobody waits for any longer was told to those who did."""
    if not task.cancelled():
        task.exception()

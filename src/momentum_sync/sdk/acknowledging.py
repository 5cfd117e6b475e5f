"""Acknowledgements of cache keys that were dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice

import msgspec

from momentum_sync.sdk.connection import Connection

_AFTER_S = 0.1  # keys of the next moment share a message: servers accept 20 messages per second
# The protocol's limit for `cache_keys`.
_KEYS_A_MESSAGE = 500
# The server ends a connection that sends a message of more than 64 KiB.
_BYTES_A_MESSAGE = 60 * 1024


class Acknowledging:
    """Dropped keys, until their acknowledgement is sent."""

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def add(self, keys: Sequence[str]) -> None:
        """Queue keys for acknowledgement."""
        self._keys.update(dict.fromkeys(keys))

    async def send(self, connection: Callable[[], Connection | None]) -> None:
        """Send one message of acknowledgements shortly, on the connection that is open then."""
        await asyncio.sleep(_AFTER_S)
        keys = self._some()
        # The server forgets with the connection which keys it expects, so a lost acknowledgement is not repeated.
        for key in keys:
            del self._keys[key]
        open_one = connection()
        if open_one is not None and keys:
            await open_one.send({"type": "cache_invalidation_ack", "cache_keys": keys})

    def _some(self) -> list[str]:
        """Return the keys of the next message."""
        some: list[str] = []
        size = 0
        for key in islice(self._keys, _KEYS_A_MESSAGE):
            size += len(msgspec.json.encode(key)) + 1
            if some and size > _BYTES_A_MESSAGE:
                break
            some.append(key)
        return some

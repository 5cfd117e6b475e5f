"""Cache keys that are gone here, and that the server is to hear of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from momentum_sync.sdk.connection import Connection

_AFTER_S = 0.1  # together with what goes in the next moment: servers take 20 messages a second
_KEYS_A_MESSAGE = 500


class Acknowledging:
    """Keys until they were sent."""

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def add(self, keys: Sequence[str]) -> None:
        """These are gone."""
        self._keys.update(dict.fromkeys(keys))

    async def send(self, connection: Callable[[], Connection | None]) -> None:
        """Tells the server of some of them, on the connection that there is in a moment."""
        await asyncio.sleep(_AFTER_S)
        keys = list(self._keys)[:_KEYS_A_MESSAGE]
        for key in keys:
            del self._keys[key]
        open_one = connection()
        if open_one is not None and keys:
            await open_one.send({"type": "cache_invalidation_ack", "cache_keys": keys})

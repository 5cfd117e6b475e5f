"""The order in which the log and the slot hear of things, at a moment that no server can be brought to on purpose.

The stream and the log are stand-ins that note what they are told; the rest is real.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import Any, cast

import pytest

from momentum_sync.capture.numbering import Numbering
from momentum_sync.capture.pulse import Pulse
from momentum_sync.capture.reader import _Run
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import Feed
from momentum_sync.eventlog.samples import Samples
from momentum_sync.eventlog.table import SlotFacts
from momentum_sync.eventlog.window import Window


class Told:
    """Stands in for the stream and for the log."""

    facts = SlotFacts("s", "1", 1, 100)

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    async def append(self, events: Sequence[Event], *, confirmed: int) -> None:
        self.told.append(("append", confirmed))

    async def confirm(self, confirmed: int) -> None:
        self.told.append(("confirm", confirmed))

    def send(self, payload: bytes) -> None:
        self.told.append(("slot", struct.unpack("!cQQQqB", payload)[2]))

    def resume(self) -> None:
        """Reading was never paused."""


def wal(payload: bytes) -> bytes:
    return b"w" + bytes(24) + payload


def transaction(run: _Run, lsn: int, end: int) -> None:
    content = json.dumps({"channels": ["c"], "event": {}}).encode()
    run.take(wal(b"B" + struct.pack("!QqI", lsn, 0, 7)))
    run.take(wal(b"M" + struct.pack("!BQ", 1, lsn) + b"momentum_sync\0" + struct.pack("!I", len(content)) + content))
    run.take(wal(b"C" + struct.pack("!BQQq", 0, lsn, end, 0)))


async def test_an_event_that_comes_with_the_idle_timeout_is_logged_before_anything_is_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Told()
    feed = Feed(Window(1000))
    feed.begin(epoch="abcdef01", number=0, position=100, ceiling=1)
    numbering = Numbering(number=0, place=(0, 0), near_xid=1)
    run = _Run(cast(Any, told), cast(Any, told), feed, Pulse("p"), numbering, Samples(0.0, lambda: 0.0))
    timeout = asyncio.timeout

    def expires_as_an_event_comes(_: float) -> asyncio.Timeout:
        monkeypatch.setattr(asyncio, "timeout", timeout)
        asyncio.get_running_loop().call_soon(transaction, run, 200, 210)
        return timeout(0)

    monkeypatch.setattr(asyncio, "timeout", expires_as_an_event_comes)
    appending = asyncio.ensure_future(run.append())
    async with timeout(10):
        while not told.told:
            await asyncio.sleep(0)
    appending.cancel()
    assert told.told[:2] == [("append", 210), ("slot", 210)]

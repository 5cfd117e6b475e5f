"""The payloads taken from the stream in one turn, and at its end.

The connection is a stand-in with libpq's answers; the rest is real.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, cast

import pytest

from momentum_sync.capture.slot import SlotFacts, Stream
from momentum_sync.errors import CaptureError
from momentum_sync.limits import CaptureLimits


class Libpq:
    """Stands in for a connection that has these payloads buffered, and then returns 0, or that the stream ended."""

    socket = -1
    error_message = b"gone"

    def __init__(self, payloads: Iterable[bytes], *, end: int = 0) -> None:
        self._held = list(payloads)
        self._end = end

    @property
    def pgconn(self) -> Libpq:
        return self

    def get_copy_data(self, _: int) -> tuple[int, bytes]:
        if self._held:
            data = self._held.pop(0)
            return len(data), data
        return self._end, b""

    def get_result(self) -> None:
        return None


async def taken(
    monkeypatch: pytest.MonkeyPatch, held: Libpq, *, turns: int = 50, limits: CaptureLimits | None = None
) -> tuple[Stream, list[list[bytes]]]:
    """Return the payloads taken in each of the next turns."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "add_reader", lambda *_: None)
    monkeypatch.setattr(loop, "remove_reader", lambda *_: None)
    stream = Stream(cast(Any, held), SlotFacts("s", "1", 1, 100), limits or CaptureLimits())
    found: list[list[bytes]] = []

    def take(payloads: Sequence[bytes | memoryview]) -> None:
        found.append([bytes(payload) for payload in payloads])
        if b"pause" in found[-1]:
            stream.pause()

    running = asyncio.ensure_future(stream.run(take))
    for _ in range(turns):
        await asyncio.sleep(0)
    if running.done():
        with pytest.raises(CaptureError):
            await running
    running.cancel()
    await asyncio.wait([running])
    return stream, found


async def test_what_is_there_is_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = await taken(monkeypatch, Libpq([b"a", b"b", b"c"]))
    assert found == [[b"a", b"b", b"c"]]


async def test_a_turn_is_bounded_by_payloads_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    few = CaptureLimits(frames_per_turn=4, bytes_per_turn=10)
    _, found = await taken(monkeypatch, Libpq([*[b"x"] * 5, b"y" * 10, b"z"]), limits=few)
    assert found == [[b"x"] * 4, [b"x", b"y" * 10], [b"z"]]


async def test_what_came_before_the_end_of_the_stream_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = await taken(monkeypatch, Libpq([b"a", b"b"], end=-1))
    assert found == [[b"a", b"b"]]


async def test_after_a_pause_the_rest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    few = CaptureLimits(frames_per_turn=1)
    stream, found = await taken(monkeypatch, Libpq([b"a", b"pause", b"c"]), limits=few)
    assert found == [[b"a"], [b"pause"]]
    assert not stream.reading

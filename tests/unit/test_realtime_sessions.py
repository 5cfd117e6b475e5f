"""The pings of sessions are spread, so that no event waits for thousands of them."""

from __future__ import annotations

import asyncio
import itertools
from typing import cast

import pytest

from momentum_sync.eventlog.session_records import SessionRecords
from momentum_sync.gateway.dialects.realtime_resume import Ledger
from momentum_sync.gateway.dialects.realtime_services import LiveSession
from momentum_sync.gateway.realtime_sessions import RealtimeSessions
from momentum_sync.limits import ResumeLimits


class Pinged:
    """A session without a key, which is never saved."""

    def __init__(self, number: int, pings: list[int]) -> None:
        self.ledger = Ledger(number)
        self._pings = pings

    def ping_if_due(self) -> None:
        self._pings.append(self.ledger.session)


async def test_each_session_is_pinged_once_an_interval_and_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pings: list[int] = []
    slept: list[tuple[float, int]] = []
    sessions = RealtimeSessions(cast(SessionRecords, None), ResumeLimits(ping_s=1.0))
    for number in range(200):
        sessions.begin(cast(LiveSession, Pinged(number, pings)))

    async def sleep(seconds: float) -> None:
        slept.append((seconds, len(pings)))
        if sum(each for each, _ in slept) >= 0.999:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await sessions.run()
    assert sorted(pings) == list(range(200))
    counts = [0, *[count for _, count in slept]]
    assert max(after - before for before, after in itertools.pairwise(counts)) <= 4

"""Sessions of a gateway: their numbers, and when they are saved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import cast

import pytest

from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.session_records import SavedSession, SessionRecords
from momentum_sync.gateway.dialects.realtime_resume import Key, Ledger
from momentum_sync.gateway.dialects.realtime_services import LiveSession
from momentum_sync.gateway.realtime_sessions import RealtimeSessions
from momentum_sync.limits import ResumeLimits
from momentum_sync.wire.close import Close


class NoRecords:
    """Records of which none is found."""

    @asynccontextmanager
    async def settling(self) -> AsyncIterator[NoRecords]:
        yield self

    async def of(self, keys: Iterable[str], *, recent: timedelta) -> list[SavedSession]:
        return []

    async def replace(self, ended: Sequence[int], begun: Sequence[SavedSession]) -> None:
        pass


class Answering:
    """A session whose client answers each ping."""

    def __init__(self, number: int) -> None:
        self.ledger = Ledger(number)
        self.probed = 0
        self.dropped: list[Close] = []

    def probe(self, answered: Callable[[], None]) -> None:
        self.probed += 1
        answered()

    def drop(self, why: Close) -> None:
        self.dropped.append(why)


@pytest.mark.parametrize("ends", ["the one before", "both"])
async def test_a_number_that_a_restored_database_gives_again_belongs_to_the_later_session(ends: str) -> None:
    sessions = RealtimeSessions(cast(SessionRecords, NoRecords()), ResumeLimits(batch_s=0.0))
    before, after, new = Answering(7), Answering(7), Answering(8)

    async def join(session: Answering) -> None:
        sessions.begin(cast(LiveSession, session))
        start = Position("e", 1, 1)
        await sessions.claim(session.ledger, Key("k", False), session.ledger.session, "t", start, is_reconnect=False)

    await join(before)
    await join(after)
    assert (before.dropped, after.dropped) == ([Close.RESTART], [])
    for session in (before,) if ends == "the one before" else (before, after):
        sessions.end(cast(LiveSession, session))
    await join(new)
    assert (before.probed, after.probed) == (0, 1 if ends == "the one before" else 0)


class Saving(NoRecords):
    """Records that keep what is saved."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, str]] = []

    async def save(self, sessions: Sequence[SavedSession]) -> set[int]:
        self.saved += [(each.session, each.identity) for each in sessions]
        return {each.session for each in sessions}


async def test_a_session_whose_number_was_given_again_is_saved_no_longer() -> None:
    records = Saving()
    sessions = RealtimeSessions(cast(SessionRecords, records), ResumeLimits(batch_s=0.0))
    before, after = Answering(7), Answering(7)
    sessions.begin(cast(LiveSession, before))
    assert await sessions.rename(before.ledger, Key("a", False))
    sessions.begin(cast(LiveSession, after))
    assert await sessions.rename(after.ledger, Key("b", False))
    assert not await sessions.rename(before.ledger, Key("b", False)), "nothing of it is found under the number"
    assert records.saved == [(7, Key("a", False).digest), (7, Key("b", False).digest)]
    new = Answering(8)
    sessions.begin(cast(LiveSession, new))
    await sessions.claim(new.ledger, Key("b", False), 8, "t", Position("e", 1, 1), is_reconnect=False)
    assert (before.probed, after.probed) == (0, 1)


class Staying(Answering):
    """A session that cannot be dropped."""

    def drop(self, why: Close) -> None:
        super().drop(why)
        raise ZeroDivisionError


async def test_a_session_begins_though_the_one_before_it_cannot_be_dropped() -> None:
    sessions = RealtimeSessions(cast(SessionRecords, Saving()), ResumeLimits(batch_s=0.0))
    before = Staying(7)
    sessions.begin(cast(LiveSession, before))
    after = Answering(7)
    sessions.begin(cast(LiveSession, after))
    assert before.dropped == [Close.RESTART]
    assert await sessions.rename(after.ledger, Key("b", False))


async def test_positions_are_saved_at_intervals_if_they_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    records, slept, real = Saving(), list[tuple[float, int]](), asyncio.sleep
    sessions = RealtimeSessions(cast(SessionRecords, records), ResumeLimits(batch_s=0.0, save_s=5.0))
    session, without_key = Answering(7), Answering(8)
    for each in (session, without_key):
        sessions.begin(cast(LiveSession, each))
        each.ledger.begin("a", Position("e", 1, 1))
    await sessions.rename(session.ledger, Key("a", False))

    async def sleep(seconds: float) -> None:
        if seconds < 1.0:  # of a batch
            await real(seconds)
            return
        slept.append((seconds, len(records.saved)))
        if len(slept) == 2:
            session.ledger.begin("b", Position("e", 2, 1))
        if len(slept) == 4:
            sessions.end(cast(LiveSession, session))
        if len(slept) == 6:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await sessions.run_saves()
    assert slept == [(5.0, saved) for saved in (1, 1, 2, 2, 3, 3)]
    assert {number for number, _ in records.saved} == {7}


class Numbers:
    """Records whose numbers are counted."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def numbers(self, count: int) -> list[int]:
        self.asked.append(count)
        return list(range(count))


async def test_the_first_socket_asks_at_once_and_those_that_open_soon_after_it_share_a_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records, waits, waited, real = Numbers(), list[float](), asyncio.Event(), asyncio.sleep
    sessions = RealtimeSessions(cast(SessionRecords, records), ResumeLimits(batch_s=60.0))

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await waited.wait()

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await sessions.number()
    assert (records.asked, waits) == ([1], [])
    others = [asyncio.ensure_future(sessions.number()) for _ in range(10)]
    while not waits:
        await real(0)
    assert 50.0 < waits[0] <= 60.0
    waited.set()
    assert await asyncio.gather(*others) == list(range(10))
    assert records.asked == [1, 10]

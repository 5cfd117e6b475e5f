"""Sessions of a gateway: their numbers, and their pings, which are spread and written together."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import cast

import pytest

from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.session_records import SavedSession, SessionRecords
from momentum_sync.gateway.dialects.realtime_resume import Key, Ledger
from momentum_sync.gateway.dialects.realtime_services import LiveSession
from momentum_sync.gateway.direct_files import DirectFile, DirectFiles
from momentum_sync.gateway.realtime_sessions import RealtimeSessions
from momentum_sync.limits import ResumeLimits
from momentum_sync.wire.close import Close


class Pinged:
    """A session without a key, which is never saved."""

    def __init__(self, number: int, pings: list[int], file: DirectFile) -> None:
        self.ledger = Ledger(number)
        self.ledger.pinged = number % 7
        self.file = file
        self.data: list[bytes | memoryview] = []
        self.write: Callable[[bytes | memoryview], None] = self.data.append
        self._pings = pings

    def ping_if_due(self) -> bool:
        return self.ledger.session % 2 == 0

    def note_ping(self, number: int, position: Position | None) -> None:
        assert self.data == [], "it is noted before it is written"
        self.ledger.note_ping(number, position, ("a",))
        self._pings.append(self.ledger.session)


async def test_each_session_is_pinged_once_an_interval_and_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pings: list[int] = []
    slept: list[tuple[float, int]] = []
    sessions = RealtimeSessions(cast(SessionRecords, None), ResumeLimits(ping_s=1.0))
    files = DirectFiles(os.write)
    all_of_them = [Pinged(number, pings, files.add()) for number in range(400)]
    for session in all_of_them:
        sessions.begin(cast(LiveSession, session))

    async def sleep(seconds: float) -> None:
        slept.append((seconds, len(pings)))
        if sum(each for each, _ in slept) >= 0.999:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await sessions.run(files, lambda: Position("e", 5, 1))
    assert sorted(pings) == list(range(0, 400, 2))
    for session in all_of_them:
        due = session.ledger.session in pings
        payloads = [bytes(data)[2:] for data in session.data]
        assert payloads == ([str(session.ledger.pinged).encode()] if due else [])
        if due:
            assert session.ledger.pinged > session.ledger.session % 7, "the numbers of a client's pings ascend"
            session.ledger.begin("a", Position("e", 1, 1))
            assert session.ledger.pong(payloads[0])[0] == session.ledger.pinged
            assert session.ledger.cursors == {"a": Position("e", 5, 1)}
    counts = [0, *[count for _, count in slept]]
    assert max(after - before for before, after in itertools.pairwise(counts)) <= 8


class Busy(Pinged):
    """A session that gets events all the time."""

    def ping_if_due(self) -> bool:
        self.data.clear()
        return True


async def test_many_busy_clients_are_pinged_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that end during a round are pinged no more."""
    pings: list[int] = []
    slept: list[tuple[float, int]] = []
    sessions = RealtimeSessions(cast(SessionRecords, None), ResumeLimits(ping_s=1.0, pings_per_s=100))
    files = DirectFiles(os.write)
    every = [Busy(number, pings, files.add()) for number in range(400)]
    for session in every:
        sessions.begin(cast(LiveSession, session))

    async def sleep(seconds: float) -> None:
        slept.append((seconds, len(pings)))
        if len(pings) == 1_000:  # in the middle of the third round
            for session in every[:200]:
                sessions.end(cast(LiveSession, session))
        if len(pings) == 1_300:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await sessions.run(files, lambda: Position("e", 5, 1))
    after = {pinged: sum(seconds for seconds, so_far in slept if so_far <= pinged) for _, pinged in slept}
    assert [round(after[count], 2) for count in (400, 800, 1_000, 1_100, 1_300)] == [1, 5, 7, 9, 12]
    assert sorted(pings[:400]) == sorted(pings[400:800]) == list(range(400))
    assert min(pings[1_000:]) == 200
    counts = [0, *[count for _, count in slept]]
    assert max(later - earlier for earlier, later in itertools.pairwise(counts)) <= 8


async def test_the_interval_of_pings_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent since the last ping that was answered may arrive twice."""
    pings: list[int] = []
    slept: list[float] = []
    limits = ResumeLimits(ping_s=1.0, pings_per_s=10, longest_ping_s=3.0)
    sessions = RealtimeSessions(cast(SessionRecords, None), limits)
    files = DirectFiles(os.write)
    for number in range(100):
        sessions.begin(cast(LiveSession, Busy(number, pings, files.add())))

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(pings) == 300:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await sessions.run(files, lambda: Position("e", 5, 1))
    assert round(sum(slept), 3) == 1.0 + 3.0 + 3.0


class Failing(Pinged):
    """A session that fails when it is looked at, or written to, and perhaps also when it is dropped."""

    def __init__(self, number: int, file: DirectFile, *, at_once: bool, stays: bool) -> None:
        super().__init__(number, [], file)
        self._at_once = at_once
        self._stays = stays
        self.dropped: list[Close] = []
        self.write = self._fail

    def _fail(self, _: bytes | memoryview) -> None:
        raise ZeroDivisionError

    def ping_if_due(self) -> bool:
        if self._at_once:
            raise ZeroDivisionError
        return True

    def drop(self, why: Close) -> None:
        self.dropped.append(why)
        if self._stays:
            raise ZeroDivisionError


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("stays", [True, False])
async def test_a_session_that_fails_is_dropped_and_the_others_are_pinged(
    monkeypatch: pytest.MonkeyPatch, at_once: bool, stays: bool
) -> None:
    sessions = RealtimeSessions(cast(SessionRecords, None), ResumeLimits())
    files, pings = DirectFiles(os.write), list[int]()
    failing = Failing(0, files.add(), at_once=at_once, stays=stays)
    others = [Pinged(number, pings, files.add()) for number in (2, 4)]
    for session in (failing, *others):
        sessions.begin(cast(LiveSession, session))
    rounds = iter(range(3))

    async def sleep(_: float) -> None:
        if next(rounds) == 2:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await sessions.run(files, lambda: Position("e", 5, 1))
    assert failing.dropped == [Close.RESTART]
    assert [len(session.data) for session in others] == [1, 1]


class NoRecords:
    """Records of which none is found."""

    @asynccontextmanager
    async def settling(self) -> AsyncIterator[NoRecords]:
        yield self

    async def of(self, keys: Iterable[str], *, recent: timedelta) -> list[SavedSession]:
        return []

    async def replace(self, ended: Sequence[int], begun: Sequence[SavedSession]) -> None:
        pass


class Answering(Pinged):
    """A session whose client answers each ping."""

    def __init__(self, number: int) -> None:
        super().__init__(number, [], DirectFiles(os.write).add())
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


async def test_a_session_begins_though_the_one_before_it_cannot_be_dropped() -> None:
    sessions = RealtimeSessions(cast(SessionRecords, Saving()), ResumeLimits(batch_s=0.0))
    before = Failing(7, DirectFiles(os.write).add(), at_once=False, stays=True)
    sessions.begin(cast(LiveSession, before))
    after = Answering(7)
    sessions.begin(cast(LiveSession, after))
    assert before.dropped == [Close.RESTART]
    assert await sessions.rename(after.ledger, Key("b", False))


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

"""Pings of Supabase's clients: spread over an interval, written together, and bounded in number and in time."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.dialects.realtime_resume import Ledger
from momentum_sync.gateway.dialects.realtime_services import LiveSession
from momentum_sync.gateway.direct_files import DirectFiles
from momentum_sync.gateway.realtime_pings import Pings
from momentum_sync.limits import ResumeLimits
from momentum_sync.wire.close import Close

POSITION = Position("e", 5, 1)
LIMITS = ResumeLimits(ping_s=1.0, pings_per_s=100, longest_ping_s=5.0)


class Ended(Exception):
    """The time of a test is over."""


class World:
    """Sessions, and a clock that only the waits of the pings advance.

    Attributes:
        now: seconds.
        waits: how many there were.
        pinged: times and sessions.
        times: by session.
    """

    def __init__(self, limits: ResumeLimits = LIMITS) -> None:
        self.pings = Pings(limits)
        self.files = DirectFiles(os.write)
        self.now = 0.0
        self.waits = 0
        self.pinged: list[tuple[float, int]] = []
        self.times: dict[int, list[float]] = {}
        self.sessions: dict[int, Session] = {}

    def begin(self, *numbers: int, is_due: bool = True) -> None:
        for number in numbers:
            self.sessions[number] = Session(self, number, is_due=is_due)
            self.add(self.sessions[number])

    def add(self, session: Session) -> None:
        self.pings.add(cast(LiveSession, session))

    def end(self, number: int) -> None:
        self.pings.remove(cast(LiveSession, self.sessions.pop(number)))

    async def run(self, seconds: float, step: Callable[[], None] = lambda: None) -> None:
        """Run for so long, and call a function each 10 ms."""
        until = self.now + seconds

        async def sleep(pause: float) -> None:
            self.waits += 1
            wakes = self.now + pause
            while self.now < wakes:
                self.now = min(wakes, self.now + 0.01)
                if self.now > until + 0.001:
                    raise Ended
                step()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "sleep", sleep)
            with pytest.raises(Ended):
                await self.pings.run(self.files, lambda: POSITION)

    def of(self, number: int) -> list[float]:
        """Return when a session was pinged."""
        return self.times.get(number, [])


class Session:
    """A session with events all the time, unless its ping is not due."""

    def __init__(self, world: World, number: int, *, is_due: bool) -> None:
        self.ledger = Ledger(number)
        self.ledger.pinged = number % 7
        self.file = world.files.add()
        self.data: list[bytes | memoryview] = []
        self.dropped: list[Close] = []
        self.noted = 0
        self._world = weakref.proxy(world)
        self._is_due = is_due

    def ping_if_due(self) -> bool:
        return self._is_due

    def note_ping(self, number: int, position: Position | None) -> None:
        assert len(self.data) == self.noted, "it is noted before it is written"
        self.noted += 1
        self.ledger.note_ping(number, position, ("a",))
        at = round(self._world.now, 3)
        self._world.pinged.append((at, self.ledger.session))
        self._world.times.setdefault(self.ledger.session, []).append(at)

    def write(self, data: bytes | memoryview) -> None:
        self.data.append(data)

    def drop(self, why: Close) -> None:
        self.dropped.append(why)
        if self.ledger.session in self._world.sessions:
            self._world.end(self.ledger.session)


async def test_each_session_is_pinged_once_an_interval_and_few_at_once() -> None:
    world = World(ResumeLimits(ping_s=1.0))
    world.begin(*range(0, 400, 2))
    world.begin(*range(1, 400, 2), is_due=False)
    await world.run(1.0)
    assert sorted(number for _, number in world.pinged) == list(range(0, 400, 2))
    for number, session in world.sessions.items():
        payloads = [bytes(data)[2:] for data in session.data]
        assert payloads == ([] if number % 2 else [str(session.ledger.pinged).encode()])
        if payloads:
            assert session.ledger.pinged > number % 7, "the numbers of a client's pings ascend"
            session.ledger.begin("a", Position("e", 1, 1))
            assert session.ledger.pong(payloads[0])[0] == session.ledger.pinged
            assert session.ledger.cursors == {"a": POSITION}
    assert max(Counter(at for at, _ in world.pinged).values()) <= 400 / 50


@pytest.mark.parametrize(("count", "interval"), [(50, 1.0), (100, 1.0), (200, 2.0), (400, 4.0), (900, 5.0)])
async def test_many_busy_clients_are_pinged_less_often_within_bounds(count: int, interval: float) -> None:
    world = World()
    world.begin(*range(count))
    await world.run(3 * interval)
    first, last = 0.02, 0.02 + 49 * interval / 50
    assert world.of(0) == [round(first + turn * interval, 3) for turn in range(3)]
    assert world.of(49) == [round(last + turn * interval, 3) for turn in range(3)]


async def test_the_interval_is_short_again_when_fewer_are_busy() -> None:
    world = World()
    world.begin(*range(400))

    def calm() -> None:
        if world.now > 4.0:
            for number in list(world.sessions)[1:]:
                world.end(number)

    await world.run(8.0, calm)
    gaps = [round(later - earlier, 2) for earlier, later in pairwise(world.of(0))]
    assert gaps == [4.0, 1.0, 1.0, 1.0]


async def test_pings_that_a_session_sends_at_once_count() -> None:
    """One that catches up has not been written everything, so its ping is its own."""

    class CatchesUp(Session):
        def ping_if_due(self) -> bool:
            self.ledger.ping(POSITION, ("a",))
            return False

    world = World()
    for number in range(300):
        world.add(CatchesUp(world, number, is_due=False))
    world.begin(300)
    await world.run(7.0)
    assert world.of(300) == [0.02, 3.03, 6.04]


@pytest.mark.parametrize("numbers", [[], [7], [3, 3 + 50, 20]])
async def test_few_sessions_wake_the_process_seldom(numbers: list[int]) -> None:
    world = World()
    world.begin(*numbers)
    await world.run(10.0)
    assert world.waits <= 11 * (len(numbers) + 1)
    assert {len(world.of(number)) for number in numbers} <= {10}


@settings(max_examples=30)
@given(st.integers(0, 1 << 32), st.integers(1, 50))
def test_no_gap_is_longer_than_the_interval_whoever_begins_and_ends(seed: int, every: int) -> None:
    """Sessions of any number. A gap is from the begin, or a ping, to the next ping, or the end."""
    world, begun = World(), dict[int, float]()
    numbers, random = list(range(200)), Random(seed)

    def begin(number: int) -> None:
        world.times.pop(number, None)
        world.begin(number)
        begun[number] = world.now

    for number in numbers:
        begin(number)
    turn, longest = 0, 0.0

    def change() -> None:
        nonlocal turn, longest
        turn += 1
        if turn % every:
            return
        number = random.choice(numbers)
        if number in world.sessions:
            longest = max(longest, *gaps(number, world.now))
            world.end(number)
        else:
            begin(number)

    def gaps(number: int, until: float) -> list[float]:
        times = [begun[number], *world.of(number), until]
        return [later - earlier for earlier, later in pairwise(times)]

    asyncio.run(world.run(20.0, change))
    longest = max([longest, *(gap for number in world.sessions for gap in gaps(number, world.now))])
    # 200 sessions are pinged every 2 s.
    assert longest <= 2.0 + 2 / 50 + 0.001


@pytest.mark.parametrize("before", [0, 500])
async def test_a_first_session_is_pinged_within_an_interval(before: int) -> None:
    """Also if all others have ended, for whose number the interval was longer."""
    world = World()
    world.begin(*range(before))
    begun = 0.0

    def begin() -> None:
        nonlocal begun
        if world.now > 1.05:  # in the middle of a wait
            for number in list(world.sessions):
                if number != 1_003:
                    world.end(number)
            if not begun:
                begun = world.now
                world.begin(1_003)

    await world.run(8.0, begin)
    first = world.of(1_003)[0]
    assert first - begun <= (5.0 if before else 1.0)


async def test_an_ended_session_is_pinged_no_more_and_not_held() -> None:
    world = World()
    world.begin(*range(100))
    gone: list[weakref.ref[Session]] = []

    def end() -> None:
        if world.now > 0.5 and not gone:
            gone.extend(weakref.ref(world.sessions[number]) for number in (10, 40, 90))
            gc.disable()
            for number in (10, 40, 90):
                world.end(number)
            assert [each() for each in gone] == [None] * 3, "without a garbage collection"
            gc.enable()

    await world.run(2.0, end)
    assert gone
    assert [len(world.of(number)) for number in (10, 40, 90, 11, 41)] == [1, 0, 0, 2, 2]


class Failing(Session):
    """A session that fails when it is looked at, or written to, and perhaps also when it is dropped."""

    def __init__(self, world: World, number: int, *, at_once: bool, stays: bool) -> None:
        super().__init__(world, number, is_due=True)
        self._at_once = at_once
        self._stays = stays

    def write(self, data: bytes | memoryview) -> None:
        raise ZeroDivisionError

    def ping_if_due(self) -> bool:
        if self._at_once:
            raise ZeroDivisionError
        return True

    def drop(self, why: Close) -> None:
        super().drop(why)
        if self._stays:
            raise ZeroDivisionError


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("stays", [True, False])
async def test_a_session_that_fails_is_dropped_and_the_others_are_pinged(at_once: bool, stays: bool) -> None:
    world = World()
    failing = world.sessions[50] = Failing(world, 50, at_once=at_once, stays=stays)
    world.add(failing)
    world.begin(0, 100, 2)
    await world.run(1.0)
    assert failing.dropped == [Close.RESTART]
    assert [len(session.data) for session in world.sessions.values()] == [1, 1, 1]

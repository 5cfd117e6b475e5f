"""Events that wait for a program, and the event from which they would be delivered again."""

from __future__ import annotations

import asyncio

import pytest

from momentum_sync import Ended, Event, Offline
from momentum_sync.sdk.protocol import Invalidated, Output
from momentum_sync.sdk.stream import Stream


def event(number: int) -> Event:
    return Event(str(number), "c", "t", None, "", {})


@pytest.fixture
def settled() -> list[str]:
    return []


@pytest.fixture
def waiting(settled: list[str]) -> Stream:
    def settle(output: Output) -> None:
        settled.append(getattr(output, "id", ""))

    return Stream(settle, most=4)


async def test_without_an_iterator_every_event_counts_as_acknowledged(waiting: Stream, settled: list[str]) -> None:
    waiting.add(event(1))
    assert settled == ["1"]


async def test_an_event_is_had_when_the_next_one_is_asked_for(waiting: Stream, settled: list[str]) -> None:
    events = waiting.begin()
    for number in (1, 2):
        waiting.add(event(number))
    waiting.add(Invalidated("3", ("k",)))
    waiting.add(event(4))
    assert settled == []
    assert (await anext(events)).id == "1"
    assert settled == []
    assert (await anext(events)).id == "2"
    assert settled == ["1"]
    assert (await anext(events)).id == "4", "what is no event is had on the way"
    assert settled == ["1", "2", "3"]


async def test_an_event_is_delivered_again_after_leaving_the_loop_unless_acknowledged(
    waiting: Stream, settled: list[str]
) -> None:
    for leave_with_it in (False, True):
        events = waiting.begin()
        if not leave_with_it:
            waiting.add(event(1))
            waiting.add(event(2))
        one = await anext(events)
        assert one.id == "1"
        if leave_with_it:
            waiting.ack(one)
        await events.aclose()
    assert settled == ["1"]
    assert (await anext(waiting.begin())).id == "2"


async def test_it_is_bounded(waiting: Stream, settled: list[str]) -> None:
    events = waiting.begin()
    for number in range(4):
        waiting.add(event(number))
    assert (waiting.full, waiting.filled) == (True, True)
    await anext(events)
    await anext(events)
    await anext(events)
    assert (waiting.full, waiting.filled) == (False, False)
    await events.aclose()
    for number in range(4, 10):
        waiting.add(event(number))
    assert settled == ["0", "1", "2", "3", "4", "5"], "whoever left is not waited for"


async def test_the_end(waiting: Stream) -> None:
    events = waiting.begin()
    waiting.add(event(1))
    await waiting.finish(Ended(4410, "replaced"))
    assert (await anext(events)).id == "1", "what has come is still to be had"
    with pytest.raises(Ended):
        await anext(events)
    await asyncio.wait_for(waiting.until(lambda: False), 1)
    with pytest.raises(Ended):
        await waiting.surely(lambda: False)


async def test_closed_by_the_program(waiting: Stream) -> None:
    events = waiting.begin()
    asked = asyncio.ensure_future(anext(events, None))
    await asyncio.sleep(0)
    await waiting.finish(None)
    assert await asyncio.wait_for(asked, 1) is None
    with pytest.raises(Offline):
        await waiting.surely(lambda: False)


async def test_another_iterator_takes_over_and_ends_the_one_before(waiting: Stream) -> None:
    first = waiting.begin()
    asked = asyncio.ensure_future(anext(first, None))
    await asyncio.sleep(0)
    second = waiting.begin()
    await waiting.tell()
    assert await asyncio.wait_for(asked, 1) is None
    waiting.add(event(1))
    assert (await anext(second)).id == "1"


async def test_an_iterator_that_nobody_holds_any_longer_is_not_waited_for(waiting: Stream, settled: list[str]) -> None:
    waiting.begin()
    waiting.add(event(1))
    assert settled == ["1"]


async def test_an_equal_copy_of_an_event_acknowledges_nothing(waiting: Stream, settled: list[str]) -> None:
    events = waiting.begin()
    for number in (1, 2):
        waiting.add(event(number))
    waiting.ack(event(2))
    assert settled == []
    assert (await anext(events)).id == "1"

"""Ending tasks."""

from __future__ import annotations

import asyncio

import pytest

from momentum_sync.tasks import end, first_of


async def deaf(times: int, ended: list[int]) -> None:
    """Continue after a number of cancellations, as `asyncio.wait_for` of Python 3.11 may."""
    for _ in range(times):
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append(len(ended))
    await asyncio.get_running_loop().create_future()


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    swallowed: list[int] = []
    task = asyncio.ensure_future(deaf(3, swallowed))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end(task, again_s=0.01)
    assert task.cancelled()
    assert swallowed == [0, 1, 2]


async def test_the_error_of_the_first_ends_the_others_even_if_one_does_not_hear() -> None:
    swallowed: list[int] = []

    async def broken() -> None:
        await asyncio.sleep(0)
        raise OSError("gone")

    async with asyncio.timeout(10):
        with pytest.raises(OSError, match="gone"):
            await first_of(deaf(1, swallowed), broken(), again_s=0.01)
    assert swallowed == [0]


async def test_nothing_to_end_and_an_error_that_nobody_asks_for() -> None:
    async def broken() -> None:
        raise OSError("gone")

    task = asyncio.ensure_future(broken())
    await asyncio.sleep(0)
    await end()
    await end(task)
    assert isinstance(task.exception(), OSError)


async def test_a_task_that_ends_tasks_is_not_kept_from_it() -> None:
    """The innermost task swallows a cancellation while the task that ends it is cancelled itself."""
    swallowed: list[int] = []
    inner = asyncio.ensure_future(deaf(2, swallowed))

    async def middle() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await end(inner, again_s=0.02)

    outer = asyncio.ensure_future(middle())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end(outer)
    assert inner.cancelled()
    assert outer.cancelled()


async def test_an_orderly_end_is_left_to_end() -> None:
    done: list[bool] = []

    async def orderly() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.05)
            done.append(True)

    task = asyncio.ensure_future(orderly())
    await asyncio.sleep(0)
    await end(task)
    assert done == [True]

"""Ending tasks, although Python may lose a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def end(*tasks: asyncio.Task[object], again_s: float = 5.0) -> None:
    """Cancel tasks and wait until they have ended, ignoring their errors.

    One cancellation may not be enough. Before Python 3.12 `asyncio.wait_for`, with which psycopg_pool waits for a
    connection, swallows a cancellation that arrives together with the result (python/cpython#86296). So a task that
    continues is cancelled again after `again_s` seconds, which is longer than an orderly end takes, and at once when
    this call is cancelled itself.
    """
    cancelled: asyncio.CancelledError | None = None
    pending = set(tasks)
    for task in pending:
        task.cancel()
    while pending:
        try:
            _, pending = await asyncio.wait(pending, timeout=again_s)
        except asyncio.CancelledError as error:
            cancelled = error
            pending = {task for task in pending if not task.done()}
        for task in pending:
            task.cancel()
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not report it
    if cancelled is not None:
        raise cancelled


async def first_of(*work: Coroutine[object, object, None], again_s: float = 5.0) -> None:
    """Run all coroutines until the first ends, end the others as `end` does, and raise its error."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(*tasks, again_s=again_s)

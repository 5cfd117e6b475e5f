"""Calls of the program's functions: token providers, stores, fetches, listeners. They may block, hang or raise."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")
_under_way: set[asyncio.Task[None]] = set()


class Cancelled(Exception):
    """The program's own work was cancelled. That does not end the client."""


async def done_by(work: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Run work of the program in a task of its own, and return its result.

    Raises:
        Cancelled: the program cancelled the work.
        TimeoutError: it took longer than `seconds`.
        Exception: the work raised it.
    """
    task = asyncio.ensure_future(_awaited(work))
    try:
        # `asyncio.wait_for` would also wait for the end of the cancelled work, which may ignore its cancellation.
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()  # the caller was cancelled
        task.add_done_callback(lambda one: None if one.cancelled() else one.exception())
        raise
    if not done:
        task.cancel()
        task.add_done_callback(lambda one: None if one.cancelled() else one.exception())
        raise TimeoutError(f"it did not answer within {seconds:g} s")
    if task.cancelled():
        raise Cancelled("it was cancelled")
    return task.result()


async def through(work: Coroutine[object, object, None]) -> None:
    """Complete work even if the caller is cancelled by it, as by a token provider that logs out."""
    task = asyncio.ensure_future(work)
    _under_way.add(task)  # asyncio keeps only weak references to tasks
    task.add_done_callback(_under_way.discard)
    await asyncio.shield(task)


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


async def in_thread(call: Callable[[], T]) -> T:
    """Call a plain function, which may block, in a daemon thread, and return its result."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(settle: Callable[[], None]) -> None:
        if not future.done():
            settle()

    def run() -> None:
        try:
            settle = partial(future.set_result, call())
        except asyncio.CancelledError as error:
            settle = partial(future.set_exception, Cancelled(str(error) or "it was cancelled"))
        except Exception as error:
            # A future rejects StopIteration, which would end the awaiting coroutine silently.
            told = RuntimeError("it raised StopIteration") if isinstance(error, StopIteration) else error
            settle = partial(future.set_exception, told)
        except BaseException as error:  # SystemExit of the program's function must not end the event loop
            settle = partial(future.set_exception, RuntimeError(f"it raised {type(error).__name__}"))
        with suppress(RuntimeError):  # the loop is closed, so there is no waiter
            loop.call_soon_threadsafe(finish, settle)

    # An executor's threads are joined at exit, so a function that hangs would keep the process alive.
    threading.Thread(target=run, name="momentum_sync callback", daemon=True).start()
    return await future


def carefully(call: Callable[[], object], failed: Callable[[], object]) -> None:
    """Call a listener. An exception is passed to `failed`, and does not stop the client."""
    try:
        call()
    except (Exception, asyncio.CancelledError):
        # A CancelledError of the listener would otherwise cancel the client's own task.
        failed()

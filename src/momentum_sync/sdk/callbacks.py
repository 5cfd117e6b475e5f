"""Calling what is the program's: token providers, stores, fetches, listeners. They may block, hang or raise."""

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
    """The program's own work was cancelled, which is no reason for the client to end."""


async def done_by(work: Callable[[], Awaitable[T]], seconds: float) -> T:
    """What work of the program comes to, in a task of its own.

    Raises what it raised, Cancelled if it was cancelled by somebody else than our caller, TimeoutError after `seconds`.
    """
    task = asyncio.ensure_future(_awaited(work))
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        task.add_done_callback(lambda one: None if one.cancelled() else one.exception())
        raise
    if not done:
        task.cancel()  # nobody waits for it any longer
        task.add_done_callback(lambda one: None if one.cancelled() else one.exception())
        raise TimeoutError(f"it did not answer within {seconds:g} s")
    if task.cancelled():
        raise Cancelled("it was cancelled")
    return task.result()


async def through(work: Coroutine[object, object, None]) -> None:
    """Goes through with work, also where whoever asked for it is ended by it, as a token provider is that logs out."""
    task = asyncio.ensure_future(work)
    _under_way.add(task)  # the loop alone would not keep it
    task.add_done_callback(_under_way.discard)
    await asyncio.shield(task)


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


async def in_thread(call: Callable[[], T]) -> T:
    """What a plain function returns, which may block: in a thread that no end of the program waits for."""
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
            # A future takes no StopIteration, which would end whoever awaits it as if nothing had been.
            told = RuntimeError("it raised StopIteration") if isinstance(error, StopIteration) else error
            settle = partial(future.set_exception, told)
        except BaseException as error:  # SystemExit of the program's function is not the loop's to raise
            settle = partial(future.set_exception, RuntimeError(f"it raised {type(error).__name__}"))
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            loop.call_soon_threadsafe(finish, settle)

    threading.Thread(target=run, name="momentum_sync callback", daemon=True).start()
    return await future


def carefully(call: Callable[[], object], failed: Callable[[], object]) -> None:
    """Calls a listener of the program. Whatever it raises is told by `failed`, and no reason not to go on."""
    try:
        call()
    except (Exception, asyncio.CancelledError):
        failed()

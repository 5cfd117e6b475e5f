"""Starting, housekeeping, draining and stopping of a server."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from math import ceil
from typing import Protocol, TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from momentum_sync import observe
from momentum_sync.capture.supervisor import Capture
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.event_metrics import EventMetrics
from momentum_sync.eventlog.partitions import keep_message_partitions, keep_partitions
from momentum_sync.eventlog.receipt_records import ReceiptRecords
from momentum_sync.eventlog.samples import Samples
from momentum_sync.eventlog.session_records import SessionRecords
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.receipts import Receipts
from momentum_sync.limits import LifecycleLimits, Limits, ReceiptLimits
from momentum_sync.tasks import end
from momentum_sync.wire.close import Close

# The window holds hundreds of thousands of long-lived objects without reference cycles. A full collection stops every
# event for a while (1,000 writes/s: p99 60-90 ms, without it 10-30 ms), so it happens once an hour. A closed connection
# needs none: `WebSocketProtocol.connection_lost` breaks its reference cycles.
_GARBAGE_THRESHOLDS = (5_000, 10, 1_000_000)


class _Opens(Protocol):
    async def open(self) -> None: ...
    async def close(self) -> None: ...


_Resource = TypeVar("_Resource", bound=_Opens)


async def opened(stack: AsyncExitStack, resource: _Resource) -> _Resource:
    """Open a resource and close it with the stack."""
    await resource.open()
    stack.push_async_callback(resource.close)
    return resource


@asynccontextmanager
async def background(work: Coroutine[object, object, None], stopped: asyncio.Event) -> AsyncIterator[None]:
    """Run work that never ends on its own. Set `stopped` if it does."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda _: stopped.set())
    try:
        yield
    finally:
        await end(task)
        if not task.cancelled():
            # `end` ignores errors, but the error that ended this part must reach the caller.
            task.result()


@asynccontextmanager
async def capturing(capture: Capture, stopped: asyncio.Event, limits: LifecycleLimits) -> AsyncIterator[None]:
    """Run capture. At the end, confirm the slot up to the last message read, if the database answers in time."""
    task = asyncio.ensure_future(capture.run())
    task.add_done_callback(lambda _: stopped.set())
    try:
        yield
    finally:
        capture.end()
        _, late = await asyncio.wait([task], timeout=limits.stop_s)
        if late:
            observe.unconfirmed()
            await end(task)
        if not task.cancelled():
            task.result()


@asynccontextmanager
async def writing_metrics(
    samples: Samples, event_metrics: EventMetrics, stopped: asyncio.Event, limits: LifecycleLimits
) -> AsyncIterator[None]:
    """Write samples of events to `realtime_event_metrics` at intervals, and the rest at the end."""
    ended = asyncio.Event()

    async def write() -> None:
        if taken := samples.take():
            try:
                async with asyncio.timeout(limits.metrics_s):
                    await event_metrics.write(taken)
            except (psycopg.Error, PoolTimeout, TimeoutError) as error:
                observe.metrics_unwritten(error, len(taken))

    async def write_on() -> None:
        dropped = 0
        while not ended.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.metrics_interval_s):
                    await ended.wait()
            await write()
            if samples.dropped > dropped:
                dropped = samples.dropped
                observe.metrics_dropped(dropped)

    task = asyncio.ensure_future(write_on())
    task.add_done_callback(lambda _: stopped.set())
    try:
        yield
    finally:
        ended.set()
        await task


async def prepare_log(connections: LogConnections, retention: timedelta, limits: LifecycleLimits) -> None:
    """Create partitions before capture begins, if the database answers in time; otherwise housekeeping does it.

    In a new database the slot is created at the same moment. Once, PostgreSQL could then decode no insert into such a
    partition for that slot: "could not map filenumber … to relation OID".
    """
    try:
        async with asyncio.timeout(limits.metrics_s):
            await keep_partitions(connections, retention=retention)
            await keep_message_partitions(connections)
    except (psycopg.Error, PoolTimeout, TimeoutError) as error:
        observe.housekeeping_failed(error)


async def keep_house(
    connections: LogConnections,
    event_metrics: EventMetrics,
    sessions: SessionRecords,
    receipts: ReceiptRecords,
    retention: timedelta,
    limits: Limits,
) -> None:
    """Create partitions ahead and drop expired partitions and rows, every hour; sooner after a failure."""
    bounds = limits.lifecycle
    while True:
        pause = bounds.housekeeping_s
        try:
            dropped = await keep_partitions(connections, retention=retention)
            if dropped:
                observe.partitions_dropped(dropped)
            missing = await keep_message_partitions(connections)
            if missing:
                observe.no_message_partitions(missing)
            await event_metrics.clean()
            kept = max(retention, timedelta(seconds=bounds.sessions_s))
            await sessions.forget(kept)
            await receipts.forget(kept)
        except (psycopg.Error, PoolTimeout) as error:
            observe.housekeeping_failed(error)
            pause = bounds.housekeeping_retry_s
        await asyncio.sleep(pause)


async def collect_garbage(
    unfreed: Callable[[], int], limits: LifecycleLimits, clock: Callable[[], float] = time.monotonic
) -> None:
    """Run full garbage collections in place of those that CPython would run, until cancelled.

    One comes every hour, and one when many closed connections have not been freed, which none should need.

    Args:
        unfreed: returns their number.
        limits: bounds.
        clock: returns monotonic seconds.
    """
    due, kept = clock() + limits.garbage_s, 0
    while True:
        await asyncio.sleep(limits.garbage_look_s)
        if clock() >= due or unfreed() - kept >= limits.garbage_connections:
            gc.collect()
            due, kept = clock() + limits.garbage_s, unfreed()


def postpone_full_collections() -> None:
    """Have CPython run none on its own."""
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


async def keep_receipts(
    receipts: Receipts, records: ReceiptRecords, limits: ReceiptLimits, every_s: float | None
) -> None:
    """Save receipts at intervals until cancelled. With `every_s`, also ping devices at that interval."""
    asked_at = time.monotonic()
    while True:
        await asyncio.sleep(min(limits.save_s, every_s or limits.save_s))
        if every_s is not None and time.monotonic() - asked_at >= every_s:
            asked_at = time.monotonic()
            for ask in receipts.asks:
                try:
                    ask()
                except Exception as error:  # of one connection; the others are asked all the same
                    observe.failed("a ping for a receipt", error)
        await save_receipts(receipts, records, limits)


async def save_receipts(receipts: Receipts, records: ReceiptRecords, limits: ReceiptLimits) -> None:
    """Save all receipts. Those that the database does not take are kept for the next time."""
    while taken := receipts.take(limits.save_batch):
        try:
            found = [(each.user_id, each.device, each.position, each.keys) for each in taken]
            await records.save(found, most=limits.of_user)
        except (psycopg.Error, PoolTimeout) as error:
            receipts.put_back(taken)
            observe.receipts_unsaved(error, len(receipts))
            return


async def drain(gateway: Gateway, seconds: float) -> None:
    """Take no new connections, and close those there are, in batches over `seconds` when they are many."""
    limits = gateway.limits.lifecycle
    gateway.drain()
    observe.stopping(len(gateway.hub))
    connections = gateway.hub.connections
    every = limits.drain_interval_s
    # A drain shorter than one interval closes all connections in one batch.
    batch = max(limits.drain_batch, ceil(len(connections) * every / max(seconds, every)))
    for count, connection in enumerate(connections, 1):
        connection.close(Close.RESTART)
        if count % batch == 0:
            await asyncio.sleep(every)


@contextmanager
def tasks_told_by_signal() -> Iterator[None]:
    """Log the place at which every task waits, when SIGUSR1 arrives: for a server that seems to be stuck.

    The stacks of all threads are written first, by a signal handler in C, because a blocked event loop could not log.
    """
    loop = asyncio.get_running_loop()

    def tell() -> None:
        observe.tasks([_place(task) for task in asyncio.all_tasks(loop)])

    loop.add_signal_handler(signal.SIGUSR1, tell)
    faulthandler.register(signal.SIGUSR1, chain=True)  # written by the signal's handler in C, at once
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGUSR1)
        loop.remove_signal_handler(signal.SIGUSR1)


def _place(task: asyncio.Task[object]) -> str:
    """Return the lines at which a task waits, from the outermost call to the innermost."""
    places: list[str] = []
    waits: object = task.get_coro()
    while waits is not None:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "ag_frame", None) or getattr(waits, "gi_frame", None)
        if frame is None:
            break
        places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        waits = (
            getattr(waits, "cr_await", None) or getattr(waits, "ag_await", None) or getattr(waits, "gi_yieldfrom", None)
        )
    return " > ".join(places)


@contextmanager
def stopped_by_signals(*, interrupt: bool = True) -> Iterator[asyncio.Event]:
    """Yield an event that SIGINT and SIGTERM set. A second signal ends the process at once.

    Without `interrupt`, SIGINT is left as it is.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM) if interrupt else (signal.SIGTERM,)

    def stop() -> None:
        stopped.set()
        for each in signals:
            loop.remove_signal_handler(each)
            # For SIGINT the event loop restores KeyboardInterrupt, which would not end the process at once.
            signal.signal(each, signal.SIG_DFL)

    for each in signals:
        loop.add_signal_handler(each, stop)
    try:
        yield stopped
    finally:
        for each in signals:
            loop.remove_signal_handler(each)

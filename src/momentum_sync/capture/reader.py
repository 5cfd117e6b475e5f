"""Capture: the slot's stream into the feed and the log, for as long as the server runs.

An event goes to the feed the moment it is decoded; the log gets it in the next batch, and the slot is confirmed
only behind the log. If anything breaks, the run ends, and the next one takes up where the log stands: the slot
repeats the rest, it gets the same numbers, and the feed drops what it has published.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import psycopg
from psycopg_pool import PoolTimeout

from momentum_sync import observe
from momentum_sync.capture.numbering import Numbering
from momentum_sync.capture.pgoutput import Begin, Commit, Keepalive, Message, ProtocolError, decode, status
from momentum_sync.capture.slot import Stream, ensure_slot, open_stream
from momentum_sync.errors import CaptureError, FencedOff, SlotBusy
from momentum_sync.eventlog.event import Event, Malformed
from momentum_sync.eventlog.feed import Feed
from momentum_sync.eventlog.table import EventLog

_BACKOFF_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_BUSY_S = 1.0
_STEADY_S = 10.0
_ASK_EVERY_S = 1.0
_CONFIRM_IDLE_EVERY_S = 10.0
_BATCH = 2_000
_PENDING_LIMIT = 16 * 1024 * 1024  # bytes that may wait for the log before reading pauses


class Capture:
    """The one reader of a slot. `state` is `starting`, `live`, `waiting` (another instance reads) or `broken`.

    `has_begun` is set once it has been live.
    """

    def __init__(self, conninfo: str, slot: str, log: EventLog, feed: Feed) -> None:
        self._conninfo = conninfo
        self._slot = slot
        self._log = log
        self._feed = feed
        self.state = "starting"
        self.has_begun = asyncio.Event()
        self._asked_at: float | None = None
        self._delay = 0.0
        self._delay_at = 0.0
        self._current: _Run | None = None

    def lag(self, now: float) -> float:
        """Seconds by which the feed may be behind; `now` is seconds since 1970.

        While live, it is how long the server has owed an answer, how late the last event came, if that was just now, or
        how long an event has waited for the log.
        """
        owed = now - self._asked_at if self._asked_at is not None else 0.0
        late = self._delay if now - self._delay_at < 5.0 else 0.0
        since = self._current.unlogged_since if self._current is not None else None
        return max(0.0, owed, late, now - since if since is not None else 0.0)

    async def run(self) -> None:
        """Captures until cancelled; comes back by itself, more slowly each time it fails in a row."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._run_once()
            except SlotBusy as error:
                self._gone("waiting")
                observe.slot_busy(str(error))
                await asyncio.sleep(_BUSY_S)
                continue
            except (CaptureError, FencedOff, ProtocolError, PoolTimeout, psycopg.Error, OSError, TimeoutError) as error:
                said = str(error) or type(error).__name__
            except Exception as error:
                observe.failed("capture", error)
                said = type(error).__name__
            self._gone("broken")
            failures = 0 if time.monotonic() - began > _STEADY_S else failures + 1
            pause = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            observe.capture_broke(said, pause)
            await asyncio.sleep(pause)

    def _gone(self, state: str) -> None:
        self.state = state
        self._current = None
        if self._asked_at is None:
            self._asked_at = time.time()

    async def _run_once(self) -> None:
        await ensure_slot(self._conninfo, self._slot)
        async with open_stream(self._conninfo, self._slot) as stream:
            standing = await self._log.take_over(stream.facts)
            with suppress(psycopg.errors.LockNotAvailable):  # append makes the one it needs, if it has to
                await self._log.keep_partitions(retention=None)
            self._feed.begin(
                epoch=standing.epoch,
                number=standing.number,
                position=stream.facts.confirmed_lsn,
                ceiling=standing.ceiling,
            )
            run = self._current = _Run(stream, self._log, self._feed, self._heard)
            run.numbering = Numbering(number=standing.number, place=standing.place, near_xid=standing.ceiling)
            self.state = "live"
            self.has_begun.set()
            self._asked_at = None
            observe.capture_live(self._slot, standing.epoch, standing.number)
            tasks = [
                asyncio.ensure_future(stream.run(run.take)),
                asyncio.ensure_future(run.append()),
                asyncio.ensure_future(run.keep_alive(self._ask)),
                asyncio.ensure_future(self._log.watch()),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _ask(self) -> None:
        if self._asked_at is None:
            self._asked_at = time.time()

    def _heard(self, event: Event | None) -> None:
        now = time.time()
        self._asked_at = None
        if event is not None:
            self._delay = now - event.committed_at
            self._delay_at = now


class _Run:
    """One stretch of capture, from taking the slot to losing it."""

    numbering: Numbering

    def __init__(self, stream: Stream, log: EventLog, feed: Feed, heard: Callable[[Event | None], None]) -> None:
        self._stream = stream
        self._log = log
        self._feed = feed
        self._heard = heard
        self._pending: list[Event] = []
        self._pending_size = 0
        self._work = asyncio.Event()
        self.unlogged_since: float | None = None
        self._received = stream.facts.confirmed_lsn
        self._durable = stream.facts.confirmed_lsn

    def take(self, data: bytes | memoryview) -> None:
        """One payload of the stream."""
        match decode(data):
            case Begin() as begin:
                self.numbering.begin(begin)
            case Message() as message:
                self._take_message(message)
            case Commit() as commit:
                self.numbering.commit()
                self._reached(commit.end)
            case Keepalive() as keepalive:
                self._heard(None)
                if not self.numbering.in_transaction:
                    self._reached(keepalive.end)
                if keepalive.reply:
                    self._report(reply=False)

    def _take_message(self, message: Message) -> None:
        try:
            event = self.numbering.message(message)
        except Malformed as error:
            observe.malformed_message(str(error), len(message.content))
            return
        if event is None:
            return
        self._pending.append(event)
        self._pending_size += event.size
        self._feed.publish(event)
        self._heard(event)
        self._work.set()
        if self.unlogged_since is None:
            self.unlogged_since = time.time()
        if self._pending_size > _PENDING_LIMIT:
            self._stream.pause()

    def _reached(self, position: int) -> None:
        if position > self._received:
            self._received = position
            self._feed.advance(position)

    async def append(self) -> None:
        """Brings what is pending into the log, batch by batch, and confirms behind it."""
        while True:
            try:
                async with asyncio.timeout(_CONFIRM_IDLE_EVERY_S):
                    await self._work.wait()
            except TimeoutError:
                # A message that came in the same turn as the timeout goes into the log first.
                if self._received > self._durable and not self._pending and not self.numbering.in_transaction:
                    position = self._received
                    await self._log.confirm(position)
                    self._confirmed(position)
                continue
            batch, self._pending[:_BATCH] = self._pending[:_BATCH], []
            complete = not self._pending
            if complete:
                self._work.clear()
            # Everything below `received` is in this batch or before it, unless more is pending.
            position = self._received if complete else self._durable
            await self._make_durable(batch, position)
            self.unlogged_since = time.time() if self._pending else None
            self._pending_size -= sum(event.size for event in batch)
            self._feed.window.durable(batch[-1].number)
            self._confirmed(position)
            if self._pending_size <= _PENDING_LIMIT // 2:
                self._stream.resume()

    async def _make_durable(self, batch: list[Event], position: int) -> None:
        try:
            await self._log.append(batch, confirmed=position)
        except psycopg.DataError:
            if len(batch) == 1:
                # Nobody but a forger writes what our decoder takes and PostgreSQL does not: it must not stop the rest.
                observe.malformed_message("PostgreSQL cannot store the event", len(batch[0].body))
                await self._log.confirm(position)
                return
            for event in batch:
                await self._make_durable([event], position if event is batch[-1] else self._durable)

    def _confirmed(self, position: int) -> None:
        if position > self._durable:
            self._durable = position
            self._report(reply=False)

    async def keep_alive(self, ask: Callable[[], None]) -> None:
        """Tells the server once a second that we live, and asks it for the same."""
        while True:
            await asyncio.sleep(_ASK_EVERY_S)
            ask()
            self._report(reply=True)

    def _report(self, *, reply: bool) -> None:
        self._stream.send(status(received=self._received, durable=self._durable, now=time.time(), reply=reply))

"""Capture: the slot's stream into the feed and the log, for as long as the server runs.

An event goes to the feed in the turn of the loop that it came in; the log gets it in the next batch, and the slot is
confirmed only behind the log. If anything breaks, the run ends, and the next one takes up where the log stands: the
slot repeats the rest, it gets the same offsets, and the feed drops what it has published.

Capture counts as live once a beat of its own pulse has come back: by then all that had been sent before a break has
been read again, so that no client knows more than the feed.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress

import psycopg
from psycopg_pool import PoolTimeout

from momentum_sync import observe
from momentum_sync.capture.lag_probe import PREFIX as BEAT
from momentum_sync.capture.lag_probe import LagProbe
from momentum_sync.capture.pgoutput import Begin, Commit, Keepalive, Message, ProtocolError, decode, status
from momentum_sync.capture.sequencer import Sequencer
from momentum_sync.capture.slot import Process, SlotState, Stream, StreamRefused, ensure_slot, look, open_stream
from momentum_sync.errors import CaptureError, FencedOff, SlotBusy
from momentum_sync.eventlog.event import CONTROL, Event, Malformed
from momentum_sync.eventlog.feed import Feed, HistoryForked
from momentum_sync.eventlog.samples import Samples
from momentum_sync.eventlog.table import Checkpoint, EventLog, Publishing
from momentum_sync.tasks import end, first_of

_BACKOFF_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_BUSY_S = 0.25
_ELSEWHERE_S = 5.0  # longer than a stream of our own that broke may hold the slot
_STEADY_S = 10.0
_BEAT_EVERY_S = 1.0
_SILENT_S = 20.0  # a beat comes every second, and in a large transaction PostgreSQL speaks up every 15
_LOOK_EVERY_S = 5.0
_LOOKS_TO_A_CHECK = 3
_STUCK_TIMES = 3
_PATIENCE_S = 5.0
_CONFIRM_IDLE_EVERY_S = 10.0
_BATCH = 2_000
_GATHER_S = 0.05
_PENDING_LIMIT = 16 * 1024 * 1024  # bytes that may wait for the log before reading pauses


class Capture:
    """The one reader of a slot. `conninfo` is of a role that may replicate; the log has connections of its own.

    `state` is `starting`, `catching_up` (it reads what came before), `live`, `waiting` (another instance reads) or
    `broken`. `slot` is what the database last said of the slot, `publishing` what it said of the triggers.
    `has_begun` is set once capture has been live.
    """

    def __init__(self, conninfo: str, slot: str, log: EventLog, feed: Feed, samples: Samples) -> None:
        self._conninfo = conninfo
        self._slot = slot
        self._log = log
        self._feed = feed
        self._samples = samples
        self._lag_probe = LagProbe(uuid.uuid4().hex)
        self._lag_probe.lost(time.monotonic())
        self._current: _Run | None = None
        self._ending = asyncio.Event()
        self._forked: str | None = None
        self._stuck = _Stuck()
        self._process: Process | None = None
        self.slot = SlotState("unknown", None, None)
        self.publishing = Publishing()
        self.state = "starting"
        self.has_begun = asyncio.Event()

    def lag(self, now: float) -> float:
        """Seconds by which the feed may be behind: by its lag_probe, or by an event that waits too long for the log."""
        since = self._current.unlogged_since if self._current is not None else None
        return max(self._lag_probe.lag(now), now - since - _GATHER_S if since is not None else 0.0)

    def end(self) -> None:
        """Has `run` return once all that was read is in the log and the slot is confirmed behind it."""
        self._ending.set()
        if self._current is not None:
            self._current.end()

    async def run(self) -> None:
        """Captures until told to end, or cancelled; comes back by itself, more slowly each time it fails in a row."""
        looking = asyncio.ensure_future(self._look())
        try:
            await self._capture()
        finally:
            await end(looking)

    async def _capture(self) -> None:
        failures = 0
        broke: Exception
        busy_since: float | None = None
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                await self._run_once()
                continue  # told to end, or the history ended
            except SlotBusy as error:
                if self.state != "waiting":
                    observe.slot_busy(str(error))
                    busy_since = began
                self._gone("waiting")
                if busy_since is not None and began - busy_since > _ELSEWHERE_S:
                    busy_since = None
                    self._feed.elsewhere()
                await asyncio.sleep(_BUSY_S)
                continue
            except (CaptureError, FencedOff, ProtocolError, PoolTimeout, psycopg.Error, OSError, TimeoutError) as error:
                broke = error
                self._learn_from(error)
            except Exception as error:
                observe.failed("capture", error)
                broke = error
            self._gone("broken")
            failures = 0 if time.monotonic() - began > _STEADY_S else failures + 1
            pause = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            observe.capture_broke(broke, pause)
            await asyncio.sleep(pause)

    def _learn_from(self, error: Exception) -> None:
        """Record what the next run needs: a forked history, or a slot that may be stuck."""
        if isinstance(error, HistoryForked):
            self._forked = str(error)
        elif isinstance(error, StreamRefused) and error.is_final:
            observe.slot_may_be_stuck(str(error))
            self._stuck.failed(error)
            return
        self._stuck.forget()

    def _gone(self, state: str) -> None:
        self.state = state
        self._current = None
        self._lag_probe.lost(time.monotonic())

    async def _look(self) -> None:
        """Keeps `slot` and `publishing` up to date, whoever reads the slot."""
        looks = 0
        while True:
            try:
                self.slot = await look(self._conninfo, self._slot)
                if looks % _LOOKS_TO_A_CHECK == 0:
                    publishing = await self._log.check_publishing()
                    if publishing != self.publishing:
                        observe.publishing(publishing.problems, publishing.foreign_triggers)
                    self.publishing = publishing
                looks += 1
            except Exception as error:
                self.slot = SlotState("unknown", None, None)
                observe.slot_unknown(error)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _run_once(self) -> None:
        self._stuck.begins()
        lost = await ensure_slot(self._conninfo, self._slot, stuck=self._stuck.for_ever, before=self._process)
        if lost is not None:
            self._stuck.forget()
            observe.slot_lost(self._slot, lost)
        async with open_stream(self._conninfo, self._slot) as stream:
            self._process = stream.process
            self._stuck.began(stream.facts.confirmed_lsn)
            if self._ending.is_set():
                return
            standing = await self._log.take_over(stream.facts, known=self._feed.known, broke=self._forked)
            self._forked = None
            if standing.broke is not None:
                observe.history_broke(standing.epoch, standing.broke)
            with suppress(psycopg.errors.LockNotAvailable):  # append makes the one it needs, if it has to
                await self._log.keep_partitions(retention=None)
            self._feed.begin(
                epoch=standing.epoch,
                offset=standing.offset,
                mark=standing.mark,
                position=stream.facts.confirmed_lsn,
                ceiling=standing.ceiling,
                incarnation=standing.incarnation,
                newest=standing.newest,
                before=standing.before,
            )
            sequencer = Sequencer(offset=standing.offset, place=standing.place, near_xid=standing.ceiling)
            if self._ending.is_set():  # nothing was read
                return
            run = self._current = _Run(stream, self._log, self._feed, self._lag_probe, sequencer, self._samples)
            self.state = "catching_up"
            observe.capture_began(self._slot, standing.epoch, standing.offset)
            await first_of(
                stream.run(run.take), run.append(), run.beat(), run.watch(_SILENT_S), self._log.watch(),
                self._log.watch_whole(), self._log.watch_policies(), self._until_live(run, standing),
            )  # fmt: skip
            await run.finish()
            if not self._ending.is_set():  # the history ended
                self._gone("broken")

    async def _until_live(self, run: _Run, standing: Checkpoint) -> None:
        if standing.begins:
            # Transactions under way may be in the history before, and not yet in any snapshot. A new slot waits, too.
            waiting = asyncio.ensure_future(self._log.until_settled(standing))
            try:
                if not (await asyncio.wait([waiting], timeout=_PATIENCE_S))[0]:
                    observe.waits_for_transactions(standing.ceiling)
                await waiting
            finally:
                await end(waiting)
        await run.caught_up.wait()
        self.state = "live"
        self.has_begun.set()
        observe.capture_live(self._slot, self._feed.offset)
        await asyncio.get_running_loop().create_future()  # for as long as the others


class _Stuck:
    """Whether streaming ends with the same kind of error again and again without getting any further.

    Only then is the slot given up: a stream that got further in between had another reason to end.
    """

    def __init__(self) -> None:
        self._began_at: int | None = None  # LSN confirmed when the stream began; None: it has not
        self._failed_at: int | None = None  # the same, of the stream that failed last
        self._times = 0
        self._error: StreamRefused | None = None

    def begins(self) -> None:
        self._began_at = None

    def began(self, confirmed: int) -> None:
        self._began_at = confirmed

    def failed(self, error: StreamRefused) -> None:
        same = self._error is not None and self._error.state == error.state and self._began_at == self._failed_at
        self._times = self._times + 1 if same else 1
        self._failed_at, self._error = self._began_at, error

    def forget(self) -> None:
        self._times, self._error = 0, None

    @property
    def for_ever(self) -> StreamRefused | None:
        """The error, once it has come often enough."""
        return self._error if self._times >= _STUCK_TIMES else None


class _Run:
    """One stretch of capture, from taking the slot to losing it."""

    def __init__(
        self, stream: Stream, log: EventLog, feed: Feed, lag_probe: LagProbe, sequencer: Sequencer, samples: Samples
    ) -> None:
        self._stream = stream
        self._log = log
        self._feed = feed
        self._lag_probe = lag_probe
        self._sequencer = sequencer
        self._samples = samples
        self._end = False
        self._heard_at = time.monotonic()
        self.caught_up = asyncio.Event()
        self._pending: list[Event] = []
        self._pending_size = 0
        self._work = asyncio.Event()
        self.unlogged_since: float | None = None
        self._received = stream.facts.confirmed_lsn
        self._durable = stream.facts.confirmed_lsn

    def take(self, payloads: Sequence[bytes | memoryview]) -> None:
        """What of the stream came at once: all of it decoded, then numbered, then published.

        An event costs a third less than if it went all the way before the next: the processor finds each stage's code
        and data where it left them.
        """
        self._heard_at = time.monotonic()
        events: list[Event] = []
        beats: list[bytes] = []
        position, reply = self._received, False
        for frame in [decode(payload) for payload in payloads]:
            match frame:
                case Message(prefix=prefix) if prefix == BEAT:
                    beats.append(frame.content)
                case Message():
                    event = self._event(frame)
                    if event is not None:
                        events.append(event)
                        if _ends_history(event):
                            break
                case Begin():
                    self._sequencer.begin(frame)
                case Commit():
                    self._sequencer.commit()
                    position = max(position, frame.end)
                case Keepalive():
                    if not self._sequencer.in_transaction:
                        position = max(position, frame.end)
                    reply = reply or frame.reply
        if events:
            self._publish(events)
        if events and _ends_history(events[-1]):
            self.end()  # what follows is another history's, and is read again for it
            return
        for beat in beats:  # now that what was before it has been published
            if self._lag_probe.read(beat, time.monotonic()):
                self.caught_up.set()
        if position > self._received:
            self._received = position
            self._feed.advance(position)
        if reply:
            self._report(reply=False)

    def _event(self, message: Message) -> Event | None:
        try:
            return self._sequencer.message(message)
        except Malformed as error:
            observe.malformed_message(str(error), len(message.content))
            self._samples.unreadable(len(message.content), str(error))
            return None

    def _publish(self, events: list[Event]) -> None:
        self._feed.publish(events)  # first: the log gets nothing that clients do not
        self._pending += events
        self._pending_size += sum([event.size for event in events])
        self._work.set()
        if self.unlogged_since is None:
            self.unlogged_since = time.monotonic()
        if self._pending_size > _PENDING_LIMIT:
            self._stream.pause()

    async def append(self) -> None:
        """Brings what is pending into the log, batch by batch, and confirms behind it; returns once told to end."""
        while self._pending or not self._end:
            try:
                async with asyncio.timeout(_CONFIRM_IDLE_EVERY_S):
                    await self._work.wait()
            except TimeoutError:
                # A message that came in the same turn as the timeout goes into the log first.
                if self._received > self._durable and not self._pending and not self._sequencer.in_transaction:
                    position = self._received
                    await self._log.confirm(position)
                    self._confirmed(position)
                continue
            if self._pending:
                if len(self._pending) < _BATCH and not self._end:
                    # A batch of one costs the database and us as much as one of a hundred, and nobody waits for it:
                    # what the log does not have yet, the window and the slot have.
                    await asyncio.sleep(_GATHER_S)
                await self._append_next()

    async def _append_next(self) -> None:
        batch, self._pending[:_BATCH] = self._pending[:_BATCH], []
        complete = not self._pending
        if complete:
            self._work.clear()
        # Everything below `received` is in this batch or before it, unless more is pending.
        position = self._received if complete else self._durable
        began = time.monotonic()
        await self._make_durable(batch, position)
        observe.appended(time.monotonic() - began)
        self.unlogged_since = time.monotonic() if self._pending else None
        self._pending_size -= sum(event.size for event in batch)
        self._feed.logged(batch[-1])
        self._confirmed(position)
        if self._pending_size <= _PENDING_LIMIT // 2 and not self._end:
            self._stream.resume()

    async def _make_durable(self, batch: list[Event], position: int) -> None:
        try:
            await self._log.append(batch, confirmed=position)
        except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded):
            if len(batch) == 1:
                # Nobody but a forger writes what our decoder takes and PostgreSQL does not: it must not stop the rest.
                observe.malformed_message("PostgreSQL cannot store the event", len(batch[0].body))
                self._samples.failed(batch[0], "PostgreSQL cannot store the event")
                await self._log.append_unstorable(batch[0], confirmed=position)
                return
            for event in batch:
                await self._make_durable([event], position if event is batch[-1] else self._durable)

    def _confirmed(self, position: int) -> None:
        if position > self._durable:
            self._durable = position
            self._report(reply=False)

    async def beat(self) -> None:
        """Write a lag probe into the WAL once a second, unless one is under way."""
        while True:
            beat = self._lag_probe.next(time.monotonic())
            if beat is not None:
                await self._log.beat(BEAT, beat)
            await asyncio.sleep(_BEAT_EVERY_S)

    async def watch(self, silent: float) -> None:
        """Tells PostgreSQL once a second that we live, and raises CaptureError when nothing has come for `silent`
        seconds.

        It waits for no answer, because on a connection that went silent there is none.
        """
        while True:
            self._report(reply=True)
            if time.monotonic() - self._heard_at > silent and self._stream.reading:
                self._stream.cut()
                raise CaptureError(f"no data from the database for {silent:g} s; reconnecting")
            await asyncio.sleep(_BEAT_EVERY_S)

    def end(self) -> None:
        """Reads no further, and has `append` return once what was read is in the log."""
        self._end = True
        self._stream.pause()
        self._work.set()

    async def finish(self) -> None:
        """After `append` has returned: confirms the slot behind the log and lets the server close the stream."""
        if not self._pending and not self._sequencer.in_transaction and self._received > self._durable:
            position = self._received
            await self._log.confirm(position)
            self._confirmed(position)
        await self._stream.finish()

    def _report(self, *, reply: bool) -> None:
        self._stream.send(status(received=self._received, durable=self._durable, now=time.time(), reply=reply))


def _ends_history(event: Event) -> bool:
    """Whether a table was truncated: there are no rows to tell of, so every client begins again."""
    return event.event_type == "table_truncated" and CONTROL in event.channels

"""One run of capture: frames of the stream become events, which are published, appended to the log and confirmed.

An event is published in the turn of the event loop in which its frame arrives. The log gets it with the next batch,
and the slot is confirmed only behind the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from uuid import UUID

import psycopg

from momentum_sync import observe
from momentum_sync.capture.broadcasts import MESSAGES, Broadcasts
from momentum_sync.capture.database_checks import DatabaseChecks
from momentum_sync.capture.lag_probe import PREFIX as PROBE
from momentum_sync.capture.lag_probe import LagProbe
from momentum_sync.capture.pgoutput import Begin, Change, Commit, Keepalive, Message, ProtocolError, decode, status
from momentum_sync.capture.row_changes import RowChanges, UnknownRelation
from momentum_sync.capture.row_messages import Insert, Relation, RowMessage, Truncate, decode_relation, decode_row
from momentum_sync.capture.sequencer import Sequencer
from momentum_sync.capture.slot import Stream
from momentum_sync.capture.values import ColumnType
from momentum_sync.errors import CaptureError
from momentum_sync.eventlog.envelope import Malformed
from momentum_sync.eventlog.event import CONTROL, Event, row_channel
from momentum_sync.eventlog.feed import FeedPublisher
from momentum_sync.eventlog.followed_tables import FOLLOW
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.samples import Samples
from momentum_sync.limits import CaptureLimits
from momentum_sync.telemetry.spans import EventSpans

SEND_FAILED = "momentum_sync.send_failed"
"""The prefix of a logical message with which `realtime.send` reports the SQLSTATE of its failure."""

LoadTypes = Callable[[set[int]], Awaitable[Mapping[int, ColumnType]]]


class Pipeline:
    """Decode, sequence, publish, append, confirm: from acquiring the slot to losing it.

    Args:
        stream: the stream.
        log: the log.
        feed: where events are published.
        lag_probe: measures the lag.
        sequencer: gives events their offsets.
        samples: receives events that could not be read or stored.
        token: the fencing token of this run.
        limits: bounds.
        load_types: loads types by their ids.
        asked_to_follow: called with a gateway's request to follow a table, the id of the relation as text.
        publications: the publications of the rows in the stream.
        spans: makes the spans of events that are traced.

    Attributes:
        token: as above.
        publications: as above.
        caught_up: set when a lag probe of this run has returned: everything that was sent before has been read.
        unlogged_since: monotonic time since when an event has been waiting for the log; None if none is.
    """

    def __init__(
        self,
        stream: Stream,
        log: EventLog,
        feed: FeedPublisher,
        lag_probe: LagProbe,
        sequencer: Sequencer,
        samples: Samples,
        token: UUID,
        limits: CaptureLimits,
        load_types: LoadTypes,
        asked_to_follow: Callable[[bytes], None],
        *,
        publications: Collection[str] = (),
        spans: EventSpans | None = None,
    ) -> None:
        self._stream = stream
        self._log = log
        self._feed = feed
        self._lag_probe = lag_probe
        self._sequencer = sequencer
        self._samples = samples
        self._spans = spans
        self.token = token
        self.publications = publications
        self._limits = limits
        self._load_types = load_types
        self._asked_to_follow = asked_to_follow
        self._rows = RowChanges()
        self._broadcasts = Broadcasts()
        self._descriptions: dict[int, bytes] = {}  # of relations that are not followed
        self._held: list[bytes | memoryview] = []  # frames that wait for types
        self._holds = asyncio.Event()
        self._missing: set[int] = set()
        self._free = asyncio.Event()  # not set while a relation is taken up
        self._free.set()
        self._ending = False
        self._heard_at = time.monotonic()
        self.caught_up = asyncio.Event()
        self._pending: list[Event] = []
        self._pending_size = 0
        self._work = asyncio.Event()
        self._advanced = asyncio.Event()
        self._error: CaptureError | None = None
        self.unlogged_since: float | None = None
        self._received = stream.facts.confirmed_lsn
        self._durable = stream.facts.confirmed_lsn

    def take(self, payloads: Sequence[bytes | memoryview]) -> None:
        """Take the frames that arrived together: decode all, sequence all, publish all.

        An event costs a third less than if each frame went the whole way before the next, because the processor's
        caches keep the code and data of one stage.
        """
        self._heard_at = time.monotonic()
        events: list[Event] = []
        probes: list[bytes] = []
        lsn, reply = self._received, False
        for number, frame in enumerate([decode(payload) for payload in payloads]):
            match frame:
                case Message():
                    if frame.prefix == PROBE:
                        probes.append(frame.content)
                    elif (event := self._event(frame)) is not None:
                        events.append(event)
                        if _ends_history(event):
                            break
                case Change():
                    if frame.relation and not self._sequencer.is_followed(frame.relation):
                        if frame.describes or frame.relation in self._broadcasts.places:
                            events += self._unfollowed(frame)
                        continue
                    events += self._change(frame)
                    if self._missing:
                        self._hold(payloads[number:])
                        break
                case Begin():
                    self._sequencer.begin(frame)
                case Commit():
                    self._sequencer.commit()
                    lsn = max(lsn, frame.end)
                case Keepalive():
                    # Events of an open transaction may still follow, so the position moves only with its commit.
                    if not self._sequencer.in_transaction:
                        lsn = max(lsn, frame.end)
                    reply = reply or frame.reply
        if events:
            self._publish(events)
        if events and _ends_history(events[-1]):
            self.end()  # later messages belong to the next epoch and are read again
            return
        for probe in probes:  # everything before it has been published
            if self._lag_probe.read(probe, time.monotonic()):
                self.caught_up.set()
        if lsn > self._received:
            self._received = lsn
            self._advanced.set()
            # After the events: subscribers drop their snapshot boundary here and must have every event below the LSN.
            self._feed.advance(lsn)
        if reply:
            self._report(reply=False)

    def _event(self, message: Message) -> Event | None:
        try:
            event = self._sequencer.message(message)
        except Malformed as error:
            observe.malformed_message(str(error), len(message.content))
            self._samples.unreadable(len(message.content), str(error))
            return None
        if event is None and message.prefix == SEND_FAILED:
            observe.send_failed(message.content)
        elif event is None and message.prefix == FOLLOW:
            self._asked_to_follow(message.content)
        return event

    def _unfollowed(self, frame: Change) -> list[Event]:
        """Keep the description of a relation. Return the event of a message in `realtime.messages`."""
        if frame.describes:  # it comes once in a stream, and the relation may be followed later
            self._descriptions[frame.relation] = frame.frame
            self._broadcasts.describe(decode_relation(frame.payload))
            return []
        message = decode_row(frame.payload) if self._sequencer.follows(MESSAGES) else None
        if not isinstance(message, Insert):  # else retention, or an app that tidies up
            return []
        try:
            event = self._sequencer.row(lambda _: self._broadcasts.read(message))
        except Malformed as error:
            observe.unsendable_message(str(error), len(frame.frame))
            self._samples.unreadable(len(frame.frame), str(error))
            return []
        if event is None:
            return []
        observe.broadcast("database")
        return [event]

    def _change(self, frame: Change) -> list[Event]:
        """Return the events of a message about rows of followed relations."""
        message = decode_row(frame.payload)
        match message:
            case None:
                return []
            case Relation():
                self._missing = self._rows.missing_types(message)
                if not self._missing:
                    self._rows.describe(message)
                return []
            case Truncate(relations=relations):
                pass
            case _:
                relations = (message.relation,)
        events: list[Event] = []
        for relation in relations:
            if self._sequencer.follows(relation):
                try:
                    event = self._sequencer.row(partial(self._encode, message, relation))
                except UnknownRelation as error:
                    raise ProtocolError(str(error)) from None
                if event is not None:
                    events.append(event)
        return events

    def _encode(self, message: RowMessage, relation: int, committed_at: float) -> tuple[str, bytes]:
        return row_channel(relation), self._rows.encode(message, relation, committed_at)

    def _hold(self, frames: Sequence[bytes | memoryview]) -> None:
        """Keep frames until `load_types` takes them."""
        self._held = list(frames)
        self._stream.pause()
        self._holds.set()

    async def load_types(self) -> None:
        """Load the types of relations that the stream describes, and go on behind them."""
        while True:
            await self._holds.wait()
            self._holds.clear()
            missing, self._missing = self._missing, set()
            if missing:
                self._rows.learn(missing, await self._load_types(missing))
            # The held frames may have changes of a relation that is about to be followed.
            await self._free.wait()
            held, self._held = self._held, []
            if not self._ending:
                self.take(held)
            self._resume()

    def _resume(self) -> None:
        """Read on, unless the pipeline ends or something has to happen first."""
        over = self._pending_size > self._limits.pending_bytes
        if self._ending or over or self._held or not self._free.is_set():
            return
        self._heard_at = time.monotonic()  # the silence while the stream was paused was ours
        self._stream.resume()

    # Following relations

    def follows(self, relation: int) -> bool:
        """Return whether the changes of a relation are events."""
        return self._sequencer.is_followed(relation)

    def reserve(self) -> int:
        """Stop reading, so that a relation can be followed. Return the LSN after which its changes become events."""
        self._free.clear()
        self._stream.pause()
        return self._sequencer.reached

    def follow(self, relation: int, after: int) -> None:
        """Make a relation's changes events after an LSN, and read on."""
        self._sequencer.follow(relation, after)
        description = self._descriptions.pop(relation, None)
        if description is not None:
            self._hold([description, *self._held])
        self._free.set()
        self._resume()

    def fail(self, error: CaptureError) -> None:
        """End the run with an error."""
        self._error = error
        self._work.set()

    async def until_durable(self, lsn: int) -> None:
        """Wait until the slot is confirmed up to an LSN, without waiting for the next idle confirmation."""
        while self._durable < lsn:
            self._advanced.clear()
            # A batch leaves `_pending` before the log has it.
            logged = self.unlogged_since is None and not self._sequencer.in_transaction
            if self._received >= lsn and logged:
                await self._confirm()
            else:
                await self._advanced.wait()

    def _publish(self, events: list[Event]) -> None:
        self._feed.publish(events)  # before the log, which must not contain events that clients never get
        if self._spans is not None:
            self._spans.published(self._feed.state.epoch, events)
        self._pending += events
        self._pending_size += sum([event.size for event in events])
        self._work.set()
        if self.unlogged_since is None:
            self.unlogged_since = time.monotonic()
        if self._pending_size > self._limits.pending_bytes:
            self._stream.pause()

    async def append(self) -> None:
        """Append pending events to the log in batches and confirm behind them. Return once told to end."""
        while self._pending or not self._ending:
            if self._error is not None:
                raise self._error
            try:
                async with asyncio.timeout(self._limits.idle_confirm_interval_s):
                    await self._work.wait()
            except TimeoutError:
                # An event that arrived in the same turn as the timeout must be appended first.
                if self._received > self._durable and not self._pending and not self._sequencer.in_transaction:
                    await self._confirm()
                continue
            if self._pending:
                if len(self._pending) < self._limits.append_batch and not self._ending:
                    # A batch of one costs as much as one of a hundred, and no client waits for it: until then the
                    # window and the slot have the events.
                    await asyncio.sleep(self._limits.append_gather_s)
                await self._append_next()

    async def _append_next(self) -> None:
        batch, self._pending[: self._limits.append_batch] = self._pending[: self._limits.append_batch], []
        complete = not self._pending
        if complete:
            self._work.clear()
        # Everything below `received` is in this batch or before it, unless more is pending.
        confirmed = self._received if complete else self._durable
        began = time.monotonic()
        await self._make_durable(batch, confirmed)
        observe.appended(time.monotonic() - began)
        self.unlogged_since = time.monotonic() if self._pending else None
        self._pending_size -= sum(event.size for event in batch)
        self._feed.logged(batch[-1])
        if self._spans is not None:
            self._spans.logged(batch[-1].offset)
        self._confirmed(confirmed)
        # Resuming at half the limit keeps reading from stopping and starting with every batch.
        if self._pending_size <= self._limits.pending_bytes // 2:
            self._resume()

    async def _make_durable(self, batch: list[Event], confirmed: int) -> None:
        try:
            # Only errors about the data are caught. Any other error ends the run, and the slot repeats the batch.
            await self._log.append(batch, token=self.token, confirmed=confirmed)
        except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex):
            if len(batch) == 1:
                # Only a forged message passes the decoder and not PostgreSQL. It must not stop the others.
                observe.malformed_message("PostgreSQL cannot store the event", len(batch[0].body))
                self._samples.failed(batch[0], "PostgreSQL cannot store the event")
                await self._log.append_unstorable(batch[0], token=self.token, confirmed=confirmed)
                return
            for event in batch:
                await self._make_durable([event], confirmed if event is batch[-1] else self._durable)

    async def _confirm(self) -> None:
        received = self._received
        # The log comes before the slot: a slot ahead of the log counts as a break (`Checkpoints._break`).
        await self._log.confirm(received, token=self.token)
        self._confirmed(received)

    def _confirmed(self, lsn: int) -> None:
        if lsn > self._durable:
            self._durable = lsn
            self._advanced.set()
            self._report(reply=False)

    async def probe(self, checks: DatabaseChecks) -> None:
        """Write a lag probe into the WAL at intervals, unless one is under way."""
        while True:
            probe = self._lag_probe.next(time.monotonic())
            if probe is not None:
                await checks.write_probe(PROBE, probe)
            await asyncio.sleep(self._limits.probe_interval_s)

    async def watch(self) -> None:
        """Send a status to PostgreSQL at intervals. Raise CaptureError when nothing arrives for too long.

        No answer is awaited, because a half-open connection gives none.
        """
        while True:
            # PostgreSQL answers with a keepalive, so a live connection is never silent for long.
            self._report(reply=True)
            silence = self._limits.silence_s
            # A paused stream is silent because this process does not read it.
            if time.monotonic() - self._heard_at > silence and self._stream.reading:
                self._stream.cut()
                raise CaptureError(f"no data from the database for {silence:g} s; reconnecting")
            await asyncio.sleep(self._limits.probe_interval_s)

    def end(self) -> None:
        """Stop reading, and let `append` return once everything read is in the log."""
        self._ending = True
        self._stream.pause()
        self._work.set()

    async def finish(self) -> None:
        """Confirm the slot behind the log after `append` has returned, and close the stream."""
        if not self._pending and not self._sequencer.in_transaction and self._received > self._durable:
            await self._confirm()
        await self._stream.finish()

    def _report(self, *, reply: bool) -> None:
        self._stream.send(status(received=self._received, durable=self._durable, now=time.time(), reply=reply))


def _ends_history(event: Event) -> bool:
    """Return whether the event reports a TRUNCATE, which names no rows: every client needs a new snapshot."""
    return event.event_type == "table_truncated" and CONTROL in event.channels

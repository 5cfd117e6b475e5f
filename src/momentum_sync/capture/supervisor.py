"""Capture: reads the slot into the feed and the log for as long as the server runs.

One run of the pipeline lasts until the stream, the log or a check fails; the next begins where the log ends. The slot
repeats unconfirmed events, they get the same offsets, and the feed drops those published before.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress

import psycopg
from psycopg_pool import PoolTimeout

from momentum_sync import observe
from momentum_sync.capture.broadcasts import MESSAGES
from momentum_sync.capture.checkpoint import Checkpoint, Checkpoints, publication_of
from momentum_sync.capture.database_checks import DatabaseChecks
from momentum_sync.capture.lag_probe import LagProbe
from momentum_sync.capture.pgoutput import ProtocolError
from momentum_sync.capture.pipeline import Pipeline
from momentum_sync.capture.reader_watch import Process, ReaderWatch
from momentum_sync.capture.sequencer import Sequencer
from momentum_sync.capture.slot import BROADCASTS, StreamRefused, ensure_slot, open_stream, read_slot_state
from momentum_sync.errors import CaptureError, FencedOff, SlotBusy, Unavailable
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.feed import Beginning, FeedPublisher, FeedState, HistoryForked
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.partitions import keep_partitions
from momentum_sync.eventlog.samples import Samples
from momentum_sync.eventlog.status import (
    CAPTURE_TRANSITIONS,
    UNKNOWN_SLOT,
    CaptureState,
    FeedStatus,
    SlotState,
    Triggers,
)
from momentum_sync.limits import CaptureLimits
from momentum_sync.schema import Schema
from momentum_sync.states import enter
from momentum_sync.tasks import end, first_of
from momentum_sync.telemetry.spans import EventSpans

_MOST_DIGITS = 10  # of an oid
_MOST_REQUESTS = 100


class Capture:
    """The only reader of a slot.

    Args:
        conninfo: connection string of a role that may replicate; the log has connections of its own.
        slot: name of the slot.
        connections: connections to the log.
        log: the log.
        feed: where events are published.
        samples: receives events that could not be read or stored.
        schema: the application's channels.
        limits: bounds.
        spans: makes the spans of events that are traced.

    Attributes:
        has_begun: set once capture has been live.
    """

    def __init__(
        self,
        conninfo: str,
        slot: str,
        connections: LogConnections,
        log: EventLog,
        feed: FeedPublisher,
        samples: Samples,
        schema: Schema,
        limits: CaptureLimits,
        spans: EventSpans | None = None,
    ) -> None:
        self._conninfo = conninfo
        self._slot = slot
        self._connections = connections
        self._log = log
        self._feed = feed
        self._samples = samples
        self._spans = spans
        self._schema = schema
        self._limits = limits
        self._checkpoints = Checkpoints(connections, log, slot, limits)
        self._checks = DatabaseChecks(connections, schema, limits)
        self._probe = LagProbe(uuid.uuid4().hex)
        self._probe.lost(time.monotonic())
        self._pipeline: Pipeline | None = None
        self._ending = asyncio.Event()
        self._forked: str | None = None
        self._run: int | None = None  # of PostgreSQL
        self._stuck = StuckSlot(limits.stuck_failures, limits.stuck_s)
        self._process: Process | None = None
        self._watch = ReaderWatch(limits.slot_silent_s)
        self._seen: FeedState | None = None
        self._looked_at = 0.0
        self._slot_state: SlotState = UNKNOWN_SLOT
        self._triggers = Triggers([], [])
        self._state = CaptureState.STARTING
        self._following = asyncio.Lock()
        self._follows_messages = asyncio.Event()
        self._look_for_messages = asyncio.Event()
        self._live = asyncio.Event()
        self._follow_requests: dict[int, asyncio.Task[None]] = {}
        self.has_begun = asyncio.Event()
        feed.report(self.status)

    def status(self) -> FeedStatus:
        """Return the status of the feed now."""
        return FeedStatus(self._state, self._lag(time.monotonic()), self._slot_state, self._triggers)

    def _lag(self, now: float) -> float:
        """Return the seconds by which the feed may be behind: by its probes, or by an event that waits for the log."""
        since = None if self._pipeline is None else self._pipeline.unlogged_since
        # An event waits `append_gather_s` for others on purpose, which is no lag.
        return max(self._probe.lag(now), 0.0 if since is None else now - since - self._limits.append_gather_s)

    def end(self) -> None:
        """Let `run` return once everything read is in the log and the slot is confirmed behind it."""
        self._ending.set()
        if self._pipeline is not None:
            self._pipeline.end()

    async def follow(self, relation: int) -> None:
        """Make the changes of a relation's rows events from now on, for every server of this database.

        The first relation takes a second, because the stream begins again with the publication of rows.

        Raises:
            Unavailable: capture is not live, or the database does not answer.
            CaptureError: the publication does not exist.
        """
        pipeline = self._pipeline
        if pipeline is not None and self._live.is_set() and pipeline.follows(relation):
            return
        try:
            async with asyncio.timeout(self._limits.follow_s), self._following:
                pipeline = self._pipeline
                while pipeline is None or not self._live.is_set() or not pipeline.follows(relation):
                    await self._live.wait()
                    pipeline = self._pipeline
                    if pipeline is not None and not pipeline.follows(relation):
                        await self._follow(pipeline, relation)
        except (TimeoutError, PoolTimeout, psycopg.Error, FencedOff) as error:
            raise Unavailable("The event stream cannot take up this table now; try again in a moment.") from error

    def _follow_requested(self, relation: bytes) -> None:
        """Follow a table because a gateway in another process asked for it."""
        if not relation.isdigit() or len(relation) > _MOST_DIGITS:  # anybody can write such a message
            return
        number = int(relation)
        if number not in self._follow_requests and len(self._follow_requests) < _MOST_REQUESTS:
            task = self._follow_requests[number] = asyncio.create_task(self._follow_for_gateway(number))
            task.add_done_callback(lambda _: self._follow_requests.pop(number, None))

    async def _follow_for_gateway(self, relation: int) -> None:
        try:
            await self.follow(relation)
        except (CaptureError, Unavailable) as error:
            observe.not_followed(relation, error)

    async def follow_messages(self) -> bool:
        """Return whether the messages in `realtime.messages` are events, or there is no such table.

        It waits for that, but not for long: before PostgreSQL 18 it may take as long as the oldest transaction.

        Raises:
            Unavailable: the database does not answer.
        """
        if self._follows_messages.is_set():
            return True
        try:
            if await self._checkpoints.messages() is None:
                return True
            self._look_for_messages.set()
            async with asyncio.timeout(self._limits.messages_wait_s):
                await self._follows_messages.wait()
        except TimeoutError:
            return False
        except (PoolTimeout, psycopg.Error) as error:
            raise Unavailable("The database does not answer; try again in a moment.") from error
        return True

    async def _keep_messages(self) -> None:
        """Follow `realtime.messages` as soon as it is there, also if it is created or published later.

        Where its publication goes, messages are missing from the stream: the history ends, so that clients are told.
        """
        known: int | None = None
        while True:
            await self._live.wait()
            try:
                now = await self._checkpoints.messages()
                if self._follows_messages.is_set():
                    if known not in (None, now) and (pipeline := self._pipeline) is not None:
                        self._forked = f"the publication {BROADCASTS} was dropped"
                        pipeline.fail(CaptureError(self._forked))
                        self._is_over(pipeline)
                elif now is not None:
                    # Outside of `follow`, which other tables would wait for.
                    await self._checkpoints.publication_lsn(BROADCASTS)
                    await self.follow(MESSAGES)
                    self._follows_messages.set()
                known = now
            except (CaptureError, Unavailable, PoolTimeout, psycopg.Error) as error:
                observe.messages_not_followed(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.slot_check_interval_s):
                    await self._look_for_messages.wait()
            self._look_for_messages.clear()

    async def _follow(self, pipeline: Pipeline, relation: int) -> None:
        publication = publication_of(relation)
        has_publication = publication in pipeline.publications
        if not has_publication:
            # Before PostgreSQL 18 a stream that begins before the publication was created fails for ever.
            await pipeline.until_durable(await self._checkpoints.publication_lsn(publication))
        await self._checkpoints.check_followable(relation)
        after = pipeline.reserve()
        try:
            await self._checkpoints.follow(relation, after, token=pipeline.token)
        except BaseException:
            # The row may be there all the same, and the offsets of this run would then be wrong.
            pipeline.fail(CaptureError("it is not known whether a table is followed"))
            self._is_over(pipeline)
            raise
        if has_publication:
            pipeline.follow(relation, after)
            return
        # The next run opens the stream with the publication.
        self._is_over(pipeline)
        pipeline.end()

    def _is_over(self, pipeline: Pipeline) -> None:
        """Wait for the next run, unless another one has replaced this pipeline meanwhile."""
        if self._pipeline is pipeline:
            self._live.clear()

    async def run(self) -> None:
        """Capture until told to end or cancelled, with a longer pause after each failure in a row."""
        looking = asyncio.ensure_future(self._watch_database())
        keeping = asyncio.ensure_future(self._keep_messages())
        try:
            await self._capture()
        finally:
            await end(looking, keeping, *self._follow_requests.values())

    def _enter(self, state: CaptureState) -> None:
        self._state = enter(self._state, state, CAPTURE_TRANSITIONS)
        if state is CaptureState.LIVE:
            self._live.set()
        else:
            self._live.clear()
        if state in (CaptureState.WAITING, CaptureState.BROKEN):
            self._pipeline = None
            self._probe.lost(time.monotonic())

    async def _capture(self) -> None:
        limits = self._limits
        failures = 0
        broke: Exception
        busy_since: float | None = None
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                await self._run_once()
                continue  # told to end, or the history ended
            except SlotBusy as error:
                if self._state is not CaptureState.WAITING:
                    observe.slot_busy(str(error))
                    busy_since = began
                self._enter(CaptureState.WAITING)
                if busy_since is not None and began - busy_since > limits.slot_elsewhere_s:
                    # Subscribers get one notice: until this instance is live, `Gateway.admit` takes no new connection.
                    busy_since = None
                    self._feed.elsewhere()
                await asyncio.sleep(limits.slot_retry_s)
                continue
            except (CaptureError, FencedOff, ProtocolError, PoolTimeout, psycopg.Error, OSError, TimeoutError) as error:
                broke = error
                self._learn_from(error)
                await self._connections.renew()
            except Exception as error:
                # A defect restarts capture, as a lost connection does, instead of ending the server.
                observe.failed("capture", error)
                broke = error
            self._enter(CaptureState.BROKEN)
            failures = 0 if time.monotonic() - began > limits.steady_s else failures + 1
            pause = limits.backoff_s[min(failures, len(limits.backoff_s) - 1)]
            observe.capture_broke(broke, pause)
            await asyncio.sleep(pause)

    def _learn_from(self, error: Exception) -> None:
        """Record the values that the next run needs: a forked history, or a slot that may be stuck."""
        if isinstance(error, HistoryForked):
            self._forked = str(error)
        elif isinstance(error, StreamRefused) and error.repeats:
            observe.slot_may_be_stuck(str(error))
            self._stuck.failed(error, time.monotonic())
            return
        self._stuck.forget()

    async def _watch_database(self) -> None:
        """Keep the state of slot and triggers up to date, also while another instance reads the slot."""
        checks = 0
        while True:
            try:
                self._slot_state = await read_slot_state(self._conninfo, self._slot, self._limits)
                if checks % self._limits.slot_checks_per_trigger_check == 0:
                    triggers = await self._checks.check_triggers()
                    if triggers != self._triggers:
                        observe.publishing(triggers.problems, triggers.foreign_triggers)
                    self._triggers = triggers
                checks += 1
            except Exception as error:
                self._slot_state = UNKNOWN_SLOT
                observe.slot_unknown(error)
            await asyncio.sleep(self._limits.slot_check_interval_s)

    async def _prepare(self) -> frozenset[str]:
        """Have a slot that can be read. Return the publications with which to read it."""
        self._stuck.begins()
        if self._state is CaptureState.WAITING and time.monotonic() >= self._looked_at + self._limits.log_look_s:
            self._looked_at = time.monotonic()
            self._seen = await self._checkpoints.last_logged(self._seen)
        has_messages = await self._checkpoints.messages() is not None  # before the slot, which may be created
        ensured = await ensure_slot(
            self._conninfo, self._slot, self._limits, stuck=self._stuck.for_ever, before=self._process,
            watch=self._watch,
        )  # fmt: skip
        if ensured.lost is not None:
            self._stuck.forget()
            observe.slot_lost(self._slot, ensured.lost)
        return await self._checkpoints.publications(is_new=ensured.created and has_messages)

    async def _run_once(self) -> None:
        limits = self._limits
        publications = await self._prepare()
        async with open_stream(self._conninfo, self._slot, limits, publications=publications) as stream:
            self._process = stream.process
            self._stuck.began(stream.facts.confirmed_lsn)
            # Before `_pipeline` is set, `end` cannot stop this run, which therefore checks for itself.
            if self._ending.is_set():
                return
            # Only the holder of the slot may acquire the checkpoint, because that fences off the present writer.
            checkpoint = await self._checkpoints.acquire(
                stream.facts, known=self._feed.state, seen=self._seen, broke=self._forked, publications=publications
            )  # fmt: skip
            # Kept until an epoch has begun: if `acquire` fails, the log alone does not show the fork.
            self._forked = None
            if MESSAGES in checkpoint.followed:
                self._follows_messages.set()
            else:
                self._follows_messages.clear()
            if checkpoint.broke is not None:
                observe.history_broke(checkpoint.epoch, checkpoint.broke)
            with suppress(psycopg.errors.LockNotAvailable):  # the append creates today's partition if it has to
                await keep_partitions(self._connections, retention=None)
            run, self._run = self._run, checkpoint.incarnation
            if run not in (None, self._run):
                observe.postgres_restarted(self._run)
            self._feed.begin(_beginning(checkpoint, stream.facts.confirmed_lsn))
            if self._ending.is_set():  # nothing was read
                return
            sequencer = Sequencer(
                offset=checkpoint.offset, place=checkpoint.place, near_xid=checkpoint.ceiling,
                per_user=self._schema.per_user_channels, followed=checkpoint.followed,
            )  # fmt: skip
            pipeline = Pipeline(
                stream, self._log, self._feed, self._probe, sequencer, self._samples, checkpoint.token, limits,
                self._checks.load_types, self._follow_requested, publications=publications, spans=self._spans,
            )  # fmt: skip
            self._enter(CaptureState.CATCHING_UP)
            self._pipeline = pipeline
            observe.capture_began(self._slot, checkpoint.epoch, checkpoint.offset)
            # Only `append` returns without an error: when capture has to end, or when a TRUNCATE ends the history.
            await first_of(
                stream.run(pipeline.take), pipeline.append(), pipeline.load_types(), pipeline.probe(self._checks),
                pipeline.watch(),
                self._connections.until_ended(), self._checkpoints.watch_log(), self._checks.watch_policies(),
                self._until_live(pipeline, checkpoint),
            )  # fmt: skip
            await pipeline.finish()
            if not self._ending.is_set():  # the history ended, or the stream needs rows from now on
                self._enter(CaptureState.BROKEN)

    async def _until_live(self, pipeline: Pipeline, checkpoint: Checkpoint) -> None:
        if not checkpoint.live:
            # Transactions of the previous epoch may not be visible to snapshots yet. A new slot waits for them, too,
            # and an instance that takes over before another has done so.
            waiting = asyncio.ensure_future(self._checkpoints.until_settled(checkpoint))
            try:
                if not (await asyncio.wait([waiting], timeout=self._limits.settle_notice_s))[0]:
                    observe.waits_for_transactions(checkpoint.ceiling)
                await waiting
            finally:
                await end(waiting)
        await pipeline.caught_up.wait()
        self._enter(CaptureState.LIVE)
        self.has_begun.set()
        observe.capture_live(self._slot, self._feed.state.offset)
        await asyncio.get_running_loop().create_future()  # as long as the other tasks of the run


def _beginning(checkpoint: Checkpoint, lsn: int) -> Beginning:
    return Beginning(
        checkpoint.epoch, checkpoint.offset, checkpoint.mark, lsn, checkpoint.ceiling, checkpoint.incarnation,
        checkpoint.fence, checkpoint.newest, checkpoint.before,
    )  # fmt: skip


class StuckSlot:
    """Detects a slot that can never be read again: streams fail with the same error and get no further.

    A stream that advanced between two failures had another reason to end.

    Args:
        failures: equal failures at the same place after which a final error is believed.
        patience_s: time between the first and the last of them before any other error is believed.
    """

    def __init__(self, failures: int, patience_s: float) -> None:
        self._failures = failures
        self._patience = patience_s
        self._began_at: int | None = None  # confirmed LSN of the present stream; None before it has begun
        self._failed_at: int | None = None  # the same of the stream that failed last
        self._times = 0
        self._first = self._last = 0.0
        self._error: StreamRefused | None = None

    def begins(self) -> None:
        """Note that a stream is about to be opened."""
        self._began_at = None

    def began(self, confirmed: int) -> None:
        """Note that the stream began at this confirmed LSN."""
        self._began_at = confirmed

    def failed(self, error: StreamRefused, now: float) -> None:
        """Note that the stream failed at `now`, in seconds of a monotonic clock."""
        same = self._error is not None and self._error.state == error.state and self._began_at == self._failed_at
        self._times = self._times + 1 if same else 1
        self._first = self._first if same else now
        self._failed_at, self._error, self._last = self._began_at, error, now

    def forget(self) -> None:
        """Forget all failures."""
        self._times, self._error = 0, None

    @property
    def for_ever(self) -> StreamRefused | None:
        """Return the error once it has occurred often enough in a row, and for long enough."""
        if self._error is None or self._times < self._failures:
            return None
        waited = self._error.is_final or self._last - self._first >= self._patience
        return self._error if waited else None

"""The feed between processes: capture writes it to the broker, and each gateway reads it, from the log where needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec
import psycopg
from psycopg_pool import PoolTimeout

from momentum_sync import observe
from momentum_sync.errors import Unavailable
from momentum_sync.eventlog.broker import Broker
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.follower import FeedMessage, Follower
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.status import CaptureState, FeedStatus
from momentum_sync.limits import FeedLimits

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FeedMessage).decode
_SILENT = frozenset({CaptureState.STARTING, CaptureState.WAITING})


class FeedWriter:
    """Writes a feed to the broker: each batch at once, and every second how far it has come. A `FeedSubscriber`.

    Args:
        feed: the feed of capture, in this process.
        broker: where it is written.
        subject: on which subject.
        limits: bounds.
    """

    def __init__(self, feed: LocalFeed, broker: Broker, subject: str, limits: FeedLimits) -> None:
        self._feed = feed
        self._broker = broker
        self._subject = subject
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._flushing: asyncio.Handle | None = None
        self._is_due = False
        feed.subscribe(self)

    def event(self, event: Event, *, more: bool = False) -> None:
        """Collect the next event."""
        self._events.append(event)
        self._soon()

    def published(self) -> None:
        """Do nothing: the position follows in the same turn, and goes with the events."""

    def advanced(self, lsn: int) -> None:
        """Publish the position. Without events it is delayed, because under load one arrives with each transaction."""
        if self._flushing is None:
            self._flushing = self._loop.call_later(self._limits.advance_s, self._flush)

    def restarted(self) -> None:
        """Publish at once that PostgreSQL has restarted: earlier snapshot boundaries are invalid."""
        self._soon()

    def history_changed(self) -> None:
        """Publish at once that another epoch has begun. Events that were not sent are of the one before."""
        self._events.clear()
        self._soon()

    def _soon(self) -> None:
        """Write at the end of this turn of the event loop, when all of its events and its position are known."""
        if not self._is_due:
            if self._flushing is not None:
                self._flushing.cancel()
            self._is_due = True
            self._flushing = self._loop.call_soon(self._flush)

    def _flush(self, status: FeedStatus | None = None) -> None:
        self._flushing, self._is_due = None, False
        events, self._events = self._events, []
        for message in self._messages(events, status):
            if not self._broker.publish(self._subject, _encode(message)) and message.events:
                observe.unsent(len(message.events))

    def _messages(self, events: Sequence[Event], status: FeedStatus | None) -> Iterator[FeedMessage]:
        """Yield messages of a bounded size. The last one has the position: everything below it has come with them."""
        feed = self._feed
        first = size = 0
        for index, event in enumerate(events):
            if size and size + event.size > self._limits.message_bytes:
                yield self._message(events[first:index], events[index - 1].offset, 0, None)
                first, size = index, 0
            size += event.size
        yield self._message(events[first:], feed.offset, feed.lsn, status)

    def _message(self, events: Sequence[Event], offset: int, lsn: int, status: FeedStatus | None) -> FeedMessage:
        feed = self._feed
        if len(events) == 1 and events[0].size > self._limits.message_bytes:
            events = ()  # too large for the broker: gateways see the gap and read the log
        return FeedMessage(
            feed.epoch, feed.fence, feed.incarnation, offset, lsn, feed.state.logged, tuple(events), status
        )  # fmt: skip

    async def run(self) -> None:
        """Publish position and status every second, so that the loss of the last batch is noticed."""
        while True:
            await asyncio.sleep(self._limits.report_s)
            status = self._feed.status()
            # An instance that waits for the slot knows nothing of the stream.
            if self._feed.epoch and status.state not in _SILENT:
                self._flush(status)


class FeedReader:
    """Moves a gateway's feed by the messages of capture on the broker, and by the log.

    Args:
        feed: the gateway's feed.
        log: the log.
        connections: connections to the log.
        broker: the broker.
        subject: the subject that capture writes to.
        limits: bounds.

    Attributes:
        has_begun: set once the feed has been live.
    """

    def __init__(
        self,
        feed: LocalFeed,
        log: EventLog,
        connections: LogConnections,
        broker: Broker,
        subject: str,
        limits: FeedLimits,
    ) -> None:
        self._feed = feed
        self._log = log
        self._connections = connections
        self._broker = broker
        self._limits = limits
        self._follower = Follower(feed, limits)
        self._woken = asyncio.Event()
        self._reads_begun = self._reads_ended = 0
        self._read_ended = asyncio.Event()
        self.has_begun = asyncio.Event()
        self._subject = subject
        feed.report(self.status)

    async def open(self) -> None:
        """Take the messages of capture from now on."""
        await self._broker.subscribe(self._subject, self._hear)

    def status(self) -> FeedStatus:
        """Return the status of the feed now."""
        return self._follower.status(time.monotonic(), is_connected=self._broker.is_connected)

    async def reach(self, epoch: str, offset: int) -> None:
        """Wait for the position of a client that may have been on another gateway, if it can still come.

        Raises:
            Unavailable: the position was not reached in time.
        """
        feed = self._feed
        try:
            async with asyncio.timeout(self._limits.ahead_s):
                await self._read_again()
                if epoch != feed.epoch or offset <= feed.offset:
                    return
                written = await self._log.written_up_to()
                while epoch == feed.epoch and offset > feed.offset and feed.lsn < written:
                    await asyncio.sleep(self._limits.poll_alone_s)
                    await self._read_again()
        except (psycopg.Error, PoolTimeout, TimeoutError) as error:
            raise Unavailable(
                "This gateway has not received the events before this position yet; try again in a moment."
            ) from error

    async def confirm(self) -> None:
        """Compare the feed with the log, by a read that begins now. Raise Unavailable if that takes too long."""
        try:
            async with asyncio.timeout(self._limits.ahead_s):
                await self._read_again()
        except TimeoutError as error:
            raise Unavailable("The event log does not answer; try again in a moment.") from error

    async def _read_again(self) -> None:
        """Wait for the end of a read of the log that begins after this call."""
        wanted = self._reads_begun + 1
        while self._reads_ended < wanted:
            self._follower.want_read()
            self._woken.set()
            await self._read_ended.wait()

    def _hear(self, payload: bytes) -> None:
        try:
            message = _decode(payload)
        except msgspec.MsgspecError as error:
            observe.failed("a message on the feed's subject", error)
            return
        with _noting():
            self._follower.heard(message, time.monotonic())
        self._moved()

    def _moved(self) -> None:
        self._follower.probe.reached(self._feed.lsn, time.monotonic())
        if self._follower.wants_read:
            self._woken.set()
        if not self.has_begun.is_set() and self.status().live:
            self.has_begun.set()

    async def run(self) -> None:
        """Read the log whenever that is needed, and at intervals while no message arrives, until cancelled."""
        limits, failures, vain = self._limits, 0, 0
        while True:
            if not self._follower.wants_read:
                vain = 0
                await self._until_due()
            before = (self._feed.epoch, self._feed.offset)
            try:
                await self._read()
            except (psycopg.Error, PoolTimeout, OSError, TimeoutError) as error:
                self._follower.want_read()
                if not failures:
                    observe.log_unread(error)
                    await self._connections.renew()
                await asyncio.sleep(_step(limits.backoff_s, failures))
                failures += 1
                continue
            failures = 0
            if self._follower.wants_read and before == (self._feed.epoch, self._feed.offset):
                await asyncio.sleep(_step(limits.retry_s, vain))  # the log lags behind the broker
                vain += 1

    async def measure(self) -> None:
        """Measure at intervals how far the feed is behind, until cancelled."""
        probe = self._follower.probe
        while True:
            if probe.begin(time.monotonic()):
                try:
                    written = await self._log.written_up_to()
                    if written < self._feed.lsn:  # of a copy, or of a standby that had less
                        self._follower.fork()
                    probe.written(written)
                except (psycopg.Error, PoolTimeout, OSError, TimeoutError) as error:
                    observe.probe_failed(error)  # it stays due, so the lag grows
                self._moved()
            await asyncio.sleep(self._limits.probe_s)

    async def _until_due(self) -> None:
        limits = self._limits
        while not self._follower.wants_read:
            self._woken.clear()
            alone = not self._broker.is_connected
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.poll_alone_s if alone else limits.poll_s):
                    await self._woken.wait()
            if alone or self._follower.is_silent(time.monotonic()):
                return

    async def _read(self) -> None:
        self._reads_begun += 1
        number = self._reads_begun
        found = await self._log.go_on(self._follower.reading(), self._feed.logged_offset)
        if found is None:  # no capture has begun yet
            self._follower.want_read()
        else:
            run = self._feed.incarnation
            with _noting():
                self._follower.read(found, time.monotonic())
            if run not in (0, self._feed.incarnation):
                observe.postgres_restarted(self._feed.incarnation)
        self._reads_ended = number
        ended, self._read_ended = self._read_ended, asyncio.Event()
        ended.set()
        self._moved()


@contextmanager
def _noting() -> Iterator[None]:
    """Log the error of a subscriber. The log has the events that it has kept from the others."""
    try:
        yield
    except Exception as error:
        observe.failed("delivering an event", error)


def _step(pauses: Sequence[float], number: int) -> float:
    return pauses[min(number, len(pauses) - 1)]

"""Follows the history of a capture in another process, by a broker that may lose anything, and by the log.

Offsets are dense, so a gap shows. The log is the truth and the broker only makes it fast: what is lost, late, repeated
or out of order on the broker changes nothing but the time. The rules, and what goes wrong without each, are in
ARCHITECTURE.md, "Several gateways".
"""

from __future__ import annotations

from collections import deque

import msgspec

from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.log_read import LogRead
from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.status import UNKNOWN_SLOT, CaptureState, FeedStatus, Triggers
from momentum_sync.limits import FeedLimits

_NEVER = float("-inf")
_ALONE = "NATS cannot be reached; this gateway polls the log instead"
_UNHEARD = (
    "no message of capture arrives over NATS; check that it runs, with the same MOMENTUM_NATS_URL,"
    " MOMENTUM_NATS_PREFIX, MOMENTUM_SLOT, database and version"
)


class ReachProbe:
    """Measures the time by which a gateway is behind the database, by its own clock alone.

    Once a second it asks how far the WAL is written, and notes when its feed has come there. So a broker that is slow,
    a gap that the log does not fill, a database that does not answer and a capture that is away all count.

    Times are seconds on a monotonic clock.
    """

    def __init__(self) -> None:
        self._due_since: float | None = None
        self._wanted: int | None = None
        self._took: float | None = None  # None before the first has returned

    def begin(self, at: float) -> bool:
        """Begin a probe. Return False while one is under way."""
        if self._wanted is not None:
            return False
        self._due_since = at if self._due_since is None else self._due_since
        return True

    def written(self, lsn: int) -> None:
        """Note how far the WAL was written, as the database has answered."""
        self._wanted = lsn

    def reached(self, lsn: int, at: float) -> None:
        """Note how far the feed has come."""
        if self._wanted is not None and lsn >= self._wanted and self._due_since is not None:
            self._took = at - self._due_since
            self._due_since = self._wanted = None

    def lost(self) -> None:
        """Note that another history has begun, with LSNs of its own. A probe that is due stays due."""
        self._wanted = None

    def lag(self, at: float) -> float | None:
        """Return the seconds by which the feed is behind; None before the first probe has returned."""
        if self._took is None:
            return None
        return self._took if self._due_since is None else max(self._took, at - self._due_since)


class FeedMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message of capture: how far it has come, and perhaps the events before that.

    Attributes:
        epoch: the epoch.
        fence: place of the writer's token in the order of writers.
        incarnation: the run of PostgreSQL that assigns transaction ids.
        offset: offset of the last event that was published, with this message or before.
        lsn: every event committed below has an offset up to that one.
        logged: the log holds everything up to this offset.
        events: events in order, without a gap.
        status: the status of capture; once a second.
    """

    epoch: str
    fence: int
    incarnation: int
    offset: int
    lsn: int
    logged: int
    events: tuple[Event, ...] = ()
    status: FeedStatus | None = None


class Follower:
    """Applies messages from NATS and reads of the log to a gateway's feed, in order, each event once.

    Times are seconds on a monotonic clock.

    Args:
        feed: the gateway's feed, which nothing else moves.
        limits: bounds.

    Attributes:
        probe: measures how far the feed is behind.
    """

    def __init__(self, feed: LocalFeed, limits: FeedLimits) -> None:
        self._feed = feed
        self._limits = limits
        self._live = False
        self._needed = 0  # the highest offset that is known to exist in this epoch
        self._ahead: deque[FeedMessage] = deque()
        self._ahead_size = 0
        self._wants_read = True
        self._is_forked = False
        self._status: FeedStatus | None = None
        self._heard_at = _NEVER
        self.probe = ReachProbe()

    @property
    def wants_read(self) -> bool:
        """Return whether the log has to be read, by a read that begins from now on."""
        return self._wants_read

    def reading(self) -> Position:
        """Note that a read of the log begins. Return the position from which it is to go on."""
        self._wants_read = False
        return Position("", 0, 0) if self._is_forked else self._feed.position

    def fork(self) -> None:
        """Note that the database has another history: the next read begins with it, also in the same epoch."""
        self._is_forked = self._wants_read = True

    def want_read(self) -> None:
        """Have the log be read: the last read failed, or a client knows more than this gateway."""
        self._wants_read = True

    def is_silent(self, at: float) -> bool:
        """Return whether nothing has been heard for so long that the log has to be polled."""
        return at - self._heard_at > self._limits.silence_s

    def heard(self, message: FeedMessage, at: float) -> None:
        """Take a message from the broker. An error of a subscriber is raised, and the log has the missing events."""
        feed = self._feed
        if message.epoch != feed.epoch:
            # Fences order writers within one epoch only: after a restore a new epoch may have a lower one. So the log
            # decides, read after this message.
            self._wants_read = True
            return
        if message.fence < feed.fence:
            return
        feed.fence = message.fence
        self._heard_at = at
        if message.status is not None:
            self._status = message.status
            self._live = self._live or message.status.live
        self._needed = max(self._needed, message.offset)
        if message.incarnation != feed.incarnation:
            # Earlier snapshots are void, and the log knows from which transaction on. Until then nothing of the new
            # run may reach them.
            self._keep(message)
        else:
            self._take(message)
        self.probe.reached(feed.lsn, at)

    def _take(self, message: FeedMessage) -> None:
        """Apply a message, or keep it until the gap before it is filled."""
        feed = self._feed
        if any(map(feed.has_other, message.events)):
            self.fork()  # the database was restored from a copy
            return
        events = [event for event in message.events if event.offset > feed.offset]
        if events and events[0].offset > feed.offset + 1:
            self._keep(message)
            return
        try:
            if events:
                feed.publish(events)
        finally:
            if feed.offset < message.offset:
                self._wants_read = True
        if feed.offset >= message.offset:
            feed.logged_up_to(message.logged)
            # Only now: a position behind a gap would tell clients that they have what is still missing.
            feed.advance(message.lsn)

    def _keep(self, message: FeedMessage) -> None:
        self._wants_read = True
        size = sum(event.size for event in message.events)
        if size and self._ahead_size + size <= self._limits.ahead_bytes:
            self._ahead.append(message)
            self._ahead_size += size

    def read(self, found: LogRead, at: float) -> None:
        """Take the result of a read of the log. An error of a subscriber is raised, as by `heard`."""
        feed, beginning = self._feed, found.beginning
        if found.events is None:
            if beginning.epoch != feed.epoch:
                self._status, self._live = None, False
            self._ahead.clear()
            self._ahead_size = self._needed = 0
            self._is_forked = False
            self.probe.lost()
            feed.begin_afresh(beginning)
        else:
            # Before the events: transaction ids may be assigned again after a restart of PostgreSQL.
            feed.begin(
                beginning._replace(offset=min(feed.offset, beginning.offset), fence=max(feed.fence, beginning.fence))
            )
            fresh = [event for event in found.events if event.offset > feed.offset]
            if fresh:
                self._publish(fresh)
            if feed.offset >= beginning.offset:
                feed.logged_up_to(beginning.offset)
                feed.advance(beginning.lsn)
            else:
                self._wants_read = True
        self._live = self._live or found.live
        self._take_kept()
        self.probe.reached(feed.lsn, at)
        if feed.offset < self._needed:
            self._wants_read = True

    def _publish(self, events: list[Event]) -> None:
        try:
            self._feed.publish(events)
        finally:
            if self._feed.offset < events[-1].offset:
                self._wants_read = True

    def _take_kept(self) -> None:
        """Apply the messages that were kept, as if they had just arrived."""
        kept, self._ahead, self._ahead_size = self._ahead, deque(), 0
        try:
            while kept:
                self._take(kept.popleft())
        finally:
            if kept:  # a subscriber failed: the log has the missing events
                self._wants_read = True

    def status(self, at: float, *, is_connected: bool) -> FeedStatus:
        """Return the status of the feed as this gateway has it."""
        status = self._status
        if status is None or self.is_silent(at):  # the last status may be long past
            status = FeedStatus(CaptureState.LIVE, 0.0, UNKNOWN_SLOT, Triggers([], []))
        lag, state = self.probe.lag(at), status.state
        if not self._feed.epoch:
            state = CaptureState.STARTING
        elif lag is None or lag > self._limits.away_s:
            state = CaptureState.WAITING
        elif not self._live:
            state = CaptureState.CATCHING_UP
        elif lag <= 2 * self._limits.report_s:
            # Capture opens its stream again for a moment, as for the first table that is followed: no client notices.
            state = CaptureState.LIVE
        problem = _ALONE if not is_connected else _UNHEARD if self.is_silent(at) else None
        return status._replace(state=state, lag=max(status.lag, lag or 0.0), problem=problem)

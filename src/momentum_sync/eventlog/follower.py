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
from momentum_sync.eventlog.status import UNKNOWN_SLOT, CaptureState, FeedStatus, Triggers
from momentum_sync.limits import FeedLimits

_NEVER = float("-inf")
_ALONE = "the broker cannot be reached; events come from the log, a little later"


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
    """Applies what a gateway hears and reads to its feed, in order, each event once.

    Times are seconds on a monotonic clock.

    Args:
        feed: the gateway's feed, which nothing else moves.
        limits: bounds.
    """

    def __init__(self, feed: LocalFeed, limits: FeedLimits) -> None:
        self._feed = feed
        self._limits = limits
        self._live = False
        self._needed = 0  # the highest offset that is known to exist in this epoch
        self._ahead: deque[FeedMessage] = deque()
        self._ahead_size = 0
        self._wants_read = True
        self._status: FeedStatus | None = None
        self._heard_at = _NEVER
        self._alive_at = _NEVER
        self._polled_lsn: int | None = None

    @property
    def wants_read(self) -> bool:
        """Return whether the log has to be read, by a read that begins from now on."""
        return self._wants_read

    def reading(self) -> None:
        """Note that a read of the log begins."""
        self._wants_read = False

    def want_read(self) -> None:
        """Have the log be read: the last read failed, or a client knows more than this gateway."""
        self._wants_read = True

    def is_silent(self, at: float) -> bool:
        """Return whether nothing has been heard for so long that the log has to be polled."""
        return at - self._heard_at > self._limits.silence_s

    def heard(self, message: FeedMessage, at: float) -> None:
        """Take a message from the broker. An error of a subscriber is raised, and the log brings what is missing."""
        feed = self._feed
        if message.epoch != feed.epoch:
            # Fences order writers within one epoch only: after a restore a new epoch may have a lower one. So the log
            # decides, read after this message.
            self._wants_read = True
            return
        if message.fence < feed.fence:
            return
        feed.fence = message.fence
        if message.incarnation != feed.incarnation:
            self._wants_read = True
        self._heard_at = self._alive_at = at
        if message.status is not None:
            self._status = message.status
            self._live = self._live or message.status.live
        self._needed = max(self._needed, message.offset)
        self._take(message)

    def _take(self, message: FeedMessage) -> None:
        """Apply a message, or keep it until the gap before it is filled."""
        feed = self._feed
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
        if self._ahead_size + size <= self._limits.ahead_bytes:
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
            self._polled_lsn = None
            feed.begin(beginning)
        else:
            fresh = [event for event in found.events if event.offset > feed.offset]
            if fresh:
                self._publish(fresh)
            if feed.offset >= beginning.offset:
                # Transaction ids may be assigned again after a restart of PostgreSQL, and snapshots of before are void.
                feed.begin(beginning._replace(fence=max(feed.fence, beginning.fence)))
                feed.logged_up_to(beginning.offset)
                feed.advance(beginning.lsn)
            else:
                self._wants_read = True
        self._live = self._live or found.live
        if self._polled_lsn is not None and beginning.lsn > self._polled_lsn:
            self._alive_at = at
        self._polled_lsn = beginning.lsn
        self._take_kept()
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
        while kept:
            self._take(kept.popleft())

    def status(self, at: float, *, is_connected: bool) -> FeedStatus:
        """Return the status of the feed as this gateway has it."""
        status = self._status or FeedStatus(CaptureState.LIVE, 0.0, UNKNOWN_SLOT, Triggers([], []))
        silent = at - self._alive_at
        state = status.state
        if not self._feed.epoch:
            state = CaptureState.STARTING
        elif silent > self._limits.away_s:
            state = CaptureState.WAITING
        elif not self._live:
            state = CaptureState.CATCHING_UP
        lag = max(status.lag, 0.0 if silent == -_NEVER else silent)
        return status._replace(state=state, lag=lag, problem=None if is_connected else _ALONE)

"""One event on its way to all subscribers of its channels.

A frame is encoded once for all subscribers with the same dialect and the same previous event, and its JSON is the
database's own; between connections only `previous_id` differs.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from momentum_sync.eventlog.event import Event
from momentum_sync.gateway.direct_files import DirectFiles, Owners
from momentum_sync.gateway.subscriber import Dialect, Subscriber
from momentum_sync.gateway.subscribers import Subscribers
from momentum_sync.limits import DeliveryLimits
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds

Unwritten = dict[Subscriber, bytes]
"""Frames collected for one write a subscriber, while a batch of events is sent."""

NOBODY = Subscribers()


class _Run(NamedTuple):
    """Subscribers that get the same frame."""

    data: bytes
    subscribers: list[Subscriber]


class FanOut:
    """Writes one event to its subscribers, once each.

    Args:
        event: the event.
        event_id: its id for subscribers without a snapshot boundary.
        began: seconds since 1970, for the message's timestamp.
        unwritten: frames of the batch so far.
        files: the files of all connections.
        limits: bounds.
        keep: collect the frames in `unwritten`, because more events of the batch follow.
        forget: called with a connection that was aborted, because it could neither be written to nor closed.

    Attributes:
        began: seconds since 1970.
        frames: frames written or collected.
        size: their bytes.
        matched: whether anybody subscribes to one of the channels.
        delay: seconds from the commit to the last write; None if it had no subscribers.
        broken: the error of a connection that failed. It ends and resumes; all others get the event.
    """

    __slots__ = (
        "_event_id", "_files", "_first", "_forget", "_frames", "_keep", "_limits", "_served", "_unwritten", "began",
        "broken", "delay", "event", "frames", "matched", "size",
    )  # fmt: skip

    def __init__(
        self, event: Event, event_id: str, now: float, unwritten: Unwritten, files: DirectFiles,
        limits: DeliveryLimits, *, keep: bool, forget: Callable[[Subscriber], None],
    ) -> None:  # fmt: skip
        self.event = event
        self.frames = 0
        self.size = 0
        self.matched = False
        self.delay: float | None = None
        self.broken: Exception | None = None
        self._first: tuple[Subscribers, Subscribers] = (NOBODY, NOBODY)
        self._served: set[Subscriber] | None = None
        self._unwritten = unwritten
        self._files = files
        self._keep = keep
        self._forget = forget
        self._limits = limits
        self._event_id = event_id
        self.began = now
        self._frames: dict[tuple[Dialect, str, str], bytes] = {}

    def to_channel(self, channel: str, plain: Subscribers, careful: Subscribers) -> None:
        """Write to the subscribers of one channel, without those served on an earlier one.

        The set of those served is made for the second channel with subscribers, so that each subscriber of each
        channel is looked at once, however many channels there are.

        Args:
            channel: the channel.
            plain: subscribers that get every event on the channel.
            careful: subscribers with a snapshot boundary, or with a channel that is checked per event.
        """
        apart: Subscribers | Sequence[Subscriber] = plain
        considered: Subscribers | Sequence[Subscriber] = careful
        if not self.matched:
            self.matched = True
            self._first = plain, careful
            # Frames of a batch are collected, and a large one needs room at each connection.
            if not self._keep and not self._unwritten and len(self.event.body) <= self._limits.large_bytes:
                together, apart = plain.groups
                if not self.event.out_of_sight:
                    for dialect, members in together.items():
                        self._write_together(channel, dialect, members)
        else:
            served = self._served
            if served is None:
                served = self._served = {*self._first[0], *self._first[1]}
            apart = [subscriber for subscriber in plain if subscriber not in served]
            considered = [subscriber for subscriber in careful if subscriber not in served]
            served.update(apart, considered)
        # An `out_of_sight` event goes only to subscribers that are checked per event, and plain subscribers are not.
        if apart and not self.event.out_of_sight:
            self._write_each(channel, apart)
        for subscriber in list(considered):
            self._consider(subscriber)

    def _write_together(self, channel: str, dialect: Dialect, members: Owners[Subscriber]) -> None:
        """Write to plain subscribers with equal frames. Their cursors stay where they are."""
        try:
            data = self._frame(dialect, channel, "")
        except Exception as error:
            for subscriber in members:
                self._break(subscriber, error)
            return
        if not data:  # the dialect leaves this event out
            return
        assert dialect.together is not None
        dialect.together += 1
        self.frames += len(members)
        self.size += len(members) * len(data)
        for number, rest in self._files.write(members.numbers(), data):
            self._write_rest(members[number], rest)

    def _write_rest(self, subscriber: Subscriber, rest: bytes | memoryview) -> None:
        try:
            subscriber.write(rest)
        except Exception as error:
            self._break(subscriber, error)

    def _write_each(self, channel: str, plain: Iterable[Subscriber]) -> None:
        """Write to plain subscribers, or collect for them.

        This loop runs once a frame. Each object that it touches is one more that the processor fetches from memory. So
        it writes nothing itself where it can: a send displaces much of the processor's cache.
        """
        event_id, cache_keys, keep, unwritten = self._event_id, self.event.cache_keys, self._keep, self._unwritten
        large = len(self.event.body) if len(self.event.body) > self._limits.large_bytes else 0
        most = self._limits.coalesced_bytes
        # Frames that differ between connections are all in memory until they are written, so only small ones wait.
        at_once = not keep and not unwritten and len(self.event.body) <= most
        runs: dict[int, _Run] = {}
        run = _Run(b"", [])
        previous_id, dialect, data, size, frames = None, None, b"", 0, 0
        # A write that exceeds the send budget removes the subscriber from this set, which belongs to the hub.
        for subscriber in list(plain):
            try:
                if large and not subscriber.has_room(large):
                    # The event itself has not been written, so catching up begins with it.
                    subscriber.hold_back(self.event.offset - 1)
                    continue
                cursor = subscriber.cursor
                if cursor.last_id != previous_id or subscriber.dialect is not dialect:
                    data = self._frame(subscriber.dialect, channel, cursor.last_id)
                    previous_id, dialect = cursor.last_id, subscriber.dialect  # not before: the line above may fail
                    run = runs.setdefault(id(data), _Run(data, []))
                cursor.passed(event_id)
                if not data:  # the dialect leaves this event out
                    continue
                if cache_keys:
                    subscriber.expect_acks(cache_keys)
                # The cursor is at this event: a subscriber that falls behind now gets the events after it.
                if at_once:
                    run.subscribers.append(subscriber)
                else:
                    whole = unwritten.pop(subscriber, b"") + data
                    if keep and len(whole) < most:
                        unwritten[subscriber] = whole
                    else:
                        subscriber.write(whole)
                size += len(data)
                frames += 1
            except Exception as error:
                self._break(subscriber, error)
        self.frames += frames
        self.size += size
        for data, subscribers in runs.values():
            self._write_run(data, subscribers)

    def _write_run(self, data: bytes, subscribers: Sequence[Subscriber]) -> None:
        unwritten = self._files.write(array("i", [subscriber.file.number for subscriber in subscribers]), data)
        if unwritten:
            owners = Owners(subscribers)
            for number, rest in unwritten:
                self._write_rest(owners[number], rest)

    def _consider(self, subscriber: Subscriber) -> None:
        """Write to a subscriber unless its snapshot has the event, or the database has to be asked first."""
        cursor, event = subscriber.cursor, self.event
        try:
            if cursor.must_check(event):
                subscriber.hold_back(event.offset - 1)
                return
            large = len(event.body) > self._limits.large_bytes
            if large and cursor.wants(event) and not subscriber.has_room(len(event.body)):
                subscriber.hold_back(event.offset - 1)
                return
            # With a boundary the ids contain the subscriber's own snapshot, so others cannot share the frame.
            shared = cursor.boundary is None
            ids = cursor.deliver(event, self._event_id)
            if ids is None:
                return
            if shared:
                data = self._frame(subscriber.dialect, ids.channel, ids.previous_id)
            else:
                data = subscriber.dialect.encode(event, ids, self.began)
            subscriber.expect_acks(event.cache_keys)
            # Frames are collected for plain subscribers only, so this write overtakes no earlier event.
            subscriber.write(data)
            self.frames += 1
            self.size += len(data)
        except Exception as error:
            self._break(subscriber, error)

    def _frame(self, dialect: Dialect, channel: str, previous_id: str) -> bytes:
        data = self._frames.get((dialect, channel, previous_id))
        if data is None:
            data = dialect.encode(self.event, DeliveryIds(self._event_id, previous_id, channel), self.began)
            if len(data) > self._limits.coalesced_bytes:  # keep one of these, or each connection would hold its own
                self._frames.clear()
            self._frames[dialect, channel, previous_id] = data
        return data

    def _break(self, subscriber: Subscriber, error: Exception) -> None:
        self._unwritten.pop(subscriber, None)
        self.broken = close_broken(subscriber, error, self._forget)


def close_broken(subscriber: Subscriber, error: Exception, forget: Callable[[Subscriber], None]) -> Exception:
    """Close a connection that failed, so that it resumes. Return the error to report.

    One that fails at that, too, is aborted and forgotten, or capture would begin again with each further event.
    """
    try:
        subscriber.close(Close.RESTART)
    except Exception as worse:
        forget(subscriber)
        subscriber.abort()
        return worse
    return error

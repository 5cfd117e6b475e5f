"""A gateway's feed behind a broker that loses, delays, repeats and reorders: by cases, and by random histories."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest

from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import Beginning, LocalFeed
from momentum_sync.eventlog.follower import FeedMessage, Follower
from momentum_sync.eventlog.log_read import LogRead
from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.status import UNKNOWN_SLOT, CaptureState, FeedStatus, Triggers
from momentum_sync.eventlog.window import Window
from momentum_sync.limits import FeedLimits

EPOCH, NEXT = "aaaaaaaa", "bbbbbbbb"
LIVE = FeedStatus(CaptureState.LIVE, 0.25, UNKNOWN_SLOT, Triggers([], []))


def event(offset: int, number: int = 0, *, text: str = "") -> Event:
    """Return an event; `number` names its transaction, and is its LSN."""
    number = number or offset
    body = msgspec.json.encode({"event_type": "x", "number": number, "text": text})
    return Event.build(
        offset=offset, place=(10 * number, 0), xid=number, committed_at=1.0, channels=("c",), body=body
    )  # fmt: skip


def message(
    events: Sequence[Event] = (), *, epoch: str = EPOCH, offset: int | None = None, lsn: int = 0, fence: int = 1,
    logged: int = 0, incarnation: int = 1, status: FeedStatus | None = None,
) -> FeedMessage:  # fmt: skip
    last = events[-1].offset if offset is None else offset
    return FeedMessage(epoch, fence, incarnation, last, lsn, logged, tuple(events), status)


def log_read(
    offset: int, events: Sequence[Event] | None = None, *, epoch: str = EPOCH, lsn: int = 0, fence: int = 1,
    live: bool = True, incarnation: int = 1, newest: Sequence[Event] = (),
) -> LogRead:  # fmt: skip
    beginning = Beginning(epoch, offset, 0, lsn, 1, incarnation, fence, newest, 0)
    return LogRead(beginning, live, None if events is None else list(events))


class Recorder:
    """A subscriber."""

    def __init__(self, feed: LocalFeed) -> None:
        self.feed = feed
        self.got: list[int] = []
        self.reached = 0
        self.switches = 0
        self.restarts = 0
        self.breaks = False

    def event(self, event: Event, *, more: bool = False) -> None:
        self.got.append(event.offset)
        if self.breaks:
            self.breaks = False
            raise RuntimeError("a subscriber failed")

    def published(self) -> None:
        pass

    def advanced(self, lsn: int) -> None:
        self.reached = lsn

    def restarted(self) -> None:
        self.restarts += 1

    def history_changed(self) -> None:
        self.switches += 1


class World:
    """A gateway's follower with its feed."""

    def __init__(self, limits: FeedLimits | None = None) -> None:
        self.feed = LocalFeed(Window(64 * 1024))
        self.got = Recorder(self.feed)
        self.feed.subscribe(self.got)
        self.follower = Follower(self.feed, limits or FeedLimits())

    def hear(self, *messages: FeedMessage, at: float = 0.0) -> None:
        for each in messages:
            self.follower.heard(each, at)

    def read(self, found: LogRead, at: float = 0.0) -> None:
        self.follower.reading()
        self.follower.read(found, at)

    def measured(self, at: float, took: float = 0.0) -> None:
        """Let a probe return that took this many seconds."""
        self.follower.probe.begin(at - took)
        self.follower.probe.written(self.feed.lsn)
        self.follower.probe.reached(self.feed.lsn, at)

    def status(self, at: float, *, is_connected: bool = True) -> FeedStatus:
        return self.follower.status(at, is_connected=is_connected)


@pytest.fixture
def world() -> World:
    """Return a gateway that has begun behind the offset 2 of an epoch that is live."""
    world = World()
    world.read(log_read(2, lsn=20, newest=[event(1), event(2)]))
    return world


def test_nothing_is_taken_before_the_log_was_read() -> None:
    world = World()
    wanted = world.follower.wants_read
    world.hear(message([event(1)]))
    assert wanted
    assert (world.feed.epoch, world.got.got) == ("", [])
    world.read(log_read(2, newest=[event(1), event(2)]))
    assert (world.feed.offset, world.got.got, world.got.switches) == (2, [], 0)
    assert not world.follower.wants_read
    assert [each.offset for each in world.feed.window.after(0, ["c"], most=10_000).events] == [1, 2]


def test_events_loaded_at_the_start_count_as_recent_until_a_snapshot_sees_them(world: World) -> None:
    assert world.feed.recent() == [1, 2]


def test_events_come_in_order_and_each_once(world: World) -> None:
    world.hear(message([event(3), event(4)], lsn=41), message([event(3), event(4), event(5)], lsn=51))
    assert world.got.got == [3, 4, 5]
    assert world.got.reached == 51
    world.hear(message([event(4)], lsn=41))
    assert (world.got.got, world.got.reached) == ([3, 4, 5], 51)
    assert not world.follower.wants_read


def test_behind_a_gap_events_wait_until_the_log_has_filled_it(world: World) -> None:
    world.hear(message([event(5), event(6)], lsn=61))
    assert (world.got.got, world.got.reached) == ([], 0)
    assert world.follower.wants_read
    world.read(log_read(4, [event(3), event(4)], lsn=41))
    assert (world.got.got, world.got.reached) == ([3, 4, 5, 6], 61)
    assert not world.follower.wants_read


def test_a_gap_that_the_log_does_not_have_yet_is_asked_for_again(world: World) -> None:
    world.hear(message([event(4)], lsn=41))
    world.read(log_read(2, [], lsn=20))
    assert world.follower.wants_read
    assert world.got.got == []
    world.read(log_read(3, [event(3)], lsn=31))
    assert world.got.got == [3, 4]


def test_a_late_message_fills_a_gap_as_well(world: World) -> None:
    world.hear(message([event(4)], lsn=41), message([event(3)], lsn=31))
    world.hear(message([event(4)], lsn=41))
    assert world.got.got == [3, 4]


def test_a_report_tells_of_a_last_batch_that_was_lost(world: World) -> None:
    world.hear(message(offset=4, lsn=41, status=LIVE))
    assert world.follower.wants_read
    assert world.got.reached == 0
    world.read(log_read(4, [event(3), event(4)], lsn=41))
    assert (world.got.got, world.got.reached) == ([3, 4], 41)


def test_a_position_counts_only_behind_all_events_below_it(world: World) -> None:
    world.hear(message(offset=3, lsn=31))
    assert world.feed.lsn == 20
    world.read(log_read(5, [event(3)], lsn=51))  # a page of them
    assert world.feed.lsn == 20
    assert world.follower.wants_read
    world.read(log_read(5, [event(4), event(5)], lsn=51))
    assert world.feed.lsn == 51


def test_the_window_keeps_what_the_log_does_not_have(world: World) -> None:
    large = [event(number, text="x" * 30_000) for number in range(3, 9)]
    for each in large:
        world.hear(message([each], logged=4))
    assert world.feed.window.first == 5
    world.hear(message(offset=8, logged=9))
    assert world.feed.window.first == 7


def test_an_earlier_writer_of_the_epoch_is_not_heard(world: World) -> None:
    world.hear(message([event(3)], fence=3), message([event(4)], fence=2), message(offset=9, fence=2, status=LIVE))
    assert world.got.got == [3]
    assert not world.follower.wants_read


def test_what_is_heard_of_another_epoch_is_not_applied_but_asked_for(world: World) -> None:
    world.hear(message([event(3)], epoch=NEXT, fence=9))
    assert world.got.got == []
    assert world.follower.wants_read
    world.read(log_read(2, [], lsn=20))  # the log says that this epoch goes on
    assert (world.feed.epoch, world.got.switches) == (EPOCH, 0)


def test_a_new_epoch_begins_with_the_log_even_if_its_fence_is_lower() -> None:
    world = World()
    world.read(log_read(2, fence=7))
    world.hear(message([event(3)], fence=7), message([event(5)], fence=7), message(offset=5, fence=2, epoch=NEXT))
    assert world.follower.wants_read
    world.read(log_read(3, epoch=NEXT, fence=2, live=False))
    assert (world.feed.epoch, world.feed.offset, world.feed.fence, world.got.switches) == (NEXT, 3, 2, 1)
    assert world.got.got == [3]  # the event behind the gap is of the other epoch
    world.hear(message([event(4)], epoch=NEXT, fence=2))
    assert world.got.got == [3, 4]
    assert not world.follower.wants_read


def test_other_events_at_the_same_offsets_are_a_history_from_a_copy(world: World) -> None:
    world.hear(message([event(3), event(4)], lsn=41))
    world.hear(message([event(4, 9), event(5, 10)], lsn=101))
    assert world.got.got == [3, 4]
    assert world.follower.reading().epoch == ""  # whatever the log says of the position: this history has ended
    world.follower.read(log_read(3, newest=[event(3, 8)], lsn=81), 0.0)
    assert (world.feed.epoch, world.feed.offset, world.got.switches) == (EPOCH, 3, 1)
    assert world.follower.reading().epoch == EPOCH
    world.follower.read(log_read(3, []), 0.0)
    world.hear(message([event(4, 9), event(5, 10)], lsn=101))
    assert world.got.got == [3, 4, 4, 5]
    generation = world.feed.generation
    world.follower.fork()  # the WAL of the database is shorter than this gateway has read
    assert world.follower.wants_read
    assert world.follower.reading().epoch == ""
    world.follower.read(log_read(3, newest=[]), 0.0)
    assert world.feed.generation == generation + 1


def test_a_history_that_retention_has_passed_begins_again(world: World) -> None:
    world.read(log_read(9, newest=[event(8), event(9)]))
    assert (world.feed.offset, world.got.switches, world.got.got) == (9, 1, [])


def test_another_run_of_postgresql_voids_snapshots_before_its_events_come(world: World) -> None:
    world.hear(message([event(3)], lsn=31, incarnation=2))
    assert world.follower.wants_read
    assert (world.got.got, world.got.reached, world.got.restarts) == ([], 0, 0)
    order: list[str] = []
    world.got.event = lambda event, *, more=False: order.append("event")  # type: ignore[method-assign]
    world.got.restarted = lambda: order.append("restarted")  # type: ignore[method-assign]
    world.read(log_read(4, [event(3), event(4)], lsn=41, incarnation=2))
    assert order == ["restarted", "event", "event"]
    assert (world.feed.incarnation, world.feed.offset, world.got.switches) == (2, 4, 0)


def test_an_error_of_a_subscriber_loses_nothing(world: World) -> None:
    world.got.breaks = True
    with pytest.raises(RuntimeError):
        world.hear(message([event(3), event(4)], lsn=41))
    assert world.follower.wants_read
    world.got.breaks = True
    with pytest.raises(RuntimeError):
        world.read(log_read(6, [event(4), event(5), event(6)], lsn=61))
    assert world.follower.wants_read
    world.read(log_read(6, [event(5), event(6)], lsn=61))
    assert (world.got.got, world.got.reached) == ([3, 4, 5, 6], 61)


def test_a_read_can_be_asked_for(world: World) -> None:
    world.follower.want_read()
    assert world.follower.wants_read
    world.read(log_read(2, []))
    assert not world.follower.wants_read


def test_events_behind_a_gap_have_a_budget() -> None:
    world = World(FeedLimits(ahead_bytes=2_000))
    world.read(log_read(0))
    for offset in range(2, 12):
        world.hear(message([event(offset)], lsn=10 * offset))
    world.read(log_read(1, [event(1)], lsn=11))
    assert 1 < len(world.got.got) < 8
    assert world.got.got == list(range(1, len(world.got.got) + 1))
    assert world.follower.wants_read  # the rest comes from the log


def test_clients_are_served_while_the_feed_is_seen_to_move_and_the_epoch_is_live() -> None:
    world = World(FeedLimits(away_s=5.0))
    assert world.status(0.0).state is CaptureState.STARTING
    world.read(log_read(2, lsn=20, live=False), at=1.0)
    assert world.status(1.0).state is CaptureState.WAITING
    world.measured(1.5, took=0.25)
    assert world.status(1.5).state is CaptureState.CATCHING_UP
    world.hear(message(offset=2, status=LIVE._replace(state=CaptureState.BROKEN)), at=2.0)
    assert world.status(2.0).state is CaptureState.CATCHING_UP
    world.hear(message(offset=2, status=LIVE), at=3.0)
    assert world.status(3.0) == LIVE
    world.hear(message(offset=2, status=LIVE._replace(state=CaptureState.BROKEN)), at=3.5)
    assert world.status(4.0).state is CaptureState.LIVE, "for a moment, and nothing is late"
    world.measured(4.0, took=2.5)
    assert world.status(4.0).state is CaptureState.BROKEN
    # Capture's last status does not count for ever: the broker may be gone, and capture has recovered.
    assert world.status(6.6).state is CaptureState.LIVE


def test_everything_that_delays_the_feed_counts_as_lag() -> None:
    world = World(FeedLimits(away_s=5.0))
    world.read(log_read(2, lsn=20), at=1.0)
    probe = world.follower.probe
    assert probe.lag(1.0) is None
    assert probe.begin(1.0)
    probe.written(25)
    assert not probe.begin(2.0)
    world.hear(message(offset=3, lsn=31, status=LIVE), at=3.0)  # of an event that was lost: the feed stays at 20
    assert probe.lag(3.0) is None
    world.read(log_read(3, [event(3)], lsn=31), at=3.5)
    assert world.status(3.5).lag == 2.5
    assert probe.begin(4.0)  # now the database does not answer
    assert world.status(5.0).lag == 2.5
    assert probe.begin(6.0)
    assert world.status(7.0).lag == 3.0
    assert world.status(9.1).state is CaptureState.WAITING
    probe.written(31)
    world.hear(message(offset=3, lsn=31), at=9.5)
    assert world.status(9.5).lag == 5.5
    world.measured(10.0)
    assert world.status(10.0).state is CaptureState.LIVE


def test_a_probe_of_a_history_that_has_ended_is_made_again() -> None:
    world = World()
    world.read(log_read(2, lsn=20), at=1.0)
    world.measured(1.0)
    assert world.follower.probe.begin(2.0)
    world.follower.probe.written(900)
    world.read(log_read(5, lsn=50, epoch=NEXT), at=3.0)
    assert world.follower.probe.lag(4.0) == 2.0
    assert world.follower.probe.begin(4.0)
    world.follower.probe.written(50)
    world.hear(message(offset=5, lsn=50, epoch=NEXT), at=5.0)
    assert world.follower.probe.lag(5.0) == 3.0


def test_silence_of_the_broker_is_a_problem_that_is_told(world: World) -> None:
    world.measured(1.0)
    world.hear(message(offset=2, status=LIVE), at=1.0)
    assert world.status(2.0).problem is None
    assert "cannot be reached" in str(world.status(5.0, is_connected=False).problem)
    assert "no message" in str(world.status(5.0, is_connected=True).problem)
    assert world.status(2.0, is_connected=False).problem is not None


def test_silence_is_when_nothing_of_this_history_is_heard(world: World) -> None:
    assert world.follower.is_silent(0.0)
    world.hear(message(offset=2), at=1.0)
    assert not world.follower.is_silent(3.9)
    assert world.follower.is_silent(4.1)
    world.hear(message(offset=2, epoch=NEXT), at=4.1)
    assert world.follower.is_silent(4.1)


def test_a_message_survives_the_broker() -> None:
    sent = message([event(3), event(4)], lsn=41, logged=2, status=LIVE)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=FeedMessage) == sent


class Capture:
    """A capture that publishes from the log's place on; superseded, it may go on publishing at any time."""

    def __init__(self, history: History) -> None:
        history.fence += 1
        self.epoch, self.fence = history.epoch, history.fence
        self.base, self.place = len(history.log) + history.first - 1, history.place
        self.count = 0

    def numbered(self, history: History) -> list[Event]:
        return [event(self.base + index + 1, tx) for index, tx in enumerate(range(self.place + 1, history.wal + 1))]

    def message(self, history: History, first: int, last: int) -> FeedMessage:
        events = self.numbered(history)
        place = self.place + last
        return FeedMessage(
            self.epoch, self.fence, 1, self.base + last, 10 * place + 1, self.base, tuple(events[first:last])
        )  # fmt: skip


class History:
    """A WAL of one event a transaction, the log, and captures, of which the last one may append."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.wal = 0
        self.epoch, self.fence, self.first, self.place = "00000001", 0, 1, 0
        self.log: list[Event] = []
        self.captures = [Capture(self)]
        self.soup: list[FeedMessage] = []
        self.truth: dict[str, dict[int, int]] = {self.epoch: {}}  # by epoch and offset, the transaction

    def step(self) -> None:
        """Let something happen behind the broker."""
        chance, capture = self.chance, self.chance.choice(self.captures[-2:])
        match chance.choice(["commit", "commit", "publish", "publish", "report", "append", "take over", "new epoch"]):
            case "commit":
                self.wal += 1
            case "publish" if capture.count < len(capture.numbered(self)):
                first = capture.count
                capture.count = chance.randint(first + 1, len(capture.numbered(self)))
                self.soup.append(capture.message(self, first, capture.count))
            case "report":
                self.soup.append(capture.message(self, capture.count, capture.count))
            case "append":
                self.append()
            case "take over" if chance.random() < 0.1:
                self.captures.append(Capture(self))
            case "new epoch" if chance.random() < 0.05:
                self.first += len(self.log)
                self.place, self.log, self.epoch = self.wal, [], f"{int(self.epoch) + 1:08}"
                self.fence = chance.choice([0, self.fence])
                self.truth[self.epoch] = {}
                self.captures.append(Capture(self))

    def append(self) -> None:
        """Let the last capture append the events that it has published, or a part of them."""
        capture = self.captures[-1]
        done = len(self.log) + self.first - 1 - capture.base
        if done < capture.count:
            more = capture.numbered(self)[done : self.chance.randint(done + 1, capture.count)]
            self.log += more
            self.place = more[-1].xid
            self.truth[self.epoch] |= {each.offset: each.xid for each in more}

    def read(self, epoch: str, offset: int) -> LogRead:
        """Return the result of a read of the log now."""
        last = self.first + len(self.log) - 1
        beginning = Beginning(self.epoch, last, 0, 10 * self.place + 1, 1, 1, self.fence, (), 0)
        if epoch != self.epoch or offset + 1 < self.first:
            return LogRead(beginning._replace(newest=self.log[-3:]), True, None)
        most = self.chance.randint(1, 5)
        return LogRead(beginning, True, self.log[offset + 1 - self.first :][:most])


class Checked(Recorder):
    """A subscriber that compares its events with the WAL."""

    def __init__(self, feed: LocalFeed, history: History) -> None:
        super().__init__(feed)
        self.history = history
        self.begin()

    def begin(self) -> None:
        self.epoch, self.last, self.tx = self.feed.epoch, self.feed.offset, 0

    def event(self, event: Event, *, more: bool = False) -> None:
        assert (self.feed.epoch, event.offset) == (self.epoch, self.last + 1)
        # Events published before may never reach the log of an epoch that ended, so transactions are compared only
        # with each other here.
        assert event.xid > self.tx
        self.last, self.tx = event.offset, event.xid
        known = self.history.truth[self.epoch].get(event.offset)
        assert known in (None, event.xid)

    def advanced(self, lsn: int) -> None:
        following = self.history.truth[self.epoch].get(self.last + 1)
        assert following is None or 10 * following >= lsn, "an event below a position has not come"

    def history_changed(self) -> None:
        self.begin()


@pytest.mark.parametrize("seed", range(60))
def test_random_histories(seed: int) -> None:
    """Everything on the broker may be lost, late, repeated or out of order, and reads of the log may be slow."""
    chance = random.Random(seed)
    history = History(chance)
    world = World(FeedLimits(ahead_bytes=chance.choice([0, 2_000, 100_000])))
    feed, follower = world.feed, world.follower
    checked = Checked(feed, history)
    pending: LogRead | None = None
    for _ in range(400):
        history.step()
        if history.soup and chance.random() < 0.7:
            late = chance.random() < 0.3
            follower.heard(chance.choice(history.soup) if late else history.soup[-1], 0.0)
        if pending is None and (follower.wants_read or chance.random() < 0.05):
            follower.reading()
            pending = history.read(feed.epoch, feed.offset)
        elif pending is not None and chance.random() < 0.5:
            if not feed.epoch:
                feed.subscribe(checked)
                follower.read(pending, 0.0)
                checked.begin()
            else:
                follower.read(pending, 0.0)
            pending = None
    # A quiet end: the last batches are lost, a report arrives, and the log is read as often as it is asked for.
    if pending is not None:
        follower.read(pending, 0.0)
    capture = history.captures[-1]
    capture.count = len(capture.numbered(history))
    while len(history.log) + history.first - 1 - capture.base < capture.count:
        history.append()
    report = capture.message(history, capture.count, capture.count)
    follower.heard(report, 0.0)
    reads = 0
    while follower.wants_read:
        follower.reading()
        follower.read(history.read(feed.epoch, feed.offset), 0.0)
        follower.heard(report, 0.0)
        reads += 1
        assert reads < 1_000
    assert (feed.epoch, feed.offset) == (history.epoch, history.first + len(history.log) - 1)
    assert feed.lsn >= 10 * history.place + 1


def test_before_anything_it_is_at_no_position_and_alone() -> None:
    world = World(FeedLimits(silence_s=3.0))
    status = FeedStatus(CaptureState.STARTING, 0.0, UNKNOWN_SLOT, Triggers([], []))
    assert world.status(0.0)._replace(problem=None) == status
    wanted = [world.follower.wants_read]
    assert world.follower.reading() == Position("", 0, 0)
    wanted.append(world.follower.wants_read)
    world.follower.want_read()
    wanted.append(world.follower.wants_read)
    assert wanted == [True, False, True]
    world.follower.fork()
    assert world.follower.reading() == Position("", 0, 0)


def test_silence_begins_after_its_limit(world: World) -> None:
    world.hear(message(offset=2, status=LIVE), at=10.0)
    silence_s = FeedLimits().silence_s
    assert not world.follower.is_silent(10.0 + silence_s)
    assert world.follower.is_silent(10.0 + silence_s + 0.01)
    world.measured(10.0)
    assert world.status(10.0).problem is None
    assert world.status(10.0, is_connected=False).problem != world.status(10.1 + silence_s).problem
    assert world.status(10.1 + silence_s).problem is not None
    late = world.status(10.1 + silence_s)
    assert (late.lag, late.slot, late.triggers) == (0.0, UNKNOWN_SLOT, Triggers([], [])), "the last status is long past"


def test_a_message_of_events_that_were_seen_is_kept_for_its_position_alone(world: World) -> None:
    world.hear(message([event(3)], lsn=31))
    world.hear(message([event(3)], offset=3, lsn=35))
    assert (world.got.got, world.got.reached) == ([3], 35)
    world.read(log_read(3, [event(3)], lsn=36))
    assert (world.got.got, world.got.reached) == ([3], 36)


@pytest.mark.parametrize(("spare", "got"), [(0, [1, 2, 3, 4]), (-1, [1, 2, 3])])
def test_the_budget_of_events_behind_a_gap_is_exact(spare: int, got: list[int]) -> None:
    events = [event(offset) for offset in (2, 3, 4)]
    world = World(FeedLimits(ahead_bytes=sum(each.size for each in events) + spare))
    world.read(log_read(0))
    for _ in range(2):  # what was kept and taken gives its room back
        for each in events:
            world.hear(message([each], lsn=10 * each.offset))
        world.read(log_read(0, []))
    world.read(log_read(1, [event(1)], lsn=11))
    assert world.got.got == got


def test_an_epoch_that_is_live_stays_live(world: World) -> None:
    world.measured(1.0)
    world.read(log_read(2, [], live=False), at=1.0)
    assert world.status(1.0).state is CaptureState.LIVE
    world.read(log_read(1, epoch=EPOCH, live=False), at=1.0)  # from a copy, in the same epoch
    world.measured(1.0)
    assert world.status(1.0).state is CaptureState.LIVE
    world.read(log_read(1, epoch=NEXT, live=False), at=1.0)
    world.measured(1.0)
    assert world.status(1.0).state is CaptureState.CATCHING_UP
    world.read(log_read(1, [], epoch=NEXT, live=True), at=1.0)
    assert world.status(1.0).state is CaptureState.LIVE


def test_another_history_forgets_what_was_kept_and_needed(world: World) -> None:
    world.hear(message([event(9)], lsn=91))
    world.read(log_read(3, epoch=NEXT))
    assert not world.follower.wants_read, "nothing above the offset 3 is known of it"
    world.hear(message([event(4)], epoch=NEXT))
    assert world.got.got == [4]


@pytest.mark.parametrize(("given", "kept"), [(9, 9), (1, 5)])
def test_the_highest_fence_counts_within_an_epoch(given: int, kept: int) -> None:
    world = World()
    world.read(log_read(2, fence=5))
    world.read(log_read(3, [event(3)], fence=given))
    assert world.feed.fence == kept


def test_how_late_a_feed_may_be() -> None:
    world = World(FeedLimits(away_s=5.0, report_s=1.0))
    world.read(log_read(2, lsn=20), at=0.0)
    world.hear(message(offset=2, status=LIVE._replace(state=CaptureState.BROKEN)), at=0.0)
    for took, state in (
        (2.0, CaptureState.LIVE), (2.01, CaptureState.BROKEN), (5.0, CaptureState.BROKEN), (5.01, CaptureState.WAITING),
    ):  # fmt: skip
        world.measured(0.0, took=took)
        assert world.status(0.0).state is state, took
    world.measured(0.0, took=0.0)
    assert world.status(0.0).lag == LIVE.lag

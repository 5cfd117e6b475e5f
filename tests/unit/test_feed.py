"""The feed within one process: calls to its subscribers, their order, and the transactions that it remembers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import CONTROL, Event
from momentum_sync.eventlog.feed import Beginning, FeedState, HistoryForked, LocalFeed
from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.status import UNKNOWN_SLOT, CaptureState, FeedStatus, Triggers
from momentum_sync.eventlog.window import Window

BEGINNING = Beginning("epoch1", 10, 77, 1_000, 50, 1, 3)


def event(offset: int, *, xid: int = 100, user: str = "u", channel: str = "c", at: float = 0.0) -> Event:
    body = b'{"event_type":"e","user_id":"%s"}' % user.encode()
    return Event.build(
        offset=offset, place=(offset * 10, 0), xid=xid, committed_at=at, channels=(channel,), body=body
    )  # fmt: skip


class Told:
    """A subscriber that records its calls."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.fails = False

    def event(self, event: Event, *, more: bool = False) -> None:
        self.calls.append((event.offset, more))
        if self.fails:
            raise ValueError("a defect")

    def published(self) -> None:
        self.calls.append("published")

    def advanced(self, lsn: int) -> None:
        self.calls.append(("advanced", lsn))

    def restarted(self) -> None:
        self.calls.append("restarted")

    def history_changed(self) -> None:
        self.calls.append("history_changed")

    def take(self) -> list[object]:
        """Return the calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


def make(beginning: Beginning = BEGINNING, *, limit: int = 1_000_000) -> tuple[LocalFeed, Told]:
    feed, told = LocalFeed(Window(limit)), Told()
    feed.subscribe(told)
    feed.begin(beginning)
    assert told.take() == [], "nobody followed an earlier history"
    return feed, told


def test_before_it_begins_it_is_at_no_position() -> None:
    feed = LocalFeed(Window(1_000))
    assert feed.position == Position("", 0, 0)
    assert feed.state == FeedState("", 0, 0, 0)
    assert (feed.generation, feed.lsn, feed.logged_offset, feed.incarnation, feed.fence) == (0, 0, 0, 0, 0)
    assert feed.status() == FeedStatus(CaptureState.STARTING, 0.0, UNKNOWN_SLOT, Triggers([], []))
    live = FeedStatus(CaptureState.LIVE, 0.5, UNKNOWN_SLOT, Triggers([], []))
    feed.report(lambda: live)
    assert feed.status() is live


def test_it_begins_where_the_log_ends() -> None:
    feed, _ = make()
    assert feed.position == Position("epoch1", 10, 77)
    assert feed.state == FeedState("epoch1", 10, 10, 77)
    assert (feed.generation, feed.lsn, feed.logged_offset, feed.incarnation, feed.fence) == (1, 1_000, 10, 1, 3)
    assert feed.window.first == 11
    assert (feed.mark_of(10), feed.window.mark(10), feed.mark_of(9)) == (77, 77, None)
    assert feed.recent() == []
    assert not feed.window.reaches(Snapshot(50, 60, frozenset())), "events before may have ids below the ceiling"
    assert feed.window.reaches(Snapshot(51, 60, frozenset()))


def test_it_begins_with_the_newest_events_of_the_log() -> None:
    newest = [event(9, xid=40, user="a"), event(10, xid=41, user="b")]
    feed, _ = make(BEGINNING._replace(newest=newest, before=66, mark=newest[-1].mark))
    assert (feed.window.first, feed.window.last) == (9, 10)
    assert (feed.mark_of(8), feed.mark_of(9), feed.mark_of(10)) == (66, newest[0].mark, newest[1].mark)
    assert (feed.recent(), feed.recent("a"), feed.recent("b")) == ([40, 41], [40], [41])
    assert not feed.window.reaches(Snapshot(50, 60, frozenset()))
    assert feed.window.reaches(Snapshot(51, 60, frozenset()))
    tight, _ = make(BEGINNING._replace(newest=newest, before=66), limit=1)
    assert len(tight.window) == 0, "the log has them"


def test_events_are_passed_on_in_batches() -> None:
    feed, told = make()
    events = [event(11), event(12), event(13)]
    feed.publish(events)
    assert told.take() == [(11, True), (12, True), (13, False), "published"]
    assert feed.position == Position("epoch1", 13, events[-1].mark)
    assert feed.state == FeedState("epoch1", 13, 10, 77), "the log does not have them yet"
    assert [feed.mark_of(each.offset) for each in events] == [each.mark for each in events]
    assert feed.window.last == 13
    feed.publish([])
    assert told.take() == ["published"]


def test_a_control_event_ends_the_batch_before_it() -> None:
    feed, told = make()
    feed.publish([event(11), event(12, channel=CONTROL), event(13)])
    assert told.take() == [(11, True), "published", (12, True), (13, False), "published"]


def test_what_was_published_before_is_dropped_if_it_is_the_same() -> None:
    feed, told = make()
    feed.publish([event(11), event(12)])
    told.take()
    feed.publish([event(10), event(11), event(12), event(13)])
    assert told.take() == [(13, False), "published"]
    for other in (
        event(12, at=1.0),
        Event.build(offset=12, place=(120, 1), xid=100, committed_at=0.0, channels=("c",), body=b"{}"),
        Event.build(offset=12, place=(121, 0), xid=100, committed_at=0.0, channels=("c",), body=b"{}"),
    ):
        with pytest.raises(HistoryForked, match="different events"):
            feed.publish([other])
        assert told.take() == ["published"]


def test_a_subscriber_that_fails_does_not_get_the_event_again() -> None:
    feed, told = make()
    told.fails = True
    with pytest.raises(ValueError, match="a defect"):
        feed.publish([event(11), event(12)])
    assert told.take() == [(11, True), "published"]
    told.fails = False
    feed.publish([event(11), event(12)])
    assert told.take() == [(12, False), "published"]


def test_the_same_history_goes_on_without_a_word() -> None:
    feed, told = make()
    feed.publish([event(11)])
    told.take()
    feed.begin(BEGINNING._replace(fence=4))
    assert told.take() == []
    assert (feed.offset, feed.generation, feed.fence) == (11, 1, 4)
    assert len(feed.window) == 1


@pytest.mark.parametrize(
    "change", [{"epoch": "epoch2", "offset": 5}, {"offset": 12}, {"epoch": "epoch2", "offset": 20}]
)  # fmt: skip
def test_another_history_closes_all_clients(change: dict[str, object]) -> None:
    feed, told = make()
    feed.publish([event(11)])
    told.take()
    feed.begin(BEGINNING._replace(mark=88, **change))  # type: ignore[arg-type]
    assert told.take() == ["history_changed"]
    assert (feed.epoch, feed.offset) == (change.get("epoch", "epoch1"), change["offset"])
    assert (feed.generation, feed.mark, len(feed.window), feed.recent()) == (2, 88, 0, [])
    feed.begin_afresh(BEGINNING._replace(incarnation=9, fence=8))
    assert told.take() == ["history_changed"]
    assert (feed.generation, feed.incarnation, feed.fence) == (3, 9, 8)


def test_a_restart_of_postgresql_makes_earlier_ids_uncertain() -> None:
    feed, told = make()
    feed.publish([event(11, xid=100), event(12, xid=150), event(13, xid=151)])
    told.take()
    feed.begin(BEGINNING._replace(incarnation=2, ceiling=151))
    assert told.take() == ["restarted"]
    assert feed.recent() == [100, 150], "ids from the new counter on may be given again"
    assert feed.incarnation == 2
    feed.begin(BEGINNING._replace(incarnation=2, ceiling=100))
    assert told.take() == []
    assert feed.recent() == [100, 150]


def test_recent_transactions_are_kept_until_a_snapshot_sees_them() -> None:
    feed, _ = make()
    events = [event(11, user="a"), event(12, user="b"), event(13, xid=101, user="a"), event(14, xid=102, user="c")]
    feed.publish(events)
    assert feed.recent() == [100, 101, 102], "once each"
    assert (feed.recent("a"), feed.recent("b"), feed.recent("c"), feed.recent("d")) == ([100, 101], [100], [102], [])
    feed.seen(Snapshot(100, 103, frozenset({100})))
    assert feed.recent() == [100, 101, 102], "the first is in progress"
    feed.seen(Snapshot(102, 103, frozenset({102})))
    assert feed.recent() == [102]
    feed.seen(Snapshot(103, 103, frozenset()))
    assert feed.recent() == []
    feed.seen(Snapshot(103, 103, frozenset()))


def test_a_bounded_number_of_transactions_is_remembered() -> None:
    feed, _ = make()
    feed.publish([event(11 + number, xid=100 + number) for number in range(1_005)])
    assert feed.recent() == list(range(105, 1_105))
    feed.begin(BEGINNING._replace(incarnation=2, ceiling=1_000_000))
    feed.publish([event(1_016, xid=2_000)])
    assert feed.recent() == [*range(106, 1_105), 2_000]


def test_what_the_log_has_may_leave_the_window() -> None:
    feed, _ = make(limit=1)
    events = [event(offset) for offset in range(11, 16)]
    feed.publish(events)
    assert len(feed.window) == 5
    feed.logged(events[1])
    assert feed.state == FeedState("epoch1", 15, 12, events[1].mark)
    assert len(feed.window) == 3
    feed.logged_up_to(13)
    assert (feed.logged_offset, len(feed.window)) == (13, 2)
    feed.logged_up_to(12)
    assert (feed.logged_offset, len(feed.window)) == (13, 2)
    feed.logged_up_to(99)
    assert (feed.logged_offset, len(feed.window)) == (15, 0), "no further than what was published"


def test_another_event_at_an_offset_shows_a_restored_database() -> None:
    feed, _ = make()
    feed.publish([event(11), event(12)])
    assert not feed.has_other(event(11))
    assert not feed.has_other(event(12))
    assert feed.has_other(event(11, at=5.0))
    assert feed.has_other(event(12, at=5.0))
    assert not feed.has_other(event(13, at=5.0)), "nothing is known of it"
    assert not feed.has_other(event(3, at=5.0)), "only the log knows it"


def test_positions_without_events_are_passed_on_once() -> None:
    feed, told = make()
    for lsn in (900, 1_000, 1_001, 1_001, 1_000, 1_500):
        feed.advance(lsn)
    assert told.take() == [("advanced", 1_001), ("advanced", 1_500)]
    assert feed.lsn == 1_500


def test_all_subscribers_are_told_in_their_order() -> None:
    feed, told = make()
    order: list[str] = []

    class Second(Told):
        def published(self) -> None:
            order.append("second")

        def history_changed(self) -> None:
            order.append("changed")

    feed.subscribe(Second())
    feed.publish([event(11)])
    feed.elsewhere()
    assert told.take() == [(11, False), "published", "history_changed"]
    assert order == ["second", "changed"]


def offsets(events: Sequence[Event]) -> list[int]:
    return [each.offset for each in events]


def test_the_window_has_what_was_published() -> None:
    feed, _ = make()
    feed.publish([event(11), event(12, channel="d"), event(13)])
    assert offsets(feed.window.after(10, ["c"], most=10_000).events) == [11, 13]

"""The window compared with a plain list: unseen events, and eviction."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.window import Window


def event(offset: int, xid: int, keys: tuple[str, ...], padding: int = 0) -> Event:
    body = b'{"p": "' + b"x" * padding + b'"}'
    return Event.build(offset=offset, place=(offset, 0), xid=xid, committed_at=0.0, channels=keys, body=body)


keys = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True).map(tuple)
histories = st.lists(st.tuples(st.integers(1, 30), keys), max_size=30)
snapshots = st.builds(
    lambda xmin, more, xids: Snapshot(xmin, xmin + more, frozenset(x for x in xids if xmin <= x < xmin + more)),
    st.integers(1, 30),
    st.integers(0, 10),
    st.sets(st.integers(1, 40)),
)


@given(histories, snapshots, keys, st.integers(0, 20_000), st.integers(0, 30))
def test_nothing_that_a_snapshot_has_not_seen_is_missed(
    history: list[tuple[int, tuple[str, ...]]],
    snapshot: Snapshot,
    asked: tuple[str, ...],
    limit: int,
    durable: int,
) -> None:
    window = Window(limit)
    window.restart(first=1, ceiling=0)
    events = [event(at + 1, xid, held) for at, (xid, held) in enumerate(history)]
    for added in events:
        window.add(added)
    window.durable(min(durable, len(events)))
    wanted = [e for e in events if set(e.keys) & set(asked) and not snapshot.sees(e.xid)]
    kept = [e for e in wanted if e.offset >= window.first]
    assert window.first_unseen(snapshot, asked) == (kept[0].offset if kept else None)
    if window.reaches(snapshot):
        assert kept == wanted
    offset = window.first - 1
    assert window.count_after(offset, asked, snapshot) == len(kept)
    assert window.last == len(events)
    assert window.size == sum(e.size for e in events if e.offset >= window.first)
    assert window.size <= limit or len(window) == len(events) - min(durable, len(events))
    assert len(window) == len(events) - window.first + 1


def test_what_the_log_does_not_have_yet_stays() -> None:
    window = Window(1)
    window.restart(first=1, ceiling=0)
    window.add(event(1, 5, ("a",)))
    window.add(event(2, 5, ("a",)))
    assert len(window) == 2
    window.durable(1)
    assert window.first == 2
    window.durable(2)
    assert (len(window), window.size, window.first) == (0, 0, 3)


def test_a_window_made_anew_does_not_claim_what_it_cannot_know() -> None:
    window = Window(1000)
    window.restart(first=8, ceiling=20)
    assert not window.reaches(Snapshot.parse("20:25:"))
    assert window.reaches(Snapshot.parse("21:25:"))


@given(histories, keys, st.integers(0, 30), st.integers(0, 3_000))
def test_pages_of_any_size_bring_all_that_follows_in_order_and_once(
    history: list[tuple[int, tuple[str, ...]]], asked: tuple[str, ...], offset: int, most: int
) -> None:
    window = Window(1_000_000)
    window.restart(first=1, ceiling=0)
    events = [event(at + 1, xid, held, padding=xid * 20) for at, (xid, held) in enumerate(history)]
    for added in events:
        window.add(added)
    offset = min(offset, len(events))
    found: list[Event] = []
    place = offset
    while place < window.last:
        page, upto = window.after(place, list(asked), most=most)
        assert upto > place
        assert sum(len(e.body) for e in page[:-1]) <= most
        assert upto == window.last or sum(len(e.body) for e in page) > most, "no page ends before it is full"
        found += page
        place = upto
    assert found == [e for e in events if e.offset > offset and set(e.keys) & set(asked)]


def test_a_new_window_is_empty_and_begins_at_one() -> None:
    window = Window(1)
    assert (len(window), window.size, window.first, window.last, window.mark(0)) == (0, 0, 1, 0, 0)
    assert window.reaches(Snapshot.parse("1:1:"))
    assert window.first_unseen(Snapshot.parse("1:1:"), "a") is None
    window.add(event(1, 5, ("a",)))
    assert len(window) == 1, "the log does not have it yet"
    assert window.first_unseen(Snapshot.parse("5:5:"), "a") == 1


def test_an_event_and_its_mark_are_found_by_offset() -> None:
    window = Window(1_000_000)
    window.restart(first=5, ceiling=0, before=77)
    events = [event(offset, 5, ("a",)) for offset in (5, 6)]
    for added in events:
        window.add(added)
    assert [window.at(offset) for offset in (4, 5, 6, 7)] == [None, *events, None]
    assert [window.mark(offset) for offset in (3, 4, 5, 6, 7)] == [None, 77, events[0].mark, events[1].mark, None]
    assert [window.holds_after(offset) for offset in (3, 4, 5)] == [False, True, True]


def test_eviction_stops_at_the_limit_and_remembers_the_mark_before_the_first() -> None:
    events = [event(offset, 5, ("a",)) for offset in (1, 2, 3)]
    window = Window(2 * events[0].size)
    window.restart(first=1, ceiling=0)
    for added in events[:2]:
        window.add(added)
    window.durable(3)
    assert (len(window), window.first) == (2, 1), "exactly as many bytes as are allowed"
    window.add(events[2])
    assert (len(window), window.first, window.mark(1)) == (2, 2, events[0].mark)
    assert window.holds_after(1)
    assert not window.holds_after(0)


def test_a_restart_forgets_what_was_held() -> None:
    window = Window(1_000_000)
    window.restart(first=1, ceiling=50)
    window.add(event(1, 60, ("a",)))
    window.restart(first=9, ceiling=7)
    assert (len(window), window.size, window.first, window.last, window.mark(8)) == (0, 0, 9, 8, None)
    assert window.count_after(0, "a", None) == 0
    assert window.reaches(Snapshot.parse("8:8:"))


def test_a_key_whose_events_were_seen_does_not_end_the_search_of_the_next() -> None:
    window = Window(1_000_000)
    window.restart(first=1, ceiling=0)
    window.add(event(1, 5, ("a",)))
    window.add(event(2, 9, ("b",)))
    assert window.first_unseen(Snapshot.parse("7:7:"), ["a", "b"]) == 2

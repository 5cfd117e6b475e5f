"""The window's index by the values in a column, compared with a plain list."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.eventlog.event import Event, row_channel
from momentum_sync.eventlog.row_index import Route, RowIndex, values_of
from momentum_sync.eventlog.window import Window

TABLES = (row_channel(7), row_channel(8))
TYPES = {"owner": "text", "state": "int4"}
VALUES = (1, 2, "a", "l" * 101, None)
kinds = st.sampled_from(["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
rows = st.dictionaries(st.sampled_from(["owner", "state"]), st.sampled_from(VALUES))
changes = st.tuples(st.sampled_from(TABLES), kinds, rows, rows, st.booleans())
lookups = st.lists(
    st.one_of(
        st.sampled_from(TABLES),
        st.builds(
            Route, st.sampled_from(TABLES), st.sampled_from(["owner", "state"]), st.sampled_from(["text", "int4"]),
            st.sampled_from(VALUES),
        ),
    ),
    min_size=1,
    max_size=4,
    unique=True,
)  # fmt: skip


def event(
    offset: int, channel: str, kind: str, record: dict[str, Any], old: dict[str, Any], types: dict[str, str] = TYPES
) -> Event:
    body: dict[str, Any] = {
        "schema": "public", "table": "t", "type": kind, "commit_timestamp": "", "errors": None,
        "columns": [{"name": name, "type": of} for name, of in types.items()],
        **({} if kind == "DELETE" else {"record": record}), **({} if kind == "INSERT" else {"old_record": old}),
    }  # fmt: skip
    return Event.build(
        offset=offset, place=(offset, 0), xid=1, committed_at=0.0, channels=(channel,), body=json.dumps(body).encode()
    )


def is_found(change: Event, lookup: str | Route) -> bool:
    if isinstance(lookup, str):
        return change.channels == (lookup,)
    values = values_of(change, lookup.column, lookup.type_name)
    return change.channels == (lookup.channel,) and (values is None or lookup.value in values)


@given(st.lists(changes, max_size=30), lookups, st.integers(0, 6_000), st.integers(0, 30), st.integers(0, 30))
def test_the_window_finds_what_a_plain_list_has(
    history: list[tuple[str, str, dict[str, Any], dict[str, Any], bool]],
    asked: list[str | Route],
    limit: int,
    durable: int,
    after: int,
) -> None:
    # So that look-ups meet columns that are indexed in part.
    window = Window(limit, RowIndex(at_once=3))
    window.restart(first=1, ceiling=0)
    events: list[Event] = []
    for offset, (channel, kind, record, old, asks) in enumerate(history, 1):
        events.append(event(offset, channel, kind, record, old))
        window.add(events[-1])
        window.durable(min(durable, offset))
        if asks:
            begin = max(after, window.first - 1)
            page = window.after(begin, asked, most=1_000_000)
            wanted = [e for e in events if e.offset > begin and any(is_found(e, lookup) for lookup in asked)]
            # More may come, of the same tables, as long as the index is not complete.
            assert [e for e in page.events if any(is_found(e, lookup) for lookup in asked)] == wanted
            assert page.events == sorted(page.events, key=lambda e: e.offset)
            assert page.through == len(events)
    for _ in range(10):
        page = window.after(window.first - 1, asked, most=1_000_000)
    exact = [e for e in events if e.offset >= window.first and any(_may_be_found(e, lookup) for lookup in asked)]
    assert page.events == exact, "and nothing else, once it is"


def _may_be_found(change: Event, lookup: str | Route) -> bool:
    """Return whether a complete index finds a change: long values are not told apart."""
    if is_found(change, lookup):
        return True
    if isinstance(lookup, str) or change.channels != (lookup.channel,):
        return False
    values = values_of(change, lookup.column, lookup.type_name) or []
    return any(isinstance(value, str) and len(value) > 100 for value in values)


def filled(count: int, index: RowIndex) -> tuple[RowIndex, deque[tuple[Event, int]]]:
    held = deque[tuple[Event, int]]()
    for number in range(1, count + 1):
        held.append((event(number, TABLES[0], "INSERT", {"owner": str(number % 5)}, {}), 1))
        index.add(TABLES[0], held[-1])
    return index, held


def test_a_column_is_indexed_a_slice_at_a_time() -> None:
    index, held = filled(10, RowIndex(at_once=4))
    route = Route(TABLES[0], "owner", "text", "1")
    assert [index.find(route, held).covered for _ in range(4)] == [4, 8, 10, 10]
    (found,) = index.find(route, held).lists
    assert [entry[0].offset for entry in found] == [1, 6]


def test_further_columns_are_not_indexed_until_another_is_idle() -> None:
    index, held = filled(2, RowIndex(idle=3))
    for number in range(4):
        assert index.find(Route(TABLES[0], f"c{number}", "text", "a"), held).covered == 2
    fifth = Route(TABLES[0], "c5", "text", "a")
    assert index.find(fifth, held).covered == 0
    for number in range(4):
        held.append((event(3 + number, TABLES[0], "INSERT", {}, {}), 1))
        index.add(TABLES[0], held[-1])
    assert index.find(fifth, held).covered == 6


def test_two_look_ups_in_a_column_that_is_indexed_in_part_miss_nothing() -> None:
    """Each adds to the lists that the other has found."""
    window = Window(1_000_000, RowIndex(at_once=1))
    window.restart(first=1, ceiling=0)
    events = [event(number, TABLES[0], "INSERT", {"owner": value}, {}) for number, value in enumerate("aLbaLb", 1)]
    events += [event(number, TABLES[0], "TRUNCATE", {}, {}) for number in range(7, 10)]
    for each in events:
        window.add(each)
    asked = [Route(TABLES[0], "owner", "text", value) for value in "ab"]
    for _ in range(10):
        found = window.after(0, asked, most=1_000_000).events
        assert [each for each in found if any(is_found(each, lookup) for lookup in asked)] == [
            each for each in events if each.offset not in (2, 5)
        ]
    assert len(found) == 7, "nothing else, once the index is complete"


def test_another_type_is_another_column() -> None:
    window = Window(1_000_000)
    window.restart(first=1, ceiling=0)
    before = event(1, TABLES[0], "INSERT", {"owner": 5}, {}, {"owner": "int4"})
    now = event(2, TABLES[0], "INSERT", {"owner": "5"}, {})
    other = event(3, TABLES[0], "INSERT", {"owner": "6"}, {})
    for each in (before, now, other):
        window.add(each)
    # Of what another type was, only the database can say whether it is equal.
    assert window.after(0, [Route(TABLES[0], "owner", "text", "5")], most=1_000).events == [before, now]
    assert window.after(0, [Route(TABLES[0], "owner", "int4", 5)], most=1_000).events == [before, now, other]


def test_a_restarted_window_has_nothing() -> None:
    window = Window(1_000_000)
    window.restart(first=1, ceiling=0)
    window.add(event(1, TABLES[0], "INSERT", {"owner": "a"}, {}))
    route = Route(TABLES[0], "owner", "text", "a")
    assert len(window.after(0, [route], most=1).events) == 1
    window.restart(first=1, ceiling=0)
    assert window.after(0, [route], most=1).events == []


def test_values_longer_than_100_characters_share_an_index_entry() -> None:
    index, longest = RowIndex(), "l" * 100
    held = deque[tuple[Event, int]]()
    for number, value in enumerate((longest, "m" * 100, longest + "l", "m" * 101), 1):
        held.append((event(number, TABLES[0], "INSERT", {"owner": value}, {}), 1))
    offsets = [
        [
            [entry[0].offset for entry in each]
            for each in index.find(Route(TABLES[0], "owner", "text", value), held).lists
        ]
        for value in (longest, longest + "l", "n")
    ]
    assert offsets == [[[1], [3, 4]], [[3, 4]], [[3, 4]]]


def test_changes_with_a_value_before_and_after_are_found_by_both_in_order() -> None:
    """Both those from before the first look-up and later ones."""
    index, held = filled(0, RowIndex())
    route = {value: Route(TABLES[0], "state", "int4", value) for value in (1, 2, 3)}
    for offset, (old, new) in enumerate([(1, 2), (2, 1), (1, 1), (3, 2), (2, 3), (3, 3)], 1):
        held.append((event(offset, TABLES[0], "UPDATE", {"state": new}, {"state": old}), 1))
        index.add(TABLES[0], held[-1])
        if offset == 3:
            index.find(route[1], held)

    def offsets(value: int) -> list[int]:
        (found,) = index.find(route[value], held).lists
        return [entry[0].offset for entry in found]

    assert [offsets(value) for value in (1, 2, 3)] == [[1, 2, 3], [1, 2, 4, 5], [4, 5, 6]]
    for left in (5, 4, 3):
        index.evict(TABLES[0], held.popleft()[0], left)
    assert index.find(route[1], held).lists == []
    assert [offsets(value) for value in (2, 3)] == [[4, 5], [4, 5, 6]]
    for left in (2, 1, 0):
        index.evict(TABLES[0], held.popleft()[0], left)
    assert [index.find(route[value], held) for value in (1, 2, 3)] == [([], 0)] * 3


def test_the_oldest_changes_are_dropped_from_the_part_that_is_indexed_only() -> None:
    index, held = filled(6, RowIndex(at_once=2))
    route = Route(TABLES[0], "owner", "text", "1")

    def found() -> tuple[list[list[int]], int]:
        lists, covered = index.find(route, held)
        return [[entry[0].offset for entry in each] for each in lists], covered

    assert found() == ([[6]], 2)
    for left in (5, 4, 3, 2):
        index.evict(TABLES[0], held.popleft()[0], left)
        index.evict(TABLES[1], held[0][0], 0)
    assert found() == ([[6]], 2)
    index.evict(TABLES[0], held.popleft()[0], 1)
    assert found() == ([[6]], 1)
    index.evict(TABLES[0], held.popleft()[0], 0)
    assert found() == ([], 0)


def test_a_column_gives_up_its_place_only_after_more_changes_than_it_may_be_idle_for() -> None:
    index, held = filled(5, RowIndex(idle=2))
    routes = [Route(TABLES[0], f"c{number}", "text", "a") for number in range(5)]
    for route in routes[:4]:
        index.find(route, held)
    for wanted in (0, 0, 8):
        held.append((event(len(held) + 1, TABLES[0], "INSERT", {}, {}), 1))
        index.add(TABLES[0], held[-1])
        if wanted == 0:
            for route in routes[1:4]:
                index.find(route, held)
        assert index.find(routes[4], held).covered == wanted
    assert index.find(routes[3], held).covered == 8, "looked up a change ago, so it has kept its place"
    assert index.find(routes[0], held).covered == 0

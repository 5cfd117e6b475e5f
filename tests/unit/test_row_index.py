"""The window's index by the values in a column, compared with a plain list."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.eventlog import row_index
from momentum_sync.eventlog.event import Event, row_channel
from momentum_sync.eventlog.row_index import Route, values_of
from momentum_sync.eventlog.window import Window

TABLES = (row_channel(7), row_channel(8))
VALUES = (1, 2, "a", None)
kinds = st.sampled_from(["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
rows = st.dictionaries(st.sampled_from(["owner", "state"]), st.sampled_from(VALUES))
changes = st.tuples(st.sampled_from(TABLES), kinds, rows, rows, st.booleans())
lookups = st.lists(
    st.one_of(
        st.sampled_from(TABLES),
        st.tuples(st.sampled_from(TABLES), st.sampled_from(["owner", "state"]), st.sampled_from(VALUES)),
    ),
    min_size=1,
    max_size=4,
    unique=True,
)


def event(offset: int, channel: str, kind: str, record: dict[str, Any], old: dict[str, Any]) -> Event:
    body: dict[str, Any] = {
        "schema": "public", "table": "t", "type": kind, "commit_timestamp": "", "columns": [], "errors": None,
        **({} if kind == "DELETE" else {"record": record}), **({} if kind == "INSERT" else {"old_record": old}),
    }  # fmt: skip
    return Event.build(
        offset=offset, place=(offset, 0), xid=1, committed_at=0.0, channels=(channel,), body=json.dumps(body).encode()
    )


def is_found(change: Event, lookup: str | Route) -> bool:
    if isinstance(lookup, str):
        return change.channels == (lookup,)
    channel, column, value = lookup
    values = values_of(change, column)
    return change.channels == (channel,) and (values is None or value in values)


@given(st.lists(changes, max_size=30), lookups, st.integers(0, 6_000), st.integers(0, 30), st.integers(0, 30))
def test_the_window_finds_what_a_plain_list_has(
    history: list[tuple[str, str, dict[str, Any], dict[str, Any], bool]],
    asked: list[str | Route],
    limit: int,
    durable: int,
    after: int,
) -> None:
    window = Window(limit)
    window.restart(first=1, ceiling=0)
    events: list[Event] = []
    for offset, (channel, kind, record, old, asks) in enumerate(history, 1):
        events.append(event(offset, channel, kind, record, old))
        window.add(events[-1])
        window.durable(min(durable, offset))
        if asks:  # columns are indexed at any time, and from then on
            offset_from = max(after, window.first - 1)
            page = window.after(offset_from, asked, most=1_000_000)
            wanted = [e for e in events if e.offset > offset_from and any(is_found(e, lookup) for lookup in asked)]
            assert page.events == wanted
            assert page.through == len(events)


def test_a_column_that_was_not_asked_for_long_is_indexed_again() -> None:
    window = Window(1_000_000)
    window.restart(first=1, ceiling=0)
    first = event(1, TABLES[0], "INSERT", {f"c{number}": number for number in range(20)}, {})
    window.add(first)
    for _ in range(2):
        for number in range(20):
            assert window.after(0, [(TABLES[0], f"c{number}", number)], most=1).events == [first]
            assert window.after(0, [(TABLES[0], f"c{number}", number + 1)], most=1).events == []


def test_the_number_of_indexed_columns_is_bounded() -> None:
    index = row_index.RowIndex()
    change = event(1, TABLES[0], "INSERT", {f"c{number}": number for number in range(20)}, {})
    asked: list[str] = []

    class Held(list[tuple[Event, int]]):
        def __iter__(self) -> Any:
            asked.append("all")
            return super().__iter__()

    for number in [*range(9), 8, 7, 1, 0]:
        index.lists((TABLES[0], f"c{number}", number), Held([(change, 1)]))
    # Eight stay: the ninth drops the first, which is then the only one to be made again.
    assert len(asked) == 10


def test_a_restarted_window_has_nothing() -> None:
    window = Window(1_000_000)
    window.restart(first=1, ceiling=0)
    window.add(event(1, TABLES[0], "INSERT", {"owner": 1}, {}))
    assert len(window.after(0, [(TABLES[0], "owner", 1)], most=1).events) == 1
    window.restart(first=1, ceiling=0)
    assert window.after(0, [(TABLES[0], "owner", 1)], most=1).events == []


def test_what_is_evicted_is_forgotten_and_what_may_have_any_value_stays() -> None:
    index = row_index.RowIndex()
    one, two = event(1, TABLES[0], "INSERT", {"owner": 1}, {}), event(2, TABLES[0], "TRUNCATE", {}, {})
    route: Route = (TABLES[0], "owner", 1)
    assert [list(each) for each in index.lists(route, [(one, 1)])] == [[(one, 1)]]
    index.add(TABLES[0], (two, 1))
    index.evict(TABLES[0], one)
    assert [list(each) for each in index.lists(route, [])] == [[(two, 1)]]

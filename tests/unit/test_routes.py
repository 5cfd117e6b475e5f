"""Routes: from the values in a row to its subscribers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from momentum_sync.eventlog.event import Event, relation_of, row_channel
from momentum_sync.eventlog.row_index import Route, values_of
from momentum_sync.gateway.routes import Routes

CHANNEL = row_channel(7)
TYPES = {"id": "int4", "owner": "text", "size": "int4", "open": "bool"}


def route(column: str, value: Any) -> Route:
    return Route(CHANNEL, column, TYPES[column], value)


def event(
    kind: str,
    record: dict[str, Any] | None,
    old: dict[str, Any] | None = None,
    relation: int = 7,
    types: dict[str, str] | None = None,
) -> Event:
    columns = [{"name": name, "type": of} for name, of in {**TYPES, **(types or {})}.items()]
    body: dict[str, Any] = {
        "schema": "public", "table": "t", "type": kind, "commit_timestamp": "", "columns": columns, "errors": None,
        **({} if record is None else {"record": record}), **({} if old is None else {"old_record": old}),
    }  # fmt: skip
    return Event.build(
        offset=1, place=(1, 0), xid=1, committed_at=0.0, channels=(row_channel(relation),),
        body=json.dumps(body).encode(),
    )  # fmt: skip


def routes(*values: tuple[str, Any]) -> Routes:
    made = Routes()
    for column, value in values:
        made.add(route(column, value))
    return made


KNOWN: list[tuple[str, Any]] = [("owner", "a"), ("owner", "b"), ("owner", "ä\n"), ("size", 1), ("open", True)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (event("INSERT", {"owner": "a", "size": 2, "open": False}), [("owner", "a")]),
        (event("INSERT", {"owner": "ä\n", "size": 1, "open": True}), [("owner", "ä\n"), ("size", 1), ("open", True)]),
        (event("INSERT", {"owner": None, "size": None, "open": None}), []),
        (event("UPDATE", {"owner": "b", "size": 2, "open": None}, {"owner": "a"}), [("owner", "b"), ("owner", "a")]),
        (event("UPDATE", {"owner": "a", "size": 2, "open": None}, {"owner": "a"}), [("owner", "a")]),
        # The stream may leave out columns that an UPDATE did not change.
        (event("UPDATE", {"owner": "x", "open": None}, {}), [("size", 1)]),
        (event("DELETE", None, {"owner": "b"}), [("owner", "b")]),
        (event("DELETE", None, {"id": 1}), []),
        (event("TRUNCATE", {}, {}), KNOWN),
        # The column has become an array.
        (event("INSERT", {"owner": ["a"], "size": 2, "open": {"a": 1}}), [*KNOWN[:3], KNOWN[4]]),
        # It had another type.
        (event("INSERT", {"owner": 5, "size": 2, "open": None}, types={"owner": "int4"}), KNOWN[:3]),
        (event("INSERT", {"owner": "a"}, relation=8), []),
    ],
)
def test_a_change_is_found_by_the_values_of_both_rows(change: Event, expected: list[tuple[str, Any]]) -> None:
    assert routes(*KNOWN).of(change) == [route(*one) for one in expected]


def test_a_route_is_there_as_long_as_it_was_added_more_often_than_removed() -> None:
    found = routes(("owner", "a"), ("owner", "a"), ("size", 1))
    assert found
    change = event("INSERT", {"owner": "a", "size": 1})
    found.remove(route("owner", "a"))
    assert found.of(change) == [route("owner", "a"), route("size", 1)]
    found.remove(route("owner", "a"))
    assert found.of(change) == [route("size", 1)]
    found.remove(route("size", 1))
    assert not found
    assert found.of(change) == []


def test_the_relation_of_an_event() -> None:
    assert relation_of(event("INSERT", {})) == 7
    other = Event.build(offset=1, place=(1, 0), xid=1, committed_at=0.0, channels=("a",), body=b"{}")
    assert relation_of(other) is None


def test_a_number_that_python_does_not_have_may_be_any_value() -> None:
    change = event("INSERT", {"size": 1})
    huge = msgspec.structs.replace(change, body=change.body.replace(b'"size": 1', b'"size": 1e400'))
    assert values_of(change, "size", "int4") == [1]
    assert values_of(huge, "size", "int4") is None

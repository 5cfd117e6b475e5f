"""A topic of Supabase's protocol: which changes it may want, by which routes they come, and its frames."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from momentum_sync.eventlog.event import Event, row_channel
from momentum_sync.eventlog.row_index import Route
from momentum_sync.gateway.dialects.realtime_services import SharedFrames
from momentum_sync.gateway.dialects.realtime_topic import Topic, TopicEvents
from momentum_sync.identity import policy as policies
from momentum_sync.identity.decider import Decider, Undecided
from momentum_sync.identity.policy import All, Column, Constant, Equal, Kind
from momentum_sync.identity.row_tables import RowTable, SeenChange
from momentum_sync.identity.tokens import Identity
from momentum_sync.identity.topic_access import EVERYTHING
from momentum_sync.wire import row_watch
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.realtime_filter import Condition, Operator
from momentum_sync.wire.realtime_join import Binding, Join
from momentum_sync.wire.row_change import parse_change
from momentum_sync.wire.row_watch import Watch

CHANNEL = row_channel(7)
TYPES = {"id": "int4", "owner": "text", "note": "text"}
TABLE = RowTable.build(
    7, "public", "t", secured=True, policies=("true", "true"), needed=frozenset({"owner"}),
    columns=[(name, of, of, of, True, name == "id") for name, of in TYPES.items()], identity=frozenset(TYPES),
)  # fmt: skip
CALLER, OTHER = Identity("authenticated", None, "{}", None), Identity("anon", None, "{}", None)


def change(
    kind: str,
    record: dict[str, Any] | None = None,
    old: dict[str, Any] | None = None,
    offset: int = 5,
    relation: int = 7,
) -> Event:
    body: dict[str, Any] = {
        "schema": "public", "table": "t", "commit_timestamp": "x", "type": kind,
        "columns": [{"name": name, "type": of} for name, of in TYPES.items()],
        **({} if record is None else {"record": record}), **({} if old is None else {"old_record": old}),
        "errors": None,
    }  # fmt: skip
    return Event.build(
        offset=offset, place=(offset, 0), xid=1, committed_at=0.0, channels=(row_channel(relation),),
        body=json.dumps(body).encode(),
    )  # fmt: skip


def row(owner: str = "alice", number: int = 1, note: str = "n") -> dict[str, Any]:
    return {"id": number, "owner": owner, "note": note}


def condition_on(column: str, operator: Operator, *values: str, negated: bool = False) -> row_watch.Test:
    of = TYPES[column]
    operands = tuple((value if of == "int4" else json.dumps(value)).encode() for value in values)
    return row_watch.Test(Condition(column, operator, negated, values), of, of, of, operands)


def watch(
    *tests: row_watch.Test, event: str = "*", number: int = 1, relation: int = 7, select: set[str] | None = None
) -> Watch:
    return Watch(number, event, frozenset({relation}), tests, None if select is None else frozenset(select))


def events(*watches: Watch, since: int = 4) -> TopicEvents:
    return TopicEvents((), watches, since)


ALICE = condition_on("owner", Operator.EQ, "alice")
OWN = Equal(Column("owner", Kind.TEXT), Constant("alice", Kind.TEXT))


@pytest.mark.parametrize(
    ("watched", "event", "wanted"),
    [
        ((watch(),), change("INSERT", row()), True),
        ((watch(),), change("TRUNCATE", {}, {}), True),
        ((watch(),), change("INSERT", row(), offset=4), False),
        ((watch(),), change("INSERT", row(), relation=8), False),
        ((watch(event="INSERT"),), change("INSERT", row()), True),
        ((watch(event="INSERT"),), change("DELETE", None, row()), False),
        ((watch(event="DELETE"), watch(event="INSERT")), change("INSERT", row()), True),
        ((watch(ALICE),), change("INSERT", row()), True),
        ((watch(ALICE),), change("INSERT", row("bob")), False),
        ((watch(ALICE, event="INSERT"),), change("UPDATE", row(), row()), False),
        # It may have gone out of sight: then it is a DELETE of the old row.
        ((watch(event="DELETE"),), change("UPDATE", row(), row("bob")), True),
        ((watch(ALICE),), change("UPDATE", row("bob"), row()), True),
        ((watch(ALICE),), change("UPDATE", row("bob"), {"id": 1}), False),
        ((watch(ALICE),), change("UPDATE", row("bob"), row("carol")), False),
        # Whether a text is less than another, the database says.
        ((watch(condition_on("note", Operator.LT, "m")),), change("INSERT", row()), True),
    ],
)
def test_changes_that_a_watch_may_get(watched: tuple[Watch, ...], event: Event, wanted: bool) -> None:
    assert events(*watched).may_want(event) == (7 if wanted else None)


@pytest.mark.parametrize(
    ("watched", "policy", "expected"),
    [
        ((watch(),), None, None),
        ((watch(),), OWN, {("owner", "text", "alice")}),
        ((watch(),), All(()), None),
        ((watch(ALICE),), None, {("owner", "text", "alice")}),
        ((watch(condition_on("id", Operator.IN, "1", "2")),), None, {("id", "int4", 1), ("id", "int4", 2)}),
        ((watch(condition_on("id", Operator.GT, "1"), ALICE),), None, {("owner", "text", "alice")}),
        ((watch(condition_on("owner", Operator.EQ, "alice", negated=True)),), None, None),
        ((watch(condition_on("id", Operator.GT, "1")),), OWN, {("owner", "text", "alice")}),
        (
            (watch(ALICE), watch(condition_on("id", Operator.EQ, "3"))),
            None,
            {("owner", "text", "alice"), ("id", "int4", 3)},
        ),
        ((watch(ALICE), watch()), None, None),
        ((watch(relation=8), watch(ALICE)), None, {("owner", "text", "alice")}),
        ((watch(row_watch.Test(ALICE.condition, "numeric", "numeric", "numeric", (b"1",))),), None, None),
    ],
)
def test_routes(
    watched: tuple[Watch, ...], policy: policies.Condition | None, expected: set[tuple[str, str, Any]] | None
) -> None:
    made = events(*watched)
    if policy is not None:
        made.deciders = {7: Decider(TABLE, policy)}
    found = made.slots(7)
    assert found == (None if expected is None else {Route(CHANNEL, *one) for one in expected})


def test_what_is_decided_without_the_database() -> None:
    made = events(watch(ALICE, event="INSERT"))
    with pytest.raises(Undecided):
        made.decide(change("INSERT", row()), 7)
    made.deciders = {7: Decider(TABLE, OWN)}
    assert made.decide(change("INSERT", row()), 7) == SeenChange(TABLE)
    assert made.decide(change("INSERT", row("bob")), 7) is None
    assert made.decide(change("DELETE", None, row()), 7) is None, "seen, and nobody watches it"
    # The column had another type; others do not matter.
    inserted = change("INSERT", row())
    retyped = inserted.body.replace(b'"type": "text"', b'"type": "varchar"')
    with pytest.raises(Undecided):
        made.decide(msgspec.structs.replace(inserted, body=retyped), 7)
    wider = inserted.body.replace(b'"columns": [', b'"columns": [{"name": "more", "type": "json"}, ')
    assert made.decide(msgspec.structs.replace(inserted, body=wider), 7) == SeenChange(TABLE)
    made.watch((watch(condition_on("note", Operator.LT, "m")),))
    with pytest.raises(Undecided):
        made.decide(change("INSERT", row()), 7)
    made.watch((watch(ALICE, event="DELETE"),))
    gone = made.decide(change("UPDATE", row("bob"), row()), 7)
    assert gone == SeenChange(TABLE, is_gone=True, old_columns=frozenset({"id"}))


def test_a_fresh_token_keeps_what_was_asked_for() -> None:
    bindings = (Binding(1, "*", "public", "t", None, None, b"{}"),)
    topic = Topic("realtime:a", "3", CALLER, 10.0, TopicEvents(bindings, (watch(),), 4), Join())
    assert not topic.is_confirmed
    topic.is_confirmed = True
    topic.events.notices = frozenset({"notice"})
    renewed = topic.renewed(OTHER, 20.0, EVERYTHING)
    assert (renewed.name, renewed.join_ref, renewed.identity, renewed.ends_at) == ("realtime:a", "3", OTHER, 20.0)
    assert renewed.is_confirmed
    copied = renewed.events
    assert (copied.bindings, copied.watches, copied.since, copied.notices) == (
        bindings,
        (watch(),),
        4,
        frozenset({"notice"}),
    )
    assert copied.deciders == {}, "they are the other caller's"


def frames(*watches: Watch, event: Event, seen: SeenChange, shared: SharedFrames | None = None) -> list[Any]:
    topic = Topic("realtime:a", "3", CALLER, 10.0, events(*watches), Join())
    found = topic.frames(Version.V2, event, 7, seen, shared or SharedFrames())
    return [json.loads(each[4:] if each[1] == 126 else each[2:]) for each in found]


def test_a_frame_has_the_ids_of_all_watches_with_the_same_columns() -> None:
    event = change("INSERT", row())
    (one,) = frames(watch(number=1), watch(ALICE, number=2), watch(event="DELETE"), event=event, seen=SeenChange(TABLE))
    assert one == [None, None, "realtime:a", "postgres_changes", {"ids": [1, 2], "data": json.loads(event.body)}]
    whole, some = frames(watch(), watch(number=2, select={"note"}), event=event, seen=SeenChange(TABLE))
    assert whole[4]["data"]["record"] == row()
    assert some[4]["ids"] == [2]
    assert some[4]["data"]["record"] == {"id": 1, "note": "n"}, "the key comes with what was selected"


def test_columns_are_those_that_the_caller_may_select() -> None:
    columns = [(name, of, of, of, name != "note", name == "id") for name, of in TYPES.items()]
    table = RowTable.build(
        7, "public", "t", secured=True, policies=("true", "true"), needed=frozenset(), columns=columns,
        identity=frozenset(TYPES),
    )  # fmt: skip
    both = watch(number=2, select={"note", "owner"})
    found = frames(watch(), both, event=change("UPDATE", row(), row("bob")), seen=SeenChange(table))
    assert [one[4]["ids"] for one in found] == [[1, 2]]
    data = found[0][4]["data"]
    assert data["record"] == {"id": 1, "owner": "alice"}
    assert data["old_record"] == {"id": 1, "owner": "bob"}
    assert [column["name"] for column in data["columns"]] == ["id", "owner"]


def test_a_row_that_is_gone_is_a_delete_with_its_key() -> None:
    key = frozenset({"id"})
    event = change("UPDATE", row("bob"), row())
    (one,) = frames(watch(ALICE), event=event, seen=SeenChange(TABLE, is_gone=True, old_columns=key))
    assert (one[4]["data"]["type"], one[4]["data"]["old_record"]) == ("DELETE", {"id": 1})
    assert "record" not in one[4]["data"]
    (one,) = frames(watch(), event=event, seen=SeenChange(TABLE, is_gone=True))
    assert one[4]["data"]["old_record"] == row()
    (one,) = frames(watch(), event=event, seen=SeenChange(TABLE, old_columns=key))
    assert (one[4]["data"]["record"], one[4]["data"]["old_record"]) == (row("bob"), {"id": 1})


def test_topics_share_frames_of_the_same_view_alone() -> None:
    shared, event = SharedFrames(), change("INSERT", row())
    views = [
        (SeenChange(TABLE), watch()), (SeenChange(TABLE), watch(number=2)), (SeenChange(TABLE), watch(select={"note"})),
        (SeenChange(TABLE, is_gone=True), watch()), (SeenChange(TABLE, old_columns=frozenset({"id"})), watch()),
    ]  # fmt: skip
    first = [frames(watched, event=event, seen=seen, shared=shared) for seen, watched in views]
    assert first == [frames(watched, event=event, seen=seen) for seen, watched in views]
    topic = Topic("realtime:a", "3", CALLER, 10.0, events(watch()), Join())
    (one,), (again,) = (topic.frames(Version.V2, event, 7, SeenChange(TABLE), shared) for _ in range(2))
    assert one is again
    (other,) = topic.frames(Version.V1, event, 7, SeenChange(TABLE), shared)
    assert other != one
    elsewhere = Topic("realtime:b", "3", CALLER, 10.0, events(watch()), Join())
    assert elsewhere.frames(Version.V2, event, 7, SeenChange(TABLE), shared) != [one]


def test_changes_up_to_the_join_match_nothing() -> None:
    made = events(watch(), since=5)
    parsed = parse_change(change("INSERT", row()).body)
    found = [made.matching(change("INSERT", row(), offset=offset), 7, parsed) for offset in (4, 5, 6)]
    assert found == [[], [], [watch()]]

"""Join payloads as Supabase's clients send them, malformed ones, and the response."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.wire.realtime_join import Join, Replay, join_response, parse_join, parse_token

TODOS = {"event": "*", "schema": "public", "table": "todos", "filter": "id=eq.1", "select": ["id", "title"]}


def parsed(payload: Any) -> Join:
    return parse_join(json.dumps(payload).encode())


def bindings(*changes: Any) -> Join:
    return parsed({"config": {"postgres_changes": list(changes)}})


def test_a_join_with_every_option() -> None:
    join = parsed({
        "config": {
            "broadcast": {
                "ack": True, "self": "true", "replay": {"since": 1763407103911, "limit": "10"},
                "replication_ready": True,
            },
            "presence": {"key": "user_id-827", "enabled": "TRUE"},
            "postgres_changes": [TODOS],
            "private": True,
        },
        "access_token": "a.b.c",
        "version": "realtime-js/2.119.1",
    })  # fmt: skip
    (binding,) = join.bindings
    assert (binding.event, binding.schema, binding.table, binding.filter) == ("*", "public", "todos", "id=eq.1")
    assert binding.select == ("id", "title")
    assert join == Join(
        access_token="a.b.c", bindings=(binding,), sends_to_self=True, acknowledges=True, is_private=True,
        has_presence=True, presence_key="user_id-827", replay=Replay(1763407103911, 10), wants_replication_notice=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "payload",
    [
        {}, {"config": None}, {"config": []}, {"config": {"broadcast": 1, "presence": "x", "postgres_changes": {}}},
        {"config": {"postgres_changes": [1, None, "x", []]}}, {"access_token": 7}, {"access_token": None}, [], None,
        {"config": {"private": "yes", "broadcast": {"ack": 1, "replay": [1]}}},
        {"config": {"broadcast": {"replay": True}}},
    ],
)  # fmt: skip
def test_malformed_parts_are_left_out(payload: object) -> None:
    assert parsed(payload) == Join()


@pytest.mark.parametrize("replay", [{}, {"since": True}, {"since": -1}, {"limit": 3}, {"since": 1, "limit": []}])
def test_a_replay_with_wrong_parameters_is_told_apart(replay: dict[str, object]) -> None:
    assert parsed({"config": {"broadcast": {"replay": replay}}}) == Join(has_bad_replay=True)


def test_a_replay_is_of_one_message_at_least() -> None:
    assert parsed({"config": {"broadcast": {"replay": {"since": 0, "limit": 0}}}}) == Join(replay=Replay(0, 1))


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[" * 5_000])
def test_a_payload_that_is_no_json_has_no_options(payload: bytes) -> None:
    assert parse_join(payload) == Join()


def test_the_token_of_old_clients() -> None:
    assert parsed({"user_token": "a.b.c"}).access_token == "a.b.c"


def test_what_a_binding_leaves_out_is_everything() -> None:
    for given_, wanted in (
        ({"event": "insert", "table": "t"}, ("INSERT", "public", "t")),
        ({"schema": "s"}, ("*", "s", "*")),
        ({"schema": "*", "table": "*", "filter": "", "select": "x"}, ("*", "*", "*")),
    ):
        (binding,) = bindings(given_).bindings
        assert (binding.event, binding.schema, binding.table) == wanted
        assert (binding.filter, binding.select) == (None, None)


def test_the_response_repeats_each_binding_in_order_with_its_id() -> None:
    asked = [TODOS, {"event": "INSERT", "schema": "public", "table": 'ü"x', "filter": None, "more": {"a": [1]}}, {}]
    join = bindings(*asked)
    response = json.loads(join_response(join.bindings))["postgres_changes"]
    assert [{name: value for name, value in each.items() if name != "id"} for each in response] == asked
    assert [each["id"] for each in response] == [binding.id for binding in join.bindings]
    assert json.loads(join_response(())) == {"postgres_changes": []}


def test_equal_bindings_have_equal_ids_and_others_have_others() -> None:
    first, again, other = bindings(TODOS, dict(reversed(TODOS.items())), {**TODOS, "event": "UPDATE"}).bindings
    assert first.id == again.id != other.id
    assert bindings(TODOS).bindings[0].id == first.id
    assert bindings({**TODOS, "id": 9}).bindings[0] == first


@given(st.lists(st.dictionaries(st.sampled_from(["event", "table", "filter"]), st.text(max_size=5)), max_size=30))
def test_ids_are_those_that_clients_accept(asked: list[dict[str, str]]) -> None:
    found = bindings(*asked).bindings
    assert len(found) == len(asked)
    assert all(0 < binding.id <= 2**27 for binding in found)
    assert len({binding.id for binding in found}) == len({json.dumps(each, sort_keys=True) for each in asked})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["config", "broadcast", "presence", "postgres_changes", "replay", "self", "key", "since"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_join(payload: object) -> None:
    join = parsed(payload)
    json.loads(join_response(join.bindings))


@pytest.mark.parametrize(
    ("payload", "token"),
    [
        (b'{"access_token": "t"}', "t"), (b'{"access_token": null}', None), (b'{"access_token": 7}', None),
        (b"{}", None), (b"nonsense", None), (b'{"access_token": ""}', None), (b"\xff", None), (b"[" * 5000, None),
    ],
)  # fmt: skip
def test_the_token_of_a_renewal(payload: bytes, token: str | None) -> None:
    assert parse_token(payload) == token

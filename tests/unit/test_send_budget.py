"""Unsent bytes over all connections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.gateway.send_budget import SendBudget


def test_each_has_its_part_and_all_together_theirs() -> None:
    send_budget = SendBudget(each=100, total=250)
    assert not send_budget.grew("a", 100)
    assert send_budget.grew("a", 101)
    assert not send_budget.grew("b", 100)
    fullness = [send_budget.full]
    assert send_budget.grew("c", 60)
    fullness.append(send_budget.full)
    send_budget.drained("a")
    assert [*fullness, send_budget.full] == [False, True, False]
    assert not send_budget.grew("c", 61)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, 1000))))
def test_the_total_is_the_sum_of_what_was_last_told(told: list[tuple[str, int | None]]) -> None:
    send_budget = SendBudget(each=500, total=2000)
    sizes: dict[str, int] = {}
    for connection, size in told:
        if size is None:
            send_budget.drained(connection)
            sizes.pop(connection, None)
        else:
            sizes[connection] = size
            assert send_budget.grew(connection, size) == (size > 500 or sum(sizes.values()) > 2000)
        assert send_budget.total == sum(sizes.values())


def test_one_at_a_time_goes_beyond_the_limit_and_those_who_read_are_never_stopped() -> None:
    send_budget = SendBudget(each=100, total=100)
    ready: list[str] = []
    send_budget.grew("full", 100)
    for name in ("a", "b", "c"):
        send_budget.wait_for_turn(name, lambda name=name: ready.append(name))  # type: ignore[misc]
    assert (ready, send_budget.has_turn("a"), send_budget.has_turn("b")) == (["a"], True, False)
    send_budget.done("a")  # it has read everything
    assert ready == ["a", "b"]
    send_budget.grew("b", 50)  # it does not read
    send_budget.done("b")
    assert ready == ["a", "b"], "its turn lasts until it has"
    send_budget.drained("b")
    assert ready == ["a", "b", "c"]
    send_budget.lost("c")
    assert not send_budget.has_turn("c")


def test_whoever_is_gone_has_no_turn_and_room_lets_others_in() -> None:
    send_budget = SendBudget(each=100, total=100)
    ready: list[str] = []
    send_budget.grew("full", 100)
    for name in ("a", "b", "c"):
        send_budget.wait_for_turn(name, lambda name=name: ready.append(name))  # type: ignore[misc]
    send_budget.lost("b")
    send_budget.drained("full")
    assert ready == ["a", "c"]
    assert send_budget.has_room(100)
    assert not send_budget.has_room(101)

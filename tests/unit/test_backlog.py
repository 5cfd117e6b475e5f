"""What waits unsent, over all connections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.gateway.backlog import Backlog


def test_each_has_its_part_and_all_together_theirs() -> None:
    backlog = Backlog(each=100, total=250)
    assert not backlog.grew("a", 100)
    assert backlog.grew("a", 101)
    assert not backlog.grew("b", 100)
    fullness = [backlog.full]
    assert backlog.grew("c", 60)
    fullness.append(backlog.full)
    backlog.gone("a")
    assert [*fullness, backlog.full] == [False, True, False]
    assert not backlog.grew("c", 61)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, 1000))))
def test_the_total_is_the_sum_of_what_was_last_told(told: list[tuple[str, int | None]]) -> None:
    backlog = Backlog(each=500, total=2000)
    sizes: dict[str, int] = {}
    for connection, size in told:
        if size is None:
            backlog.gone(connection)
            sizes.pop(connection, None)
        else:
            sizes[connection] = size
            assert backlog.grew(connection, size) == (size > 500 or sum(sizes.values()) > 2000)
        assert backlog.total == sum(sizes.values())


def test_one_at_a_time_goes_beyond_the_limit_and_those_who_read_are_never_stopped() -> None:
    backlog = Backlog(each=100, total=100)
    ready: list[str] = []
    backlog.grew("full", 100)
    for name in ("a", "b", "c"):
        backlog.wait_for_turn(name, lambda name=name: ready.append(name))  # type: ignore[misc]
    assert (ready, backlog.has_turn("a"), backlog.has_turn("b")) == (["a"], True, False)
    backlog.given("a")  # and it read all of it
    assert ready == ["a", "b"]
    backlog.grew("b", 50)  # it does not read
    backlog.given("b")
    assert ready == ["a", "b"], "its turn lasts until it has"
    backlog.gone("b")
    assert ready == ["a", "b", "c"]
    backlog.lost("c")
    assert not backlog.has_turn("c")


def test_whoever_is_gone_has_no_turn_and_room_lets_others_in() -> None:
    backlog = Backlog(each=100, total=100)
    ready: list[str] = []
    backlog.grew("full", 100)
    for name in ("a", "b", "c"):
        backlog.wait_for_turn(name, lambda name=name: ready.append(name))  # type: ignore[misc]
    backlog.lost("b")
    backlog.gone("full")
    assert ready == ["a", "c"]
    assert backlog.has_room(100)
    assert not backlog.has_room(101)

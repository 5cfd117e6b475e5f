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

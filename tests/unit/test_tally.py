"""The tally of a load: each event once, in order, after the one before it."""

from __future__ import annotations

import pytest

from momentum_sync.bench.tally import Tally, spread


def tally() -> Tally:
    made = Tally()
    made.live(0, 0.01, "e-0")
    for number in range(3):
        made.writes(number, float(number))
    return made


def test_all_of_it_came() -> None:
    made = tally()
    for number in range(3):
        made.received(0, number, f"e-{number + 1}", f"e-{number}", number + 0.5)
    assert made.is_whole
    assert (made.sent, made.delays) == (3, [0.5, 0.5, 0.5])


def test_what_is_missing_twice_or_out_of_order_is_told() -> None:
    made = tally()
    made.received(0, 1, "e-2", "e-0", 1.0)
    made.received(0, 0, "e-1", "e-2", 1.0)
    made.received(0, 0, "e-1", "e-1", 1.0)
    made.received(0, 2, "e-9", "e-7", 1.0)
    assert (made.lost, made.twice, made.disordered, made.gaps) == (0, 1, 1, 1)
    assert not made.is_whole


def test_what_did_not_commit_and_what_is_not_of_the_run_counts_for_nothing() -> None:
    made = tally()
    for number in range(3):
        made.failed(number)
    made.received(0, 77, "e-1", "e-0", 1.0)
    assert (made.sent, made.delays, made.is_whole) == (0, [], True)


@pytest.mark.parametrize(("values", "p50", "highest"), [([4.0], 4.0, 4.0), ([1.0, 2.0, 3.0], 2.0, 3.0)])
def test_the_spread_of_few_is_of_those(values: list[float], p50: float, highest: float) -> None:
    found = spread(values)
    assert found is not None
    assert (found.p50, found.highest) == (p50, highest)
    assert spread([]) is None

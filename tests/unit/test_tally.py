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


def test_the_percentiles_of_many() -> None:
    assert spread([float(value) for value in range(1001)]) == (500.0, 950.0, 990.0, 999.0, 1000.0)
    assert spread([1.0, 2.0]) == pytest.approx((1.5, 1.95, 1.99, 1.999, 2.0))
    assert spread([1.0, 2.0, 4.0]) == pytest.approx((2.0, 3.8, 3.96, 3.996, 4.0))


def test_each_fault_is_counted_as_often_as_it_happens() -> None:
    made = Tally()
    assert (made.took, made.closes, made.sent) == (0.0, {}, 0)
    for client in range(2):
        made.live(client, 0.5 + client, "e-0")
    assert made.connected == [0.5, 1.5]
    for number in range(4):
        made.writes(number, 0.0)
    made.received(0, 2, "e-3", "e-1", 1.0)
    made.received(0, 1, "e-2", "e-9", 1.0)
    made.received(0, 0, "e-1", "e-2", 1.0)
    made.received(1, 2, "e-3", "e-0", 1.0)
    made.received(1, 1, "e-2", "e-3", 1.0)
    assert (made.gaps, made.twice, made.disordered, made.lost) == (2, 2, 2, 1)
    for why in ("4410", "4410", "1006"):
        made.closed(why)
    assert made.closes == {"4410": 2, "1006": 1}
    assert not made.is_whole


@pytest.mark.parametrize("fault", ["lost", "twice", "disordered", "gaps", "closes"])
def test_one_fault_alone_makes_a_run_not_whole(fault: str) -> None:
    made = Tally()
    made.live(0, 0.0, "e-0")
    made.live(1, 0.0, "e-0")
    for number in range(2):
        made.writes(number, 0.0)
    order = [1, 0] if fault == "disordered" else [0, 1]
    made.received(0, order[0], "e-1", "e-0" if fault != "gaps" else "e-7", 0.0)
    if fault != "lost":
        made.received(0, order[1], "e-2", "e-1", 0.0)
    if fault == "twice":
        made.received(1, 1, "e-1", "e-0", 0.0)
    if fault == "closes":
        made.closed("4410")
    assert not made.is_whole

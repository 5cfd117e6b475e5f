"""The checker of Supabase's clients, on records that are right and wrong."""

from __future__ import annotations

import pytest

from faults.row_checker import Came, Gap, Joined, Record, What, check

ONE, TWO, THREE, FOUR = [("INSERT", number) for number in range(1, 5)]
BRANCH: list[What] = [ONE, TWO, THREE, FOUR]
OTHER: list[What] = [ONE, ("UPDATE", 9)]


def came(*whats: What, at: float = 0.0) -> list[Record]:
    return [Came(what, at) for what in whats]


@pytest.mark.parametrize(
    "record",
    [
        [Joined(), *came(ONE, TWO, THREE, FOUR)],
        [Joined(), *came(ONE, TWO), Joined(), *came(THREE, FOUR)],
        [Joined(), *came(ONE, TWO), Joined(), *came(ONE, TWO, THREE, FOUR)],
        [Joined(), *came(ONE, TWO), Joined(), Joined(), *came(TWO, THREE, FOUR)],
        [Joined(), *came(ONE), Joined(), Gap(), *came(THREE, FOUR)],
    ],
)
def test_a_record_without_a_loss_is_right(record: list[Record]) -> None:
    assert check(record, [BRANCH], window=10.0).wrong == []


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ([Joined(), *came(TWO, THREE, FOUR)], "missing"),
        ([Joined(), *came(ONE, TWO, FOUR)], "missing"),
        ([Joined(), *came(ONE, TWO), Joined(), *came(FOUR)], "missing"),
        ([Joined(), *came(ONE, TWO, THREE), Joined(), *came(ONE, THREE, FOUR)], "missing"),
        ([Joined(), *came(ONE, TWO, THREE)], "at the end 1"),
        ([Joined(), *came(ONE, TWO, ONE, TWO, THREE, FOUR)], "on the same connection"),
        ([Joined(), *came(ONE, THREE, TWO, FOUR)], "missing"),
        ([Joined(), *came(ONE, TWO, THREE, FOUR, ("INSERT", 7))], "never committed"),
        ([Joined(), Gap()], "at the end 4"),
    ],
)
def test_what_is_lost_repeated_or_foreign_is_found(record: list[Record], sentence: str) -> None:
    assert sentence in check(record, [BRANCH], window=10.0).wrong[0]


def test_what_came_long_before_the_connection_was_lost_must_not_come_again() -> None:
    record = [Joined(), *came(ONE, at=0.0), *came(TWO, at=20.0), Joined(), *came(ONE, TWO, THREE, FOUR, at=21.0)]
    found = check(record, [BRANCH], window=10.0)
    assert len(found.wrong) == 1
    assert (found.doubled, found.oldest) == (2, 20.0)
    assert check(record, [BRANCH], window=30.0).wrong == []


def test_a_part_before_a_gap_may_belong_to_a_history_that_was_cut_off() -> None:
    record = [Joined(), *came(ONE, ("UPDATE", 9)), Joined(), Gap(), *came(THREE, FOUR)]
    assert check(record, [OTHER, BRANCH], window=10.0).wrong == []
    assert "never committed" in check(record, [BRANCH], window=10.0).wrong[0]

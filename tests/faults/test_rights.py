"""A short run of random rights must be correct, and two servers that leak must be detected."""

from __future__ import annotations

import time

import pytest

from faults.rights import run


def test_what_is_delivered_could_be_selected_and_what_could_be_is_delivered() -> None:
    seed = int(time.time())
    verdict = run(seed, 400, seconds=60.0)
    assert verdict.wrong == [], f"again: script/faults rights --seed {seed}"
    assert verdict.deliveries > 100
    assert verdict.withheld > 50


@pytest.mark.parametrize("mutation", ["sight", "review"])
def test_a_server_that_leaks_is_found_out(mutation: str) -> None:
    # A run ends with its first deviation, which may also be a change withheld: old policies allow less, or more.
    runs = (run(seed, 1_000, mutation=mutation, seconds=60.0) for seed in range(2, 12))
    assert any(sentence.startswith("LEAK") for verdict in runs for sentence in verdict.wrong)

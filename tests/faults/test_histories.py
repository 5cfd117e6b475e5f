"""A short random history as it must be, and three broken servers that must be found out."""

from __future__ import annotations

import time

import pytest

from faults.history import run


def test_a_random_history_under_faults() -> None:
    seed = int(time.time())
    verdict = run(seed, 20.0)
    assert verdict.wrong == [], f"again: script/faults --seed {seed} --seconds 20"
    assert verdict.events > 100
    assert verdict.resumes > 10


TELLING = {"stitch": "commits held", "dedup": "PostgreSQL restarted at once", "order": "nothing"}


@pytest.mark.parametrize("mutation", sorted(TELLING))
def test_a_broken_server_is_found_out(mutation: str) -> None:
    """By the fault that brings its defect to light, so that a few short histories are enough."""
    for seed in range(5, 11):  # whether a fault hits at a telling moment is chance, and rarer on a busy machine
        verdict = run(seed, 8.0, mutation=mutation, only=[TELLING[mutation]], settle=5.0)
        if any("did not settle" not in sentence for sentence in verdict.wrong):
            return
    raise AssertionError(f"six histories of a server with the defect {mutation!r}, and nothing was noticed")

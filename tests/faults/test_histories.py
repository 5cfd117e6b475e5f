"""A short random history must be correct, and the checker must detect broken servers."""

from __future__ import annotations

import os
import time

import pytest

from faults import clocks
from faults.history import run


def test_a_random_history_under_faults() -> None:
    seed = int(time.time())
    verdict = run(seed, 20.0)
    assert verdict.wrong == [], verdict.advice("--seconds 20 ")
    assert verdict.events > 100
    assert verdict.resumes > 0
    assert verdict.resumes + verdict.resyncs > 10, "where history breaks, clients resync instead"


TELLING = {
    "stitch": "commits held", "dedup": "PostgreSQL restarted at once", "order": "nothing",
    "marks": "copy restored while no server runs", "truncate": "table truncated",
    "silence": "database connections dead", "pins": "settings on roles",
}  # fmt: skip


@pytest.mark.parametrize("fault", [
    "database connections dead", "clock of the server stepped", "clock of the database stepped", "table truncated",
    "copy restored under the server", "copy restored while no server runs", "failover to a lagging standby",
    "settings on roles", "slow policy",
])  # fmt: skip
def test_each_condition_around_the_database(fault: str) -> None:
    if fault.startswith("clock") and not clocks.can_step():
        assert "CI" not in os.environ, "CI installs a C compiler"
        pytest.skip("needs a C compiler, which CI installs")
    seed = int(time.time())
    verdict = run(seed, 6.0, only=[fault])
    assert verdict.wrong == [], verdict.advice(f"--seconds 6 --only {fault!r} ")
    assert verdict.faults[fault] >= 1
    assert verdict.events > 20


@pytest.mark.parametrize("mutation", sorted(TELLING))
def test_a_broken_server_is_found_out(mutation: str) -> None:
    """The fault that reveals the defect is injected, so that a few short histories are enough."""
    for seed in range(5, 11):  # whether a fault hits at a revealing moment is chance, and rarer on a busy machine
        verdict = run(seed, 8.0, mutation=mutation, only=[TELLING[mutation]], settle=5.0)
        if any("did not settle" not in sentence for sentence in verdict.wrong):
            return
    raise AssertionError(f"six histories of a server with the defect {mutation!r}, and nothing was noticed")

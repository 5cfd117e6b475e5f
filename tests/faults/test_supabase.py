"""A short random history with Supabase's clients must be correct, and broken servers must be detected."""

from __future__ import annotations

import time

import pytest

from faults.supabase import run_supabase
from tests.supabase.programs import missing

pytestmark = pytest.mark.skipif(missing("python-2026") is not None, reason=str(missing("python-2026")))


FAULTS = [
    "connections cut", "connections dead", "kill -9 of the server", "rolling restart", "PostgreSQL restarted at once",
]  # fmt: skip


def test_a_random_history_under_faults() -> None:
    """The faults that clients meet most; `script/faults --clients supabase` has all."""
    seed = int(time.time())
    verdict = run_supabase(seed, 15.0, only=FAULTS)
    only = " ".join(f"--only {fault!r}" for fault in FAULTS)
    assert verdict.wrong == [], verdict.advice(f"--clients supabase --seconds 15 {only} ")
    assert verdict.events > 100
    assert verdict.connects >= 12
    assert verdict.received > verdict.events / 2


TELLING = {"acks": "connections dead", "forget": "connections cut", "open": "nothing"}


@pytest.mark.parametrize("mutation", sorted(TELLING))
def test_a_broken_server_is_found_out(mutation: str) -> None:
    for seed in range(5, 9):
        if run_supabase(seed, 6.0, mutation=mutation, only=[TELLING[mutation]], settle=3.0).wrong:
            return
    raise AssertionError(f"four histories of a server with the defect {mutation!r}, and nothing was noticed")

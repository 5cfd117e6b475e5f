"""Several gateways under faults: a short random history must be correct, and defects of following must be detected."""

from __future__ import annotations

import time

import pytest

from faults.history import run

TELLING = {"gap": ["NATS dead", "NATS cut"], "epoch": ["slot dropped", "NATS slow"]}


def test_a_random_history_of_several_gateways() -> None:
    seed = int(time.time())
    verdict = run(seed, 20.0, gateways=True)
    assert verdict.wrong == [], verdict.advice("--gateways --seconds 20 ")
    assert verdict.events > 100
    assert verdict.resumes + verdict.resyncs > 10


@pytest.mark.parametrize("mutation", sorted(TELLING))
def test_a_gateway_that_breaks_a_rule_is_found_out(mutation: str) -> None:
    for seed in range(5, 11):
        verdict = run(seed, 8.0, mutation=mutation, only=TELLING[mutation], settle=5.0, gateways=True)
        if any("did not settle" not in sentence for sentence in verdict.wrong):
            return
    raise AssertionError(f"six histories of gateways with the defect {mutation!r}, and nothing was noticed")

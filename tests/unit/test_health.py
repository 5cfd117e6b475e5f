"""Health says what is so."""

from __future__ import annotations

import pytest

from momentum_sync.gateway.health import judge, memory_usage


@pytest.mark.parametrize(
    ("state", "lag", "status", "http_status"),
    [
        ("live", 0.0, "healthy", 200),
        ("live", 5.0, "healthy", 200),
        ("live", 5.1, "degraded", 200),
        ("live", 30.1, "unhealthy", 503),
        ("starting", 0.0, "unhealthy", 503),
        ("waiting", 0.0, "unhealthy", 503),
        ("broken", 0.0, "unhealthy", 503),
    ],
)
def test_judgement(state: str, lag: float, status: str, http_status: int) -> None:
    verdict = judge(state, lag)
    assert (verdict.status, verdict.http_status) == (status, http_status)


def test_memory_is_in_bytes() -> None:
    assert 10_000_000 < memory_usage()["peak_rss"] < 100_000_000_000

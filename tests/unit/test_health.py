"""Health from the feed's status."""

from __future__ import annotations

import pytest

from momentum_sync.eventlog.status import UNKNOWN_SLOT, CaptureState, FeedStatus, Triggers
from momentum_sync.gateway.http.health import judge, memory_usage
from momentum_sync.limits import LifecycleLimits


def status(state: CaptureState = CaptureState.LIVE, lag: float = 0.0, *problems: str) -> FeedStatus:
    return FeedStatus(state, lag, UNKNOWN_SLOT, Triggers(list(problems), []))


@pytest.mark.parametrize(
    ("found", "judged", "http_status"),
    [
        (status(), "healthy", 200),
        (status(lag=5.0), "healthy", 200),
        (status(lag=5.1), "degraded", 200),
        (status(lag=30.0), "degraded", 200),
        (status(lag=30.1), "unhealthy", 503),
        (status(CaptureState.STARTING), "unhealthy", 503),
        (status(CaptureState.CATCHING_UP), "unhealthy", 503),
        (status(CaptureState.WAITING), "unhealthy", 503),
        (status(CaptureState.BROKEN), "unhealthy", 503),
        (status(CaptureState.LIVE, 0.0, "a trigger is missing"), "degraded", 200),
        (status(CaptureState.BROKEN, 0.0, "a trigger is missing"), "unhealthy", 503),
    ],
)
def test_judgement(found: FeedStatus, judged: str, http_status: int) -> None:
    assert judge(found, LifecycleLimits()) == (judged, http_status)


def test_a_server_that_is_stopping_is_unhealthy() -> None:
    assert judge(status(), LifecycleLimits(), draining=True).status == "unhealthy"


def test_memory_is_in_bytes() -> None:
    assert 10_000_000 < memory_usage()["peak_rss"] < 100_000_000_000

"""Health from the feed's status."""

from __future__ import annotations

from functools import partial

import pytest
import structlog

from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.status import UNKNOWN_SLOT, CaptureState, FeedStatus, Triggers
from momentum_sync.eventlog.window import Window
from momentum_sync.gateway.http.health import HealthLog, judge, memory_usage
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
    assert judge("all", found, LifecycleLimits()) == (judged, http_status)


def test_a_server_that_is_stopping_is_unhealthy() -> None:
    assert judge("all", status(), LifecycleLimits(), draining=True).status == "unhealthy"


def test_a_capture_that_waits_for_the_slot_is_as_it_should_be() -> None:
    assert judge("capture", status(CaptureState.WAITING), LifecycleLimits()) == ("standby", 200)


def test_each_change_of_health_is_logged_once_with_its_reasons() -> None:
    feed = LocalFeed(Window(1_000))
    log = HealthLog("all", feed, LifecycleLimits())
    with structlog.testing.capture_logs() as lines:
        for now in (
            status(CaptureState.STARTING), status(), status(), status(lag=6.0), status(lag=7.0),
            status(CaptureState.BROKEN, 31.0, "a trigger is missing")._replace(problem="NATS is away"), status(),
        ):  # fmt: skip
            feed.report(partial(FeedStatus, *now))
            log.look()
    assert [(line["status"], line["log_level"], line.get("reasons", [])) for line in lines] == [
        ("healthy", "info", []),
        ("degraded", "warning", ["the feed is 6 s behind"]),
        ("unhealthy", "warning", [
            "capture is broken", "the feed is 31 s behind", "not as installed: a trigger is missing", "NATS is away",
        ]),
        ("healthy", "info", []),
    ]  # fmt: skip


def test_a_standby_is_no_reason_to_warn() -> None:
    feed = LocalFeed(Window(1_000))
    feed.report(lambda: status(CaptureState.WAITING))
    with structlog.testing.capture_logs() as lines:
        HealthLog("capture", feed, LifecycleLimits()).look()
    assert [(line["status"], line["log_level"]) for line in lines] == [("standby", "info")]


def test_memory_is_in_bytes() -> None:
    assert 10_000_000 < memory_usage()["peak_rss"] < 100_000_000_000

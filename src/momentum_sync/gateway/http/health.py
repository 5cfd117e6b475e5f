"""`GET /sync/health`: whether capture, delivery and publishing work."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Mapping
from typing import Annotated, NamedTuple, Protocol

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from momentum_sync import observe
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.status import CaptureState, FeedStatus
from momentum_sync.limits import LifecycleLimits
from momentum_sync.version import __version__
from momentum_sync.wire.messages import timestamp

_BAD = 400
_LOOKS_AT_START = 10
_AS_IT_SHOULD_BE = frozenset({"healthy", "standby"})


class Verdict(NamedTuple):
    """`healthy`, `degraded` (clients are served, something needs attention) or `unhealthy` (none is served).

    A capture that waits for the slot is `standby`.
    """

    status: str
    http_status: int


class Health(BaseModel):
    """State of the server."""

    status: str
    version: str
    connected_clients: int
    active_subscriptions: int
    timestamp: str
    uptime: float = Field(description="seconds")
    memory_usage: dict[str, int] = Field(description="bytes")
    draining: bool = Field(description="stopping, and closing its connections")
    role: str = Field(description="`all`, `capture` or `gateway`")
    capture: dict[str, object] = Field(
        description="`state`, `lag_ms`, `last_event_id`, `slot`, and `problem` if something needs attention"
    )
    publishing: dict[str, list[str]] = Field(
        description="`problems`: triggers and functions that are not as installed, so that events are missing;"
        " `foreign_triggers`: triggers of others that run before them"
    )
    reasons: list[str] | None = Field(default=None, description="with `verbose`: why the server is not healthy")
    sdks: dict[str, int] | None = Field(default=None, description="with `verbose`: connections by SDK and its version")
    window: dict[str, int] | None = Field(
        default=None,
        description="with `verbose`: `events` and `bytes` in memory, the newest and the last that is in the log",
    )


class Probe(BaseModel):
    """The answer of a probe."""

    status: str


def judge(role: str, status: FeedStatus, limits: LifecycleLimits, *, draining: bool = False) -> Verdict:
    """Judge a server of this role by its feed's status; one that is stopping is unhealthy.

    Where triggers are missing, or the broker, it is degraded: other events still arrive, and no restart would help.
    """
    if role == "capture" and status.state is CaptureState.WAITING:
        return Verdict("standby", 200)  # as it should be: another capture holds the slot
    if draining or not status.live or status.lag > limits.unhealthy_lag_s:
        return Verdict("unhealthy", 503)
    if status.lag > limits.degraded_lag_s or status.triggers.problems or status.problem is not None:
        return Verdict("degraded", 200)
    return Verdict("healthy", 200)


def reasons(status: FeedStatus, limits: LifecycleLimits) -> list[str]:
    """Return the reasons for which a server is not healthy."""
    found = [] if status.live else [f"capture is {status.state.value}"]
    if status.lag > limits.degraded_lag_s:
        found.append(f"the feed is {status.lag:.0f} s behind")
    if status.triggers.problems:
        found.append(f"not as installed: {', '.join(status.triggers.problems)}")
    return found if status.problem is None else [*found, status.problem]


class HealthLog:
    """Logs the changes of a server's health.

    Args:
        role: of the server.
        feed: its feed.
        limits: bounds.
    """

    def __init__(self, role: str, feed: LocalFeed, limits: LifecycleLimits) -> None:
        self._role = role
        self._feed = feed
        self._limits = limits
        self._reported: str | None = None
        self._looks = 0

    def look(self) -> None:
        """Log the health when it changes. A server that starts is unhealthy at first; that is logged if it stays so."""
        status = self._feed.status()
        word = judge(self._role, status, self._limits).status
        self._looks += 1
        is_starting = self._reported is None and word == "unhealthy" and self._looks < _LOOKS_AT_START
        if word != self._reported and not is_starting:
            self._reported = word
            observe.health_changed(word, [] if word in _AS_IT_SHOULD_BE else reasons(status, self._limits))

    async def run(self) -> None:
        """Look at intervals, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self._limits.health_s)


def memory_usage() -> dict[str, int]:
    """Return the process's peak of resident memory in bytes. `ru_maxrss` is in KiB, on macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss": peak if sys.platform == "darwin" else peak * 1024}


class Served(Protocol):
    """The clients of the process."""

    @property
    def sdks(self) -> Mapping[str, int]:
        """Return the number of clients by their library."""

    @property
    def draining(self) -> bool:
        """Return whether the process stops, and takes no new clients."""

    @property
    def connections(self) -> int:
        """Return the number of clients."""

    @property
    def subscriptions(self) -> int:
        """Return the number of their subscriptions."""


def add_health(sync: APIRouter, role: str, feed: LocalFeed, served: Served, limits: LifecycleLimits) -> None:
    """Add the routes."""
    started_at = time.monotonic()

    @sync.get("/health/live", response_model=Probe)
    async def live() -> Response:
        """Answer while the process runs, even if the database is unreachable. For liveness probes."""
        return _probe("live", 200)

    @sync.get("/health/ready", response_model=Probe, responses={503: {"model": Probe}})
    async def ready() -> Response:
        """Return whether the process accepts clients or, as a capture, works or stands by. For readiness probes."""
        verdict = judge(role, feed.status(), limits, draining=served.draining)
        return _probe("ready" if verdict.http_status < _BAD else "not ready", verdict.http_status)

    @sync.get("/health", response_model=Health, response_model_exclude_none=True, responses={503: {"model": Health}})
    async def state(
        verbose: Annotated[
            str | None, Query(description="With any value, or none as in `?verbose`: more of the state.")
        ] = None,
    ) -> Response:
        """Return the health of the server. Needs no token."""
        status = feed.status()
        verdict = judge(role, status, limits, draining=served.draining)
        body = _health(role, feed, served, verdict, status, started_at)
        if verbose is not None:
            body.reasons = reasons(status, limits) if verdict.status not in _AS_IT_SHOULD_BE else []
            body.sdks = dict(served.sdks)
            body.window = {
                "events": len(feed.window), "bytes": feed.window.size, "newest": feed.offset,
                "logged": feed.state.logged,
            }  # fmt: skip
        return Response(
            body.model_dump_json(exclude_none=True), verdict.http_status, media_type="application/json"
        )  # fmt: skip


def _health(
    role: str, feed: LocalFeed, served: Served, verdict: Verdict, status: FeedStatus, started_at: float
) -> Health:  # fmt: skip
    capture: dict[str, object] = {
        "state": status.state.value,
        "lag_ms": round(status.lag * 1000),
        "last_event_id": str(feed.position),
        "slot": status.slot._asdict(),
    }
    if status.problem is not None:
        capture["problem"] = status.problem
    return Health(
        status=verdict.status,
        version=__version__,
        connected_clients=served.connections,
        active_subscriptions=served.subscriptions,
        timestamp=timestamp(time.time()),
        uptime=round(time.monotonic() - started_at, 3),
        memory_usage=memory_usage(),
        draining=served.draining,
        role=role,
        capture=capture,
        publishing=status.triggers._asdict(),
    )


def _probe(status: str, http_status: int) -> Response:
    return Response(Probe(status=status).model_dump_json(), http_status, media_type="application/json")

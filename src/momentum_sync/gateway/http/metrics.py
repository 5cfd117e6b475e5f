"""`GET /metrics`, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request, Response, Security
from starlette.responses import PlainTextResponse

from momentum_sync.errors import Forbidden
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.status import CaptureState
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.http.requests import API_KEY, BEARER, REFUSALS, credentials
from momentum_sync.identity.keys import Authenticator
from momentum_sync.wire.paths import PREFIX


def readings(gateway: Gateway) -> dict[str, Callable[[], float]]:
    """Return, for names in `metrics.READ`, a function that reads the present value from the gateway."""
    hub = gateway.hub
    return {
        "momentum_connections": lambda: len(hub),
        "momentum_subscriptions": lambda: hub.subscriptions,
        "momentum_channels": lambda: hub.channels,
        "momentum_topics": lambda: gateway.members.topics,
        "momentum_present": lambda: gateway.members.present,
        "momentum_queue_bytes": lambda: gateway.send_budget.total,
        **feed_readings(gateway.feed),
        "momentum_draining": lambda: gateway.draining,
    }


def feed_readings(feed: LocalFeed, *, captures_only: bool = False) -> dict[str, Callable[[], float]]:
    """Return the same for names that every process with a feed has."""

    def is_standby() -> bool:
        return captures_only and feed.status().state is CaptureState.WAITING

    def retained() -> float:
        bytes_retained = feed.status().slot.retained
        # A gauge needs a number, and 0 would mean that no WAL is retained.
        return -1 if bytes_retained is None else bytes_retained

    return {
        "momentum_window_bytes": lambda: feed.window.size,
        "momentum_capture_live": lambda: feed.status().live,
        "momentum_standby": is_standby,
        "momentum_capture_lag_seconds": lambda: feed.status().lag,
        "momentum_slot_retained_bytes": retained,
    }


def add_metrics(api: FastAPI, metrics: Callable[[], bytes], authenticator: Authenticator, *, is_open: bool) -> None:
    """Add the route."""

    async def scrape(request: Request) -> Response:
        """Return the server's metrics, in Prometheus' text format. For `service_role`, unless they are open."""
        if not is_open:
            authorization, apikey = credentials(request)
            caller = await authenticator.authenticate(authorization=authorization, apikey=apikey)
            if caller.role != "service_role":
                raise Forbidden("Only service_role may read the metrics.")
        return Response(metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # For the OpenAPI description only: `scrape` reads the credentials itself.
    secured = [Security(BEARER), Security(API_KEY)]
    described: dict[int | str, dict[str, object]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **{status: REFUSALS[status] for status in (400, 401, 403, 503)},
    }
    for path, listed in (("/metrics", True), (f"{PREFIX}/metrics", False)):
        api.add_api_route(
            path,
            scrape,
            dependencies=secured,
            responses=described,
            include_in_schema=listed,
            response_class=PlainTextResponse,
        )

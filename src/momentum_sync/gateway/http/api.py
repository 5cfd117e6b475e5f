"""The HTTP side of the contract, section 3. Every path also exists under `wire.paths.PREFIX`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from momentum_sync.errors import BadRequest
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.resume import ResumeRefused, parse_position
from momentum_sync.gateway.gateway import Gateway, GatewayOptions
from momentum_sync.gateway.handshake import is_allowed
from momentum_sync.gateway.http.broadcasts import add_broadcasts
from momentum_sync.gateway.http.events import add_events
from momentum_sync.gateway.http.health import add_health
from momentum_sync.gateway.http.metrics import add_metrics
from momentum_sync.gateway.http.receipts import add_receipts
from momentum_sync.gateway.http.requests import answer_errors, bound_bodies
from momentum_sync.identity.keys import Authenticator
from momentum_sync.limits import Limits
from momentum_sync.version import __version__
from momentum_sync.wire.paths import BROADCASTS, PREFIX, SHORT


def make_api(gateway: Gateway, metrics: Callable[[], bytes]) -> FastAPI:
    """Make the FastAPI application of a gateway. `metrics` returns the text that Prometheus scrapes."""
    # FastAPI's own pages load scripts from a CDN; `web/index.py` serves `/docs` without scripts.
    api = FastAPI(title="Momentum Sync", version=__version__, docs_url=None, redoc_url=None)
    api.state.gateway = gateway
    reads = APIRouter(prefix="/sync", dependencies=[Depends(_reaching(gateway.history))])
    gateway.application.add_routes(reads, gateway.reads)
    add_events(reads, gateway)
    add_receipts(reads, gateway)
    sync = APIRouter(prefix="/sync")
    limits = gateway.limits
    add_health(sync, gateway.options.role, gateway.feed, gateway, limits.lifecycle)
    add_broadcasts(api, gateway)
    _add(api, reads)
    _add(api, sync)
    add_metrics(api, metrics, gateway.authenticator, is_open=gateway.options.metrics_open)
    _add_sockets(api)
    answer_errors(api)
    bound_bodies(
        api,
        lambda path: limits.sockets.realtime_frame_bytes if path.startswith(BROADCASTS) else limits.http.body_bytes,
    )
    # Added last and therefore outermost, because refusals of `bound_bodies` need CORS headers, too. No credentials:
    # tokens are never in cookies.
    api.add_middleware(_Cors, options=gateway.options)
    api.add_middleware(_Prefixed)
    return api


def _add(api: FastAPI, router: APIRouter) -> None:
    """Add the routes of a router. `include_router` would build each a second time, half of all that it takes."""
    api.router.routes.extend(router.routes)


def _reaching(history: History) -> Callable[[str], Awaitable[None]]:
    """Return a dependency of all routes that waits for the position of a client that comes from another gateway."""

    async def reached(
        last_event_id: Annotated[
            str,
            Header(
                alias="Last-Event-ID",
                description="The client's position. The answer is not older than what the client has received, also"
                " where it has received it from another gateway. Ignored if it is no id of an event.",
            ),
        ] = "",
    ) -> None:  # fmt: skip
        if last_event_id:
            with suppress(ResumeRefused):  # no event has this id, so there is nothing to wait for
                await history.reach(parse_position(last_event_id))

    return reached


class _Nobody:
    """The clients of a process that serves none."""

    draining = False
    connections = subscriptions = 0
    sdks: Mapping[str, int] = MappingProxyType({})


def make_capture_api(
    feed: LocalFeed, authenticator: Authenticator, metrics: Callable[[], bytes], limits: Limits, *, metrics_open: bool
) -> FastAPI:  # fmt: skip
    """Make the FastAPI application of a process that only captures: its health and metrics."""
    api = FastAPI(title="Momentum Sync capture", version=__version__, docs_url=None, redoc_url=None)
    sync = APIRouter(prefix="/sync")
    add_health(sync, "capture", feed, _Nobody(), limits.lifecycle)
    _add(api, sync)
    add_metrics(api, metrics, authenticator, is_open=metrics_open)
    answer_errors(api)
    bound_bodies(api, lambda _: limits.http.body_bytes)
    api.add_middleware(_Prefixed)
    return api


class _Prefixed:
    """Serves the documented paths under `PREFIX`, too. Routes included twice would take twice as long to build."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith((f"{PREFIX}/sync/", f"{PREFIX}/openapi.json")):
            scope = {**scope, "path": scope["path"].removeprefix(PREFIX)}
        await self._app(scope, receive, send)


class _Cors(CORSMiddleware):
    """Allows the origins that sockets allow: in normal form, which the middleware's own comparison of text does not."""

    def __init__(self, app: ASGIApp, *, options: GatewayOptions) -> None:
        super().__init__(
            app,
            allow_origins=["*"] if "*" in options.allowed_origins else [],
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "apikey", "content-type", "last-event-id"],
            max_age=600,
        )
        self._options = options
        # Like the sockets of Supabase's protocol, these take tokens from headers alone, so any page may send.
        self._any = CORSMiddleware(
            app,
            allow_origins=["*"],
            allow_methods=["POST"],
            allow_headers=["authorization", "apikey", "content-type", "x-client-info"],
            max_age=600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(BROADCASTS):
            await self._any(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def is_allowed_origin(self, origin: str) -> bool:
        options = self._options
        return is_allowed(origin, options.allowed_origins, loopback=options.loopback_origins)


def _add_sockets(api: FastAPI) -> None:
    """Answer requests that should have been WebSocket handshakes."""

    async def websocket_only() -> Response:
        raise BadRequest("upgrade_required", "This address speaks WebSocket; open it with `wss://` or `ws://`.")

    for path in (PREFIX, SHORT):
        api.add_api_route(path, websocket_only, methods=["GET"], include_in_schema=False)

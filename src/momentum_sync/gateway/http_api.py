"""The HTTP side of the contract, section 3. Every path also lives under `/functions/v1/realtime-momentum-sync`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse

from momentum_sync import __version__, observe
from momentum_sync.errors import BadRequest, Forbidden, RequestError, TooLarge, Unavailable
from momentum_sync.eventlog.resume import Refused
from momentum_sync.gateway import health
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.handshake import LOOPBACK_PATTERN, PREFIX, only
from momentum_sync.gateway.missed import missed
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.messages import PRINTABLE, timestamp

_MAX_BODY = 64 * 1024
_NO_RESUME = "The events after this id can no longer be had; read the state as it is."
_CODES = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = Annotated[int, Strict(), BeforeValidator(_whole)]
"""A number without a fraction, as JSON has it: 50.0 is one, "50" is none."""


class ForUser(BaseModel):
    """Whose data is asked for."""

    model_config = ConfigDict(extra="forbid")

    user_id: UUID


class Notifications(ForUser):
    """Whose notifications, and how many of them at most."""

    limit: _Whole = Field(50, ge=1, le=200)


class History(ForUser):
    """Whose scores, and of how many days until today."""

    days: _Whole = Field(30, ge=1, le=366)


class Overview(BaseModel):
    """Of how many days until today."""

    model_config = ConfigDict(extra="forbid")

    days: _Whole = Field(30, ge=1, le=366)


class Names(BaseModel):
    """Of which users, 500 at most."""

    model_config = ConfigDict(extra="forbid")

    user_ids: list[UUID] = Field(max_length=500)


class Events(BaseModel):
    """After which event, on which channels beside the caller's own, and how many events at most."""

    model_config = ConfigDict(extra="forbid")

    last_event_id: str = Field(max_length=10_000)
    channels: list[Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE)]] = Field(
        [], max_length=500
    )  # fmt: skip
    limit: _Whole = Field(500, ge=1, le=1000)


class Missed(BaseModel):
    """What came after the caller's last event; `complete` when that is all."""

    events: list[dict[str, object]]
    last_event_id: str
    complete: bool
    refused: list[str] = Field(description="those of the channels asked for that the caller may not have")


class Answer(BaseModel):
    """What was asked for."""

    success: bool
    data: dict[str, object] | list[dict[str, object]]
    timestamp: str


class Fault(BaseModel):
    """What is wrong: a word for programs, a sentence for people."""

    code: str
    message: str


class Refusal(BaseModel):
    """The answer to a request that cannot be met."""

    error: Fault


class NoResume(Refusal):
    """The events can no longer be had: begin with the state as it is."""

    reason: str = Field(description="`unknown_id`, `history_changed` or `expired`")


class Health(BaseModel):
    """The state of the server."""

    status: str
    connected_clients: int
    active_subscriptions: int
    timestamp: str
    uptime: float = Field(description="seconds")
    memory_usage: dict[str, int] = Field(description="bytes")
    draining: bool = Field(description="about to end, and sending its clients to others")
    capture: dict[str, object] = Field(description="`state`, `lag_ms`, `last_event_id`, `slot`")
    publishing: dict[str, list[str]] = Field(
        description="`problems`: triggers and functions that are not as installed, so that events are missing;"
        " `foreign_triggers`: those of others that run before ours"
    )


_REFUSALS: dict[int | str, dict[str, object]] = {
    status: {"model": Refusal} for status in (400, 401, 403, 404, 413, 422, 429, 503)
}


_bearer = HTTPBearer(auto_error=False, description="A user's token, or one of `service_role`.")
_key = APIKeyHeader(name="apikey", auto_error=False, description="The service key is `service_role`.")


async def _identify(
    request: Request, _: Annotated[object, Security(_bearer)], __: Annotated[object, Security(_key)]
) -> Identity:
    gateway: Gateway = request.app.state.gateway
    authorization, apikey = _credentials(request)
    if authorization is None and gateway.token_in_query and "access_token" in request.query_params:
        authorization = f"Bearer {request.query_params['access_token']}"
    caller = await gateway.authenticator.authenticate(authorization=authorization, apikey=apikey)
    gateway.count(gateway.requests, caller)
    return caller


def _credentials(request: Request) -> tuple[str | None, str | None]:
    """`Authorization` and `apikey`. BadRequest where one of them is there twice."""
    return only("Authorization", request.headers.getlist("authorization")), only(
        "apikey", request.headers.getlist("apikey")
    )


Caller = Annotated[Identity, Depends(_identify)]


def make_api(
    gateway: Gateway,
    *,
    capture_state: Callable[[], str],
    slot: Callable[[], dict[str, object]],
    publishing: Callable[[], dict[str, list[str]]],
    metrics: Callable[[], bytes],
) -> FastAPI:
    """The FastAPI application of one gateway. `metrics` gives what Prometheus is told."""
    api = FastAPI(title="Momentum Sync", version=__version__, docs_url=None, redoc_url=None)
    api.state.gateway = gateway
    sync = APIRouter(prefix="/sync")

    @sync.post("/momentum", response_model=Answer, responses=_REFUSALS)
    async def momentum(asked: ForUser, caller: Caller) -> Response:
        """The user's momentum now."""
        return _answer(await gateway.desk.momentum(caller, asked.user_id))

    @sync.post("/interventions", response_model=Answer, responses=_REFUSALS)
    async def interventions(asked: ForUser, caller: Caller) -> Response:
        """The user's interventions that are scheduled or in progress."""
        return _answer(await gateway.desk.interventions(caller, asked.user_id))

    @sync.post("/notifications", response_model=Answer, responses=_REFUSALS)
    async def notifications(asked: Notifications, caller: Caller) -> Response:
        """The user's notifications, newest first."""
        return _answer(await gateway.desk.notifications(caller, asked.user_id, asked.limit))

    _add_charts(sync, gateway)
    _add_events(sync, gateway)
    _add_health(sync, gateway, capture_state, slot, publishing)
    api.include_router(sync)
    api.include_router(sync, prefix=PREFIX, include_in_schema=False)
    _add_metrics(api, gateway, metrics)
    _add_unlisted(api)
    _answer_errors(api)
    api.middleware("http")(_bounded)
    api.add_middleware(
        CORSMiddleware,
        allow_origins=list(gateway.allowed_origins),
        allow_origin_regex=LOOPBACK_PATTERN if gateway.loopback_origins else None,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "apikey", "content-type"],
        max_age=600,
    )
    return api


def _add_charts(sync: APIRouter, gateway: Gateway) -> None:
    @sync.post("/history", response_model=Answer, responses=_REFUSALS)
    async def history(asked: History, caller: Caller) -> Response:
        """The user's scores, day by day."""
        return _answer(await gateway.desk.history(caller, asked.user_id, asked.days))

    @sync.post("/overview", response_model=Answer, responses=_REFUSALS)
    async def overview(asked: Overview, caller: Caller) -> Response:
        """Everybody whom the caller may see: the latest scores, the states over time, the open interventions."""
        return _answer(await gateway.desk.overview(caller, asked.days))

    @sync.post("/names", response_model=Answer, responses=_REFUSALS)
    async def names(asked: Names, caller: Caller) -> Response:
        """What users are called, by the function `momentum_display_name` of the database."""
        return _answer(await gateway.desk.names(caller, asked.user_ids))


def _add_events(sync: APIRouter, gateway: Gateway) -> None:
    @sync.post("/events", response_model=Missed, responses={**_REFUSALS, 409: {"model": NoResume}})
    async def events(asked: Events, caller: Caller) -> Response:
        """What a resume would bring: for a phone that wakes up in the background."""
        if gateway.draining or not gateway.live():
            raise Unavailable("The feed of changes is not running; try again in a moment.")
        try:
            found = await missed(
                gateway.desk, gateway.history, caller, asked.channels, asked.last_event_id, limit=asked.limit
            )
        except Refused as refused:
            observe.refused(refused.reason)
            body = {"error": {"code": refused.reason, "message": _NO_RESUME}, "reason": refused.reason}
            return Response(msgspec.json.encode(body), 409, media_type="application/json")
        return Response(msgspec.json.encode(found), media_type="application/json")


def _add_health(
    sync: APIRouter,
    gateway: Gateway,
    capture_state: Callable[[], str],
    slot: Callable[[], dict[str, object]],
    publishing: Callable[[], dict[str, list[str]]],
) -> None:
    started_at = time.monotonic()

    @sync.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def state() -> Response:
        """Whether the server does what it promises. Needs no token."""
        lag = gateway.lag()
        in_place = publishing()
        verdict = health.judge(
            capture_state(), lag, draining=gateway.draining, publishes=not in_place["problems"]
        )  # fmt: skip
        body = Health(
            status=verdict.status,
            connected_clients=len(gateway.hub),
            active_subscriptions=gateway.hub.subscriptions,
            timestamp=timestamp(time.time()),
            uptime=round(time.monotonic() - started_at, 3),
            memory_usage=health.memory_usage(),
            draining=gateway.draining,
            capture={
                "state": capture_state(),
                "lag_ms": round(lag * 1000),
                "last_event_id": str(gateway.reached()),
                "slot": slot(),
            },
            publishing=in_place,
        )
        return Response(body.model_dump_json(), verdict.http_status, media_type="application/json")


def _add_metrics(api: FastAPI, gateway: Gateway, metrics: Callable[[], bytes]) -> None:
    async def scrape(request: Request) -> Response:
        """The server's numbers, in Prometheus' text format. For `service_role`, unless they are open."""
        if not gateway.metrics_open:
            authorization, apikey = _credentials(request)
            caller = await gateway.authenticator.authenticate(authorization=authorization, apikey=apikey)
            if caller.role != "service_role":
                raise Forbidden("The metrics are for service_role.")
        return Response(metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    secured = [Security(_bearer), Security(_key)]
    told: dict[int | str, dict[str, object]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **{status: _REFUSALS[status] for status in (401, 403, 503)},
    }
    for path, listed in (("/metrics", True), (f"{PREFIX}/metrics", False)):
        api.add_api_route(
            path,
            scrape,
            dependencies=secured,
            responses=told,
            include_in_schema=listed,
            response_class=PlainTextResponse,
        )


def _add_unlisted(api: FastAPI) -> None:
    """What the description of the API leaves out: itself under the prefix, and the sockets' addresses."""

    async def openapi() -> Response:
        return JSONResponse(api.openapi())

    async def websocket_only() -> Response:
        raise BadRequest("upgrade_required", "This address speaks WebSocket; open it with `wss://` or `ws://`.")

    api.add_api_route(f"{PREFIX}/openapi.json", openapi, include_in_schema=False)
    for path in (PREFIX, "/ws"):
        api.add_api_route(path, websocket_only, methods=["GET"], include_in_schema=False)


def _answer(data: msgspec.Raw) -> Response:
    body = msgspec.json.encode({"success": True, "data": data, "timestamp": timestamp(time.time())})
    return Response(body, media_type="application/json")


def _refusal(status: int, code: str, sentence: str) -> Response:
    observe.refused(code)
    headers = (
        {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "1"} if status in (429, 503) else None
    )
    body = msgspec.json.encode({"error": {"code": code, "message": sentence}})
    return Response(body, status, media_type="application/json", headers=headers)


def _answer_errors(api: FastAPI) -> None:
    """Every error in the contract's form, none with more in it than its sentence."""

    @api.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return _refusal(error.status, error.code, str(error))

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if sent != "application/json" and not sent.endswith("+json"):
            return _refusal(422, "invalid_field", "Send the body as JSON, with `Content-Type: application/json`.")
        if first["type"] == "json_invalid":
            return _refusal(400, "invalid_json", "The body is not JSON.")
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return _refusal(422, "invalid_field", f"`{where}`: {first['msg']}.")

    @api.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        refusal = _refusal(error.status_code, _CODES.get(error.status_code, "bad_request"), f"{error.detail}.")
        refusal.headers.update(error.headers or {})  # which methods there are
        return refusal

    @api.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        observe.failed(urlsplit(str(request.url)).path, error)
        return _refusal(503, "unavailable", "Something went wrong here; try again in a moment.")


async def _bounded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuses a body larger than any request of ours, before it is read."""
    length = request.headers.get("content-length")
    if request.method == "POST" and "content-type" not in request.headers:
        # There is one type that a body here can have, so what names none is taken for it.
        request.scope["headers"] = [*request.scope["headers"], (b"content-type", b"application/json")]
    if request.method == "POST" and (length is None or not length.isdigit() or int(length) > _MAX_BODY):
        error = TooLarge("too_large", f"A body has a Content-Length of at most {_MAX_BODY} bytes.")
        return _refusal(error.status, error.code, str(error))
    return await call_next(request)

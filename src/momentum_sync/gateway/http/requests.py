"""Requests and answers in the contract's form: callers, bodies, errors."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from fastapi import Depends, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, BeforeValidator, Strict
from starlette.exceptions import HTTPException

from momentum_sync import observe
from momentum_sync.errors import RequestError, TooLarge
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.handshake import only
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.messages import timestamp
from momentum_sync.wire.paths import BROADCASTS

_CODES = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, Strict(), BeforeValidator(_whole)]
"""A JSON number without a fraction: 50.0 is one, "50" is not."""


class Answer(BaseModel):
    """An answer with data."""

    success: bool
    data: dict[str, object] | list[dict[str, object]]
    timestamp: str


class Fault(BaseModel):
    """An error: a word for programs, a sentence for people."""

    code: str
    message: str


class Refusal(BaseModel):
    """The answer to a request that failed."""

    error: Fault


# FastAPI builds a validator for each `model` of each route, which takes longer than the rest of the API. So one names
# the model, and the others refer to its schema.
_SAME: dict[str, object] = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}}
REFUSALS: dict[int | str, dict[str, object]] = {
    400: {"model": Refusal}, **dict.fromkeys((401, 403, 404, 413, 422, 429, 503), _SAME)
}  # fmt: skip
# With `auto_error` FastAPI would answer in its own form instead of the contract's.
BEARER = HTTPBearer(auto_error=False, description="A user's token, or one of `service_role`.")
API_KEY = APIKeyHeader(name="apikey", auto_error=False, description="The service key is `service_role`.")


def credentials(request: Request) -> tuple[str | None, str | None]:
    """Return `Authorization` and `apikey`. Raise BadRequest where one of them is repeated."""
    headers = request.headers
    return only("Authorization", headers.getlist("authorization")), only("apikey", headers.getlist("apikey"))


async def _identify(
    request: Request, _: Annotated[object, Security(BEARER)], __: Annotated[object, Security(API_KEY)]
) -> Identity:
    gateway: Gateway = request.app.state.gateway
    authorization, apikey = credentials(request)
    if authorization is None and gateway.options.token_in_query and "access_token" in request.query_params:
        authorization = f"Bearer {request.query_params['access_token']}"
    caller = await gateway.authenticator.authenticate(authorization=authorization, apikey=apikey)
    gateway.count(gateway.requests, caller)
    return caller


Caller = Annotated[Identity, Depends(_identify)]
"""The authenticated caller of a request."""


def answer(data: msgspec.Raw) -> Response:
    """Return the answer with this JSON."""
    body = msgspec.json.encode({"success": True, "data": data, "timestamp": timestamp(time.time())})
    return Response(body, media_type="application/json")


def refusal(status: int, code: str, sentence: str, **more: object) -> Response:
    """Return the answer to a request that failed."""
    observe.refused(code)
    headers = (
        {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "1"} if status in (429, 503) else None
    )
    body = msgspec.json.encode({"error": {"code": code, "message": sentence}, **more})
    return Response(body, status, media_type="application/json", headers=headers)


def answer_errors(api: FastAPI) -> None:
    """Answer every error in the contract's form. No answer has more in it than the error's sentence."""

    @api.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return refusal(error.status, error.code, str(error))

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # FastAPI does not parse such a body, and its error would report a wrong type instead.
        if sent != "application/json" and not sent.endswith("+json"):
            return refusal(422, "invalid_field", "Send the body as JSON, with `Content-Type: application/json`.")
        if first["type"] == "json_invalid":
            return refusal(400, "invalid_json", "The body is not JSON.")
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return refusal(422, "invalid_field", f"`{where}`: {first['msg']}.")

    @api.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        refused = refusal(error.status_code, _CODES.get(error.status_code, "bad_request"), f"{error.detail}.")
        refused.headers.update(error.headers or {})  # such as `Allow`
        return refused

    # A handler of Exception would run outside of all middleware, so that its answer would have no CORS headers.
    @api.middleware("http")
    async def unforeseen(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            return await call_next(request)
        except Exception as error:
            # The query may contain a token.
            observe.failed(urlsplit(str(request.url)).path, error)
            return refusal(503, "unavailable", "Something went wrong here; try again in a moment.")


def bound_bodies(api: FastAPI, bound: Callable[[str], int]) -> None:
    """Refuse larger bodies, before they are read, than a path's bound in bytes."""

    @api.middleware("http")
    async def bounded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        length, most = request.headers.get("content-length"), bound(request.url.path)
        if request.method == "POST" and "content-type" not in request.headers:
            # Bodies have one type here, so a request that names none is taken to have it.
            request.scope["headers"] = [*request.scope["headers"], (b"content-type", b"application/json")]
        # A chunked body has no length, so it could not be refused before it is read.
        if request.method == "POST" and (length is None or not length.isdigit() or int(length) > most):
            said = f"The body may have at most {most} bytes, and needs a Content-Length."
            error = TooLarge("too_large", said)
            if request.url.path.startswith(BROADCASTS):  # in the form that Supabase's clients show
                return JSONResponse({"message": said}, error.status)
            return refusal(error.status, error.code, said)
        return await call_next(request)

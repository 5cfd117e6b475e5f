"""Broadcasts by HTTP, as Supabase's clients and edge functions send them: one message, or many.

Paths, bodies and status codes: Supabase, "Realtime Protocol"; its server's own paths have no prefix. Errors are
in the form that Supabase's clients show to the app: `message`, and for 422 `errors`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import unquote

import msgspec
from fastapi import FastAPI, Request, Response

from momentum_sync import observe
from momentum_sync.errors import Forbidden, NotFound, RequestError, TooMany, Unauthenticated, Unprocessable
from momentum_sync.gateway.dialects.realtime_errors import PREFIX, is_topic_name, refusal
from momentum_sync.gateway.dialects.realtime_messages import not_allowed
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.http.requests import credentials
from momentum_sync.identity.tokens import Identity, bearer
from momentum_sync.identity.topic_access import BROADCAST
from momentum_sync.wire.paths import BROADCASTS
from momentum_sync.wire.realtime_broadcast import Broadcast

_API_KEY = "sb_"


class _Message(msgspec.Struct):
    """One message of a batch."""

    topic: str
    event: str
    payload: msgspec.Raw
    private: bool = False


class _Outgoing(NamedTuple):
    """A message to send. `is_private` tells whether its topic is."""

    message: Broadcast
    is_private: bool


class _Batch(msgspec.Struct):
    """The body of a request with several messages."""

    messages: list[_Message]


_batch = msgspec.json.Decoder(_Batch)
_raw = msgspec.json.Decoder(msgspec.Raw)


def add_broadcasts(api: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""

    async def batch(request: Request) -> None:
        caller = await _identify(request, gateway)
        body = await request.body()
        try:
            body.decode()  # msgspec does not look inside a Raw
            given = _batch.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unprocessable("messages", str(error)) from None
        for each in given.messages:
            if not bytes(each.payload).startswith(b"{"):
                raise Unprocessable("payload", "must be an object")
        await _send(
            gateway,
            caller,
            [
                _Outgoing(_broadcast(each.topic, each.event, bytes(each.payload)), each.private)
                for each in given.messages
            ],
        )

    async def single(request: Request) -> None:
        caller = await _identify(request, gateway)
        topic, event = _names(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        if kind == "application/json":
            try:
                body.decode()
                body = bytes(_raw.decode(body))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise Unprocessable("payload", f"is no JSON: {error}") from None
        elif kind != "application/octet-stream":
            raise _UnsupportedType("unsupported_type", "Send application/json or application/octet-stream.")
        is_private = request.query_params.get("private", "").lower() in ("true", "1")
        message = _broadcast(topic, event, body, is_json=kind == "application/json")
        await _send(gateway, caller, [_Outgoing(message, is_private)])

    for path in BROADCASTS:
        api.add_api_route(path, _answering(batch), methods=["POST"], status_code=202, include_in_schema=False)
        api.add_api_route(
            f"{path}/{{names:path}}", _answering(single), methods=["POST"], status_code=202, include_in_schema=False
        )  # fmt: skip


class _UnsupportedType(RequestError):
    """The body has a type that cannot be sent."""

    status = 415


def _answering(handle: Callable[[Request], Awaitable[None]]) -> Callable[[Request], Awaitable[Response]]:
    """Return a route that answers in the form of Supabase's server."""

    async def route(request: Request) -> Response:
        try:
            await handle(request)
        except RequestError as error:
            observe.refused(error.code)
            said = refusal(error, is_realtime=True)
            body: dict[str, object] = {"message": said}
            if isinstance(error, Unprocessable):
                body = {"message": f"{error.code} {said}", "errors": {error.code: [said]}}
            headers = {"Retry-After": "1"} if error.status in (429, 503) else None
            return Response(msgspec.json.encode(body), error.status, headers, "application/json")
        return Response(status_code=202)

    return route


async def _identify(request: Request, gateway: Gateway) -> Identity:
    """Return the caller: that of the token, else that of the API key."""
    authorization, apikey = credentials(request)
    # supabase-js of 2025 sends an empty header when nobody has signed in.
    token = bearer(authorization) if authorization and authorization.strip().lower() != "bearer" else None
    if token is None or token.startswith(_API_KEY):
        token = apikey or token
    if not token:
        raise Unauthenticated("API key is missing", "missing_api_key")
    return await gateway.authenticator.realtime(token)


def _names(request: Request) -> tuple[str, str]:
    """Return topic and event of `…/TOPIC/events/EVENT`, in which a slash of a name is `%2F`."""
    raw: bytes = request.scope["raw_path"]
    parts = raw.partition(b"?")[0].decode("ascii", "replace").split("/")
    if len(parts) < 4 or parts[-2] != "events" or parts[-4] != "broadcast":
        raise NotFound("not_found", "Send to …/api/broadcast/TOPIC/events/EVENT, each name percent-encoded")
    return unquote(parts[-3]), unquote(parts[-1])


def _broadcast(topic: str, event: str, payload: bytes, *, is_json: bool = True) -> Broadcast:
    name = PREFIX + topic
    if not topic or not is_topic_name(name):
        raise Unprocessable("topic", "must be a name of at most 246 printable characters")
    if not event:
        raise Unprocessable("event", "can't be blank")
    return Broadcast(name, event, payload, is_json=is_json)


async def _send(gateway: Gateway, caller: Identity, messages: list[_Outgoing]) -> None:
    """Send messages, all of them or none: a caller that tries again would send the first ones twice.

    Supabase answers 202 for a private message that the caller may not send, and drops it. Here it gets the error.
    """
    await gateway.rows.admit(caller)
    rate = gateway.limits.users.broadcasts
    if caller.role != "service_role":
        if len(messages) > rate.burst:
            raise Unprocessable("messages", f"should have at most {rate.burst:.0f} item(s)")
        # Callers without a user have one rate together, because every visitor of a page has their key.
        if not gateway.broadcasts.take(caller.subject or caller.role, time.monotonic(), len(messages)):
            raise TooMany("too_many_requests", "Too many requests")
    for name in sorted({each.message.topic for each in messages if each.is_private}):
        access = await gateway.rows.topic_access(caller, name.removeprefix(PREFIX))
        if BROADCAST not in access.writes:
            raise Forbidden(not_allowed(name).partition(": ")[2], "Unauthorized")
    for message, is_private in messages:
        gateway.members.broadcast(message, is_private=is_private, sender=None, to_sender=True)
        await asyncio.sleep(0)  # a message to many members takes a while, and others wait

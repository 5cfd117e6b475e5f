"""The protocol as an AsyncAPI 3 document, made of the types that the server and the SDK read messages by.

`script/spec` writes it to `spec/asyncapi.yaml`; a test holds the two together. The form: AsyncAPI 3.0.0, with its
WebSockets binding 0.1.0.
"""

from __future__ import annotations

from typing import Any

import msgspec

from momentum_sync.wire import from_server, messages
from momentum_sync.wire.close import Close

Document = dict[str, Any]

PATH = "/functions/v1/realtime-momentum-sync"
_ANSWERS = {
    "ping": ("pong",),
    "request_momentum_update": ("momentum_state_update", "error"),
    "mark_notification_read": ("notification_marked_read", "error"),
    "cache_invalidation_ack": ("cache_invalidation_confirmed", "error"),
    "subscribe": ("subscription_confirmed", "error"),
    "unsubscribe": ("subscription_confirmed", "error"),
    "authenticate": ("authenticated", "error"),
}
_ABOUT = {
    "ping": "Asks whether the connection lives.",
    "request_momentum_update": "Asks for the momentum as it is now.",
    "mark_notification_read": "Marks a notification as opened. Doing it again changes nothing.",
    "cache_invalidation_ack": "Says that keys are gone from a cache. Confirmed once for each key that was pending.",
    "subscribe": "Asks for channels. All of them are granted, or none.",
    "unsubscribe": "Lets go of channels.",
    "authenticate": "A fresh token, without reconnecting.",
}
_QUERY = {
    "user_id": ("uuid", "Whose connection it is, where the token does not say, or the caller acts for another."),
    "client_id": (None, "Names the device. A second connection of the user's with the same name replaces the first."),
    "last_event_id": (None, "Where to go on: the last id that came, from an event, a snapshot or a heartbeat."),
    "channels": (None, "More channels than the user's own four, separated by commas."),
    "access_token": (None, "The token, only where the operator has turned that on."),
}
_DESCRIPTION = """\
Committed changes in PostgreSQL: in commit order, none lost, none twice, to those who may see them.

After the handshake comes `subscription_confirmed`, once the subscription is live; then either `initial_state`, or,
where `last_event_id` was given and it says `resumed`, the events that were missed. Then every change, once committed.
`previous_id` is the id of the event before on this connection: where it is another than the last that came, an event
is missing, and a client begins anew, without a `last_event_id`. Ids are opaque.
"""


def document(version: str) -> Document:
    """The whole document. `version` is the package's."""
    clients = list(messages.ClientMessage.__args__)
    servers = list(from_server.ServerMessage.__args__)
    _, schemas = msgspec.json.schema_components(
        [*clients, *servers, *_events()], ref_template="#/components/schemas/{name}"
    )
    _to_ecma(schemas)
    schemas["Event"] = _event()
    schemas["RealtimeEvent"]["properties"]["event"] = {"$ref": "#/components/schemas/Event"}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Momentum Sync",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "local": {
                "host": "127.0.0.1:8787",
                "protocol": "ws",
                "security": [
                    {"$ref": "#/components/securitySchemes/token"},
                    {"$ref": "#/components/securitySchemes/subprotocol"},
                    {"$ref": "#/components/securitySchemes/apiKey"},
                ],
            }
        },
        "channels": {"connection": _connection([*map(_tag, clients), *map(_tag, servers)])},
        "operations": _operations([_tag(kind) for kind in clients], [_tag(kind) for kind in servers]),
        "components": {
            "messages": {_tag(kind): _message(kind) for kind in [*clients, *servers]},
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": _security(),
        },
        "x-close-codes": [
            {"code": close.code, "reason": close.reason, "client": close.verdict} for close in Close
        ],
    }  # fmt: skip


def _to_ecma(schema: Any) -> None:
    """Patterns as JSON Schema has them: its `$` is what Python's `\\Z` is."""
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            schema["pattern"] = schema["pattern"].replace(r"\Z", "$")
        for inner in schema.values():
            _to_ecma(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _to_ecma(inner)


def _tag(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)


def _message(kind: type[msgspec.Struct]) -> Document:
    tag = _tag(kind)
    summary = _ABOUT.get(tag) or (kind.__doc__ or "").strip().partition("\n")[0]
    return {"name": tag, "summary": summary, "payload": {"$ref": f"#/components/schemas/{kind.__name__}"}}


def _connection(tags: list[str]) -> Document:
    properties = {}
    for name, (form, about) in _QUERY.items():
        properties[name] = {"type": "string", **({"format": form} if form else {}), "description": about}
    return {
        "address": PATH,
        "description": "One connection. `/ws` is a short name for the same.",
        "messages": {tag: {"$ref": f"#/components/messages/{tag}"} for tag in tags},
        "bindings": {
            "ws": {"method": "GET", "query": {"type": "object", "properties": properties}, "bindingVersion": "0.1.0"}
        },
    }


def _operations(clients: list[str], servers: list[str]) -> Document:
    def named(tag: str) -> Document:
        return {"$ref": f"#/channels/connection/messages/{tag}"}

    channel = {"$ref": "#/channels/connection"}
    taken = {
        f"on_{tag}": {
            "action": "receive",
            "channel": channel,
            "summary": _ABOUT[tag],
            "messages": [named(tag)],
            "reply": {"channel": channel, "messages": [named(answer) for answer in _ANSWERS[tag]]},
        }
        for tag in clients
    }
    answers = {answer for tags in _ANSWERS.values() for answer in tags} - {"subscription_confirmed", "error"}
    told = {
        f"send_{tag}": {"action": "send", "channel": channel, "messages": [named(tag)]}
        for tag in servers
        if tag not in answers
    }
    return taken | told


def _where(kind: type[msgspec.Struct]) -> Document:
    """An event with one of the names of our tables is as theirs are. Any other is an operator's own."""
    names = [name for name, one in from_server.EVENTS.items() if one is kind]
    named = {"properties": {"event_type": {"enum": names}}, "required": ["event_type"]}
    return {"if": named, "then": {"$ref": f"#/components/schemas/{kind.__name__}"}}


def _events() -> list[type[msgspec.Struct]]:
    return list(dict.fromkeys(from_server.EVENTS.values()))


def _event() -> Document:
    text = {"type": "string"}
    return {
        "title": "Event",
        "description": "What was published, with its place on this connection.",
        "type": "object",
        "properties": {
            "id": {**text, "description": "opaque"},
            "previous_id": {**text, "description": "of the event before it on this connection"},
            "channel": text,
            "event_type": text,
        },
        "required": ["id", "previous_id", "channel"],
        "allOf": [_where(kind) for kind in _events()],
    }


def _security() -> Document:
    return {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "`Authorization: Bearer <jwt>` on the handshake. Without a valid token: HTTP 401.",
        },
        "subprotocol": {
            "type": "httpApiKey",
            "in": "header",
            "name": "Sec-WebSocket-Protocol",
            "description": "For browsers: `momentum.v1, bearer.<jwt>`. The server selects `momentum.v1`.",
        },
        "apiKey": {
            "type": "httpApiKey",
            "in": "header",
            "name": "apikey",
            "description": "The service key is `service_role`, which sees everything.",
        },
    }

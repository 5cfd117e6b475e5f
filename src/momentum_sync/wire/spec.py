"""The native protocol as an AsyncAPI 3 document, printed from the message types.

`script/spec` writes it to `spec/asyncapi.yaml`, and a test compares the two. Format: AsyncAPI 3.0.0 with its WebSockets
binding 0.1.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from momentum_sync.wire import from_server, messages
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import tag_of
from momentum_sync.wire.paths import PREFIX

Document = dict[str, Any]

_QUERY = {
    "user_id": ("uuid", "The user of the connection, if the token names none or acts for another user."),
    "client_id": (None, "Name of the device. A second connection of the same user and name replaces the first."),
    "last_event_id": (
        None,
        "The position to resume from: the last id received, of an event, a snapshot or a heartbeat.",
    ),
    "channels": (None, "Channels beside the user's own four, separated by commas."),
    "access_token": (None, "The token, only where the operator has turned that on."),
    "sdk": (None, "Name and version of the SDK, such as `python-0.1.0`, for the operator's statistics."),
}
_DESCRIPTION = """\
Committed changes in PostgreSQL: in commit order, none lost, none twice, to those who may see them.

The server answers the handshake with `subscription_confirmed` when the subscription is live. The missed events follow
if `last_event_id` was given and the answer has `resumed`, else `initial_state`; then every change, when it is
committed. `previous_id` is the id of the previous event on this connection. If it differs from the last id received,
an event is missing, and the client connects again without `last_event_id`. Ids are opaque.
"""


class Protocol(NamedTuple):
    """The messages of one application's protocol, and the events that it names.

    `events` has the type of each named event; any other event is an operator's own.
    """

    clients: Sequence[type[messages.ClientMessage]]
    servers: Sequence[type[from_server.ServerMessage]]
    events: Mapping[str, type[msgspec.Struct]]


def document(version: str, protocol: Protocol) -> Document:
    """Return the whole document. `version` is the package's."""
    clients, servers = protocol.clients, protocol.servers
    _, schemas = msgspec.json.schema_components(
        [*clients, *servers, *_kinds(protocol)], ref_template="#/components/schemas/{name}"
    )
    _to_ecma(schemas)
    schemas["Event"] = _event(protocol)
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
        "channels": {"connection": _connection([*map(tag_of, clients), *map(tag_of, servers)])},
        "operations": _operations(clients, [tag_of(kind) for kind in servers]),
        "components": {
            "messages": {tag_of(kind): _message(kind) for kind in [*clients, *servers]},
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": _security(),
        },
        "x-close-codes": [
            {"code": close.code, "reason": close.reason, "client": close.verdict} for close in Close
        ],
    }  # fmt: skip


def _to_ecma(schema: Any) -> None:
    r"""Rewrite patterns as JSON Schema has them: its `$` is Python's `\Z`."""
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            schema["pattern"] = schema["pattern"].replace(r"\Z", "$")
        for inner in schema.values():
            _to_ecma(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _to_ecma(inner)


def _summary(kind: type[msgspec.Struct]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _message(kind: type[msgspec.Struct]) -> Document:
    tag = tag_of(kind)
    return {"name": tag, "summary": _summary(kind), "payload": {"$ref": f"#/components/schemas/{kind.__name__}"}}


def _connection(tags: list[str]) -> Document:
    properties = {}
    for name, (form, about) in _QUERY.items():
        properties[name] = {"type": "string", **({"format": form} if form else {}), "description": about}
    return {
        "address": PREFIX,
        "description": "One connection. `/ws` is a short name for it.",
        "messages": {tag: {"$ref": f"#/components/messages/{tag}"} for tag in tags},
        "bindings": {
            "ws": {"method": "GET", "query": {"type": "object", "properties": properties}, "bindingVersion": "0.1.0"}
        },
    }


def _operations(clients: Sequence[type[messages.ClientMessage]], servers: list[str]) -> Document:
    def named(tag: str) -> Document:
        return {"$ref": f"#/channels/connection/messages/{tag}"}

    channel = {"$ref": "#/channels/connection"}
    received = {
        f"on_{tag_of(kind)}": {
            "action": "receive",
            "channel": channel,
            "summary": _summary(kind),
            "messages": [named(tag_of(kind))],
            "reply": {"channel": channel, "messages": [named(answer) for answer in kind.ANSWERS]},
        }
        for kind in clients
    }
    # The server also sends these two without a request.
    answers = {answer for kind in clients for answer in kind.ANSWERS} - {"subscription_confirmed", "error"}
    sent = {
        f"send_{tag}": {"action": "send", "channel": channel, "messages": [named(tag)]}
        for tag in servers
        if tag not in answers
    }
    return received | sent


def _where(protocol: Protocol, kind: type[msgspec.Struct]) -> Document:
    """Return the rule that an event with one of the named types has the fields of that type."""
    names = [name for name, one in protocol.events.items() if one is kind]
    named = {"properties": {"event_type": {"enum": names}}, "required": ["event_type"]}
    return {"if": named, "then": {"$ref": f"#/components/schemas/{kind.__name__}"}}


def _kinds(protocol: Protocol) -> list[type[msgspec.Struct]]:
    return list(dict.fromkeys(protocol.events.values()))


def _event(protocol: Protocol) -> Document:
    text = {"type": "string"}
    return {
        "title": "Event",
        "description": "A published event, with its ids on this connection.",
        "type": "object",
        "properties": {
            "id": {**text, "description": "opaque"},
            "previous_id": {**text, "description": "id of the event before it on this connection"},
            "channel": text,
            "event_type": text,
        },
        "required": ["id", "previous_id", "channel"],
        "allOf": [_where(protocol, kind) for kind in _kinds(protocol)],
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

"""Messages of the server as types: the SDK reads by them, and the specification is printed from them.

The server splices JSON that the database made; tests validate every message that it sends against these types.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import msgspec

from momentum_sync.wire.messages import tag_of


class ServerMessage(msgspec.Struct, kw_only=True):
    """A message of the server. The specification takes its summary from the docstring."""

    timestamp: str


class ServerAnswer(ServerMessage, kw_only=True):
    """A message that answers one of the client; it repeats the client's `ref`."""

    ref: str | int | float | bool | None = None


class SubscriptionConfirmed(ServerAnswer, tag="subscription_confirmed", kw_only=True):
    """The subscription is live; these are all subscribed channels."""

    channels: list[str]
    user_id: str | None
    client_id: str
    resumed: bool
    replayed: int
    refused: list[str] = []
    reason: str | None = None


class RealtimeEvent(ServerMessage, tag="realtime_event", kw_only=True):
    """A committed change. `event` has the published fields, and `id`, `previous_id` and `channel`."""

    event: dict[str, Any]


class Heartbeat(ServerMessage, tag="heartbeat", kw_only=True):
    """The feed runs, with this lag.

    `position` is how far it has come for this client, with no event for it in between: resume from there.
    """

    last_event_id: str
    lag_ms: int
    position: str | None = None


class TokenExpiring(ServerMessage, tag="token_expiring", kw_only=True):
    """The token expires in a minute."""

    expires_at: str


class Authenticated(ServerAnswer, tag="authenticated", kw_only=True):
    """The fresh token is in use; channels that it does not grant are `refused`."""

    expires_at: str | None
    refused: list[str] = []


class Pong(ServerAnswer, tag="pong", kw_only=True):
    """The answer to a ping."""


class Error(ServerAnswer, tag="error", kw_only=True):
    """A message failed; the connection stays open."""

    code: str
    error: str
    refused: list[str] = []


class ServerMessages:
    """Decodes the messages of a server."""

    def __init__(self, types: Sequence[type[ServerMessage]]) -> None:
        union: Any = reduce(or_, types)
        self._decoder: msgspec.json.Decoder[ServerMessage] = msgspec.json.Decoder(union)
        self._tags = frozenset(map(tag_of, types))

    def decode(self, text: str | bytes) -> ServerMessage | None:
        """Decode a message. Return None for a type of a newer server. Raise ValueError if it is not a message."""
        try:
            return self._decoder.decode(text)
        except msgspec.ValidationError:
            message = _loose.decode(text)
            if isinstance(message.get("type"), str) and message["type"] not in self._tags:
                return None
            raise


_loose = msgspec.json.Decoder(dict[str, Any])

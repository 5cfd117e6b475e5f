"""Errors in the words of Supabase's server, which clients and apps compare: Supabase, "Realtime Protocol"."""

from __future__ import annotations

import re
from collections.abc import Container, Sized
from typing import Protocol

from momentum_sync.errors import RequestError, Unauthenticated
from momentum_sync.limits import SocketLimits
from momentum_sync.wire.messages import PRINTABLE
from momentum_sync.wire.realtime_join import Join

PREFIX = "realtime:"
"""What the names of topics begin with."""

_MOST_NAME = 255  # the binary frames of the protocol have room for no more
_PRINTABLE = re.compile(PRINTABLE)


class _Topics(Container[str], Sized, Protocol):
    """The joined topics."""


_REASONS = {
    "claims": "InvalidJWTToken: Fields `role` and `exp` are required in JWT",
    "signature": "JwtSignatureError: Failed to validate JWT signature",
    "malformed": "MalformedJWT: The token provided is not a valid JWT",
}


def reason(error: RequestError) -> str:
    """Return an error in Supabase's words, where it has some."""
    if isinstance(error, Unauthenticated):
        if error.code in ("token_revoked", "missing_api_key"):
            return f"InvalidJWTToken: {error}"
        if error.fault == "expired":
            return f"InvalidJWTToken: Token has expired {int(error.late_s)} seconds ago"
        return _REASONS[error.fault]
    if error.status == 503 and error.code == "unavailable":
        return f"UnableToConnectToProject: {error}"
    return f"{error.code}: {error}"


def refusal(error: RequestError, *, is_realtime: bool) -> str | dict[str, str]:
    """Return the message of a refused handshake: to Supabase's clients a text, to ours a code and a sentence."""
    if not is_realtime:
        return {"code": error.code, "message": str(error)}
    if isinstance(error, Unauthenticated):
        # As at Supabase, the words without the code that a reply has.
        return "Token has expired" if error.fault == "expired" else reason(error).partition(": ")[2]
    return str(error)


def is_topic_name(name: str) -> bool:
    """Return whether a topic may have a name, with `realtime:`."""
    return len(name) <= _MOST_NAME and _PRINTABLE.fullmatch(name) is not None


def why_not(name: str, join: Join, topics: _Topics, limits: SocketLimits) -> str | None:
    """Return why no caller can join a topic; None if that depends on the caller.

    Args:
        name: its name.
        join: the client's request.
        topics: the topics that it has joined.
        limits: bounds.
    """
    most = limits.topics
    if not name.startswith(PREFIX):
        return "unmatched topic"
    if name == PREFIX:
        return "TopicNameRequired: You must provide a topic name"
    if not is_topic_name(name):
        return f"TopicNameInvalid: A topic has at most {_MOST_NAME} printable characters"
    if len(topics) >= most and name not in topics:
        return "ChannelRateLimitReached: Too many channels"
    if len(join.bindings) > most:
        return f"TooManyBindings: A topic has at most {most} bindings"
    if len(join.presence_key.encode()) > limits.presence_key_bytes:
        return f"PresenceKeyInvalid: A key has at most {limits.presence_key_bytes} bytes"
    if join.has_bad_replay:
        return "UnableToReplayMessages: Replay params are not valid"
    if join.replay is not None and not join.is_private:
        return "UnableToReplayMessages: Replay is not allowed for public channels"
    return None

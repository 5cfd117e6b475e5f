"""The close codes of the contract: code, reason, and the reaction of a client.

The reason stands in the close frame, where RFC 6455 limits it to 123 bytes.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

Verdict = Literal["come_back", "fresh_token", "later", "end"]
"""`come_back` after a pause; `fresh_token`: with another token; `later`: after the longest pause; `end`: never."""


class Close(Enum):
    """A reason to end a connection."""

    GOING_AWAY = (1001, "the server is going away; reconnect with your last_event_id", "come_back")
    TOO_BIG = (1009, "a frame exceeds the server's size limit", "end")
    RESTART = (1012, "the server restarts; reconnect with your last_event_id", "come_back")
    UNREADABLE = (4400, "too many consecutive unreadable messages", "end")
    TOKEN = (4401, "the token is invalid or has expired; reconnect with a new one", "fresh_token")
    NOT_ALLOWED = (4403, "not allowed", "end")
    TOO_SLOW = (4409, "the client reads too slowly; reconnect with your last_event_id, no event is lost", "come_back")
    REPLACED = (4410, "replaced by a newer connection of the same client", "end")
    TOO_MANY_CONNECTIONS = (4413, "too many connections", "later")
    TOO_MANY_MESSAGES = (4429, "too many messages; reconnect with your last_event_id", "come_back")

    def __init__(self, code: int, reason: str, verdict: Verdict) -> None:
        self.code = code
        self.reason = reason
        self.verdict: Verdict = verdict

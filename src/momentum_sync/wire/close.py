"""The close codes of the contract: number, word, sentence, and whether to come back.

The sentence is the reason in the close frame, which RFC 6455 limits to 123 bytes.
"""

from __future__ import annotations

from enum import Enum


class Close(Enum):
    """Why the server ends a connection."""

    GOING_AWAY = (1001, "the server is going away; come back with your last_event_id", True)
    TOO_BIG = (1009, "a frame was larger than the server takes", False)
    RESTART = (1012, "the server starts over; come back with your last_event_id", True)
    UNREADABLE = (4400, "one unreadable message after another", False)
    TOKEN = (4401, "the token is invalid or has expired; come back with a fresh one", False)
    NOT_ALLOWED = (4403, "not allowed", False)
    TOO_SLOW = (4409, "too slow to read; come back with your last_event_id, nothing is lost", True)
    REPLACED = (4410, "replaced by a newer connection of the same client", False)
    TOO_MANY_CONNECTIONS = (4413, "too many connections", False)
    TOO_MANY_MESSAGES = (4429, "too many messages; come back with your last_event_id", True)

    @property
    def code(self) -> int:
        """The number in the close frame."""
        return self.value[0]

    @property
    def reason(self) -> str:
        """The sentence in the close frame."""
        return self.value[1]

    @property
    def come_back(self) -> bool:
        """Whether a client should reconnect by itself, with its last event id."""
        return self.value[2]

"""States of a connection: of its WebSocket, and of its outgoing side. ARCHITECTURE.md draws the transitions."""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import Enum


class ConnectionState(Enum):
    """State of a WebSocket."""

    HANDSHAKE = "handshake"
    OPENING = "opening"
    OPEN = "open"
    WORKING = "working"
    CLOSING = "closing"
    DISCARDING = "discarding"
    CLOSED = "closed"


_ENDING = {ConnectionState.CLOSING, ConnectionState.DISCARDING, ConnectionState.CLOSED}

CONNECTION_TRANSITIONS: Mapping[ConnectionState, Set[ConnectionState]] = {
    ConnectionState.HANDSHAKE: {ConnectionState.OPENING, *_ENDING},
    ConnectionState.OPENING: {ConnectionState.OPEN, *_ENDING},
    ConnectionState.OPEN: {ConnectionState.WORKING, *_ENDING},
    ConnectionState.WORKING: {ConnectionState.OPEN, *_ENDING},
    ConnectionState.CLOSING: {ConnectionState.DISCARDING, ConnectionState.CLOSED},
    ConnectionState.DISCARDING: {ConnectionState.CLOSED},
    ConnectionState.CLOSED: set(),
}
"""`opening`: upgraded, and its grants and snapshot are read. `working`: a message is handled in the database.
`closing`: a close frame was sent or received. `discarding`: the handshake was refused or the protocol broken, the
answer is written, and data that still arrives is discarded until the client closes."""


class DeliveryState(Enum):
    """State of a connection's outgoing side."""

    PENDING = "pending"
    CATCHING_UP = "catching_up"
    ASKING = "asking"
    FOLLOWING = "following"
    ENDED = "ended"


DELIVERY_TRANSITIONS: Mapping[DeliveryState, Set[DeliveryState]] = {
    DeliveryState.PENDING: {DeliveryState.CATCHING_UP, DeliveryState.ENDED},
    DeliveryState.CATCHING_UP: {DeliveryState.ASKING, DeliveryState.FOLLOWING, DeliveryState.ENDED},
    DeliveryState.ASKING: {DeliveryState.CATCHING_UP, DeliveryState.ENDED},
    DeliveryState.FOLLOWING: {DeliveryState.CATCHING_UP, DeliveryState.ENDED},
    DeliveryState.ENDED: set(),
}
"""`pending`: the opening is not sent yet. `asking`: the database is asked for a page, for grants or about events."""

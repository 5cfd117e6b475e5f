"""The hub's view of subscribers and of the dialects that they speak."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol
from uuid import UUID

from momentum_sync.eventlog.event import Event
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.direct_files import DirectFile
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds


class Dialect(Protocol):
    """Encodes events for one kind of client. Subscribers with the same dialect object share encoded frames.

    Attributes:
        together: events that were written to all subscribers at once, without moving their cursors; None if a frame
            depends on the event that its subscriber had before.
    """

    together: int | None

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Return the WebSocket frames that carry an event. `now` is seconds since 1970."""


class Owner(NamedTuple):
    """The owner of a subscriber. Limits per user count these, and a client id is unique among those of one owner.

    Attributes:
        role: the database role.
        subject: the user whom the token names.
        user_id: the user of the connection.
        is_public: an API key that all visitors of an app share; they have no common limit.
    """

    role: str
    subject: UUID | None
    user_id: UUID | None
    is_public: bool = False


class Subscriber(Protocol):
    """A connection on its channels.

    Attributes:
        cursor: its position and subscriptions.
        dialect: its encoding.
        sdk: the client's library, by name and version, as far as it is known.
        file: its file, for writes to many at once.
        write: writes whole frames, or their rest; data that the socket does not take at once is buffered.
    """

    cursor: Cursor
    dialect: Dialect
    sdk: str
    file: DirectFile
    write: Callable[[bytes | memoryview], None]

    @property
    def identity(self) -> Identity:
        """Return the caller that the connection belongs to."""

    def reviews(self, what: str) -> bool:
        """Return whether a change, `policies_changed` or `row_rights_changed`, may concern the subscriber."""

    def is_of(self, user: UUID) -> bool:
        """Return whether a user's token is in use."""

    @property
    def owner(self) -> Owner:
        """Return the owner."""

    @property
    def client_id(self) -> str:
        """Return the client's name for itself."""

    @property
    def follows(self) -> bool:
        """Return whether it follows the feed. One that does not gets events from its own cursor."""

    def has_room(self, size: int) -> bool:
        """Return whether `size` bytes may be written even if the client does not read."""

    def hold_back(self, offset: int, *, review: bool = False) -> None:
        """Stop following the feed after `offset`. With `review`, ask for the caller's grants before going on."""

    def expect_acks(self, cache_keys: Iterable[str]) -> None:
        """Expect the client to acknowledge these cache keys."""

    def close(self, why: Close) -> None:
        """End the connection."""

    def abort(self) -> None:
        """End the connection at once, without a close frame. Nothing more is written."""

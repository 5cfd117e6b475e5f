"""A conversation: one client's session in some protocol, as the socket and the delivery use it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from uuid import UUID

from momentum_sync.errors import RequestError
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.direct_files import DirectFile
from momentum_sync.gateway.subscriber import Dialect, Owner
from momentum_sync.identity.channels import Filtered, Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds

Work = Coroutine[object, object, None]


class BinaryMessage(bytes):
    """The content of a binary message; that of a text is `bytes`."""


class Request(NamedTuple):
    """Work in the database that a message needs, and how its failure is answered.

    Attributes:
        work: handles the message.
        failed: answers the message with an error, `now` being seconds since 1970.
    """

    work: Work
    failed: Callable[[RequestError, float], None]


class Services(Protocol):
    """The work that conversations ask of the gateway."""

    def now(self) -> float:
        """Return seconds since 1970."""

    def monotonic(self) -> float:
        """Return seconds on a monotonic clock."""

    async def authenticate(self, token: str) -> Identity:
        """Verify a token. Raise Unauthenticated."""

    async def grants(self, identity: Identity, user_id: UUID | None, channels: Sequence[str]) -> Granted:
        """Return those of the channels that the caller may have. Raise Forbidden if it may not act for the user."""

    async def filter(self, identity: Identity, events: Sequence[tuple[Event, str | None]]) -> Filtered:
        """Decide which events the caller may see, each with the channel on which it would be delivered."""


class Outgoing(Protocol):
    """The outgoing side of a connection, as its session uses it."""

    @property
    def offset(self) -> int:
        """Return the offset up to which everything has been written."""

    @property
    def position(self) -> Position | None:
        """Return the position up to which everything has been written; None if the mark there is not known."""

    @property
    def follows(self) -> bool:
        """Return whether it follows the feed, so that everything up to the feed's position has been written."""

    def rewind(self, offset: int) -> None:
        """Deliver the events after an earlier offset again, to topics that have not had them."""

    def flush(self, *, ping: bool = False) -> None:
        """Write the messages that wait, and then a ping."""

    def index(self) -> None:
        """Have the hub index the present subscriptions at once, if the connection follows the feed."""

    @property
    def file(self) -> DirectFile:
        """Return the connection's file, for writes to many at once."""

    @property
    def write(self) -> Callable[[bytes | memoryview], None]:
        """Return the function that writes whole frames, or their rest, before the messages that wait."""


@dataclass(frozen=True, slots=True)
class Nowhere:
    """The outgoing side of a connection that is closed. With it, a session does not refer to its connection any more.

    Attributes:
        file: the connection's file, which is closed.
    """

    file: DirectFile
    offset: int = 0
    position: Position | None = None
    follows: bool = False

    def rewind(self, offset: int) -> None:
        """Do nothing."""

    def flush(self, *, ping: bool = False) -> None:
        """Do nothing."""

    def index(self) -> None:
        """Do nothing."""

    def write(self, data: bytes | memoryview) -> None:
        """Do nothing."""


class Conversation(Protocol):
    """One client's session. `now` is seconds since 1970, `at` seconds on a monotonic clock.

    Attributes:
        cursor: its position and subscriptions.
        closing: why the connection is to end; None while it is not.
    """

    cursor: Cursor
    closing: Close | None

    @property
    def most_bytes(self) -> int:
        """Return the size of the largest message that the client may send."""

    @property
    def identity(self) -> Identity:
        """Return the caller that the connection belongs to."""

    @property
    def owner(self) -> Owner:
        """Return the owner of the connection."""

    @property
    def client_id(self) -> str:
        """Return the client's name for itself."""

    @property
    def sdk(self) -> str:
        """Return the client's library, by name and version, as far as it is known."""

    @property
    def dialect(self) -> Dialect:
        """Return the encoding of events for its present subscriptions."""

    @property
    def revision(self) -> object:
        """Return an object that another one replaces when the caller or the subscriptions change."""

    def reviews(self, what: str) -> bool:
        """Return whether a change, `policies_changed` or `row_rights_changed`, may concern the client."""

    def is_of(self, user: UUID) -> bool:
        """Return whether a user's token is in use."""

    def attach(self, outgoing: Outgoing) -> None:
        """Take the connection's outgoing side, before anything else."""

    def lost(self) -> None:
        """Note that the socket is closed."""

    # Messages

    def to_send(self) -> list[bytes]:
        """Return the texts to write since the last call."""

    def receive(self, message: bytes, services: Services) -> Request | None:
        """Handle a message, which may be a `BinaryMessage`. Return the work that it needs."""

    def expect_acks(self, cache_keys: Iterable[str]) -> None:
        """Expect the client to acknowledge these cache keys."""

    def close(self, why: Close) -> None:
        """End the conversation; the first reason stands."""

    # Events

    async def check(self, events: Sequence[Event], services: Services) -> Filtered:
        """Decide about events that `Cursor.must_check` names."""

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Return the frames that carry an event of a page, checked or not."""

    def lose(self, channels: Sequence[str], now: float) -> None:
        """Remove channels that the caller can no longer have, and report it."""

    async def review(self, services: Services) -> None:
        """Ask for the caller's rights again, because policies have changed."""

    # Time

    def heard(self, at: float) -> None:
        """Note that bytes of any kind arrived."""

    def take_frame(self, at: float) -> bool:
        """Count a frame of any kind. Return False, and close the session, when there are too many."""

    def ping(self) -> bytes:
        """Return the payload of a ping that is written now."""

    def pong(self, payload: bytes, *, in_order: bool) -> bool:
        """Take the payload of a pong. Return whether it answers a numbered ping that was not answered before.

        `in_order`: False while earlier messages of the client wait to be handled.
        """

    def tick(self, now: float, at: float, lag_ms: int, reached: Position | None) -> float:
        """Send and close as is due. Return the monotonic time of the next tick, which is that of the next ping, too.

        `reached` is the feed's position while the connection follows it.
        """

    def is_silent(self, at: float) -> bool:
        """Return whether the client has sent nothing, not even a pong, for too long."""


class Opened(NamedTuple):
    """A conversation that can begin.

    Attributes:
        position: everything after this position follows.
        begin: sends the opening.
        channels: the number of its channels.
        outcome: how it began, for the metrics: `resumed`, `snapshot`, …
        replayed: events that follow the position already.
    """

    position: Position
    begin: Callable[[float, float], None]
    channels: int
    outcome: str
    replayed: int


class Entrance(NamedTuple):
    """An admitted client.

    Attributes:
        conversation: its session.
        open: reads the opening. Raises RequestError if the connection cannot be opened.
    """

    conversation: Conversation
    open: Callable[[], Coroutine[object, object, Opened]]

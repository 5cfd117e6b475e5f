"""Services that a gateway provides to sessions of Supabase's protocol."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.page import Newest
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.dialects.realtime_resume import Key, Ledger, Verdict
from momentum_sync.gateway.direct_files import DirectFile
from momentum_sync.gateway.subscriber import Dialect
from momentum_sync.identity.decider import Decider
from momentum_sync.identity.row_tables import SeenChange
from momentum_sync.identity.tokens import Identity
from momentum_sync.identity.topic_access import TopicAccess
from momentum_sync.wire.close import Close
from momentum_sync.wire.realtime_join import Binding
from momentum_sync.wire.row_watch import Test, Watch


class SharedFrames:
    """Frames of one event, which topics with the same view of it share: each is encoded once.

    Attributes:
        views: the views of connections that get every change of their tables, by their parts.
    """

    def __init__(self) -> None:
        self._event: Event | None = None
        self._frames: dict[Hashable, bytes] = {}
        self.views: WeakValueDictionary[Hashable, Dialect] = WeakValueDictionary()

    def get(self, event: Event, view: Hashable, encode: Callable[[], bytes]) -> bytes:
        """Return the frame of a view, which `encode` makes for the first one."""
        if event is not self._event:
            self._event = event
            self._frames = {}
        frame = self._frames.get(view)
        if frame is None:
            frame = self._frames[view] = encode()
        return frame


class Watched(NamedTuple):
    """Confirmed bindings, notices to the app about their tables, and errors of bindings that end."""

    watches: tuple[Watch, ...]
    notices: tuple[str, ...]
    wrong: tuple[str, ...] = ()


class LiveSession(Protocol):
    """A session with a socket that is open in this gateway."""

    @property
    def ledger(self) -> Ledger:
        """Return the session's positions."""

    @property
    def file(self) -> DirectFile:
        """Return the connection's file."""

    @property
    def write(self) -> Callable[[bytes | memoryview], None]:
        """Return the function that writes frames, or their rest."""

    def ping_if_due(self) -> bool:
        """Return whether a ping is due, because events were written, that may be written along with others'."""

    def note_ping(self, number: int, position: Position | None) -> None:
        """Note that a ping is written, after everything up to a position."""

    def probe(self, answered: Callable[[], None]) -> None:
        """Send a ping, and call `answered` when the client answers it."""

    def drop(self, why: Close) -> None:
        """End the connection now."""


class RowServices(Protocol):
    """The work that sessions ask of the gateway."""

    async def authenticate_realtime(self, token: str) -> Identity:
        """Verify a token or API key. Raise Unauthenticated."""

    @property
    def generation(self) -> int:
        """Return a number that changes with the rights on rows: deciders of an earlier one do not count."""

    @property
    def shared(self) -> SharedFrames:
        """Return the frames of the event that is being delivered."""

    async def decider(self, identity: Identity, relation: int) -> Decider | None:
        """Return the decider of a table's changes for a caller; None if the database has to."""

    async def watch(self, identity: Identity, bindings: Sequence[Binding]) -> Watched:
        """Confirm bindings with the database, and have their tables' changes become events.

        Raises:
            BadRequest: a table, column or filter is wrong, or the caller may not select it.
        """

    async def watch_again(self, identity: Identity, bindings: Sequence[Binding], known: Sequence[Watch]) -> Watched:
        """Confirm bindings again, because tables or rights have changed."""

    async def admit(self, identity: Identity) -> None:
        """Raise Unauthenticated for a revoked token."""

    async def topic_access(self, identity: Identity, topic: str) -> TopicAccess:
        """Return the rights of a caller on the messages of a private topic, which has no `realtime:`."""

    async def newest(self, channel: str, offset: int, *, since: float, most: int, most_bytes: int) -> Newest:
        """Return the newest events on a channel up to an offset, of commits since a time in seconds since 1970.

        Raises:
            ResumeRefused: the history has changed meanwhile.
        """

    async def seen(self, identity: Identity, events: Sequence[tuple[Event, int]]) -> dict[int, SeenChange]:
        """Return the visible part of changes, each with the id of its relation, by offset."""

    async def tested(self, identity: Identity, tests: Sequence[tuple[Test, bytes]]) -> list[bool]:
        """Return for each test and value whether it holds."""

    @property
    def position(self) -> Position:
        """Return the position of the last event."""

    async def verify(self, position: Position) -> None:
        """Check that a position belongs to the present history, and that all that follows is there.

        Raises:
            ResumeRefused: it does not, or not everything is.
        """

    async def number(self) -> int:
        """Return the number of a socket that has just been accepted."""

    async def claim(
        self, ledger: Ledger, key: Key, ref: int, topic: str, start: Position, *, is_reconnect: bool
    ) -> Verdict:
        """Settle the first join on a socket; its record is written when this returns."""

    async def rename(self, ledger: Ledger, key: Key) -> bool:
        """Have a session be found under another key. Return whether it still exists."""

    async def save(self, ledger: Ledger) -> bool:
        """Save a session now. Return whether it still exists."""

    def begin(self, session: LiveSession) -> None:
        """Know a session from now on."""

    def end(self, session: LiveSession) -> None:
        """Note that a session's socket is closed."""

"""Where a client keeps its place, its state, its cache and its outbox across restarts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from momentum_sync.errors import StoreFailed
from momentum_sync.sdk.following import Event, Following, Invalidated, Output, Resync
from momentum_sync.sdk.state import Saved, UserState
from momentum_sync.wire.from_server import Momentum

VERSION = 1


class Entry(msgspec.Struct, frozen=True):
    """What a cache keeps of a key. `at` is when it was fetched, seconds since 1970."""

    value: Any
    at: float


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept, as one, so that a state and its place never come apart.

    `known_at` is when the state was last known to be current, seconds since 1970.
    """

    version: int = VERSION
    user_id: str
    last_event_id: str | None
    known_at: float | None
    state: Saved | None
    cache: dict[str, Entry] = {}
    outbox: list[str] = []


class Store(Protocol):
    """A place for one text. The methods are called in a thread; what they raise is told as StoreFailed."""

    def load(self) -> bytes | None:
        """What was saved last; None if nothing was."""

    def save(self, document: bytes) -> None:
        """Takes the place of what was there, wholly or not at all."""


class FileStore:
    """A file, replaced as a whole. Only its owner can read it: what is in it is a user's."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).expanduser()

    def load(self) -> bytes | None:
        """What was saved last; None if nothing was."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def save(self, document: bytes) -> None:
        """Takes the place of what was there, wholly or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.new")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(document)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)


class Keeper:
    """The place up to which the program has had everything, with the state there, and the store that keeps it."""

    def __init__(self, store: Store | None, user_id: str | None, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._saving = asyncio.Lock()
        self.changed = False
        self.settled_at: float | None = None
        self.last_event_id: str | None = None
        self.state = UserState(user_id or "")

    def settle(self, output: Output) -> None:
        """The program has had this; a program that is started again goes on behind it."""
        self.settled_at = self._clock()
        match output:
            case Event():
                self.state.fold(output.fields)
                self.last_event_id = output.id
            case Resync():
                self.state.begin(output.state)
                self.last_event_id = output.id
            case Invalidated():
                self.last_event_id = output.id
        self.changed = True

    def advance(self, position: str) -> None:
        """Advance to a position when the program has processed all events before it."""
        if self.last_event_id not in (None, position):
            self.last_event_id = position
            self.changed = True

    def start_over(self, user_id: str) -> None:
        """It is another user now."""
        self.last_event_id = None
        self.state = UserState(user_id)
        self.changed = True

    def read_again(self, momentum: Momentum) -> None:
        """The momentum was read."""
        self.state.read_again(momentum)
        self.changed = True

    async def load(self, user_id: str | None) -> Document | None:
        """What is there for this user, if anything. Raises StoreFailed."""
        if self._store is None:
            return None
        try:
            text = await asyncio.to_thread(self._store.load)
            document = None if text is None else msgspec.json.decode(text, type=Document)
        except Exception as error:
            raise _failed(error) from error
        if document is None or document.version != VERSION or user_id not in (None, document.user_id):
            return None
        self.state = UserState(document.user_id)
        if document.state is not None:
            self.state.begin(document.state)
            self.last_event_id = document.last_event_id
        return document

    async def save(
        self, following: Following, known_at: float | None, cache: Mapping[str, Entry], outbox: Sequence[str]
    ) -> None:
        """Keeps the settled place, once it is known whose it is. Raises StoreFailed."""
        if self._store is None or following.user_id is None:
            return
        self.changed = False
        document = Document(
            user_id=following.user_id,
            last_event_id=self.last_event_id,
            known_at=known_at,
            state=self.state.saved() if self.last_event_id is not None else None,
            cache=dict(cache),
            outbox=list(outbox),
        )
        async with self._saving:
            writing = asyncio.ensure_future(asyncio.to_thread(self._store.save, msgspec.json.encode(document)))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait([writing])  # nobody may write beside it
                writing.exception()
                raise
            except Exception as error:
                raise _failed(error) from error


def _failed(error: Exception) -> StoreFailed:
    return StoreFailed(f"The store failed: {str(error) or type(error).__name__}.")

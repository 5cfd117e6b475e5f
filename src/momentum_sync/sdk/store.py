"""Stores position, state, cache and outbox of a client across restarts."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from momentum_sync.domain.messages import Momentum
from momentum_sync.errors import StoreFailed
from momentum_sync.sdk.callbacks import in_thread
from momentum_sync.sdk.protocol import Event, Invalidated, Output, Resync
from momentum_sync.sdk.state import Saved, UserState

if sys.platform != "win32":  # Windows has no such lock
    import fcntl

VERSION = 1
_RETRY_S = (1.0, 2.0, 5.0, 15.0, 60.0)
_ANSWER_S = 30.0
T = TypeVar("T")


class Entry(msgspec.Struct, frozen=True):
    """A cache entry. `at` is the time of its fetch, seconds since 1970."""

    value: Any
    at: float


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is stored, as one document, so that a state and its position never come apart.

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
    """Storage for one document. Methods are called in a thread; their exceptions are reported as StoreFailed.

    A failed save is retried. A store with a method `close` is closed with its client.
    """

    def load(self) -> bytes | None:
        """Return the last saved document; None or `b""` if there is none."""

    def save(self, document: bytes) -> None:
        """Replace the document, completely or not at all. `b""` clears it."""


class FileStore:
    """A file that is replaced as a whole, and readable by its owner only.

    One program uses it at a time; a second one gets an error, because each would overwrite the other's position.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).expanduser()
        self._lock: int | None = None

    def load(self) -> bytes | None:
        """Return the last saved document; None if there is none."""
        self._take()
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def save(self, document: bytes) -> None:
        """Replace the document, completely or not at all."""
        self._take()
        number, name = tempfile.mkstemp(
            dir=self._path.parent, prefix=f".{self._path.name}."
        )  # readable by its owner only
        try:
            with os.fdopen(number, "wb") as file:
                file.write(document)
                file.flush()
                # Without it, a power failure after the rename could leave an empty file under the final name.
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(name).unlink()
            raise

    def close(self) -> None:
        """Release the file for another program."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take(self) -> None:
        """Lock a file beside it until the process ends. Raise BlockingIOError if another program has the lock."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._lock is not None or sys.platform == "win32":
            return
        # Each save replaces the document's file, and a lock on it would stay with the old one.
        lock = os.open(self._path.with_name(f".{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise BlockingIOError(
                error.errno, f"another program uses {self._path}; give each program its own file"
            ) from None
        self._lock = lock


class Keeper:
    """The position up to which the program has processed everything, the state there, and the store of both."""

    def __init__(self, store: Store | None, user_id: str | None, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._writing: asyncio.Task[None] | None = None  # the last write; writes run one after the other
        self._waits = False  # whether the write has not begun
        self._hung: asyncio.Future[None] | None = None  # a write that exceeded its deadline
        self._failures = 0
        self._again_at = 0.0
        self.changed = False
        self.loaded = store is None  # an unread store must not be replaced
        self.settled_at: float | None = None
        self.last_event_id: str | None = None
        self.state = UserState(user_id or "")

    def settle(self, output: Output) -> None:
        """Record that the program has processed an event; a restarted program continues after it."""
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
        """Start empty for another user."""
        self.last_event_id = None
        self.state = UserState(user_id)
        self.changed = True

    def read_again(self, momentum: Momentum) -> None:
        """Record that the momentum was read."""
        self.state.read_again(momentum)
        self.changed = True

    @property
    def keeps(self) -> bool:
        """Return whether there is a store."""
        return self._store is not None

    def is_due(self, at: float) -> bool:
        """Return whether unsaved changes are due, given the last failure. `at` is monotonic seconds."""
        return self.changed and at >= self._again_at

    async def load(self, user_id: str | None) -> Document | None:
        """Return the stored document of this user, or of any user while it is not known. Raise StoreFailed."""
        if self._store is None:
            return None
        try:
            text = await self._answer(self._store.load)
        except Exception as error:
            raise _failed(error) from error
        self.loaded = True
        try:
            document = msgspec.json.decode(text, type=Document) if text else None
        except msgspec.MsgspecError as error:  # incomplete, or of another program: it is replaced
            raise _failed(error) from error
        if document is None or document.version != VERSION or user_id not in (None, document.user_id):
            return None
        return document

    def take_over(self, document: Document) -> None:
        """Continue from a document of this user."""
        self.state = UserState(document.user_id)
        if document.state is not None:
            self.state.begin(document.state)
            self.last_event_id = document.last_event_id

    async def save(self, describe: Callable[[UserState, str | None], Document | None]) -> None:
        """Save the document of `describe` for the processed position at the time of writing. Raise StoreFailed.

        A write is never cancelled, and no second one runs beside it: a cancelled caller only stops waiting.
        """
        if self._store is None:
            return
        # A write that has not begun describes the state when it does, so later callers share it.
        if self._writing is None or self._writing.done() or not self._waits:
            self._enqueue(lambda: self._described(describe))
        assert self._writing is not None
        await asyncio.shield(self._writing)

    def _described(self, describe: Callable[[UserState, str | None], Document | None]) -> bytes | None:
        # Reset before the write, so that a change during it counts as unsaved.
        self.changed = False
        document = describe(self.state, self.last_event_id)
        return None if document is None else msgspec.json.encode(document)

    async def clear(self) -> None:
        """Empty the store. Raise StoreFailed."""
        self.last_event_id = None
        self.state = UserState("")
        self.changed = False
        if self._store is not None:
            self._enqueue(lambda: b"")
            assert self._writing is not None
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Release the store after the running write. Raise StoreFailed."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        close = getattr(self._store, "close", None)
        if close is not None:
            try:
                await self._answer(close)
            except Exception as error:
                raise _failed(error) from error

    def _enqueue(self, text: Callable[[], bytes | None]) -> None:
        before = self._writing
        self._waits = True
        self._writing = asyncio.ensure_future(self._write(before, text))
        # Raised to the callers that wait.
        self._writing.add_done_callback(lambda task: None if task.cancelled() else task.exception())

    async def _write(self, before: asyncio.Task[None] | None, text: Callable[[], bytes | None]) -> None:
        """Write once the previous write has ended. On failure the changes stay unsaved."""
        if before is not None:
            await asyncio.wait([before])
        # `_waits` is about the last write, which may be a later one than this.
        if self._writing is asyncio.current_task():
            self._waits = False
        made, store = text(), self._store
        if made is None or store is None:
            return
        try:
            await self._answer(partial(store.save, made))
        except Exception as error:
            self.changed = True
            self._again_at = time.monotonic() + _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
            self._failures += 1
            raise _failed(error) from error
        self._failures = 0
        self._again_at = 0.0

    async def _answer(self, call: Callable[[], T]) -> T:
        """Call the store and return its answer, in time. A store that hangs is not called again until it answers."""
        if self._hung is not None and not self._hung.done():
            raise TimeoutError("an earlier call of the store has not returned yet")
        answer = asyncio.ensure_future(in_thread(call))
        done, _ = await asyncio.wait({answer}, timeout=_ANSWER_S)
        if not done:
            self._hung = asyncio.ensure_future(_ended(answer))
            raise TimeoutError(f"it did not answer within {_ANSWER_S:g} s")
        return answer.result()


async def _ended(answer: asyncio.Future[Any]) -> None:
    await asyncio.wait([answer])
    if not answer.cancelled():
        answer.exception()


def _failed(error: Exception) -> StoreFailed:
    return StoreFailed(f"The store failed: {str(error) or type(error).__name__}.")

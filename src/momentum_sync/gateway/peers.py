"""The state of their clients that gateways share: each owns a part, and the others hold a copy of it.

It is kept in memory alone. Each gateway numbers its updates, so a lost one shows with the next, or with the report that
it repeats every second; then the copy is replaced by a whole one. The part of a gateway that is silent expires, as with
`Phoenix.Presence`. So any message may be lost, and the copies agree again a moment later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from momentum_sync.limits import PeerLimits

Key = tuple[str, ...]
Item = tuple[Key, bytes | None]
"""A key and its value; None: the key is gone."""

_UNKNOWN = -1


class Update(msgspec.Struct, frozen=True, array_like=True, tag="update"):
    """Changed items of a gateway. `number` counts its updates from 1."""

    origin: str
    number: int
    items: tuple[Item, ...]


class Report(msgspec.Struct, frozen=True, array_like=True, tag="report"):
    """The number of the last update of a running gateway."""

    origin: str
    number: int


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """A request for all items of a gateway."""

    origin: str
    of: str


class Page(msgspec.Struct, frozen=True, array_like=True, tag="page"):
    """A part of all items of a gateway as of an update: page `index` of `count`."""

    origin: str
    number: int
    index: int
    count: int
    items: tuple[Item, ...]


class Bye(msgspec.Struct, frozen=True, array_like=True, tag="bye"):
    """The last message of a gateway that stops."""

    origin: str


Message = Update | Report | Ask | Page | Bye


class _Copy:
    """The items of another gateway, as of an update."""

    __slots__ = ("asked_at", "heard_at", "items", "number", "pages")

    def __init__(self) -> None:
        self.number = _UNKNOWN
        self.items: dict[Key, bytes] = {}
        self.heard_at = 0.0
        self.asked_at = float("-inf")
        self.pages: dict[int, Page] = {}


class Peers:
    """One gateway's own items, and its copies of the others'.

    Times are seconds on a monotonic clock.

    Args:
        origin: a name that no other run of a gateway has.
        send: sends a message to all others, or drops it.
        changed: called with the gateway, the key and the new value of an item of another gateway (None: it is gone),
            and whether it has changed just now; an item of a whole copy may have changed long ago.
        limits: bounds.
    """

    def __init__(
        self,
        origin: str,
        send: Callable[[Message], None],
        changed: Callable[[str, Key, bytes | None, bool], None],
        limits: PeerLimits,
    ) -> None:
        self.origin = origin
        self._send = send
        self._changed = changed
        self._limits = limits
        self._own: dict[Key, bytes] = {}
        self._pending: dict[Key, bytes | None] = {}
        self._number = 0
        self._copies: dict[str, _Copy] = {}
        self._is_asked = False
        self._has_left = False
        self._answered_at = float("-inf")

    @property
    def others(self) -> int:
        """Return the number of other gateways that are heard."""
        return len(self._copies)

    @property
    def has_pending(self) -> bool:
        """Return whether there are changes that were not sent."""
        return bool(self._pending)

    def put(self, key: Key, value: bytes) -> None:
        """Set an item of this gateway. It is sent with the next `flush`."""
        self._own[key] = value
        self._pending[key] = value

    def remove(self, key: Key) -> None:
        """Remove an item of this gateway."""
        if self._own.pop(key, None) is not None:
            self._pending[key] = None

    def flush(self) -> None:
        """Send the changes."""
        if self._has_left:
            return
        pending, self._pending = list(self._pending.items()), {}
        for items in _parts(pending, self._limits):
            self._number += 1
            self._send(Update(self.origin, self._number, items))

    def report(self, at: float) -> None:
        """Send a report, send all items if they were requested, and let the items of silent gateways expire."""
        self.flush()
        self._send(Report(self.origin, self._number))
        if self._is_asked:
            self._answer(at)
        for origin, copy in list(self._copies.items()):
            if at - copy.heard_at > self._limits.expire_s:
                self._forget(origin)

    def leave(self) -> None:
        """Send that this gateway stops. It sends nothing more."""
        self._has_left = True
        self._send(Bye(self.origin))

    def heard(self, message: Message, at: float) -> None:
        """Take a message of another gateway."""
        if message.origin == self.origin:
            return
        match message:
            case Bye(origin):
                self._forget(origin)
                return
            case Ask(of=of):
                if of == self.origin:
                    self._is_asked = True
                    if at - self._answered_at >= self._limits.answer_s:
                        self._answer(at)
                return
        copy = self._copies.get(message.origin)
        if copy is None:
            copy = self._copies[message.origin] = _Copy()
            if isinstance(message, Update) and message.number == 1:
                copy.number = 0
        copy.heard_at = at
        match message:
            case Update(origin, number, items) if number == copy.number + 1 and copy.number != _UNKNOWN:
                copy.number = number
                for key, value in items:
                    self._set(origin, copy, key, value)
            case Update(origin, number) | Report(origin, number) if number > copy.number:
                self._ask(origin, copy, at)
            case Page():
                self._collect(copy, message)

    def _ask(self, origin: str, copy: _Copy, at: float) -> None:
        if at - copy.asked_at >= self._limits.answer_s:
            copy.asked_at = at
            self._send(Ask(self.origin, origin))

    def _answer(self, at: float) -> None:
        """Send all items. Everything changed so far has its number."""
        self.flush()
        self._is_asked, self._answered_at = False, at
        parts = list(_parts(list(self._own.items()), self._limits)) or [()]
        for index, items in enumerate(parts):
            self._send(Page(self.origin, self._number, index, len(parts), items))

    def _collect(self, copy: _Copy, page: Page) -> None:
        """Replace the copy once all pages of one answer are there."""
        if page.number <= copy.number:
            return
        copy.pages = {index: one for index, one in copy.pages.items() if one.number == page.number}
        copy.pages[page.index] = page
        if len(copy.pages) < page.count:
            return
        items = {key: value for one in copy.pages.values() for key, value in one.items if value is not None}
        copy.pages, copy.number = {}, page.number
        for key in copy.items.keys() - items.keys():
            self._set(page.origin, copy, key, None)
        for key, value in items.items():
            if copy.items.get(key) != value:
                self._set(page.origin, copy, key, value, is_new=False)

    def _set(self, origin: str, copy: _Copy, key: Key, value: bytes | None, *, is_new: bool = True) -> None:
        if value is not None:
            copy.items[key] = value
        elif copy.items.pop(key, None) is None:
            return
        self._changed(origin, key, value, is_new)

    def _forget(self, origin: str) -> None:
        copy = self._copies.pop(origin, None)
        if copy is not None:
            for key in list(copy.items):
                self._set(origin, copy, key, None)


def _parts(items: Sequence[tuple[Key, bytes | None]], limits: PeerLimits) -> Iterator[tuple[Item, ...]]:
    """Yield items in parts of a bounded number and size: the broker refuses a message that is too large."""
    part: list[Item] = []
    size = 0
    for key, value in items:
        more = sum(map(len, key)) + len(value or b"")
        if part and (len(part) == limits.items or size + more > limits.message_bytes):
            yield tuple(part)
            part, size = [], 0
        part.append((key, value))
        size += more
    if part:
        yield tuple(part)

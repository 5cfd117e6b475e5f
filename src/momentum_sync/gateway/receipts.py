"""Receipts: the position up to which each device of a user has confirmed the events.

Every WebSocket library answers pings, in stream order, so a pong confirms everything that was written before its ping.
The positions are collected here, one for each device, and saved together. A device that was sent nothing since its
last receipt is not saved again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from momentum_sync.eventlog.position import Position


class Receipt(NamedTuple):
    """Position up to which a device has received everything, and the generation of the feed that it belongs to."""

    user_id: UUID
    device: str
    position: Position
    keys: tuple[str, ...]
    generation: int


class Confirmed(NamedTuple):
    """A position, the keys that the device was subscribed to, and the generation of the feed."""

    position: Position
    keys: tuple[str, ...]
    generation: int


class Receipts:
    """Receipts of one gateway that are not saved yet.

    Args:
        most: devices with unsaved receipts. Above it the oldest receipt is dropped; that device is recorded again only
            after its next event.
        generation: returns the feed's generation. Receipts of an earlier one are dropped, because their offsets are not
            comparable.
    """

    def __init__(self, most: int, generation: Callable[[], int]) -> None:
        self._most = most
        self._generation = generation
        self._unsaved: dict[tuple[UUID, str], Confirmed] = {}
        self._asks: dict[Device, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._unsaved)

    @property
    def generation(self) -> int:
        """Return the feed's generation."""
        return self._generation()

    def confirmed(self, user_id: UUID, device: str, found: Confirmed) -> None:
        """Note that a device has everything up to a position on its keys."""
        before = self._unsaved.pop((user_id, device), None)
        if before is not None and before.generation == found.generation:  # two sockets of one device
            found = max(before, found, key=lambda each: each.position.offset)
        self._unsaved[user_id, device] = found
        if len(self._unsaved) > self._most:
            del self._unsaved[next(iter(self._unsaved))]

    def begin(self, device: Device, ask: Callable[[], None]) -> None:
        """Register a connected device. `ask` sends it a ping."""
        self._asks[device] = ask

    def end(self, device: Device) -> None:
        """Note that a device's connection has ended."""
        self._asks.pop(device, None)

    @property
    def asks(self) -> list[Callable[[], None]]:
        """Return functions that send a ping to each connected device that was sent something since the last one."""
        return list(self._asks.values())

    def take(self, most: int) -> list[Receipt]:
        """Remove and return up to `most` receipts, oldest first."""
        generation = self._generation()
        self._unsaved = {key: found for key, found in self._unsaved.items() if found.generation == generation}
        taken = [
            Receipt(user_id, device, found.position, found.keys, found.generation)
            for (user_id, device), found in islice(self._unsaved.items(), most)
        ]
        for receipt in taken:
            del self._unsaved[receipt.user_id, receipt.device]
        return taken

    def put_back(self, receipts: Iterable[Receipt]) -> None:
        """Put back receipts that could not be saved, except for devices with a newer one."""
        for user_id, device, position, keys, generation in receipts:
            self._unsaved.setdefault((user_id, device), Confirmed(position, keys, generation))


class Device:
    """A connected device: its pings, and the positions that their pongs confirm.

    Args:
        receipts: where confirmed positions go.
        user_id: the user; the device has a token of this user's own.
        name: the device's name for itself.
    """

    __slots__ = ("_confirmed_id", "_name", "_number", "_pings", "_receipts", "_user_id")

    _MOST_PINGS = 8  # unanswered ones that are remembered; a client silent for longer is closed anyway

    def __init__(self, receipts: Receipts, user_id: UUID, name: str) -> None:
        self._receipts = receipts
        self._user_id = user_id
        self._name = name
        self._confirmed_id = ""
        self._number = 0
        self._pings: dict[int, tuple[str, Confirmed]] = {}

    def begin(self, last_id: str, brought: Position | None, keys: Iterable[str], ask: Callable[[], None]) -> None:
        """Start. A client that resumes has brought the position up to which it has everything."""
        self._receipts.begin(self, ask)
        if brought is not None:
            self._confirm(last_id, Confirmed(brought, tuple(keys), self._receipts.generation))

    def lost(self) -> None:
        """Note that the connection has ended."""
        self._receipts.end(self)

    def has_news(self, last_id: str) -> bool:
        """Return whether something was sent since the last ping."""
        pinged = next(reversed(self._pings.values()))[0] if self._pings else self._confirmed_id
        return last_id != pinged and len(self._pings) < self._MOST_PINGS

    def ping(self, last_id: str, position: Position | None, keys: Iterable[str]) -> bytes:
        """Return the payload of a ping that is written now, after everything up to a position on these keys."""
        # The oldest ones are kept: if each new ping replaced one, a slow client would never answer in time.
        if position is None or last_id == self._confirmed_id or len(self._pings) >= self._MOST_PINGS:
            return b""
        self._number += 1
        self._pings[self._number] = last_id, Confirmed(position, tuple(keys), self._receipts.generation)
        return b"%d" % self._number

    def pong(self, payload: bytes) -> bool:
        """Confirm the position of the ping that this pong answers. Return False, and do nothing, for other payloads."""
        number = int(payload) if payload.isdigit() else 0
        found = self._pings.get(number)
        if found is None:
            return False
        self._pings = {later: ping for later, ping in self._pings.items() if later > number}
        self._confirm(*found)
        return True

    def _confirm(self, last_id: str, found: Confirmed) -> None:
        self._confirmed_id = last_id
        self._receipts.confirmed(self._user_id, self._name, found)

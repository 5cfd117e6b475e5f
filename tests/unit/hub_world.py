"""A hub with subscribers that record what is written to them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import UUID, uuid4

from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import Beginning, LocalFeed
from momentum_sync.eventlog.position import Position, SnapshotBoundary
from momentum_sync.eventlog.window import Window
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.dialects.native import NativeDialect
from momentum_sync.gateway.direct_files import DirectFile, DirectFiles
from momentum_sync.gateway.fan_out import FanOut
from momentum_sync.gateway.hub import Hub
from momentum_sync.gateway.subscriber import Dialect, Owner
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.limits import DeliveryLimits
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds

PER_USER = frozenset({"cache_invalidation"})


class Counting(NativeDialect):
    """The native dialect, with a count of encodings, which can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[str] = []
        self.fails_at = 0

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        self.encoded.append(ids.event_id)
        if len(self.encoded) == self.fails_at:
            raise ZeroDivisionError
        return super().encode(event, ids, now)


class Wire:
    """A subscriber that records the bytes written to it."""

    room = 1_000_000
    hashed = 0

    def __hash__(self) -> int:
        Wire.hashed += 1
        return id(self)

    def __init__(self, user: UUID, client_id: str, dialect: Dialect, file: DirectFile) -> None:
        self.identity = Identity("authenticated", user, "{}", None)
        self.client_id = client_id
        self.sdk = "other"
        self.cursor = Cursor(str(user), PER_USER)
        self.dialect = dialect
        self.file = file
        self.follows = False
        self.closing: Close | None = None
        self.aborted = False
        self.data: list[bytes | memoryview] = []
        self.write: Callable[[bytes | memoryview], None] = self.data.append
        self.acks: list[str] = []
        self.held_back: list[tuple[int, bool]] = []
        self.began_at = ""
        self.concern = "policies_changed"

    @property
    def owner(self) -> Owner:
        return Owner("authenticated", self.identity.subject, self.identity.subject)

    def is_of(self, user: UUID) -> bool:
        return self.identity.subject == user

    def reviews(self, what: str) -> bool:
        return what == self.concern and self.identity.role != "service_role"

    def has_room(self, size: int) -> bool:
        return size <= self.room

    def hold_back(self, offset: int, *, review: bool = False) -> None:
        self.held_back.append((offset, review))

    def expect_acks(self, cache_keys: Iterable[str]) -> None:
        self.acks += cache_keys

    def close(self, why: Close) -> None:
        self.closing = self.closing or why

    def abort(self) -> None:
        self.aborted = True

    def taken(self) -> list[dict[str, Any]]:
        """Return the messages so far, however many were written at once."""
        messages = []
        for data in map(bytes, self.data):
            while data:
                text, data = payload(data)
                messages.append(json.loads(text))
        self.data.clear()
        return messages


def payload(data: bytes) -> tuple[bytes, bytes]:
    """Return the content of the first frame, and the data after it."""
    begins, length = 2, data[1]
    if length > 125:
        begins = 4 if length == 126 else 10
        length = int.from_bytes(data[2:begins], "big")
    return data[begins : begins + length], data[begins + length :]


class World:
    """A feed and a hub."""

    def __init__(
        self, *, limit: int = 100, per_user: int = 100, coalesced: int = 16 * 1024, large: int = 64 * 1024
    ) -> None:
        self.feed = LocalFeed(Window(1_000_000))
        self.dialect = Counting()
        self.files = DirectFiles(os.write)
        self.changed_by: list[tuple[int, UUID | str | None]] = []
        self.missed: list[str] = []
        self.delivered: list[tuple[str, int, int, float | None]] = []
        self.hub = Hub(
            self.feed, limit=limit, limit_per_user=per_user, clock=lambda: 0.0,
            grants_changed=lambda *change: self.changed_by.append(change),
            row_rights_changed=lambda xid: self.changed_by.append((xid, "rows")),
            grants_missed=lambda: self.missed.append(self.feed.epoch),
            delivered=self.note, files=self.files, limits=DeliveryLimits(coalesced_bytes=coalesced, large_bytes=large),
        )  # fmt: skip
        self.broken: list[bool] = []
        self.feed.begin(Beginning("abcdef01", 0, 0, 100, 9, 1))

    def note(self, fan_outs: Sequence[FanOut]) -> None:
        self.delivered += [(each.event.event_type, each.frames, each.size, each.delay) for each in fan_outs]
        self.broken += [each.broken is not None for each in fan_outs]

    def wire(self, user: UUID, client_id: str) -> Wire:
        return Wire(user, client_id, self.dialect, self.files.add())

    def join(
        self,
        *channels: str,
        checked: tuple[str, ...] = (),
        boundary: SnapshotBoundary | None = None,
        client_id: str | None = None,
        user: UUID | None = None,
    ) -> Wire:
        wire = self.wire(user or uuid4(), client_id or str(uuid4()))
        assert self.hub.admit(wire)
        boundary = boundary or SnapshotBoundary(Snapshot.parse("10:10:"), 0, 0)
        keys = list(channels)
        first = self.feed.window.first_unseen(boundary.snapshot, keys)
        offset = self.feed.offset if first is None else first - 1
        wire.cursor.subscribe(Granted(keys, frozenset(checked)))
        wire.cursor.begin(Position("abcdef01", offset, self.feed.mark_of(offset) or 0, boundary))
        wire.began_at = wire.cursor.last_id
        for event in self.feed.window.after(offset, keys, most=1_000_000).events:
            if (ids := wire.cursor.deliver(event)) is not None:
                wire.write(self.dialect.encode(event, ids, 0.0))
        wire.follows = True
        self.hub.update(wire)
        self.dialect.encoded.clear()
        return wire

    def publish(self, *channels: str, xid: int = 50, body: bytes = b'{"event_type":"x"}') -> Event:
        (event,) = self.publish_together(channels, xid=xid, body=body)
        return event

    def publish_together(
        self, *each: tuple[str, ...], xid: int = 50, body: bytes = b'{"event_type":"x"}'
    ) -> list[Event]:
        """Publish events on these channels as one batch."""
        first = self.feed.offset + 1
        events = [
            Event.build(
                offset=offset, place=(200 + offset, 0), xid=xid, committed_at=0.0, channels=channels,
                body=body, per_user=PER_USER,
            )
            for offset, channels in enumerate(each, first)
        ]  # fmt: skip
        self.feed.publish(events)
        return events


def ids(messages: list[dict[str, Any]]) -> list[str]:
    """Return epoch and offset of each event."""
    return [shortened(event_id) for event_id in whole_ids(messages)]


def whole_ids(messages: list[dict[str, Any]]) -> list[str]:
    return [message["event"]["id"] for message in messages if message["type"] == "realtime_event"]


def shortened(event_id: str) -> str:
    """Return an id without the mark."""
    return "-".join(event_id.split("-")[:2])


class Together(Counting):
    """A dialect with frames that do not depend on the event before."""

    together: int | None = 0


def together(world: World, count: int, *channels: str) -> list[Wire]:
    """Subscribe wires that share every frame."""
    dialect = Together()
    wires = [world.join(*channels) for _ in range(count)]
    for wire in wires:
        wire.taken()
        wire.dialect = dialect
        world.hub.update(wire)
    return wires

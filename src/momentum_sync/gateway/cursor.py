"""A delivery cursor: position, snapshot boundary and subscriptions of one subscriber.

A cursor knows nothing of sockets, messages and dialects. A native connection has one; `/sync/events` uses one for the
time of a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import replace

from momentum_sync.eventlog.event import Event, key_of
from momentum_sync.eventlog.position import Position, SnapshotBoundary
from momentum_sync.eventlog.row_index import Route
from momentum_sync.identity.channels import Granted
from momentum_sync.wire.messages import DeliveryIds

Slot = str | Route
"""A name in the hub's index: that of a key, or a route."""


def slot_of(channel: str, key: str) -> str:
    """Return the index's name for a key. A user's part of a channel must not be found under a channel of that name."""
    return key if key == channel else "\0" + key


class Cursor:
    """Position, snapshot boundary and subscriptions of one subscriber.

    Args:
        user_id: the user of the connection, for channels that are delivered per user.
        per_user: channels that are delivered per user.

    Attributes:
        epoch: epoch of the position.
        offset: offset up to which everything has been delivered, while the subscriber does not follow the feed.
        last_id: id of the last delivered event.
        boundary: snapshot boundary, until the stream has passed it.
        channels: keys by channel, in the order in which they were granted.
        checked: channels on which the database decides each event.
    """

    __slots__ = ("_per_user", "_user_id", "boundary", "channels", "checked", "epoch", "last_id", "offset")

    def __init__(self, user_id: str | None, per_user: Set[str]) -> None:
        self._user_id = user_id
        self._per_user = per_user
        self.epoch = ""
        self.offset = 0
        self.last_id = ""
        self.boundary: SnapshotBoundary | None = None
        self.channels: dict[str, str] = {}
        self.checked: set[str] = set()

    # Position

    def begin(self, position: Position) -> None:
        """Start after a position."""
        self.epoch = position.epoch
        self.offset = position.offset
        self.last_id = str(position)
        self.boundary = position.boundary

    def rewind(self, offset: int) -> None:
        """Record the offset up to which everything has been delivered to a subscriber that does not follow the feed."""
        self.offset = offset

    def follow(self) -> None:
        """Note that the subscriber follows the feed from now on."""

    def fall_behind(self, offset: int) -> None:
        """Note that the subscriber stops following the feed after an offset."""
        self.rewind(offset)

    @property
    def delivered(self) -> Position | None:
        """Return the position of the last delivered event; None if the cursor has gone back before it since.

        Only for a subscriber that does not follow the feed.
        """
        last = Position.parse(self.last_id) if self.last_id else None
        if last is None or last.epoch != self.epoch or last.offset > self.offset:
            return None
        return replace(last, boundary=None)

    def advanced(self, lsn: int) -> None:
        """Drop the snapshot boundary once the stream has passed it."""
        if self.boundary is not None and lsn >= self.boundary.lsn:
            self.boundary = None

    def passed(self, event_id: str) -> None:
        """Record the id under which an event was delivered."""
        self.last_id = event_id

    def resume_from(self, reached: Position | None) -> str:
        """Return the id to resume from. `reached` is the feed's position, if this subscriber follows it.

        A quiet subscriber would otherwise hold an id that expires.
        """
        # A position of a new epoch would hide the break in history from a client that resumes with it.
        if reached is None or reached.epoch != self.epoch:
            return self.last_id
        return str(reached if self.boundary is None else replace(reached, boundary=self.boundary))

    # Subscriptions

    def subscribe(self, granted: Granted) -> None:
        """Add granted channels."""
        for channel in granted.channels:
            self.channels[channel] = key_of(channel, self._user_id, self._per_user)
            if channel in granted.checked:
                self.checked.add(channel)
            else:
                # Renewed grants may give a channel by the token alone that was checked before.
                self.checked.discard(channel)

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Remove channels."""
        for channel in channels:
            self.channels.pop(channel, None)
            self.checked.discard(channel)

    def review(self, wanted: Iterable[str], granted: Granted) -> list[str]:
        """Keep those of the subscribed channels in `wanted` that are still granted. Return the others, now removed."""
        # The client may have unsubscribed during the query, and must not get the channel back.
        held = [channel for channel in wanted if channel in self.channels]
        kept = [channel for channel in held if channel in granted.channels]
        self.subscribe(Granted(kept, granted.checked))
        lost = [channel for channel in held if channel not in granted.channels]
        self.unsubscribe(lost)
        return lost

    def exceeds(self, channels: Sequence[str], most: int) -> bool:
        """Return whether the subscriptions together with `channels` are more than `most`."""
        return len(self.channels.keys() | set(channels)) > most

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Return the names under which the hub finds the subscriber."""
        return tuple([slot_of(channel, key) for channel, key in self.channels.items()])

    @property
    def lookups(self) -> tuple[str | Route, ...]:
        """Return the keys, or routes, by which the window finds the subscriber's events."""
        return tuple(self.channels.values())

    # Events

    def sees(self, event: Event) -> bool:
        """Return whether the snapshot that the subscriber began with contains the event."""
        return self.boundary is not None and self.boundary.snapshot.sees(event.xid)

    def channel_of(self, event: Event) -> str | None:
        """Return the first channel of the event that is subscribed to."""
        places = event.places
        if places is not None and len(self.channels) < len(places):
            # A set has no order, but clients get the event under its first subscribed channel.
            held = sorted([places[channel] for channel in self.channels.keys() & places.keys()])
            pairs = [(event.channels[place], event.keys[place]) for place in held]
        else:
            pairs = list(zip(event.channels, event.keys, strict=True))
        for channel, key in pairs:
            # The keys differ if the channel is delivered per user and the event belongs to another user.
            if self.channels.get(channel) == key and (not event.out_of_sight or channel in self.checked):
                return channel
        return None

    def wants(self, event: Event) -> bool:
        """Return whether the event is on a subscribed channel and not in the snapshot."""
        return not self.sees(event) and self.channel_of(event) is not None

    def must_check(self, event: Event) -> bool:
        """Return whether the database has to decide if the event may be delivered."""
        if not self.checked or self.sees(event):
            return False
        return self.channel_of(event) in self.checked

    def deliver(self, event: Event, event_id: str | None = None) -> DeliveryIds | None:
        """Move past an event. Return its ids; None if it is not for this subscriber, or is in its snapshot.

        `event_id` is its id for subscribers without a boundary, if it is known.
        """
        if self.sees(event):
            return None
        channel = self.channel_of(event)
        if channel is None:
            return None
        own_id = event_id if event_id is not None and self.boundary is None else self.id_of(event)
        ids = DeliveryIds(own_id, self.last_id, channel)
        self.passed(ids.event_id)
        return ids

    def id_of(self, event: Event) -> str:
        """Return the id that the event has for this subscriber."""
        return str(Position(self.epoch, event.offset, event.mark, self.boundary))

"""The hub: the index from channels to subscribers, and the fan-out of events to them.

Subscribers are kept in two groups, so that those for whom every event on their channels is cost a comparison and two
assignments an event. The frames that events of one batch bring for a subscriber are coalesced into one write: a
score's change and its invalidation, which every update makes, cost one send instead of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from momentum_sync.eventlog.event import CONTROL, Event, relation_of
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.gateway.cursor import Slot, slot_of
from momentum_sync.gateway.direct_files import DirectFiles
from momentum_sync.gateway.fan_out import NOBODY, FanOut, Unwritten, close_broken
from momentum_sync.gateway.routes import Routes
from momentum_sync.gateway.subscriber import Dialect, Owner, Subscriber
from momentum_sync.gateway.subscribers import Subscribers
from momentum_sync.limits import DeliveryLimits
from momentum_sync.wire.close import Close

_MOST_SDKS = 20  # clients may name any version


class _Indexed(NamedTuple):
    """Slots in which a subscriber is found, in which group, and with which dialect."""

    slots: tuple[Slot, ...]
    plain: bool
    dialect: Dialect | None


_NOT_INDEXED = _Indexed((), plain=False, dialect=None)


class Elsewhere(Protocol):
    """The connections of other gateways."""

    def count(self, owner: Owner, client_id: str) -> int:
        """Return the number of an owner's connections there, without those that this client replaces."""

    def admitted(self, subscriber: Subscriber) -> None:
        """Tell them of a connection of this gateway."""

    def left(self, subscriber: Subscriber) -> None:
        """Tell them that a connection of this gateway has ended."""


class Hub:
    """The subscribers of one gateway. It is a `FeedSubscriber`.

    Args:
        feed: the feed that it subscribes to.
        limit: connections in all.
        limit_per_user: connections of one owner.
        clock: seconds since 1970.
        grants_changed: called with the id of a transaction that changed the grants of all callers, or of one user,
            before anybody's grants are asked for again.
        row_rights_changed: called with the id of a transaction that may have changed rights on rows of any table.
        grants_missed: called when such a change may have been missed.
        delivered: called with the fan-outs of a batch of events.
        files: the files of all connections.
        limits: bounds.
    """

    def __init__(
        self,
        feed: LocalFeed,
        *,
        limit: int,
        limit_per_user: int,
        clock: Callable[[], float],
        grants_changed: Callable[[int, UUID | None], None],
        row_rights_changed: Callable[[int], None],
        grants_missed: Callable[[], None],
        delivered: Callable[[Sequence[FanOut]], None],
        files: DirectFiles,
        limits: DeliveryLimits,
    ) -> None:
        self._feed = feed
        self._delivered = delivered
        self._grants_changed = grants_changed
        self._row_rights_changed = row_rights_changed
        self._grants_missed = grants_missed
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._clock = clock
        self._files = files
        self._limits = limits
        # By slot. Plain subscribers get every event; careful ones have a snapshot boundary or a checked channel.
        self._plain: dict[Slot, Subscribers] = {}
        self._careful: dict[Slot, Subscribers] = {}
        self._routes = Routes()
        self._indexed: dict[Subscriber, _Indexed] = {}
        self._by_client: dict[tuple[Owner, str], Subscriber] = {}
        self._by_owner: dict[Owner, int] = {}
        self._with_boundary: dict[Subscriber, None] = {}
        self._fan_outs: list[FanOut] = []
        self._unwritten: Unwritten = {}  # only while a batch is sent
        self._elsewhere: Elsewhere | None = None
        feed.subscribe(self)

    def share(self, elsewhere: Elsewhere) -> None:
        """Count an owner's connections on other gateways, too, and close those that continue there."""
        self._elsewhere = elsewhere

    @property
    def connections(self) -> list[Subscriber]:
        """Return all that were admitted and have not left."""
        return list(self._indexed)

    @property
    def channels(self) -> int:
        """Return the number of channels with subscribers that follow the feed."""
        slots = self._plain.keys() | self._careful.keys()
        return len({slot if isinstance(slot, str) else slot[0] for slot in slots})

    @property
    def subscriptions(self) -> int:
        """Return the number of subscriptions, over all connections."""
        return sum(len(subscriber.cursor.channels) for subscriber in self._indexed)

    @property
    def sdks(self) -> Mapping[str, int]:
        """Return the number of connections by the client's library, of the most frequent ones."""
        return dict(Counter(subscriber.sdk for subscriber in self._indexed).most_common(_MOST_SDKS))

    def __len__(self) -> int:
        return len(self._indexed)

    def admit(self, subscriber: Subscriber) -> bool:
        """Take in a subscriber, in place of an earlier one of the same client. Return False when there are too many."""
        owner = subscriber.owner
        client = (owner, subscriber.client_id)
        earlier = self._by_client.get(client)
        if earlier is not None:
            # `close` does nothing on a socket that is already closing, so the hub removes the earlier connection
            # itself.
            self.leave(earlier)
            earlier.close(Close.REPLACED)
        connections = self._by_owner.get(owner, 0)
        if self._elsewhere is not None:
            connections += self._elsewhere.count(owner, subscriber.client_id)
        exceeds = not owner.is_public and connections >= self._limit_per_user
        if len(self._indexed) >= self._limit or exceeds:
            return False
        self._by_client[client] = subscriber
        self._by_owner[owner] = self._by_owner.get(owner, 0) + 1
        self._indexed[subscriber] = _NOT_INDEXED
        if self._elsewhere is not None:
            self._elsewhere.admitted(subscriber)
        return True

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a subscriber; do nothing for one that is not known."""
        indexed = self._indexed.pop(subscriber, None)
        if indexed is None:
            return
        self._remove(subscriber, indexed)
        self._unwritten.pop(subscriber, None)
        self._with_boundary.pop(subscriber, None)
        owner = subscriber.owner
        client = (owner, subscriber.client_id)
        if self._by_client.get(client) is subscriber:
            del self._by_client[client]
        self._by_owner[owner] -= 1
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        if self._elsewhere is not None:
            self._elsewhere.left(subscriber)

    def update(self, subscriber: Subscriber) -> None:
        """Index a subscriber by the channels that its cursor has now, if it follows the feed.

        One that follows has been given everything up to the feed's last event.
        """
        if subscriber not in self._indexed:
            return
        cursor = subscriber.cursor
        if not subscriber.follows:
            self._with_boundary.pop(subscriber, None)
            self._index(subscriber, _NOT_INDEXED)
            return
        # `Hub.advanced` reaches only followers: the stream may have passed this boundary while the connection caught
        # up.
        cursor.advanced(self._feed.lsn)
        if cursor.boundary is None:
            self._with_boundary.pop(subscriber, None)
        else:
            self._with_boundary[subscriber] = None
        plain = cursor.boundary is None and not cursor.checked
        self._index(subscriber, _Indexed(cursor.slots, plain, subscriber.dialect))

    def _index(self, subscriber: Subscriber, wanted: _Indexed) -> None:
        indexed = self._indexed[subscriber]
        # `update` runs after every message of a client, and few messages change channels.
        if indexed == wanted:
            return
        self._indexed[subscriber] = wanted
        self._remove(subscriber, indexed)
        table = self._plain if wanted.plain else self._careful
        for slot in wanted.slots:
            subscribers = table.setdefault(slot, Subscribers())
            if not subscribers and not isinstance(slot, str):
                self._routes.add(slot)
            subscribers.add(subscriber)

    def _remove(self, subscriber: Subscriber, indexed: _Indexed) -> None:
        table = self._plain if indexed.plain else self._careful
        for slot in indexed.slots:
            subscribers = table[slot]
            subscribers.remove(subscriber)
            if not subscribers:
                del table[slot]
                if not isinstance(slot, str):
                    self._routes.remove(slot)

    # The feed's subscriber

    def event(self, event: Event, *, more: bool = False) -> None:
        """Send an event on its channels, once to each subscriber. If `more` follow, collect the frames."""
        if CONTROL in event.channels:
            self._control(event)
        event_id = f"{self._feed.epoch}-{event.offset}-{self._feed.mark:x}"
        fan_out = FanOut(
            event, event_id, self._clock(), self._unwritten, self._files, self._limits, keep=more, forget=self.leave
        )
        self._fan_outs.append(fan_out)
        for channel, key in zip(event.channels, event.keys, strict=True):
            self._fan_out(fan_out, channel, slot_of(channel, key))
        if self._routes and relation_of(event) is not None:
            for routed in self._routes.of(event):
                self._fan_out(fan_out, event.channels[0], routed)
        if fan_out.broken is not None:
            # Capture restarts and reads the rest of the batch again; the feed drops the events that it repeats.
            raise fan_out.broken

    def _fan_out(self, fan_out: FanOut, channel: str, slot: Slot) -> None:
        plain, careful = self._plain.get(slot), self._careful.get(slot)
        if plain or careful:
            fan_out.to_channel(channel, plain or NOBODY, careful or NOBODY)

    def published(self) -> None:
        """Write the collected frames of the batch, and report the fan-outs."""
        broken: Exception | None = None
        for subscriber in list(self._unwritten):
            data = self._unwritten.pop(subscriber, None)
            try:
                if data is not None:  # it may have left because of the one before it
                    subscriber.write(data)
            except Exception as error:
                broken = close_broken(subscriber, error, self.leave)
        now = self._clock()
        fan_outs, self._fan_outs = self._fan_outs, []
        matched = [fan_out for fan_out in fan_outs if fan_out.matched]
        for fan_out in matched:
            fan_out.delay = now - fan_out.event.committed_at
        if broken is not None:
            # The error is reported once, with an event that had subscribers.
            matched[-1].broken = matched[-1].broken or broken
        self._delivered(fan_outs)
        if broken is not None:
            raise broken

    def _control(self, event: Event) -> None:
        """Act on an event with which the database addresses the gateways."""
        if event.event_type == "revoked":
            try:
                user = UUID(event.user_id or "")
            except ValueError:
                return
            self._grants_changed(event.xid, user)  # or the token would open another socket before the commit is visible
            self._close([subscriber for subscriber in self.connections if subscriber.is_of(user)], Close.TOKEN)
        elif event.event_type == "policies_changed":
            self._grants_changed(event.xid, None)
            self._review(event.event_type, event.offset)
        elif event.event_type == "row_rights_changed":
            self._row_rights_changed(event.xid)
            self._review(event.event_type, event.offset)

    def review_rows(self) -> None:
        """Have connections ask again for their rights on rows, because these have changed without an event."""
        self._review("row_rights_changed", self._feed.offset)

    def _review(self, what: str, offset: int) -> None:
        for subscriber in self.connections:
            if subscriber.reviews(what):
                subscriber.hold_back(offset, review=True)

    def advanced(self, lsn: int) -> None:
        """Drop the snapshot boundaries that the stream has passed."""
        if self._with_boundary:
            for subscriber in list(self._with_boundary):
                subscriber.cursor.advanced(lsn)
                if subscriber.cursor.boundary is None:
                    self.update(subscriber)

    def restarted(self) -> None:
        """Close connections with a snapshot from before the restart; they reconnect for a new one."""
        outdated = [
            subscriber
            for subscriber in self.connections
            if (boundary := subscriber.cursor.boundary) is not None and boundary.incarnation != self._feed.incarnation
        ]
        self._close(outdated, Close.RESTART)

    def history_changed(self) -> None:
        """Close all connections; they reconnect and learn then whether the history goes on."""
        # Cleared before clients reconnect, because changes of grants may be among the missed events.
        self._grants_missed()
        self._close(self.connections, Close.RESTART)

    def _close(self, subscribers: Iterable[Subscriber], why: Close) -> None:
        """Close connections. One that fails does not keep the others open; its error is raised at the end."""
        broken: Exception | None = None
        for subscriber in subscribers:
            try:
                subscriber.close(why)
            except Exception as error:
                broken = close_broken(subscriber, error, self.leave)
        if broken is not None:
            raise broken

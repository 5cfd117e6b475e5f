"""From channels to connections: who holds what, and one event to all of them.

A frame is built once for all connections whose previous event was the same, and its JSON is the database's own; what
differs between connections is only `previous_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol
from uuid import UUID

from momentum_sync.eventlog.event import CONTROL, Event
from momentum_sync.eventlog.feed import Feed
from momentum_sync.gateway.session import Session, build
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import Delivery, frame


class Connection(Protocol):
    """A socket with a session. While `behind`, it catches up by itself and is not sent what the feed brings."""

    session: Session
    behind: bool

    def write(self, data: bytes) -> None:
        """Writes whole frames."""

    def hold_back(self, number: int, *, review: bool = False) -> None:
        """From the event after `number` on, it catches up by itself; with `review`, what it may have is asked first."""

    def flush(self) -> None:
        """Writes what the session has to send, and closes if it wants to."""


class Router:
    """The connections of one gateway. It listens to the feed.

    `clock` gives seconds since 1970. `rights_changed` is told the id of a transaction that changed what callers, or
    one user, may have, before anybody's rights are asked for again; `delivered` each event's type, how many frames were
    written past the sessions, in how many bytes, and how long after the commit, in seconds, if there was anybody to
    write to.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        limit: int,
        limit_per_user: int,
        clock: Callable[[], float],
        rights_changed: Callable[[int, UUID | None], None],
        delivered: Callable[[str, int, int, float | None], None],
    ) -> None:
        self._feed = feed
        self._delivered = delivered
        self._rights_changed = rights_changed
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._clock = clock
        self._by_key: dict[str, dict[Connection, None]] = {}
        self._keys: dict[Connection, set[str]] = {}
        self._by_client: dict[tuple[object, str], Connection] = {}
        self._by_user: dict[object, int] = {}
        self._stitching: dict[Connection, None] = {}
        feed.listen(self)

    @property
    def connections(self) -> list[Connection]:
        """All that were admitted and have not left."""
        return list(self._keys)

    @property
    def channels(self) -> int:
        """How many different channels are held by connections that follow the feed."""
        return len(self._by_key)

    @property
    def subscriptions(self) -> int:
        """How many channels are held, over all connections."""
        return sum(len(connection.session.channels) for connection in self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def admit(self, connection: Connection) -> bool:
        """Takes in a connection, in place of an earlier one of the same client; False when there are too many."""
        session = connection.session
        client = (_owner(session), session.client_id)
        earlier = self._by_client.get(client)
        if earlier is not None:
            self.leave(earlier)
            earlier.session.close(Close.REPLACED)
            earlier.flush()
        user = client[0]
        if len(self._keys) >= self._limit or self._by_user.get(user, 0) >= self._limit_per_user:
            return False
        self._by_client[client] = connection
        self._by_user[user] = self._by_user.get(user, 0) + 1
        self._keys[connection] = set()
        return True

    def leave(self, connection: Connection) -> None:
        """Forgets a connection; does nothing for one it does not know."""
        keys = self._keys.pop(connection, None)
        if keys is None:
            return
        for key in keys:
            self._release(key, connection)
        self._stitching.pop(connection, None)
        client = (_owner(connection.session), connection.session.client_id)
        if self._by_client.get(client) is connection:
            del self._by_client[client]
        self._by_user[client[0]] -= 1
        if not self._by_user[client[0]]:
            del self._by_user[client[0]]

    def follow(self, connection: Connection) -> None:
        """Brings what the connection is sent in line with the channels that its session holds now.

        One that is not behind has been given everything up to the feed's place.
        """
        held = self._keys.get(connection)
        if held is None:
            return
        wanted = set() if connection.behind else set(connection.session.channels.values())
        for key in held - wanted:
            self._release(key, connection)
        for key in wanted - held:
            self._by_key.setdefault(key, {})[connection] = None
        self._keys[connection] = wanted
        if connection.behind:
            self._stitching.pop(connection, None)
            return
        if connection.session.seen is not None:
            connection.session.advanced(self._feed.position)
        if connection.session.seen is not None:
            self._stitching[connection] = None

    def _release(self, key: str, connection: Connection) -> None:
        holders = self._by_key[key]
        holders.pop(connection, None)
        if not holders:
            del self._by_key[key]

    # The feed's listener

    def event(self, event: Event) -> None:
        """Writes the event to whoever holds one of its channels, once each."""
        if CONTROL in event.channels:
            self._control(event)
        holders = self._holders(event)
        if not holders:
            self._delivered(event.event_type, 0, 0, None)
            return
        frames, size = self._write(event, holders)
        self._delivered(event.event_type, frames, size, self._clock() - event.committed_at)

    def _write(self, event: Event, holders: Iterable[Connection]) -> tuple[int, int]:
        """How many frames were written, and how many bytes."""
        now = self._clock()
        count = size = 0
        broken: Exception | None = None
        event_id = f"{self._feed.epoch}-{event.number}"
        frames: dict[tuple[str, str], bytes] = {}
        for connection in holders:
            session = connection.session
            try:
                if session.asked and session.asks(event):
                    connection.hold_back(event.number - 1)
                    continue
                if session.seen is not None:
                    session.event(event, now)
                    connection.flush()
                    continue
                channel = session.channel_of(event)
                if channel is None:
                    continue
                key = (channel, session.last_id)
                data = frames.get(key)
                if data is None:
                    payload = build(event, Delivery(event_id, session.last_id, channel), now)
                    data = frames[key] = frame(payload)
                session.delivered(event, event_id)
                connection.write(data)
                count += 1
                size += len(data)
            except Exception as error:  # the others get the event all the same; this one comes back for it
                broken = error
                session.close(Close.RESTART)
                connection.flush()
        if broken is not None:
            raise broken
        return count, size

    def _control(self, event: Event) -> None:
        """What the database has to say to gateways."""
        if event.event_type == "revoked":
            try:
                user = UUID(event.user_id or "")
            except ValueError:
                return
            self._rights_changed(event.xid, user)  # or a token would open another socket until the commit is visible
            for connection in self.connections:
                if connection.session.identity.subject == user:
                    connection.session.close(Close.TOKEN)
                    connection.flush()
        elif event.event_type == "policies_changed":
            self._rights_changed(event.xid, None)
            for connection in self.connections:
                if connection.session.identity.subject is not None:
                    connection.hold_back(event.number, review=True)

    def _holders(self, event: Event) -> Iterable[Connection]:
        found = [holders for key in event.keys if (holders := self._by_key.get(key))]
        if len(found) == 1:
            return list(found[0])
        return {connection: None for holders in found for connection in holders}

    def advanced(self, position: int) -> None:
        """Ends the stitch of those whose snapshot the stream has passed."""
        if self._stitching:
            for connection in list(self._stitching):
                connection.session.advanced(position)
                if connection.session.seen is None:
                    del self._stitching[connection]

    def history_changed(self) -> None:
        """Everyone comes back, and is told then whether the history goes on."""
        for connection in self.connections:
            connection.session.close(Close.RESTART)
            connection.flush()


def _owner(session: Session) -> object:
    """Whose connection it is: a client id means something only among those of one user and role."""
    return (session.identity.role, session.identity.subject, session.user_id)

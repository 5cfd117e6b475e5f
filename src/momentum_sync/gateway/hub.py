"""From channels to connections: who holds what, and one event to all of them.

A frame is built once for all connections whose previous event was the same, and its JSON is the database's own; what
differs between connections is only `previous_id`. Connections are kept in two groups, so that those that need no look
at the event cost a comparison and two assignments. What events that came together bring for one of them goes out in
one write: a score's change and its invalidation, which every update makes, cost one send instead of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from momentum_sync.eventlog.event import CACHE_INVALIDATION, CONTROL, Event
from momentum_sync.eventlog.feed import Feed
from momentum_sync.gateway.session import Session, build
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import DeliveryIds, frame


class Connection(Protocol):
    """A socket with a session. While `behind`, it catches up by itself and is not sent what the feed brings."""

    session: Session
    behind: bool

    def write(self, data: bytes) -> None:
        """Writes whole frames."""

    def takes(self, size: int) -> bool:
        """Whether so many bytes more may wait for it, if it does not read."""

    def hold_back(self, offset: int, *, review: bool = False) -> None:
        """From the event after `offset` on, it catches up by itself; with `review`, what it may have is asked first."""

    def flush(self) -> None:
        """Writes what the session has to send, and closes if it wants to."""


_Holders = dict[Connection, None]
_Out = dict[Connection, bytes]
LARGE = 64 * 1024  # bytes of an event for which there must be room before it is written; a socket takes less at once
_TOGETHER = 16 * 1024  # bytes that are not kept for one write any longer; of each connection, in one turn of the loop


class _Held(NamedTuple):
    """What a connection is found by, and whether it is among the plain."""

    keys: tuple[str, ...]
    plain: bool


_NOTHING = _Held((), plain=False)
_NOBODY: _Holders = {}


class Hub:
    """The connections of one gateway. It listens to the feed.

    `clock` gives seconds since 1970. `rights_changed` is told the id of a transaction that changed what callers, or
    one user, may have, before anybody's rights are asked for again, and `rights_missed` that there may have been such a
    change; `delivered` what became of the events that came together.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        limit: int,
        limit_per_user: int,
        clock: Callable[[], float],
        rights_changed: Callable[[int, UUID | None], None],
        rights_missed: Callable[[], None],
        delivered: Callable[[Sequence[Broadcast]], None],
    ) -> None:
        self._feed = feed
        self._delivered = delivered
        self._rights_changed = rights_changed
        self._rights_missed = rights_missed
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._clock = clock
        # Who holds a key. For the plain every event on it is; the snapshot of the careful may have it, or the database
        # has to be asked.
        self._plain: dict[str, _Holders] = {}
        self._careful: dict[str, _Holders] = {}
        self._held: dict[Connection, _Held] = {}
        self._by_client: dict[tuple[object, str], Connection] = {}
        self._by_user: dict[object, int] = {}
        self._stitching: dict[Connection, None] = {}
        self._fanouts: list[Broadcast] = []
        self._out: _Out = {}  # only while events that came together are handed over
        feed.listen(self)

    @property
    def connections(self) -> list[Connection]:
        """All that were admitted and have not left."""
        return list(self._held)

    @property
    def channels(self) -> int:
        """How many different channels are held by connections that follow the feed."""
        return len(self._plain.keys() | self._careful.keys())

    @property
    def subscriptions(self) -> int:
        """How many channels are held, over all connections."""
        return sum(len(connection.session.channels) for connection in self._held)

    def __len__(self) -> int:
        return len(self._held)

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
        if len(self._held) >= self._limit or self._by_user.get(user, 0) >= self._limit_per_user:
            return False
        self._by_client[client] = connection
        self._by_user[user] = self._by_user.get(user, 0) + 1
        self._held[connection] = _NOTHING
        return True

    def leave(self, connection: Connection) -> None:
        """Forgets a connection; does nothing for one it does not know."""
        held = self._held.pop(connection, None)
        if held is None:
            return
        self._release(connection, held)
        self._out.pop(connection, None)
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
        if connection not in self._held:
            return
        session = connection.session
        if connection.behind:
            self._stitching.pop(connection, None)
            self._hold(connection, _NOTHING)
            return
        if session.seen is not None:
            session.advanced(self._feed.position)
        if session.seen is None:
            self._stitching.pop(connection, None)
        else:
            self._stitching[connection] = None
        keys = tuple([_place(channel, key) for channel, key in session.channels.items()])
        self._hold(connection, _Held(keys, plain=session.seen is None and not session.asked))

    def _hold(self, connection: Connection, wanted: _Held) -> None:
        held = self._held[connection]
        if held == wanted:
            return
        self._held[connection] = wanted
        self._release(connection, held)
        for key in wanted.keys:
            (self._plain if wanted.plain else self._careful).setdefault(key, {})[connection] = None

    def _release(self, connection: Connection, held: _Held) -> None:
        table = self._plain if held.plain else self._careful
        for key in held.keys:
            holders = table[key]
            holders.pop(connection, None)
            if not holders:
                del table[key]

    # The feed's listener

    def event(self, event: Event, *, more: bool = False) -> None:
        """Writes the event to whoever holds one of its channels, once each; if `more` follow, with those."""
        if CONTROL in event.channels:
            self._control(event)
        fanout = Broadcast(
            event, f"{self._feed.epoch}-{event.offset}-{event.mark:x}", self._clock(), self._out, keep=more
        )
        self._fanouts.append(fanout)
        for channel, key in zip(event.channels, event.keys, strict=True):
            place = _place(channel, key)
            plain, careful = self._plain.get(place), self._careful.get(place)
            if plain or careful:
                fanout.give(channel, plain or _NOBODY, careful or _NOBODY)
        if fanout.broken is not None:
            raise fanout.broken

    def published(self) -> None:
        """Writes what is kept of the events that came together, and tells what became of them."""
        broken: Exception | None = None
        for connection in list(self._out):
            kept = self._out.pop(connection, None)
            try:
                if kept is not None:  # else its connection has left, because of one before it
                    connection.write(kept)
            except Exception as error:
                broken = _sent_back(connection, error)
        now = self._clock()
        fanouts, self._fanouts = self._fanouts, []
        given = [fanout for fanout in fanouts if fanout.given]
        for fanout in given:
            fanout.delay = now - fanout.event.committed_at
        if broken is not None:
            given[-1].broken = given[-1].broken or broken
        self._delivered(fanouts)
        if broken is not None:
            raise broken

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
                    connection.hold_back(event.offset, review=True)

    def advanced(self, position: int) -> None:
        """Ends the stitch of those whose snapshot the stream has passed."""
        if self._stitching:
            for connection in list(self._stitching):
                connection.session.advanced(position)
                if connection.session.seen is None:
                    self.follow(connection)

    def restarted(self) -> None:
        """Close connections whose snapshot is from before the restart; they reconnect for a new one."""
        for connection in self.connections:
            seen = connection.session.seen
            if seen is not None and seen.incarnation != self._feed.incarnation:
                connection.session.close(Close.RESTART)
                connection.flush()

    def history_changed(self) -> None:
        """Everyone comes back, and is told then whether the history goes on."""
        self._rights_missed()
        for connection in self.connections:
            connection.session.close(Close.RESTART)
            connection.flush()


class Broadcast:
    """One event on its way. `now` is seconds since 1970.

    `out` is what is kept for connections until it is written, as this is with `keep`. `frames` and `size` count what
    went past the sessions; `given` says whether anybody had a channel of it; `delay` is how many seconds after the
    commit the last was written, None if there was nobody to write to; `broken` is what went wrong with a connection,
    which then comes back for the event, while all others get it.
    """

    __slots__ = (
        "_built", "_event_id", "_first", "_keep", "_now", "_out", "_served", "broken", "delay", "event", "frames",
        "given", "size",
    )  # fmt: skip

    def __init__(self, event: Event, event_id: str, now: float, out: _Out, *, keep: bool) -> None:
        self.event = event
        self.frames = 0
        self.size = 0
        self.given = False
        self._first: tuple[_Holders, _Holders] = (_NOBODY, _NOBODY)
        self._served: set[Connection] | None = None
        self.delay: float | None = None
        self.broken: Exception | None = None
        self._out = out
        self._keep = keep
        self._event_id = event_id
        self._now = now
        self._built: dict[tuple[str, str], bytes] = {}

    def give(self, channel: str, plain: _Holders, careful: _Holders) -> None:
        """To the holders of one of its channels, but those who were given it on an earlier one.

        A set of those is made for the second of the channels that anybody holds, so that each holder of each channel is
        looked at once, however many channels there are.
        """
        if not self.given:
            self.given = True
            self._first = plain, careful
        else:
            served = self._served
            if served is None:
                served = self._served = {*self._first[0], *self._first[1]}
            plain, careful = _without(plain, served), _without(careful, served)
            served.update(plain, careful)
        # A plain holder has nothing `asked`, and what went out of sight is for those alone who were asked about.
        if plain and not self.event.out_of_sight:
            self._write(channel, plain)
        if careful:
            for connection in list(careful):
                self._consider(connection)

    def _write(self, channel: str, plain: _Holders) -> None:
        """To plain holders of a channel, or kept for them.

        What is done in this loop is done once a frame, and each object that it looks at is one more that the processor
        has to fetch from memory.
        """
        event_id, cache_keys, keep, out = self._event_id, self.event.cache_keys, self._keep, self._out
        large = len(self.event.body) if len(self.event.body) > LARGE else 0
        alone = not keep and not out
        previous_id, data, size, frames = None, b"", 0, 0
        for connection in list(plain):
            try:
                if large and not connection.takes(large):
                    connection.hold_back(self.event.offset - 1)
                    continue
                session = connection.session
                if session.last_id != previous_id:
                    data = self._frame(channel, session.last_id)
                    previous_id = session.last_id
                session.last_id = event_id
                if cache_keys:
                    session.owe(cache_keys)
                # What is written goes up to the feed's place: one that falls behind is given what follows that.
                if alone:
                    connection.write(data)
                else:
                    whole = out.pop(connection, b"") + data
                    if keep and len(whole) < _TOGETHER:
                        out[connection] = whole
                    else:
                        connection.write(whole)
                size += len(data)
                frames += 1
            except Exception as error:
                self._break(connection, error)
        self.frames += frames
        self.size += size

    def _consider(self, connection: Connection) -> None:
        """To one that may have it already, may not have it yet, or may not have it at all."""
        session, event = connection.session, self.event
        try:
            if session.asks(event):
                connection.hold_back(event.offset - 1)
            elif session.seen is not None:
                session.event(event, self._now)
                connection.flush()
            elif (channel := session.channel_of(event)) is not None:
                if len(event.body) > LARGE and not connection.takes(len(event.body)):
                    connection.hold_back(event.offset - 1)
                    return
                data = self._frame(channel, session.last_id)
                session.delivered(event, self._event_id)
                connection.write(data)
                self.frames += 1
                self.size += len(data)
        except Exception as error:
            self._break(connection, error)

    def _frame(self, channel: str, previous_id: str) -> bytes:
        data = self._built.get((channel, previous_id))
        if data is None:
            payload = build(self.event, DeliveryIds(self._event_id, previous_id, channel), self._now)
            if len(payload) > _TOGETHER:  # of these one at a time is kept, or each connection would have its own
                self._built.clear()
            data = self._built[channel, previous_id] = frame(payload)
        return data

    def _break(self, connection: Connection, error: Exception) -> None:
        self._out.pop(connection, None)
        self.broken = _sent_back(connection, error)


def _sent_back(connection: Connection, error: Exception) -> Exception:
    """Closes a connection that failed, so that it comes back for what it did not get; returns what is to be told."""
    try:
        connection.session.close(Close.RESTART)
        connection.flush()
    except Exception as worse:
        return worse
    return error


def _without(holders: _Holders, others: set[Connection]) -> _Holders:
    if holders.keys().isdisjoint(others):
        return holders
    return {connection: None for connection in holders if connection not in others}


def _place(channel: str, key: str) -> str:
    """Where the holders of a channel are kept. A user's part of `cache_invalidation` has no name that a channel has."""
    return "\0" + key if channel == CACHE_INVALIDATION else key


def _owner(session: Session) -> object:
    """Whose connection it is: a client id means something only among those of one user and role."""
    return (session.identity.role, session.identity.subject, session.user_id)

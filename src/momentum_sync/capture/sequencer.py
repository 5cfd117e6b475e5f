"""Gives events their offsets, as a function of the log's last place and the WAL alone.

A place is (LSN of the commit, index within the transaction), which a crash does not change. The slot repeats messages
that were not confirmed: events at or below the last place in the log are dropped, the others get the offsets that
follow, so a repeated event gets the offset that it had. Indexes count every message under the product's prefix, valid
or not, so that a malformed one shifts nothing; and every change of a followed relation, from the LSN on with which the
database records that it is followed. The partitions of `realtime.messages` are followed together, under one id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from momentum_sync.capture.pgoutput import Begin, Message
from momentum_sync.database.visibility import widen
from momentum_sync.eventlog.envelope import open_envelope
from momentum_sync.eventlog.event import Event

PREFIX = "momentum_sync"


class Sequencer:
    """Numbers the events of the stream that follow the last event in the log.

    Args:
        offset: offset of the last event in the log.
        place: its place.
        near_xid: a current 64-bit transaction id; the stream has only the lower half.
        per_user: channels that deliver an event only to the connections of the event's user.
        followed: by the id of a relation, the LSN after which the commits of its changes become events.

    Attributes:
        offset: offset of the last event.
        reached: LSN of the commit of the last transaction that has begun.
    """

    def __init__(
        self,
        *,
        offset: int,
        place: tuple[int, int],
        near_xid: int,
        per_user: Set[str] = frozenset(),
        followed: Mapping[int, int] | None = None,
    ) -> None:
        self.offset = offset
        self.reached = place[0]
        self._followed = dict(followed or {})
        self._place = place
        self._xid = near_xid
        self._per_user = per_user
        self._begin: Begin | None = None
        self._index = 0

    @property
    def in_transaction(self) -> bool:
        """Return whether the stream is between a begin and its commit."""
        return self._begin is not None

    def begin(self, begin: Begin) -> None:
        """Begin a transaction."""
        self._begin = begin
        self.reached = begin.lsn
        self._index = 0
        self._xid = widen(begin.xid, self._xid)

    def message(self, message: Message) -> Event | None:
        """Return the event in a message; None for another program's message, and for one that is in the log.

        Raises:
            Malformed: the message has the product's prefix and is not an envelope.
        """
        # A non-transactional message is decoded even if its transaction aborts, and has no commit that gives it a
        # place.
        if not message.transactional or message.prefix != PREFIX or self._begin is None:
            return None
        place = (self._begin.lsn, self._index)
        self._index += 1
        if place <= self._place:
            return None
        envelope = open_envelope(message.content)
        event = Event.build(
            offset=self.offset + 1,
            place=place,
            xid=self._xid,
            committed_at=self._begin.committed_at,
            channels=envelope.channels,
            body=envelope.body,
            rows=envelope.rows,
            per_user=self._per_user,
        )
        # Set after `Event.build`, which may refuse the event: a malformed message takes no offset.
        self._place = place
        self.offset = event.offset
        return event

    def follow(self, relation: int, after: int) -> None:
        """Give offsets to a relation's changes in transactions that commit after an LSN."""
        self._followed.setdefault(relation, after)

    def is_followed(self, relation: int) -> bool:
        """Return whether changes of a relation become events, in this transaction or in later ones."""
        return relation in self._followed

    def follows(self, relation: int) -> bool:
        """Return whether the changes of a relation in this transaction become events."""
        after = self._followed.get(relation)
        return after is not None and self._begin is not None and self._begin.lsn > after

    def row(self, encode: Callable[[float], tuple[str, bytes]]) -> Event | None:
        """Return the event of a change of a followed relation; None for one that is in the log.

        `encode` returns the event's channel and JSON. It takes the time of the commit, in seconds since 1970. An error
        that it raises leaves the change without an offset, but with a place.
        """
        assert self._begin is not None
        place = (self._begin.lsn, self._index)
        self._index += 1
        if place <= self._place:
            return None
        channel, body = encode(self._begin.committed_at)
        event = Event.build(
            offset=self.offset + 1,
            place=place,
            xid=self._xid,
            committed_at=self._begin.committed_at,
            channels=(channel,),
            body=body,
            logged=True,  # a row is never refused: the slot would repeat it for ever
        )
        self._place = place
        self.offset = event.offset
        return event

    def commit(self) -> None:
        """Complete the transaction."""
        self._begin = None

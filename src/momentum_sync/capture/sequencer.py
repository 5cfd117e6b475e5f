"""From the frames of the stream to numbered events.

An event's place is (LSN of its commit, index within the transaction), which a crash does not change. The slot
repeats what was not confirmed; what is at or below the last place in the log is dropped, the rest gets the offsets
that follow, so a repeated event gets the offset that it had. Indexes count every message under our prefix, readable
or not, so that what is malformed shifts nothing.
"""

from __future__ import annotations

from momentum_sync.capture.pgoutput import Begin, Message
from momentum_sync.database.visibility import widen
from momentum_sync.eventlog.event import Event, open_envelope

PREFIX = "momentum_sync"


class Sequencer:
    """Continues a history behind `offset`, which stood at `place`. `near_xid` is a current 64-bit transaction id."""

    def __init__(self, *, offset: int, place: tuple[int, int], near_xid: int) -> None:
        self.offset = offset
        self._place = place
        self._xid = near_xid
        self._begin: Begin | None = None
        self._index = 0

    @property
    def in_transaction(self) -> bool:
        """Whether the stream stands between a begin and its commit."""
        return self._begin is not None

    def begin(self, begin: Begin) -> None:
        """A transaction begins."""
        self._begin = begin
        self._index = 0
        self._xid = widen(begin.xid, self._xid)

    def message(self, message: Message) -> Event | None:
        """The event in a message; None if it is not ours or not new. Malformed if it is ours and cannot be read."""
        if not message.transactional or message.prefix != PREFIX or self._begin is None:
            return None
        place = (self._begin.lsn, self._index)
        self._index += 1
        if place <= self._place:
            return None
        channels, body, rows = open_envelope(message.content)
        event = Event.build(
            offset=self.offset + 1,
            place=place,
            xid=self._xid,
            committed_at=self._begin.committed_at,
            channels=channels,
            body=body,
            rows=rows,
        )
        self._place = place
        self.offset = event.offset
        return event

    def commit(self) -> None:
        """The transaction is complete."""
        self._begin = None

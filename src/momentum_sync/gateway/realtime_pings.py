"""Pings of the sessions of Supabase's clients after events.

A pong confirms that the client has everything written before the ping. What was written later may arrive twice after a
reconnect, so a session that got events is pinged about once a second. A ping, its pong and the saved position cost as
much as an event, so with many busy clients the interval grows, within bounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from momentum_sync import observe
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.dialects.realtime_services import LiveSession
from momentum_sync.gateway.direct_files import DirectFiles, Owners
from momentum_sync.limits import ResumeLimits
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import ping_frame

_SLOTS = 50


class Pings:
    """The open sessions, each in one of the slots in which they are pinged together.

    Thousands of pings at once would delay the events that come meanwhile, so the slots are spread over the interval.
    A session keeps its slot while others begin and end, so its gaps are no longer than the intervals.

    Args:
        limits: bounds.
    """

    def __init__(self, limits: ResumeLimits) -> None:
        self._limits = limits
        self._slots: list[dict[int, LiveSession]] = [{} for _ in range(_SLOTS)]

    def add(self, session: LiveSession) -> None:
        """Ping a session from now on."""
        number = session.ledger.session
        self._slots[number % _SLOTS][number] = session

    def remove(self, session: LiveSession) -> None:
        """Stop pinging a session."""
        number = session.ledger.session
        del self._slots[number % _SLOTS][number]

    async def run(self, files: DirectFiles, position: Callable[[], Position]) -> None:
        """Ping at intervals, for ever.

        Args:
            files: the files of all connections.
            position: returns the feed's position.
        """
        limits = self._limits
        shortest, longest = limits.ping_s / _SLOTS, limits.longest_ping_s / _SLOTS
        pause = shortest
        while True:
            passed, waits = 0, 0.0
            for place, slot in enumerate(self._slots, 1):
                waits += pause
                if slot or place == _SLOTS:  # empty slots do not wake the process 50 times a second
                    await asyncio.sleep(waits)
                    pinged = 0
                    for each in self._slots[passed:place]:  # sessions may have begun meanwhile in those that were empty
                        pinged += _ping_due(each.values(), files, position)
                    pause = max(shortest, min(pinged / limits.pings_per_s, longest))
                    passed, waits = place, 0.0


def _ping_due(sessions: Iterable[LiveSession], files: DirectFiles, position: Callable[[], Position]) -> int:
    """Ping the sessions for which that is due. Return how many those are."""
    at_once = 0
    due: list[LiveSession] = []
    for session in list(sessions):  # one that fails ends
        number = session.ledger.pinged
        if _is_due(session):
            due.append(session)
        elif session.ledger.pinged != number:
            at_once += 1
    _ping(due, files, position)
    return at_once + len(due)


def _ping(due: Sequence[LiveSession], files: DirectFiles, position: Callable[[], Position]) -> None:
    """Send one ping to sessions that have all been written everything up to the feed's position."""
    if not due:
        return
    number, here, owners = 1 + max(session.ledger.pinged for session in due), position(), Owners(due)
    for session in due:
        session.note_ping(number, here)
    for unwritten, rest in files.write(owners.numbers(), ping_frame(str(number).encode())):
        try:
            owners[unwritten].write(rest)
        except Exception as error:
            _drop(owners[unwritten], error)


def _is_due(session: LiveSession) -> bool:
    """Return whether a ping is due that may be written along with others'."""
    try:
        return session.ping_if_due()
    except Exception as error:
        _drop(session, error)
        return False


def _drop(session: LiveSession, error: Exception) -> None:
    """Close a connection that failed, so that it resumes, and go on with the others."""
    observe.failed("a ping", error)
    try:
        session.drop(Close.RESTART)
    except Exception as worse:
        observe.failed("the end of a connection", worse)

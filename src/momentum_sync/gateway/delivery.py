"""What goes out on one socket: how much of it waits, whether the client reads, and what it has still to be given.

A connection that follows the feed is pushed every event. One that holds more unsent bytes than it may falls behind: it
is pushed nothing, and once it has read what waits, it is given what it missed, a page at a time, from the window or the
log, until it has caught up and follows again. A resume and the events after a snapshot are the same from the other
side: the connection begins behind. So memory is bounded, nobody who reads is disconnected, and no event is left out.
Who reads nothing at all for a while is closed as too slow, and comes back to where it was.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Coroutine, Sequence, Set
from typing import Protocol

from momentum_sync import observe
from momentum_sync.errors import Forbidden, RequestError, Unauthenticated, Unavailable
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.resume import Refused
from momentum_sync.gateway.hub import LARGE, Connection, Hub
from momentum_sync.gateway.send_budget import SendBudget
from momentum_sync.gateway.snapshot import Desk
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.close import Close

_PATIENCE_S = 10.0
_TURN_S = 30.0  # for reading what there was no room for, see `SendBudget.wait_for_turn`
_UNCOUNTED = 4 * 1024  # bytes that a transport may hold before the connection counts as waiting
_NOT_OURS = frozenset({errno.EBADF, errno.ENOTSOCK})  # the file is closed, or another's: a defect
_PAGE = 64 * 1024
_SMALL_PAGE = 1024


class Socket(Connection, Protocol):
    """The connection whose outflow it is."""

    def finish(self, why: Close) -> None:
        """Ends the connection."""

    def drained(self) -> None:
        """The client has read nearly all that waited."""


def close_for(error: Exception) -> Close:
    """How a connection ends for which the database would not, or could not, do what it needs."""
    if isinstance(error, Forbidden):  # it may not act for the user whose connection it is
        return Close.NOT_ALLOWED
    if isinstance(error, Unauthenticated):  # its token was revoked
        return Close.TOKEN
    return Close.RESTART  # it comes back, and is told then what can be had


class Delivery:
    """The outgoing half of one connection. `most` is the bytes that may wait for it unsent."""

    __slots__ = (
        "_asking", "_send_budget", "_begun", "_beyond", "_desk", "_direct", "_ended", "_file", "_history",
        "_loop", "_most", "_page_bytes", "_patience", "_review", "_hub", "_socket", "_transport", "_turn_s",
        "_waiting", "_written",
    )  # fmt: skip

    def __init__(
        self,
        socket: Socket,
        transport: asyncio.Transport,
        history: History,
        desk: Desk,
        hub: Hub,
        send_budget: SendBudget,
        most: int,
    ) -> None:
        self._socket = socket
        self._transport = transport
        self._history = history
        self._desk = desk
        self._hub = hub
        self._send_budget = send_budget
        self._most = most
        self._loop = asyncio.get_running_loop()
        # Over TLS a frame is not what goes into the socket.
        plain = None if transport.get_extra_info("sslcontext") else transport.get_extra_info("socket")
        self._file = -1 if plain is None else plain.fileno()
        self._direct = False
        self._waiting = False
        self._written = 0
        self._beyond = 0
        self._begun = False
        self._ended = False
        self._review = False
        self._asking: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._page_bytes = _PAGE
        self._turn_s = 0.0
        transport.set_write_buffer_limits(high=_UNCOUNTED)

    def end(self) -> None:
        """Nothing more is written; what waits may still go out."""
        self._ended = True
        self._direct = False
        if self._patience is not None:
            self._patience.cancel()

    def lost(self) -> None:
        """The socket is gone, and what waited with it."""
        self.end()
        self._send_budget.lost(self)

    @property
    def waits(self) -> bool:
        """Whether the client has yet to read something."""
        return self._waiting

    def takes(self, size: int) -> bool:
        """Whether so many bytes may be written, although the client may read none of them."""
        return self._send_budget.has_room(size)

    def write(self, data: bytes) -> None:
        """Writes whole frames. What the socket does not take is kept as a part of them, not as a copy for each
        connection.

        A transport keeps what is written until the loop's turn ends, which costs as much again as the socket's send;
        so frames go past it while it keeps nothing, and it gets only what the socket does not take at once.
        """
        if self._direct or self._may_be_direct():
            try:
                sent = os.write(self._file, data)
            except OSError as error:  # full; or broken, which the transport finds out
                if error.errno in _NOT_OURS:
                    raise
                sent = 0
            if sent == len(data):
                return
            rest: bytes | memoryview = memoryview(data)[sent:]
        elif self._ended:
            return
        else:
            rest = data
        waited = self._waiting
        self.pass_on(rest)
        if not self._waiting:
            return
        if waited:
            self._written += len(data)
        over = self._send_budget.grew(self, self._transport.get_write_buffer_size())
        if not self._socket.behind:
            if over:
                self._fall_behind(self._history.offset)
        elif waited:
            # Answers to a client that reads nothing and keeps asking.
            self._beyond += len(data)
            if self._beyond > self._most:
                self._socket.finish(Close.TOO_SLOW)

    def _may_be_direct(self) -> bool:
        self._direct = not self._ended and self._file >= 0 and self._transport.get_write_buffer_size() == 0
        return self._direct

    def pass_on(self, data: bytes | memoryview) -> None:
        """To the transport, whatever it is: the handshake, pongs and the end are none of the session's frames."""
        self._direct = False
        self._transport.write(data)

    def paused(self) -> None:
        """Something waits that the client has not read."""
        if self._ended:
            return
        self._waiting = True
        self._written = self._beyond = 0
        self._turn_s = 0.0
        self._watch(self._transport.get_write_buffer_size())

    def resumed(self) -> None:
        """The client has read nearly all of it."""
        self._waiting = False
        self._socket.drained()
        self._send_budget.gone(self)
        if self._patience is not None:
            self._patience.cancel()
        if self._begun and self._socket.behind:
            self.catch_up()

    def _watch(self, waiting: int) -> None:
        self._written = 0
        self._patience = self._loop.call_later(_PATIENCE_S, self._still_waiting, waiting)

    def _still_waiting(self, before: int) -> None:
        """A client that has read nothing for a while is too slow; one that reads has time, but for a turn."""
        waiting = self._transport.get_write_buffer_size()
        if self._send_budget.has_turn(self):
            self._turn_s += _PATIENCE_S
        if waiting >= before + self._written or self._turn_s >= _TURN_S:
            self._socket.finish(Close.TOO_SLOW)
        else:
            self._watch(waiting)

    def _fall_behind(self, offset: int) -> None:
        self._socket.session.place = offset
        self._socket.behind = True
        self._hub.follow(self._socket)

    def hold_back(self, offset: int, *, review: bool) -> None:
        """What comes after `offset` is given once the database has said whether it may be; see `Connection`."""
        self._review = self._review or review
        if not self._socket.behind:
            self._fall_behind(offset)
        if self._begun:  # not at once: what came before in this turn of the feed may not have been written yet
            self._loop.call_soon(self.catch_up)

    def catch_up(self) -> None:
        """Gives the connection what it has missed, as fast as it reads; then it follows the feed."""
        try:
            self._catch_up()
        except Exception as error:  # else it would stay behind, open and silent
            observe.failed("catching up", error)
            self._socket.finish(Close.RESTART)

    def _catch_up(self) -> None:
        self._begun = True
        if self._asking is not None:  # it goes on, and its turn does, when there is the answer
            return
        if self._ended or self._waiting or not self._socket.behind:
            self._send_budget.given(self)  # a turn that it does not use
            return
        if self._review:
            self._ask(self._ask_rights())
            return
        session = self._socket.session
        keys = list(session.channels.values())
        found = self._history.at_hand(session.place, keys, most=self._page)
        if found is None:
            self._ask(self._ask_log(keys))
        elif self._lacks_room(found[0]):  # before the database is asked about it
            self._send_budget.wait_for_turn(self, self._ready)
        elif asked := [event for event in found[0] if session.asks(event)]:
            self._ask(self._ask_sight(*found, asked, keys))
        else:
            self._give(*found)

    def _lacks_room(self, events: list[Event]) -> bool:
        """Whether the page has an event that is large, for which there is no room, and it is not this one's turn."""
        largest = max((len(event.body) for event in events), default=0)
        return largest > LARGE and not self._send_budget.has_room(largest) and not self._send_budget.has_turn(self)

    def _ready(self) -> None:
        self._loop.call_soon(self.catch_up)

    @property
    def _page(self) -> int:
        """Bytes of a page; an event at a time while all connections together hold as much as they may.

        The same after a page about which the database was asked for too long, and then twice as much each time.
        """
        return 0 if self._send_budget.full else self._page_bytes

    def _give(self, events: list[Event], upto: int, withheld: Set[int] = frozenset(), lost: Sequence[str] = ()) -> None:
        """Hand events on, and then end the channels that were lost: the last event may say that a row went with one."""
        if self._lacks_room(events):  # others may have taken it while the database was asked
            self._send_budget.wait_for_turn(self, self._ready)
            return
        session = self._socket.session
        now = time.time()
        for event in events:
            if event.offset not in withheld:
                session.event(event, now)
        if lost:
            session.reviewed(lost, Granted(), now)
        session.place = upto
        self._page_bytes = min(_PAGE, max(_SMALL_PAGE, 2 * self._page_bytes))
        self._socket.flush()
        self._send_budget.given(self)
        if self._ended:
            return
        if upto == self._history.offset and not self._review:
            self._socket.behind = False
            self._hub.follow(self._socket)
        else:
            self._loop.call_soon(self.catch_up)

    def _ask(self, question: Coroutine[None, None, None]) -> None:
        """Asks the database something, and goes on when it has answered."""
        self._asking = self._loop.create_task(self._answered(question))

    async def _answered(self, question: Coroutine[None, None, None]) -> None:
        try:
            await question
        except Exception as error:
            if not isinstance(error, Refused | RequestError):
                observe.failed("catching up", error)
            self._socket.finish(close_for(error))
        finally:
            self._asking = None
        self.catch_up()

    async def _ask_log(self, keys: list[str]) -> None:
        """Fetches a page of the log, into the window's place."""
        session = self._socket.session
        events, upto = await self._history.after(session.epoch, session.place, keys, most=self._page)
        asked = [event for event in events if session.asks(event)]
        if asked:
            await self._ask_sight(events, upto, asked, keys)
        elif self._is_as_before(session.identity, keys):
            self._give(events, upto)

    async def _ask_sight(self, events: list[Event], upto: int, asked: list[Event], keys: list[str]) -> None:
        """Gives a page without those of its events that the caller may not see."""
        session = self._socket.session
        identity = session.identity
        try:
            seen, lost = await self._desk.sight(session, asked)
        except Unavailable:
            if len(events) == 1:
                raise
            self._page_bytes = 0  # too many at once for a policy that takes long
            return
        if not self._is_as_before(identity, keys):
            return
        observe.asked(len(seen), len(asked) - len(seen))
        self._give(events, upto, {event.offset for event in asked} - seen, lost)

    def _is_as_before(self, identity: Identity, keys: list[str]) -> bool:
        """Whether what was asked still is what the connection needs; if not, it is asked again."""
        session = self._socket.session
        same = session.identity is identity and keys == list(session.channels.values())
        return same and not self._ended and not self._waiting and not self._review

    async def _ask_rights(self) -> None:
        """What the caller may have may have changed."""
        session = self._socket.session
        self._review = False
        identity, channels = session.identity, list(session.channels)
        granted = await self._desk.grant(identity, session.user_id, channels)
        if session.identity is identity:  # else the new token's rights were asked for
            session.reviewed(channels, granted, time.time())
            self._socket.flush()

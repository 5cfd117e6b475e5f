"""Delivery: the outgoing side of one connection, with backpressure and catch-up.

Every event is written at once to a connection that follows the feed. When its unsent bytes exceed the send budget, the
connection falls behind: nothing more is written until the client has read the buffer. Then it gets the events that it
missed, one page at a time, from the window or the log, until it has caught up. A resume and the events after a snapshot
work the same way: the connection begins behind. So memory is bounded, and no event is left out. A client that reads
nothing for a while is closed as too slow, and resumes at its position; so is one whose replies and client broadcasts
exceed its budget while it is behind.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Coroutine, Sequence, Set
from typing import TYPE_CHECKING, Protocol

from momentum_sync import observe
from momentum_sync.errors import Forbidden, RequestError, Unauthenticated, Unavailable
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.page import Page
from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.resume import ResumeRefused
from momentum_sync.gateway.connection_states import DELIVERY_TRANSITIONS, DeliveryState
from momentum_sync.gateway.conversation import Conversation
from momentum_sync.gateway.direct_files import CLOSED
from momentum_sync.gateway.subscriber import Subscriber
from momentum_sync.states import enter
from momentum_sync.wire.close import Close

if TYPE_CHECKING:
    from momentum_sync.gateway.gateway import Gateway

_DEFECTS = frozenset({errno.EBADF})  # a write after `lost`, before which the file cannot be closed


class Connection(Subscriber, Protocol):
    """The connection that a `Delivery` writes to."""

    @property
    def conversation(self) -> Conversation:
        """Return the client's session."""

    def flush(self, frames: Sequence[bytes] = ()) -> None:
        """Write the messages that wait, then these frames, at once."""

    def index(self) -> None:
        """Have the hub index the present subscriptions, if the connection follows the feed."""

    def finish(self, why: Close) -> None:
        """End the connection."""

    def drained(self) -> None:
        """Note that the client has read nearly everything."""


def close_for(error: Exception) -> Close:
    """Return the close code for a connection after a failure of its work in the database."""
    if isinstance(error, Forbidden):  # the caller may not act for the connection's user
        return Close.NOT_ALLOWED
    if isinstance(error, Unauthenticated):  # the token was revoked
        return Close.TOKEN
    return Close.RESTART  # the client reconnects, and learns then whether a resume is possible


def error_for_client(error: Exception, where: str) -> RequestError:
    """Return the error for a client after a failure, and log one that is a defect of the server's."""
    if isinstance(error, RequestError):
        return error
    observe.failed(where, error)
    return Unavailable("Something went wrong here; try again in a moment.")


class Delivery:
    """The outgoing side of one connection.

    Attributes:
        file: its file, open while the transport buffers nothing.
    """

    __slots__ = (
        "_beyond", "_connection", "_descriptor", "_gateway", "_is_lost", "_loop", "_page_bytes", "_paused", "_question",
        "_review", "_stall", "_state", "_transport", "_turn_s", "_written", "file",
    )  # fmt: skip

    def __init__(self, connection: Connection, transport: asyncio.Transport, gateway: Gateway) -> None:
        self._connection = connection
        self._transport = transport
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        # Over TLS the socket gets encrypted records, not frames.
        plain = None if transport.get_extra_info("sslcontext") else transport.get_extra_info("socket")
        self._descriptor = CLOSED if plain is None else plain.fileno()
        self.file = gateway.files.add()
        self._state = DeliveryState.PENDING
        self._paused = False
        self._written = 0
        self._beyond = 0
        self._review = False
        self._question: asyncio.Task[None] | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._page_bytes = gateway.limits.delivery.page_bytes
        self._turn_s = 0.0
        self._is_lost = False
        # asyncio's default mark of 64 KiB per connection would stay outside the send budget, which counts only paused
        # connections.
        transport.set_write_buffer_limits(high=gateway.limits.delivery.uncounted_bytes)

    def _enter(self, state: DeliveryState) -> None:
        self._state = enter(self._state, state, DELIVERY_TRANSITIONS)

    @property
    def follows(self) -> bool:
        """Return whether the connection follows the feed."""
        return self._state is DeliveryState.FOLLOWING

    @property
    def offset(self) -> int:
        """Return the offset up to which everything has been written."""
        if self._is_lost:
            return 0
        return self._gateway.history.offset if self.follows else self._connection.cursor.offset

    @property
    def position(self) -> Position | None:
        """Return a position up to which everything has been written; None if none is known."""
        if self.follows:
            return self._gateway.history.position
        if self._is_lost:
            return None
        cursor = self._connection.cursor
        mark = self._gateway.history.known_mark(cursor.offset)
        # Far behind, in the log, only the marks of delivered events are known.
        return cursor.delivered if mark is None else Position(cursor.epoch, cursor.offset, mark)

    def rewind(self, offset: int) -> None:
        """Catch up from an earlier offset. The cursor decides which of the events are for the client."""
        if self._state is DeliveryState.FOLLOWING:
            self._fall_behind(offset)
            self._loop.call_soon(self.catch_up)
        else:
            self._connection.cursor.rewind(offset)

    @property
    def paused(self) -> bool:
        """Return whether the client has yet to read something."""
        return self._paused

    def begin(self) -> None:
        """Send the connection the events after its cursor, then follow the feed."""
        self._enter(DeliveryState.CATCHING_UP)
        self.catch_up()

    def end(self) -> None:
        """Write nothing more; buffered data may still be sent."""
        self._enter(DeliveryState.ENDED)
        # The file descriptor may soon belong to another connection, so only the transport may write from now on.
        self.file.close()
        if self._stall is not None:
            self._stall.cancel()

    def lost(self) -> None:
        """Note that the socket is closed and its buffer discarded."""
        self.end()
        self._gateway.send_budget.lost(self)
        self._is_lost = True
        self._release()

    def _release(self) -> None:
        """Forget the connection once it is of no use, or only a garbage collection would free the two."""
        if self._is_lost and self._question is None:
            del self._connection

    # Writing

    def has_room(self, size: int) -> bool:
        """Return whether `size` bytes may be written even if the client does not read."""
        return self._gateway.send_budget.has_room(size)

    def write(self, data: bytes | memoryview) -> None:
        """Write whole frames, or the rest of some.

        Data that the socket does not take stays a part of them: there is no copy for each connection.

        asyncio sends at the end of the loop iteration, which costs as much again as the send itself; so frames bypass
        the transport while it buffers nothing.
        """
        file = self.file
        descriptor = file.descriptors[file.number]
        if descriptor >= 0 or (descriptor := self._may_be_direct()) >= 0:
            try:
                sent = os.write(descriptor, data)
            except OSError as error:  # full; or broken, which the transport notices
                if error.errno in _DEFECTS:
                    raise
                sent = 0
            if sent == len(data):
                return
            rest: bytes | memoryview = memoryview(data)[sent:]
        elif self._state is DeliveryState.ENDED:
            return
        else:
            rest = data
        # `Transport.write` may call `pause` before it returns.
        was_paused = self._paused
        self.write_raw(rest)
        if not self._paused:
            return
        if was_paused:
            # Bytes added since the last check would otherwise look like a client that reads nothing.
            self._written += len(data)
        over = self._gateway.send_budget.grew(self, self._transport.get_write_buffer_size())
        if self._state is DeliveryState.FOLLOWING:
            if over:
                # Every event up to the feed's offset has now been written to the connection, so it catches up from
                # there.
                self._fall_behind(self._gateway.history.offset)
        elif was_paused:
            # Answers to a client that reads nothing and keeps asking, or broadcasts. They wait for no turn, so they may
            # not keep the total exhausted, for which all others would wait.
            self._beyond += len(data)
            gateway = self._gateway
            most = gateway.limits.delivery.large_bytes if gateway.send_budget.full else gateway.send_buffer
            if self._beyond > most:
                self._connection.finish(Close.TOO_SLOW)

    def _may_be_direct(self) -> int:
        # Bytes in the transport's buffer must leave first, or frames would be reordered or interrupted.
        if self._state is not DeliveryState.ENDED and self._transport.get_write_buffer_size() == 0:
            self.file.open(self._descriptor)
            return self._descriptor
        return CLOSED

    def write_raw(self, data: bytes | memoryview) -> None:
        """Write data to the transport without counting it: the handshake, pongs and the close frame."""
        # The transport may buffer this data, and a direct write would overtake it.
        self.file.close()
        self._transport.write(data)

    # Backpressure

    def pause(self) -> None:
        """Note that the transport buffers data that the client has not read."""
        if self._state is DeliveryState.ENDED:
            return
        self._paused = True
        self._written = self._beyond = 0
        self._turn_s = 0.0
        self._watch(self._transport.get_write_buffer_size())

    def resume(self) -> None:
        """Note that the client has read nearly everything."""
        self._paused = False
        self._connection.drained()
        self._gateway.send_budget.drained(self)
        if self._stall is not None:
            self._stall.cancel()
        if self._state is DeliveryState.CATCHING_UP:
            self.catch_up()

    def _watch(self, unsent: int) -> None:
        self._written = 0
        self._stall = self._loop.call_later(self._gateway.limits.delivery.stall_s, self._check_progress, unsent)

    def _check_progress(self, before: int) -> None:
        """Close a client that has read nothing meanwhile; one that reads has time, but for its turn."""
        limits = self._gateway.limits.delivery
        unsent = self._transport.get_write_buffer_size()
        if self._gateway.send_budget.has_turn(self):
            # A client that reads a byte now and then makes progress, but could hold the turn that all others wait for.
            self._turn_s += limits.stall_s
        if unsent >= before + self._written or self._turn_s >= limits.turn_s:
            self._connection.finish(Close.TOO_SLOW)
        else:
            self._watch(unsent)

    def _fall_behind(self, offset: int) -> None:
        self._connection.cursor.fall_behind(offset)
        self._enter(DeliveryState.CATCHING_UP)
        self._connection.index()

    def hold_back(self, offset: int, *, review: bool) -> None:
        """Stop following the feed after `offset`; see `Subscriber`."""
        # Recorded in every state: a connection that is opening or waits for the database renews its grants before it
        # continues.
        self._review = self._review or review
        if self._state is DeliveryState.FOLLOWING:
            self._fall_behind(offset)
        if self._state is DeliveryState.CATCHING_UP:  # later: frames collected before may not have been written yet
            self._loop.call_soon(self.catch_up)

    # Catching up

    def catch_up(self) -> None:
        """Give the connection the next page of missed events, or let it follow the feed."""
        try:
            self._catch_up()
        except Exception as error:  # it would stay behind, open and silent
            observe.failed("catching up", error)
            self._connection.finish(Close.RESTART)

    def _catch_up(self) -> None:
        if self._state is DeliveryState.ASKING:  # it goes on, and so does its turn, when the answer is there
            return
        budget = self._gateway.send_budget
        # A change of policies precedes in the log the events that it affects, so grants come before the next page. They
        # do not wait until the client has read everything: meanwhile it could send with rights that it has lost.
        if self._review and self._state is DeliveryState.CATCHING_UP:
            self._ask(self._ask_grants())
            return
        if self._state is not DeliveryState.CATCHING_UP or self._paused:
            budget.done(self)  # a turn that it does not use
            return
        cursor = self._connection.cursor
        keys = list(cursor.channels.values())
        page = self._gateway.history.in_window(cursor.offset, cursor.lookups, most=self._page)
        if page is None:
            self._ask(self._ask_log(keys))
        elif self._lacks_room(page.events):  # before the database is asked about them
            budget.wait_for_turn(self, self._ready)
        elif unchecked := [event for event in page.events if cursor.must_check(event)]:
            self._ask(self._ask_filter(page, unchecked, keys))
        else:
            self._give(page)

    def _lacks_room(self, events: list[Event]) -> bool:
        """Return whether a large event of the page has no room, and it is not this connection's turn."""
        cursor, budget = self._connection.cursor, self._gateway.send_budget
        large = self._gateway.limits.delivery.large_bytes
        largest = max((len(each.body) for each in events if len(each.body) > large and cursor.wants(each)), default=0)
        return largest > 0 and not budget.has_room(largest) and not budget.has_turn(self)

    def _ready(self) -> None:
        # The budget calls this inside its own methods, and catching up at once would re-enter them.
        self._loop.call_soon(self.catch_up)

    @property
    def _page(self) -> int:
        """Return the bytes of the next page; 0, which is one event, while the send budget is exhausted."""
        return 0 if self._gateway.send_budget.full else self._page_bytes

    def _give(self, page: Page, withheld: Set[int] = frozenset(), lost: Sequence[str] = ()) -> None:
        """Write a page, then end the channels that were lost: its last event may report that a row went with one."""
        if self._lacks_room(page.events):  # others may have taken it while the database was asked
            self._gateway.send_budget.wait_for_turn(self, self._ready)
            return
        connection, now = self._connection, time.time()
        cursor, conversation = connection.cursor, connection.conversation
        frames = []
        for event in page.events:
            if event.offset not in withheld and (ids := cursor.deliver(event)) is not None:
                frames.append(conversation.encode(event, ids, now))
                connection.expect_acks(event.cache_keys)
        if lost:
            self._connection.flush(frames)
            conversation.lose(lost, now)
            frames = []
        cursor.rewind(page.through)
        limits = self._gateway.limits.delivery
        self._page_bytes = min(limits.page_bytes, max(limits.smallest_page_bytes, 2 * self._page_bytes))
        self._connection.flush(frames)
        self._gateway.send_budget.done(self)
        # `flush` ends a connection if its session is closing or its client is too slow.
        if self._state is not DeliveryState.CATCHING_UP:
            return
        # No `await` lies between this comparison and `update`, so no event falls between the page and the feed.
        if page.through == self._gateway.history.offset and not self._review:
            self._enter(DeliveryState.FOLLOWING)
            cursor.follow()
            connection.index()
        else:
            # One page per loop iteration: capture and other connections run in between.
            self._loop.call_soon(self.catch_up)

    def _ask(self, question: Coroutine[None, None, None]) -> None:
        """Ask the database something, and go on when it has answered."""
        self._enter(DeliveryState.ASKING)
        # asyncio keeps only weak references to tasks.
        self._question = self._loop.create_task(self._answered(question))

    async def _answered(self, question: Coroutine[None, None, None]) -> None:
        try:
            await question
        except Exception as error:
            if not isinstance(error, ResumeRefused | RequestError):
                observe.failed("catching up", error)
            self._connection.finish(close_for(error))
        finally:
            if self._question is asyncio.current_task():  # else an answer that was written has led to the next one
                self._question = None
                self._resume_catching_up()
        if self._is_lost:
            self._release()
        elif not self._gateway.send_budget.is_waiting(self):  # else the page would be asked for until there is room
            self.catch_up()

    def _resume_catching_up(self) -> None:
        if self._state is DeliveryState.ASKING:
            self._enter(DeliveryState.CATCHING_UP)

    async def _ask_log(self, keys: list[str]) -> None:
        """Fetch a page that is no longer in the window."""
        cursor, revision = self._connection.cursor, self._connection.conversation.revision
        page = await self._gateway.history.after(cursor.epoch, cursor.offset, keys, most=self._page)
        unchecked = [event for event in page.events if cursor.must_check(event)]
        if unchecked:
            await self._ask_filter(page, unchecked, keys)
        elif self._is_as_before(revision, keys):
            self._resume_catching_up()
            self._give(page)

    async def _ask_filter(self, page: Page, unchecked: list[Event], keys: list[str]) -> None:
        """Write a page without those of its events that the caller may not see."""
        conversation = self._connection.conversation
        revision = conversation.revision
        try:
            visible, lost = await conversation.check(unchecked, self._gateway)
        except Unavailable:
            # A page of one event cannot shrink, so its failure closes the connection with 1012.
            if len(page.events) == 1:
                raise
            self._page_bytes = 0  # too many at once for a policy that is slow
            return
        if not self._is_as_before(revision, keys):
            return
        observe.checked(len(visible), len(unchecked) - len(visible))
        self._resume_catching_up()
        self._give(page, {event.offset for event in unchecked} - visible, lost)

    def _is_as_before(self, revision: object, keys: list[str]) -> bool:
        """Return whether the connection still needs the answer. If not, it is asked again."""
        # During the query the client may change its token or channels or stop reading, and policies may change.
        connection = self._connection
        same = connection.conversation.revision is revision and keys == list(connection.cursor.channels.values())
        return same and self._state is DeliveryState.ASKING and not self._paused and not self._review

    async def _ask_grants(self) -> None:
        """Ask for the caller's rights again."""
        # Cleared before the query: a change of policies while it runs requires another review.
        self._review = False
        await self._connection.conversation.review(self._gateway)
        self._connection.flush()

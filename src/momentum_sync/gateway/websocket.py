"""The WebSocket of a session: a protocol of asyncio on `websockets`' sans-I/O layer, without ASGI between.

One is made for each handshake. The caller is authenticated before the upgrade; then come the opening and the feed.
Messages that need the database are handled one at a time, and reading pauses meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from math import floor
from typing import Any
from uuid import UUID

from uvicorn.server import ServerState
from websockets.frames import Opcode

from momentum_sync import observe
from momentum_sync.errors import BadRequest, RequestError, Unavailable
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.arrival import WebSocket
from momentum_sync.gateway.connection_states import CONNECTION_TRANSITIONS, ConnectionState
from momentum_sync.gateway.conversation import Conversation, Entrance, Request, Work
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.delivery import Delivery, close_for, error_for_client
from momentum_sync.gateway.dialects.realtime_errors import refusal
from momentum_sync.gateway.frames import Frames, rejection
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.handshake import Handshake, acceptance
from momentum_sync.gateway.subscriber import Dialect, Owner
from momentum_sync.identity.tokens import Identity
from momentum_sync.states import enter
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import frame, ping_frame
from momentum_sync.wire.paths import REALTIME_SOCKETS

_ENDED = (ConnectionState.CLOSING, ConnectionState.DISCARDING, ConnectionState.CLOSED)


class WebSocketProtocol(WebSocket):
    """One WebSocket, from the request to the end. It is the hub's `Subscriber`."""

    gateway: Gateway
    cursor: Cursor
    dialect: Dialect
    write: Callable[[bytes | memoryview], None]

    __slots__ = (
        "_aborter", "_after_close", "_delivery", "_frames", "_loop", "_open", "_opening", "_session",
        "_state", "_tasks", "_ticker", "_transport", "cursor", "dialect", "file", "sdk", "write",
    )  # fmt: skip

    def __init__(self, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: set[Any] = state.connections  # typed as a set of uvicorn's own protocols
        self._tasks = state.tasks
        self._frames = Frames(self.gateway.limits.sockets.frame_bytes)
        self._transport: asyncio.Transport
        self._delivery: Delivery
        self._state = ConnectionState.HANDSHAKE
        self._session: Conversation | None = None
        self._opening: asyncio.Task[None] | None = None
        self._after_close = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._aborter: asyncio.TimerHandle | None = None

    def _enter(self, state: ConnectionState) -> None:
        self._state = enter(self._state, state, CONNECTION_TRANSITIONS)

    def _has_ended(self) -> bool:
        return self._state in _ENDED

    # asyncio's side

    def upgraded(self, transport: asyncio.Transport, handshake: Handshake | None, rest: bytes) -> None:
        """Take over a connection; see `WebSocket`."""
        self._transport = transport
        self._open.add(self)
        self.dialect = self.gateway.native
        self._delivery = Delivery(self, self._transport, self.gateway)
        self.file = self._delivery.file
        # The hub calls `write` once per frame, and a method in between would double the calls.
        self.write = self._delivery.write
        # Early messages wait in the kernel until the caller is authenticated and the opening is sent.
        self._transport.pause_reading()
        if handshake is None:
            self._reject(BadRequest("bad_handshake", "The request is not a WebSocket handshake."))
        else:
            self._opening = self._spawn(self._shake_hands(handshake, rest))

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that the connection holds."""
        self._open.discard(self)
        self._enter(ConnectionState.CLOSED)
        if self._opening is not None:  # its answers are of no use; it may have ended
            self._opening.cancel()
            self._opening = None  # its error refers to this object
        self._delivery.lost()
        for timer in (self._ticker, self._aborter):
            if timer is not None:
                timer.cancel()
        if self._session is not None:
            self._session.lost()
            self.gateway.hub.leave(self)
            observe.disconnected(self._frames.closed_with)
        self._frames.release()
        self.gateway.unfreed += 1

    def __del__(self) -> None:
        """Count what was closed and is freed."""
        if self._state is ConnectionState.CLOSED:
            self.gateway.unfreed -= 1

    def data_received(self, data: bytes) -> None:
        """Parse received bytes within the bounds."""
        limits, session = self.gateway.limits.sockets, self._session
        if session is not None:
            session.heard(time.monotonic())
            is_idle = self._state is ConnectionState.OPEN and self._frames.is_idle and not self._transport.is_closing()
            # Only the first answer to a numbered ping skips the rate limits: the server's pings bound their number.
            if is_idle and (payload := self._frames.pong(data)) is not None and session.pong(payload, in_order=True):
                return
        # A slice at a time: one read may hold thousands of frames, and each counts against the rates.
        for start in range(0, len(data), limits.slice_bytes):
            if self._state is ConnectionState.CLOSED or self._transport.is_closing():
                return
            if self._has_ended():
                self._after_close += min(limits.slice_bytes, len(data) - start)
                if self._after_close > limits.bytes_after_close:
                    # Until the aborter ends the connection, TCP holds back a client that keeps sending.
                    self._transport.pause_reading()
                    return
            if self._state is not ConnectionState.DISCARDING:
                self._receive(data[start : start + limits.slice_bytes])

    def _receive(self, data: bytes) -> None:
        frames = self._frames
        frames.receive(data)
        for event in frames.events():
            if self._counts():
                if event.opcode is Opcode.PONG and self._session is not None:
                    # While a message waits, it may be one that the client sent before the pong.
                    in_order = self._state is ConnectionState.OPEN and frames.is_idle
                    self._session.pong(bytes(event.data), in_order=in_order)
                frames.collect(event)
        # `_end` closes the socket, so messages that precede the client's close frame are handled first.
        if frames.inbox and self._state is ConnectionState.OPEN:
            self._work_through()
        self._write_protocol(hold_pongs=self._delivery.paused)
        if frames.is_closed_by_client:
            self._end()
        elif frames.is_broken:
            self._discard()

    def eof_received(self) -> None:
        """Close the socket."""
        self._frames.receive_eof()
        self._end()

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self._delivery.pause()

    def resume_writing(self) -> None:
        """Note that the transport's buffer is nearly empty."""
        self._delivery.resume()

    def shutdown(self) -> None:
        """End the connection because uvicorn ends."""
        self.finish(Close.GOING_AWAY)

    # The handshake

    async def _shake_hands(self, request: Handshake, rest: bytes) -> None:
        if self._has_ended():
            return
        try:
            async with asyncio.timeout(self.gateway.limits.sockets.handshake_s):
                entrance = await self.gateway.admit(request.target, request.headers)
        except TimeoutError:
            self._reject(Unavailable("The server took too long; try again in a moment."), request.target)
            return
        except Exception as error:
            self._reject(error_for_client(error, "handshake"), request.target)
            return
        if self._has_ended():
            return
        accepted = acceptance(request.headers)
        if accepted is None:
            wrong = BadRequest("bad_handshake", "The request is not a WebSocket handshake of version 13.")
            self._reject(wrong, request.target)
            return
        self._frames.begin()
        self._delivery.write_raw(accepted)
        await self._open_session(entrance, rest)

    def _reject(self, error: RequestError, target: str = "") -> None:
        observe.refused(error.code)
        if not self._has_ended():
            said = refusal(error, is_realtime=target.partition("?")[0] in REALTIME_SOCKETS)
            self._transport.write(rejection(error.status, {"error": said}))
            self._discard()

    async def _open_session(self, entrance: Entrance, rest: bytes) -> None:
        gateway, session = self.gateway, entrance.conversation
        if self._has_ended():
            return
        self._session = session
        self._frames.allow(session.most_bytes)
        self.cursor, self.dialect, self.sdk = session.cursor, session.dialect, session.sdk
        session.attach(self)
        self._enter(ConnectionState.OPENING)
        # The hub must know the connection before its grants are read: a revocation or changed policies then reach it.
        if not gateway.hub.admit(self):
            self.finish(Close.TOO_MANY_CONNECTIONS)
            return
        try:
            opened = await entrance.open()
        except Exception as error:
            if not isinstance(error, RequestError):
                observe.failed("opening", error)
            self.finish(close_for(error))
            return
        if self._has_ended():
            return
        if not gateway.history.is_current(opened.position):  # another epoch began meanwhile
            self.finish(Close.RESTART)
            return
        opened.begin(time.time(), time.monotonic())
        self._enter(ConnectionState.OPEN)
        self._opening = None  # a finished task would be kept for as long as the connection lasts
        observe.connected(opened.channels, opened.outcome, opened.replayed)
        self._delivery.begin()  # missed events go out with the opening
        self._transport.resume_reading()
        self._tick(ping=False)
        if rest:
            self.data_received(rest)

    # Frames

    def _counts(self) -> bool:
        """Count a frame of any kind against the rates. Return False if it exceeds them, or follows the close frame."""
        if self._state is ConnectionState.CLOSING:
            return False
        session, at = self.conversation, time.monotonic()
        user = session.identity.subject
        if user is not None and not self.gateway.frames.take(user, at):
            session.close(Close.TOO_MANY_MESSAGES)
        if session.take_frame(at):
            return True
        self.flush()
        return False

    def _work_through(self) -> None:
        """Handle messages from the inbox until one needs the database."""
        session, inbox = self.conversation, self._frames.inbox
        while inbox and session.closing is None:
            request = session.receive(inbox.pop(0), self.gateway)
            self.index()
            if request is not None:
                self._enter(ConnectionState.WORKING)
                self._transport.pause_reading()
                self._spawn(self._do(session, request), request.work)
                break
        self.flush()

    async def _do(self, session: Conversation, request: Request) -> None:
        revision = session.revision
        try:
            await request.work
        except Exception as error:
            request.failed(error_for_client(error, "message"), time.time())
        session.heard(time.monotonic())  # reading was paused, so nothing could arrive
        if self._has_ended():
            return
        self._enter(ConnectionState.OPEN)
        # Before the answer is written: `subscription_confirmed` means that the subscription is live.
        self.index()
        if session.revision is not revision:  # a fresh token ends at another time
            self._tick()
        self._work_through()
        if self._state is ConnectionState.OPEN and not self._transport.is_closing():
            self._transport.resume_reading()

    def index(self) -> None:
        """Have the hub index the present subscriptions, if the connection follows the feed."""
        self.dialect = self.conversation.dialect
        self.gateway.hub.update(self)

    # The hub's subscriber

    @property
    def identity(self) -> Identity:
        """Return the caller that the connection belongs to."""
        return self.conversation.identity

    def reviews(self, what: str) -> bool:
        """Return whether a change may concern the client."""
        return self.conversation.reviews(what)

    def is_of(self, user: UUID) -> bool:
        """Return whether a user's token is in use."""
        return self.conversation.is_of(user)

    @property
    def client_id(self) -> str:
        """Return the client's name for itself."""
        return self.conversation.client_id

    @property
    def owner(self) -> Owner:
        """Return the owner of the connection."""
        return self.conversation.owner

    @property
    def conversation(self) -> Conversation:
        """Return the client's session."""
        assert self._session is not None
        return self._session

    @property
    def follows(self) -> bool:
        """Return whether the connection follows the feed."""
        return self._delivery.follows

    def has_room(self, size: int) -> bool:
        """Return whether `size` bytes may be written even if the client does not read."""
        return self._delivery.has_room(size)

    def hold_back(self, offset: int, *, review: bool = False) -> None:
        """Stop following the feed after `offset`; see `Subscriber`."""
        self._delivery.hold_back(offset, review=review)

    def expect_acks(self, cache_keys: Iterable[str]) -> None:
        """Expect the client to acknowledge cache keys."""
        self.conversation.expect_acks(cache_keys)

    def close(self, why: Close) -> None:
        """End the conversation, after the messages that wait."""
        self.conversation.close(why)
        self.flush()

    def abort(self) -> None:
        """End the connection at once, without a close frame. Nothing more is written."""
        self._delivery.end()  # `connection_lost` follows later, and until then no event may be written
        self._transport.abort()

    # Out

    @property
    def offset(self) -> int:
        """Return the offset up to which everything has been written."""
        return self._delivery.offset

    @property
    def position(self) -> Position | None:
        """Return the position up to which everything has been written; None if the mark there is not known."""
        return self._delivery.position

    def rewind(self, offset: int) -> None:
        """Deliver the events after an earlier offset again."""
        self._delivery.rewind(offset)

    def flush(self, frames: Sequence[bytes] = (), *, ping: bool = False) -> None:
        """Write the messages that wait and then these frames, at once. End the connection if the session ends."""
        session = self.conversation
        out = [*map(frame, session.to_send()), *frames]
        data = b"".join(out)
        if out:
            observe.sent(len(out), len(data))
        if ping and self._frames.is_open:
            data += ping_frame(session.ping())
        if data:
            self.write(data)
        if session.closing is not None:
            self.finish(session.closing)

    def _write_protocol(self, *, hold_pongs: bool = False) -> None:
        """Write the protocol's own frames, but no pongs to a client that does not read them."""
        for data in self._frames.to_send(hold_pongs=hold_pongs and not self._has_ended()):
            if self._state is not ConnectionState.CLOSED:
                self._delivery.write_raw(data)

    def drained(self) -> None:
        """Send the pong that waited until the client reads again."""
        if (pong := self._frames.held_pong()) and not self._has_ended():
            self._delivery.write_raw(pong)

    def _tick(self, *, ping: bool = True) -> None:
        """Call the session's tick, and again at the time that it returns."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self._has_ended():
            return
        session, gateway, now, at = self.conversation, self.gateway, time.time(), time.monotonic()
        if session.is_silent(at) and self._state is not ConnectionState.WORKING:
            gateway.hub.leave(self)
            self.abort()
            return
        lag_ms, reached = round(gateway.feed.status().lag * 1000), gateway.feed.position if self.follows else None
        again = session.tick(now, at, lag_ms, reached)
        self.flush(ping=ping)
        # Rounded up to a common grid: timers that fire together share an iteration.
        every = gateway.limits.sockets.tick_s
        self._ticker = self._loop.call_later((floor(again / every) + 1) * every - at, self._tick)

    def finish(self, why: Close) -> None:
        """Send a close frame, once, and wait a bounded time for the client's."""
        if self._has_ended() or self._transport.is_closing():
            return
        if self._session is not None:
            self._session.close(why)
        limits = self.gateway.limits.sockets
        # RFC 6455, section 5.5.1: no data frame may follow the close frame.
        self._leave(ConnectionState.CLOSING, limits.close_slow_s if why is Close.TOO_SLOW else limits.close_s)
        if not self._frames.is_open:
            self._transport.close()
            return
        self._frames.close(why.code, why.reason)
        self._write_protocol()
        # Reading may be paused, and the client's close frame is still to come.
        self._transport.resume_reading()

    def _end(self) -> None:
        """Close the socket: the closing handshake is done, or the client sends nothing more."""
        # `Transport.close` first waits until the client has read the buffer, which may never happen.
        self._leave(ConnectionState.CLOSING, self.gateway.limits.sockets.close_s)
        self._transport.close()

    def _discard(self) -> None:
        """Write nothing more, and discard the client's bytes until it closes, for a bounded time.

        A socket closed with unread data resets the connection (RFC 2525, section 2.17), and a client that is still
        sending would never read why.
        """
        self._leave(ConnectionState.DISCARDING, self.gateway.limits.sockets.close_s)
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._transport.resume_reading()

    def _leave(self, state: ConnectionState, patience_s: float) -> None:
        """Write no more messages, and end the connection within a bounded time."""
        # A client may close or end its side while the connection is closing already.
        if not self._has_ended() or state is ConnectionState.DISCARDING:
            self._enter(state)
        self._delivery.end()
        if self._session is not None:
            self.gateway.hub.leave(self)
        if self._aborter is None:
            self._aborter = self._loop.call_later(patience_s, self._transport.abort)

    def _spawn(self, work: Work, inner: Work | None = None) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        if inner is not None:  # a task that is cancelled before it begins would leave it never awaited
            task.add_done_callback(lambda _: inner.close())
        # asyncio keeps only weak references to tasks; uvicorn waits for this set when it stops.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def protocol_for(gateway: Gateway) -> type[WebSocketProtocol]:
    """Return the protocol class of one gateway."""
    return type("GatewayWebSocketProtocol", (WebSocketProtocol,), {"__slots__": (), "gateway": gateway})

"""The socket of a session: uvicorn's `ws` protocol on `websockets`' sans-I/O layer, without ASGI between.

uvicorn makes one for each upgrade and feeds it the request. The caller is authenticated before the upgrade; then come
the snapshot, the greeting and the feed. Frames with work for the database are done one at a time, and reading
pauses meanwhile.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from math import floor
from typing import Any, cast

import msgspec
from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets import http11
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from momentum_sync import observe
from momentum_sync.errors import BadRequest, RequestError, Unavailable
from momentum_sync.gateway.delivery import Delivery, close_for
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.handshake import SUBPROTOCOL, ConnectRequest
from momentum_sync.gateway.listener import MAX_HEAD
from momentum_sync.gateway.session import CheckToken, Session, Work
from momentum_sync.gateway.work import perform
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.close import Close
from momentum_sync.wire.messages import MAX_FRAME, PING, frame

http11.MAX_LINE_LENGTH = MAX_HEAD  # a coach's channels are many, and all of them are in the address
_HANDSHAKE_TIMEOUT_S = 15.0
_TICKS_S = 0.05  # connections look at the clock together: waking for each alone costs as much again as what it does
_CLOSE_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_SLOW_S = 15.0  # it has much to read before it gets to the close frame
_SLICE = 2 * 1024  # bytes that are looked at before the rates are: some hundred of the smallest frames
_EARLY_FRAMES = 100  # that may come with the handshake
_AFTER_CLOSE = 16 * 1024  # bytes that are looked at for the client's close frame


class WebSocketProtocol(asyncio.Protocol):
    """One socket, from the request to the end."""

    gateway: Gateway
    session: Session
    write: Callable[[bytes], None]
    """Writes whole frames, past the session."""

    __slots__ = (
        "_aborter", "_after_close", "_beginning", "_binary", "_closed_with", "_early", "_gone",
        "_greeted", "_inbox", "_loop", "_open", "_out", "_parts", "_pong",
        "_tasks", "_ticker", "_transport", "_working", "_ws", "behind", "session", "write",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._loop = _loop or asyncio.get_running_loop()
        self._open: set[Any] = server_state.connections  # of uvicorn's own protocols, says their type
        self._tasks = server_state.tasks
        self._ws = ServerProtocol(
            max_size=MAX_FRAME, extensions=None, subprotocols=[Subprotocol(SUBPROTOCOL)], select_subprotocol=_select
        )
        self._transport: asyncio.Transport
        self._out: Delivery
        self.behind = True
        self._greeted = False
        self._closed_with: int | None = None
        self._inbox: list[bytes | None] = []  # an empty deque is 600 bytes
        self._parts: list[bytes] = []
        self._binary = False
        self._beginning: asyncio.Task[None] | None = None
        self._pong = b""
        self._early = 0
        self._after_close = 0
        self._working = False
        self._ticker: asyncio.TimerHandle | None = None
        self._aborter: asyncio.TimerHandle | None = None
        self._gone = False

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._open.add(self)
        gateway = self.gateway
        self._out = Delivery(
            self, self._transport, gateway.history, gateway.desk, gateway.hub, gateway.send_budget, gateway.send_buffer
        )  # fmt: skip
        self.write = self._out.write

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        self._gone = True
        if self._beginning is not None:  # nobody waits for the answers to what it asks
            self._beginning.cancel()
        self._out.lost()
        for timer in (self._ticker, self._aborter):
            if timer is not None:
                timer.cancel()
        if self._greeted:
            self.gateway.hub.leave(self)
            observe.disconnected(self._closed_with)

    def data_received(self, data: bytes) -> None:
        if self._greeted:
            self.session.heard(time.monotonic())
        # A slice at a time: in one read there is room for thousands of frames, and each is to count against the rate.
        for start in range(0, len(data), _SLICE):
            if self._gone or self._transport.is_closing():
                return
            if self._closed_with is not None:
                self._after_close += min(_SLICE, len(data) - start)
                if self._after_close > _AFTER_CLOSE:
                    self._transport.pause_reading()
                    return
            self._receive(data[start : start + _SLICE])

    def _receive(self, data: bytes) -> None:
        self._ws.receive_data(data)
        if self._ws.state is State.CONNECTING and self._ws.handshake_exc is not None:
            self._ws.data_to_send()  # what it would say, which is no JSON
            self._reject(BadRequest("bad_handshake", "The request is too large, or no WebSocket handshake."))
            return
        for event in self._ws.events_received():
            if isinstance(event, Request):
                self._beginning = self._spawn(self._begin(event))
            elif isinstance(event, Frame) and self._counts():
                self._frame(event)
        if self._inbox and self._greeted and not self._working:
            self._work_through()
        self._write_protocol(pongs=not self._out.waits)
        if self._ws.close_rcvd is not None or self._ws.parser_exc is not None:
            self._end()

    def eof_received(self) -> None:
        self._ws.receive_eof()
        self._end()

    def pause_writing(self) -> None:
        self._out.paused()

    def resume_writing(self) -> None:
        self._out.resumed()

    def shutdown(self) -> None:
        """uvicorn ends."""
        self.finish(Close.GOING_AWAY)

    # The handshake

    async def _begin(self, request: Request) -> None:
        try:
            await self._shake_hands(request)
        finally:
            self._beginning = None

    async def _shake_hands(self, request: Request) -> None:
        if self._gone:
            return
        self._transport.pause_reading()
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
                hello, identity = await self.gateway.admit(request.path, request.headers)
        except TimeoutError:
            self._reject(Unavailable("The server took too long; try again in a moment."))
            return
        except RequestError as error:
            self._reject(error)
            return
        except Exception as error:
            observe.failed("handshake", error)
            self._reject(Unavailable("Something went wrong here; try again in a moment."))
            return
        if self._over():
            return
        response = self._ws.accept(request)
        if response.status_code != 101:
            self._reject(BadRequest("bad_handshake", "The request is not a WebSocket handshake of version 13."))
            return
        self._ws.send_response(response)
        self._write_protocol()
        request.headers.clear()  # the protocol holds on to the request for as long as the connection lasts
        await self._greet(hello, identity)

    def _reject(self, error: RequestError) -> None:
        observe.refused(error.code)
        body = msgspec.json.encode({"error": {"code": error.code, "message": str(error)}})
        headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
        status = error.status
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if status in (429, 503):
            headers["Retry-After"] = "1"
        if not self._gone:
            self._transport.write(Response(status, HTTPStatus(status).phrase, headers, body).serialize())
            self._transport.close()

    async def _greet(self, hello: ConnectRequest, identity: Identity) -> None:
        client_id = hello.client_id or str(uuid.uuid4())
        self.session = Session(
            identity, hello.user_id, client_id, heartbeat=self.gateway.heartbeat, now=time.time(), at=time.monotonic()
        )  # fmt: skip
        if self._gone:
            return
        self._greeted = True
        if not self.gateway.hub.admit(self):
            self.finish(Close.TOO_MANY_CONNECTIONS)
            return
        try:
            greeting = await self.gateway.desk.greet(
                identity, hello.user_id, hello.channels, last_event_id=hello.last_event_id
            )
        except Exception as error:
            if not isinstance(error, RequestError):
                observe.failed("greeting", error)
            self.finish(close_for(error))
            return
        if self._over():
            return
        if not self.gateway.history.is_current(greeting.place):  # the history went on without it meanwhile
            self.finish(Close.RESTART)
            return
        self.session.greet(greeting, time.time(), time.monotonic())
        outcome = "resumed" if greeting.state is None else greeting.reason or "snapshot"
        observe.connected(len(greeting.granted.channels), outcome, greeting.replayed)
        self._out.catch_up()  # what it missed goes out with the greeting
        self._transport.resume_reading()
        self._tick(ping=False)

    # Frames

    def _counts(self) -> bool:
        """Count a frame of any kind against the rates. Return False if it exceeds them or follows the close."""
        if self._closed_with is not None:
            return False
        if not self._greeted:
            self._early += 1
            if self._early > _EARLY_FRAMES:
                self._transport.abort()
            return not self._transport.is_closing()
        session, at = self.session, time.monotonic()
        user = session.identity.subject
        if user is not None and not self.gateway.frames.allows(user, at):
            session.close(Close.TOO_MANY_MESSAGES)
        if session.frame(at):
            return True
        self.flush()
        return False

    def _frame(self, event: Frame) -> None:
        if event.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._parts = [bytes(event.data)]
            self._binary = event.opcode is Opcode.BINARY
        elif event.opcode is Opcode.CONT:
            if event.data:
                self._parts.append(bytes(event.data))
        else:
            return
        if event.fin:
            self._inbox.append(None if self._binary else b"".join(self._parts))
            self._parts = []

    def _work_through(self) -> None:
        """Takes frames from the inbox until one has work for the database."""
        while self._inbox and self.session.closing is None:
            text = self._inbox.pop(0)
            now = time.time()
            if text is None:
                self.session.receive_binary(now)
                continue
            work = self.session.receive(text, now)
            self.gateway.hub.follow(self)
            if work is not None:
                self._working = True
                self._transport.pause_reading()
                self._spawn(self._do(work))
                break
        self.flush()

    async def _do(self, work: Work) -> None:
        session, ref = self.session, work.ref
        try:
            await perform(work, session, self.gateway)
        except RequestError as error:
            session.refuse(error, time.time(), ref)
        except Exception as error:
            observe.failed("message", error)
            session.refuse(Unavailable("Something went wrong here; try again in a moment."), time.time(), ref)
        self._working = False
        session.heard(time.monotonic())  # it was not read from, so it could say nothing
        if self._over():
            return
        self.gateway.hub.follow(self)
        if isinstance(work, CheckToken):
            self._tick()
        self._work_through()
        if not self._working and not self._transport.is_closing():
            self._transport.resume_reading()

    # Out

    def takes(self, size: int) -> bool:
        """Whether so many bytes more may wait for it, if it does not read."""
        return self._out.takes(size)

    def hold_back(self, number: int, *, review: bool = False) -> None:
        """From the event after `number` on, the connection catches up by itself."""
        self._out.hold_back(number, review=review)

    def flush(self, *, ping: bool = False) -> None:
        """Writes what the session has to send, and ends the connection if the session does."""
        out = self.session.to_send()
        data = b"".join(map(frame, out))
        if out:
            observe.sent(len(out), len(data))
        if ping:
            data += PING
        if data:
            self.write(data)
        if self.session.closing is not None:
            self.finish(self.session.closing)

    def _write_protocol(self, *, pongs: bool = True) -> None:
        """Writes the protocol's own frames, without pongs for a client that does not read them."""
        out = [data for data in self._ws.data_to_send() if data]
        if pongs or self._ws.state is not State.OPEN or self._closed_with is not None:
            for data in out if not self._gone else ():
                self._out.pass_on(data)
        elif out:
            self._pong = out[-1]  # the last ping is the one that must be answered: RFC 6455, section 5.5.3

    def drained(self) -> None:
        """Send the pong that waited until the client reads again."""
        pong, self._pong = self._pong, b""
        if pong and self._ws.state is State.OPEN and self._closed_with is None:
            self._out.pass_on(pong)

    def _tick(self, *, ping: bool = True) -> None:
        """Lets the session look at the clock, and comes again when it says so."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self._gone or self._closed_with is not None:
            return
        now, at = time.time(), time.monotonic()
        if self.session.silent(at) and not self._working:
            self._out.end()
            self.gateway.hub.leave(self)
            self._transport.abort()
            return
        reached = None if self.behind else self.gateway.reached()
        again = self.session.tick(now, at, round(self.gateway.lag() * 1000), reached)
        self.flush(ping=ping and self._ws.state is State.OPEN)
        self._ticker = self._loop.call_later((floor(again / _TICKS_S) + 1) * _TICKS_S - at, self._tick)

    def _over(self) -> bool:
        """Whether the connection has ended, or is ending, so that nothing more is written."""
        return self._gone or self._closed_with is not None

    def finish(self, why: Close) -> None:
        """Sends a close frame, once, and does not wait long for the answer."""
        if self._closed_with is not None or self._gone or self._transport.is_closing():
            return
        self._closed_with = why.code
        self._out.end()
        if self._greeted:
            self.session.close(why)
            self.gateway.hub.leave(self)
        if self._ws.state is not State.OPEN:
            self._transport.close()
            return
        self._ws.send_close(why.code, why.reason)
        self._write_protocol()
        self._transport.resume_reading()
        patience = _CLOSE_TIMEOUT_SLOW_S if why is Close.TOO_SLOW else _CLOSE_TIMEOUT_S
        self._aborter = self._loop.call_later(patience, self._transport.abort)

    def _end(self) -> None:
        """The closing handshake is done, or the client broke the protocol: `websockets` has said why."""
        self._out.end()
        if self._greeted:
            self.gateway.hub.leave(self)
        self._transport.close()
        if self._aborter is None:
            self._aborter = self._loop.call_later(_CLOSE_TIMEOUT_S, self._transport.abort)

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def protocol_for(gateway: Gateway) -> type[WebSocketProtocol]:
    """The protocol class of one gateway, as uvicorn wants it."""
    return type("GatewayWebSocketProtocol", (WebSocketProtocol,), {"__slots__": (), "gateway": gateway})


def _select(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None

"""The client: live, offline-proof momentum data of one user.

It connects, comes back by itself for as long as it is open, and keeps its place. Every failure is a typed error, told
to `on_error` and to the logger `momentum_sync.sdk`; nothing is printed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from momentum_sync import errors
from momentum_sync.errors import ClientError, Ended, FeedFrozen, Offline, RequestFailed
from momentum_sync.sdk.cache import Cache
from momentum_sync.sdk.connection import Connection, Token, address, connect, fresh, subject
from momentum_sync.sdk.following import Answer, Event, Following, Invalidated, Resync, State, pause, verdict
from momentum_sync.sdk.outbox import Outbox
from momentum_sync.sdk.store import Keeper, Store
from momentum_sync.sdk.stream import Stream
from momentum_sync.wire import from_server as wire
from momentum_sync.wire.from_server import Momentum

_LOG = logging.getLogger("momentum_sync.sdk")
_LOG.addHandler(logging.NullHandler())
_TICK_S = 1.0
_STEADY_S = 5.0
_LATER = 6  # as after so many failures: the longest pause


class Client:
    """A user's connection to a Momentum Sync server, and what it knows.

    `url` is the server's root. `token` is a token, or gives one: it is called for each connection, and when the token
    is about to expire. `channels` are asked for beside the user's own. With a `store`, place, state, persistent cache
    and outbox survive a restart. `patience` is after how many seconds without a message (heartbeats come every 25 s)
    the feed counts as frozen. Use it as an async context manager, or `start` and `close` it.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        user_id: str | None = None,
        client_id: str | None = None,
        channels: Sequence[str] = (),
        store: Store | None = None,
        on_error: Callable[[ClientError], None] | None = None,
        patience: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        address(url, {}, ())
        self._url = url
        self._token = token
        self._user_id = user_id
        self._client_id = client_id or str(uuid.uuid4())
        self._wanted = list(dict.fromkeys(channels))
        self._on_error = on_error
        self._patience = patience
        self._clock = clock
        self._following = Following(user_id)
        self._keeper = Keeper(store, user_id)
        self._stream = Stream(self._keeper.settle)
        self._outbox = Outbox()
        self.cache = Cache(clock, self._keep)
        self._connection: Connection | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False

    # What a program asks for

    async def start(self) -> None:
        """Reads the store and connects, in the background."""
        if self._started:
            raise RuntimeError("A client is started once.")
        self._started = True
        self._spawn(self._run())
        self._spawn(self._watch())

    async def close(self) -> None:
        """Ends the connection, and saves the place."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._save()
        self._following.lost(self._clock())
        await self._stream.finish(None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def state(self) -> State:
        """What is known now. Notifications that were marked as read are not in it, told to the server or not."""
        return self._following.known(without=self._outbox)

    @property
    def user_id(self) -> str | None:
        """Whose data it is; None until that is known, and for a connection without a user."""
        return self._following.user_id or None

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that are held, as the server confirmed them last."""
        return self._following.channels

    @property
    def unsent(self) -> int:
        """How many notifications were marked as read that the server has not heard of yet."""
        return len(self._outbox.waiting)

    @property
    def lag_ms(self) -> int:
        """Milliseconds by which the server's feed was late at the last heartbeat."""
        return self._following.lag_ms

    def events(self) -> AsyncIterator[Event | Resync]:
        """Every event from now on, in commit order, across all that happens to the connection; and each `Resync`.

        An event counts as had once the next one is asked for, or `had` was called with it: with a store, a program that
        is started again goes on there, and so does the next iterator. Raises Ended where the client does not come back
        by itself. One iterator at a time.
        """
        return self._stream.begin()

    def had(self, event: Event | Resync) -> None:
        """The program is done with this: for one that leaves its loop on purpose, lest it comes again."""
        self._stream.had(event)

    async def changes(self) -> AsyncIterator[State]:
        """The state now, and again whenever it is another; what changes faster than it is taken is left out."""
        known: list[State] = [self.state]
        yield known[0]
        while not self._stream.finished:
            await self._stream.until(lambda: self.state != known[0])
            known[0] = self.state
            yield known[0]

    async def until_live(self) -> State:
        """Waits until the state is current. Raises Ended, or Offline where the client was closed, if it will not be."""
        await self._stream.surely(lambda: self._following.status == "live")
        return self.state

    async def mark_notification_read(self, notification_id: str) -> None:
        """Returns once it is kept; the server is told now or, offline, later.

        What the server has against it, is told to `on_error`.
        """
        self._outbox.add(str(uuid.UUID(notification_id)))
        await self._save()
        await self._post()

    async def sent(self) -> None:
        """Waits until the server has taken everything that was marked. Raises as `until_live`."""
        await self._stream.surely(lambda: not self._outbox.waiting)

    async def request_momentum_update(self) -> Momentum:
        """The momentum with what events do not carry: its breakdown and count. Raises Offline or RequestFailed."""
        answer = await self._ask({"type": "request_momentum_update"})
        assert isinstance(answer, wire.MomentumStateUpdate)
        if self._following.state.read_again(answer.data):
            self._keeper.read_again(answer.data)
            await self._stream.tell()
        return answer.data

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Asks for channels, now and whenever it connects; offline, with the next connection.

        Raises RequestFailed if one of them is not granted; then none of them is held.
        """
        new = [channel for channel in dict.fromkeys(channels) if channel not in self._wanted]
        self._wanted += new
        try:
            if new:
                await self._ask({"type": "subscribe", "channels": new})
        except RequestFailed:
            self._wanted = [channel for channel in self._wanted if channel not in new]
            raise
        except Offline:
            return

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """Lets go of channels."""
        self._wanted = [channel for channel in self._wanted if channel not in channels]
        with suppress(Offline):
            await self._ask({"type": "unsubscribe", "channels": list(channels)})

    def wake(self) -> None:
        """The network is back, or the program was asleep: do not wait any longer, and see whether the socket lives."""
        self._wake.set()

    # The connection, again and again

    async def _run(self) -> None:
        await self._load()
        failures = 0
        while True:
            began = self._clock()
            error = await self._once()
            now = self._clock()
            failures = 1 if self._following.online and now - began > _STEADY_S else failures + 1
            self._following.lost(now)
            self._outbox.lost()
            self._report(error)
            if isinstance(error, Ended):
                self._following.ended(now)
                await self._save()
                await self._stream.finish(error)
                return
            await self._stream.tell()
            if verdict(getattr(error, "status", None) or getattr(error, "code", None)) == "later":
                failures = max(failures, _LATER)
            if not isinstance(error, FeedFrozen):
                await self._pause(pause(failures, random.random()))
            while self._stream.filled:
                await self._pause(_TICK_S)

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _once(self) -> ClientError:
        """One connection, to its end; what ended it."""
        connection: Connection | None = None
        try:
            token = await fresh(self._token)
            self._is_for(subject(token))
            query = {
                "user_id": self._user_id, "client_id": self._client_id, "last_event_id": self._following.connecting(),
            }  # fmt: skip
            connection = await connect(address(self._url, query, self._wanted), token)
            self._following.opened(self._clock())
            self._connection = connection
            async for text in connection.texts():
                await self._take(text)
                if self._stream.full:
                    return errors.ConnectionLost("The program does not take its events; the connection waits for it.")
            raise AssertionError("the texts of a connection do not end without an error")
        except ClientError as error:
            if isinstance(error, errors.ConnectionLost) and self._is_frozen():
                return FeedFrozen(f"Nothing has come for more than {self._patience:g} s.")
            return error
        except Exception as error:  # whatever it is, the client comes back
            _LOG.exception("the client failed")
            return ClientError(f"The client failed: {type(error).__name__}: {error}.")
        finally:
            self._connection = None
            if connection is not None:
                await connection.close()

    def _is_frozen(self) -> bool:
        return self._following.online and self._following.frozen(self._clock(), self._patience)

    async def _take(self, text: str | bytes) -> None:
        for output in self._following.receive(text, self._clock()):
            match output:
                case Answer(message):
                    self._answered(message)
                    continue
                case Resync():
                    self.cache.clear()
                    self._stream.add(output)
                    await self._save()
                case Invalidated(_, keys):
                    persistent = self.cache.drop(keys)
                    self._stream.add(output)
                    if persistent:
                        await self._save()
                    assert self._connection is not None
                    await self._connection.send({"type": "cache_invalidation_ack", "cache_keys": list(keys)})
                case Event():
                    self._stream.add(output)
        if self._following.state.unsure:
            self._spawn_once("read again", self._read_again())
        await self._stream.tell()

    def _answered(self, message: wire.ServerMessage) -> None:
        connection = self._connection
        match message:
            case wire.TokenExpiring():
                self._spawn_once("renew", self._renew())
            case wire.SubscriptionConfirmed(ref=None):
                self._keeper.state.user_id = self._following.user_id or ""
                self._spawn(self._post())
            case wire.NotificationMarkedRead():
                self._read(message.notification_id)
            case wire.Error(ref=str(ref)) if ref.startswith("read:"):
                self._refused(ref.removeprefix("read:"), message)
            case wire.CacheInvalidationConfirmed():
                pass
            case _ if connection is None or not connection.answered(message):
                if isinstance(message, wire.Error):
                    self._report(RequestFailed(message.code, message.error))

    def _refused(self, notification_id: str, message: wire.Error) -> None:
        self._report(RequestFailed(message.code, message.error))
        if message.code == "unavailable":
            self._outbox.later(notification_id)
            return
        self._read(notification_id, gone=message.code == "not_found")

    def _read(self, notification_id: str, *, gone: bool = True) -> None:
        """The server has answered. What was read is not unread, also before the event that says so has come."""
        self._outbox.done(notification_id)
        if gone:
            self._following.state.forget_notification(notification_id)
            self._keeper.state.forget_notification(notification_id)
        self._keep()
        self._spawn(self._post())

    # Out

    async def _ask(self, message: dict[str, object]) -> wire.ServerMessage:
        if self._connection is None or not self._following.online:
            raise Offline("There is no connection now.")
        return await self._connection.ask(message)

    async def _post(self) -> None:
        """Sends what waits in the outbox, a few at a time."""
        connection = self._connection
        if connection is not None and self._following.online:
            for notification_id in self._outbox.take():
                message = {"type": "mark_notification_read", "notification_id": notification_id}
                await connection.send({**message, "ref": f"read:{notification_id}"})
        await self._stream.tell()

    async def _read_again(self) -> None:
        """Reads the momentum where events do not say what it is, until what is read is not older than they."""
        while self._following.state.unsure and self._following.online:
            try:
                await self.request_momentum_update()
            except ClientError as error:
                self._report(error)
            if self._following.state.unsure:
                await asyncio.sleep(_TICK_S)

    async def _renew(self) -> None:
        """A fresh token without reconnecting. Without one the server ends the connection, and it is asked for again."""
        try:
            await self._ask({"type": "authenticate", "token": await fresh(self._token)})
        except ClientError as error:
            self._report(error)

    # The clock

    async def _watch(self) -> None:
        """Notices a feed that stands still, and a machine that was asleep; sees to the store and the outbox."""
        every = min(_TICK_S, self._patience / 4)
        while True:
            await asyncio.sleep(every)
            if self._connection is not None:
                if self._is_frozen():
                    self._connection.abort()
                elif self._wake.is_set():
                    self._wake.clear()
                    self._spawn_once("probe", self._probe(self._connection))
            await self._post()
            if self._keeper.changed:
                await self._save()

    async def _probe(self, connection: Connection) -> None:
        try:
            await connection.ask({"type": "ping"})
        except ClientError:
            connection.abort()

    # The store

    def _keep(self) -> None:
        self._keeper.changed = True

    async def _load(self) -> None:
        try:
            document = await self._keeper.load(self._user_id)
        except ClientError as error:
            self._report(error)
            return
        if document is None:
            return
        following = self._following
        following.restore(document.user_id, self._keeper.last_event_id, document.known_at)
        if document.state is not None:
            following.state.begin(document.state)
        self.cache.restore(document.cache)
        self._outbox.restore(document.outbox)
        await self._stream.tell()

    def _is_for(self, user_id: str | None) -> None:
        """What was kept is not another user's. The token's own word is enough to let go of it."""
        wanted = self._user_id or user_id
        if wanted is None or self._following.user_id in (None, wanted):
            return
        self._following = Following(wanted)
        self._keeper.start_over(wanted)
        self._outbox = Outbox()
        self.cache.clear()
        self._stream.forget()

    async def _save(self) -> None:
        try:
            await self._keeper.save(self._following, self._clock(), self.cache.saved(), self._outbox.waiting)
        except ClientError as error:
            self._report(error)

    # Telling

    def _report(self, error: ClientError) -> None:
        loud = isinstance(error, Ended | errors.Gap | errors.NotUnderstood | errors.Rejected | errors.StoreFailed)
        _LOG.log(logging.WARNING if loud else logging.INFO, "%s: %s", type(error).__name__, error)
        if self._on_error is not None:
            try:
                self._on_error(error)
            except Exception:  # the program's, and no reason not to go on
                _LOG.exception("on_error raised")

    def _spawn(self, work: Coroutine[object, object, None], name: str | None = None) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _spawn_once(self, name: str, work: Coroutine[object, object, None]) -> None:
        """In the background, unless it is under way already."""
        if any(task.get_name() == name for task in self._tasks):
            work.close()
        else:
            self._spawn(work, name)

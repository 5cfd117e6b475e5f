"""The client: live, offline-proof momentum data of one user.

It connects, comes back by itself for as long as it is open, and keeps its place. Every failure is a typed error, told
to `on_error` and to the logger `momentum_sync.sdk`; nothing is printed.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Self

from momentum_sync import errors
from momentum_sync.domain import messages as domain
from momentum_sync.domain.messages import Momentum
from momentum_sync.errors import ClientError, Ended, FeedFrozen, Offline, RequestFailed
from momentum_sync.sdk.acknowledging import Acknowledging
from momentum_sync.sdk.cache import Cache
from momentum_sync.sdk.callbacks import through
from momentum_sync.sdk.connection import Connection, Token, address, connect, fresh, is_open, subject
from momentum_sync.sdk.protocol import Answer, Event, Invalidated, Resync, State, pause, verdict
from momentum_sync.sdk.replica import Replica
from momentum_sync.sdk.reporter import LOG, Reporter
from momentum_sync.sdk.store import Store
from momentum_sync.sdk.stream import Events
from momentum_sync.tasks import end
from momentum_sync.wire import from_server as wire
from momentum_sync.wire.close import Close

_TICK_S = 1.0
_STEADY_S = 5.0
_FORBIDDEN = 403
_ABOUT_THE_ENTRY = ("not_found", "forbidden")  # what the server says of the notification, and will say again
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
        if is_open(address(url, {}, ())):
            LOG.warning("%s is not encrypted: whoever is on the way reads the token and the data; use https://", url)
        self._url = url
        self._token = token
        self._user_id = None if user_id is None else str(uuid.UUID(user_id))
        self._client_id = client_id or str(uuid.uuid4())
        self._wanted = list(dict.fromkeys(channels))
        self._teller = Reporter(on_error)
        self._patience = patience
        self._clock = clock
        self._known = Replica(store, self._user_id, clock, self._teller.report)
        self._connection: Connection | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[object]] = set()
        self._started = False
        self._token_sent = ""
        self._asked_for: list[str] = []
        self._gone_keys = Acknowledging()

    # What a program asks for

    async def start(self) -> None:
        """Reads the store and connects, in the background."""
        if self._started:
            raise RuntimeError("A client is started once.")
        self._started = True
        self._spawn(self._run())
        self._spawn(self._watch())

    async def close(self) -> None:
        """Ends the connection, saves the place, and lets go of the store."""
        await through(self._close(clear=False))

    async def clear(self) -> None:
        """Logs out: closes the client, and nothing of the user stays, here or in the store.

        What was marked and not sent is gone, too; `flush` waits for it. StoreFailed if the store cannot be cleared.
        """
        await through(self._close(clear=True))

    async def _close(self, *, clear: bool) -> None:
        self._started = True
        self._known.end()
        await end(*self._tasks)
        try:
            if clear:
                await self._known.clear()
            else:
                await self._known.save()
        finally:
            self._known.following.lost(self._clock())
            await self._known.stream.finish(None)
            await self._known.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def state(self) -> State:
        """What is known now. Notifications that were marked as read are not in it, told to the server or not."""
        return self._known.state

    @property
    def cache(self) -> Cache:
        """What the program has fetched, until the server says that it is no longer true."""
        return self._known.cache

    @property
    def user_id(self) -> str | None:
        """Whose data it is; None until that is known, and for a connection without a user."""
        return self._known.following.user_id or None

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that are held, as the server confirmed them last."""
        return self._known.following.channels

    @property
    def pending_count(self) -> int:
        """How many notifications were marked as read that the server has not heard of yet."""
        return len(self._known.outbox.waiting)

    @property
    def lag_ms(self) -> int:
        """Milliseconds by which the server's feed was late at the last heartbeat."""
        return self._known.following.lag_ms

    def events(self) -> Events:
        """Every event from now on, in commit order, across all that happens to the connection; and each `Resync`.

        An event counts as had once the next one is asked for, or `ack` was called with it: with a store, a program that
        is started again goes on there, and so does the next iterator. Raises Ended where the client does not come back
        by itself. Another iterator takes over, and ends this one.
        """
        return self._known.stream.begin()

    def ack(self, event: Event | Resync) -> None:
        """The program is done with this: for one that leaves its loop on purpose, lest it comes again."""
        self._known.stream.ack(event)

    async def changes(self) -> AsyncIterator[State]:
        """The state now, and again whenever it is another; what changes faster than it is taken is left out."""
        known: list[State] = [self.state]
        yield known[0]
        while not self._known.stream.finished:
            await self._known.stream.until(lambda: self.state != known[0])
            known[0] = self.state
            yield known[0]

    async def wait_until_live(self) -> State:
        """Waits until the state is current. Raises Ended, or Offline where the client was closed, if it will not be."""
        await self._known.stream.surely(lambda: self._known.following.status == "live")
        return self.state

    async def mark_notification_read(self, notification_id: str) -> None:
        """Returns once it is kept; the server is told now or, offline, later. ValueError if it is no UUID.

        StoreFailed if there is a store and it could not be kept there: it is told to the server as long as the program
        runs, and the store is tried again. What the server has against it, is told to `on_error`.
        """
        self._known.outbox.add(str(uuid.UUID(notification_id)))
        self._known.keep()
        kept = self._started and await self._known.save()
        await self._post()
        if not kept and self._known.keeper.keeps:
            raise errors.StoreFailed("It is marked, but would be forgotten if the program ended now.")

    async def flush(self) -> None:
        """Waits until the server has taken everything that was marked. Raises as `wait_until_live`."""
        await self._known.stream.surely(lambda: not self._known.outbox.waiting)

    async def request_momentum_update(self) -> Momentum:
        """The momentum with what events do not carry: its breakdown and count. Raises Offline or RequestFailed."""
        answer = await self._ask({"type": "request_momentum_update"})
        assert isinstance(answer, domain.MomentumStateUpdate)
        if self._known.read_again(answer.data):
            await self._known.stream.tell()
        return answer.data

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Asks for channels, now and whenever it connects; offline, with the next connection.

        Raises RequestFailed if one of them is not granted; then none of them is held.
        """
        held = self._known.following.channels if self._known.following.online else self._wanted
        new = [one for one in dict.fromkeys(channels) if one not in held or one not in self._wanted]
        self._wanted += [one for one in new if one not in self._wanted]
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

    def reconnect_now(self) -> None:
        """The network is back, or the program was asleep: do not wait any longer, and see whether the socket lives."""
        self._wake.set()

    # The connection, again and again

    async def _run(self) -> None:
        await self._known.load()
        failures = 0
        while True:
            began = time.monotonic()
            error = await self._once()
            now = self._clock()
            failures = 1 if self._known.following.online and time.monotonic() - began > _STEADY_S else failures + 1
            self._known.following.lost(now)
            self._known.outbox.lost()
            self._teller.report(error)
            if isinstance(error, Ended):
                if error.code in (_FORBIDDEN, Close.NOT_ALLOWED.code):
                    self._known.forget()
                self._known.following.ended(now)
                await self._known.save()
                await self._known.stream.finish(error)
                return
            await self._known.stream.tell()
            if isinstance(error, errors.MessageTooLarge):
                self._known.following.forget("too_large")  # the same would come again
                failures = max(failures, _LATER)
            if verdict(getattr(error, "status", None) or getattr(error, "code", None)) == "later":
                failures = max(failures, _LATER)
            await self._pause(0.0 if isinstance(error, FeedFrozen) else pause(failures, random.random()))
            while self._known.stream.filled:
                await self._pause(_TICK_S)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _once(self) -> ClientError:
        """One connection, to its end; what ended it."""
        connection: Connection | None = None
        try:
            token = self._token_sent = await fresh(self._token)
            self._known.is_for(subject(token))
            self._asked_for = list(self._wanted)
            last = self._known.following.connecting()
            query = {"user_id": self._user_id, "client_id": self._client_id, "last_event_id": last}
            connection = await connect(address(self._url, query, self._asked_for), token)
            self._known.opened(time.monotonic())
            self._connection = connection
            async for text in connection.texts():
                await self._take(text)
                if self._known.stream.full:
                    return errors.ConnectionLost("The program does not take its events; the connection waits for it.")
            raise AssertionError("the texts of a connection do not end without an error")
        except errors.Gap as error:
            self._known.greeted()
            return error
        except ClientError as error:
            if isinstance(error, errors.ConnectionLost) and connection is not None and self._frozen:
                return FeedFrozen(f"Nothing has come for more than {self._patience:g} s.")
            return error
        except Exception as error:  # whatever it is, the client comes back
            LOG.exception("the client failed")
            return ClientError(f"The client failed: {type(error).__name__}: {error}.")
        finally:
            self._connection = None
            if connection is not None:
                await connection.close()

    @property
    def _frozen(self) -> bool:
        return self._known.frozen(time.monotonic(), self._patience)

    async def _take(self, text: str | bytes) -> None:
        for output in self._known.receive(text, time.monotonic()):
            match output:
                case Answer(message):
                    self._answered(message)
                    continue
                case Resync():
                    self._known.cache.clear()
                    self._known.stream.add(output)
                    self._spawn_once("save", self._known.save())
                case Invalidated(_, keys):
                    persistent = self._known.cache.drop(keys)
                    self._known.stream.add(output)
                    self._spawn(self._gone(keys, kept=persistent))
                case Event():
                    self._known.stream.add(output)
        if self._known.following.state.unsure:
            self._spawn_once("read again", self._read_again())
        await self._known.stream.tell()

    def _answered(self, message: wire.ServerMessage) -> None:
        connection = self._connection
        if isinstance(message, wire.Authenticated):
            self._teller.report_refused(message.refused)
        match message:
            case wire.TokenExpiring():
                self._spawn_once("renew", self._renew())
            case wire.SubscriptionConfirmed(ref=None):
                self._known.greeted()
                self._teller.report_refused(message.refused)
                self._spawn(self._greeted())
            case domain.NotificationMarkedRead():
                self._known.read(message.notification_id)
            case wire.Error(ref=str(ref)) if ref.startswith("read:"):
                self._refused(ref.removeprefix("read:"), message)
            case domain.CacheInvalidationConfirmed():
                pass
            case _ if connection is None or not connection.answered(message):
                if isinstance(message, wire.Error):
                    self._teller.report(RequestFailed(message.code, message.error))

    def _refused(self, notification_id: str, message: wire.Error) -> None:
        self._teller.report(RequestFailed(message.code, message.error))
        if message.code in _ABOUT_THE_ENTRY:
            self._known.read(notification_id, gone=message.code == "not_found")
        else:
            self._known.outbox.later(notification_id)

    # Out

    async def _ask(self, message: dict[str, object]) -> wire.ServerMessage:
        if self._connection is None or not self._known.following.online:
            raise Offline("There is no connection now.")
        return await self._connection.ask(message)

    async def _post(self) -> None:
        """Sends what waits in the outbox, a few at a time."""
        connection = self._connection
        if connection is not None and self._known.following.online:
            for notification_id in self._known.outbox.take(time.monotonic()):
                message = {"type": "mark_notification_read", "notification_id": notification_id}
                await connection.send({**message, "ref": f"read:{notification_id}"})
        await self._known.stream.tell()

    async def _greeted(self) -> None:
        """What the program wants is another than what the address asked for, if it has asked meanwhile."""
        try:
            if more := [one for one in self._wanted if one not in self._asked_for]:
                await self._ask({"type": "subscribe", "channels": more})
            if less := [one for one in self._asked_for if one not in self._wanted]:
                await self._ask({"type": "unsubscribe", "channels": less})
        except ClientError as error:
            self._teller.report(error)
        await self._post()

    async def _gone(self, keys: Sequence[str], *, kept: bool) -> None:
        """Acknowledge dropped keys, after the store has been asked to drop them, too; a failed save is tried again."""
        if kept:
            await self._known.save()
        self._gone_keys.add(keys)
        self._spawn_once("acknowledge", self._gone_keys.send(lambda: self._connection))

    async def _read_again(self) -> None:
        """Reads the momentum where events do not say what it is, until what is read is not older than they."""
        while self._known.following.state.unsure and self._known.following.online:
            try:
                await self.request_momentum_update()
            except ClientError as error:
                self._teller.report(error)
            if self._known.following.state.unsure:
                await asyncio.sleep(_TICK_S)

    async def _renew(self) -> None:
        """A fresh token without reconnecting. Without one the server ends the connection, and it is asked for again."""
        try:
            token = await fresh(self._token)
            if token != self._token_sent:  # the same one would be expiring at once again
                self._token_sent = token
                await self._ask({"type": "authenticate", "token": token})
        except ClientError as error:
            self._teller.report(error)

    # The clock

    async def _watch(self) -> None:
        """Notices a feed that stands still, and a machine that was asleep; sees to the store and the outbox."""
        every = min(_TICK_S, self._patience / 4)
        while True:
            await asyncio.sleep(every)
            try:
                await self._look()
            except Exception:  # a bug of ours, which must not end the looking
                LOG.exception("the client failed")

    async def _look(self) -> None:
        if self._connection is not None:
            if self._frozen:
                self._connection.abort()
            elif self._wake.is_set():
                self._wake.clear()
                self._spawn_once("probe", self._probe(self._connection))
        if self._gone_keys:
            self._spawn_once("acknowledge", self._gone_keys.send(lambda: self._connection))
        await self._post()
        if not self._known.loaded:
            self._spawn_once("load", self._known.load_again())
        elif self._known.keeper.is_due(time.monotonic()):
            self._spawn_once("save", self._known.save())

    async def _probe(self, connection: Connection) -> None:
        with suppress(ClientError):
            await connection.ask({"type": "ping"})
            return
        connection.abort()

    def _spawn(self, work: Coroutine[object, object, object], name: str | None = None) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _spawn_once(self, name: str, work: Coroutine[object, object, object]) -> None:
        """In the background, unless it is under way already."""
        if any(task.get_name() == name for task in self._tasks):
            work.close()
        else:
            self._spawn(work, name)

"""The client: live momentum data of one user, also offline.

It connects, reconnects for as long as it is open, and keeps its position. Every failure is a typed error, passed to
`on_error` and to the logger `momentum_sync.sdk`; nothing is printed.
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
from momentum_sync.sdk.connection import SDK, Connection, Token, address, check_names, connect, fresh, is_open, subject
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
_ABOUT_THE_ENTRY = ("not_found", "forbidden")  # refusals that concern the notification itself, and will not change
_LATER = 7  # as many failures: the longest pause


class Client:
    """A user's connection to a Momentum Sync server, and the user's data.

    Use it as an async context manager, or call `start` and `close`.

    Args:
        url: root URL of the server.
        token: a JWT, or a function, plain or async, that returns one. It is called for each connection, and before the
            token expires.
        user_id: the user to follow, if the token names none or acts for another user.
        client_id: name of this device. A second connection with the same name replaces the first.
        channels: channels beside the user's own.
        store: keeps position, state, persistent cache entries and outbox across restarts.
        patience: seconds without a message after which the feed counts as frozen. Heartbeats arrive every 25 s.
        on_error: called with every error.

    Example:
        async with Client("https://sync.example.com", fresh_token) as client:
            async for event in client.events():
                print(event, client.state.momentum)
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
        # `address` also makes a wrong URL fail here, and not later in the background.
        if is_open(address(url, {}, ())):
            LOG.warning(
                "%s is not encrypted, so others on the network can read the token and the data; use https://", url
            )
        self._url = url
        self._token = token
        self._user_id = None if user_id is None else str(uuid.UUID(user_id))
        self._client_id = client_id or str(uuid.uuid4())
        self._wanted = check_names(channels)
        self._reporter = Reporter(on_error)
        self._patience = patience
        self._clock = clock
        self._replica = Replica(store, self._user_id, clock, self._reporter.report)
        self._connection: Connection | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[object]] = set()
        self._started = False
        self._token_sent = ""
        self._asked_for: list[str] = []
        self._gone_keys = Acknowledging()

    # The program's side

    async def start(self) -> None:
        """Read the store and connect, in the background.

        Example:
            client = Client("https://sync.example.com", fresh_token)
            await client.start()
            await client.close()
        """
        if self._started:
            raise RuntimeError("A client can be started only once.")
        self._started = True
        self._spawn(self._run())
        self._spawn(self._watch())

    async def close(self) -> None:
        """Close the connection, save the position, and release the store.

        Example:
            await client.close()
        """
        await through(self._close(clear=False))

    async def clear(self) -> None:
        """Log out: close the client and delete everything of the user, here and in the store.

        Changes that are not sent yet are lost; call `flush` first to send them.

        Raises:
            StoreFailed: the store could not be cleared.

        Example:
            await client.flush()
            await client.clear()
        """
        await through(self._close(clear=True))

    async def _close(self, *, clear: bool) -> None:
        self._started = True
        self._replica.end()
        await end(*self._tasks)
        try:
            if clear:
                await self._replica.clear()
            else:
                await self._replica.save()
        finally:
            self._replica.protocol.lost(self._clock())
            await self._replica.stream.finish(None)
            await self._replica.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def state(self) -> State:
        """Return the present state. Notifications marked as read are not in it, even before the server knows."""
        return self._replica.state

    @property
    def cache(self) -> Cache:
        """Return the cache of fetched values."""
        return self._replica.cache

    @property
    def user_id(self) -> str | None:
        """Return the user that the client follows; None until it is known, and for a connection without a user."""
        return self._replica.protocol.user_id or None

    @property
    def channels(self) -> tuple[str, ...]:
        """Return the channels that the server confirmed last."""
        return self._replica.protocol.channels

    @property
    def pending_count(self) -> int:
        """Return the number of notifications marked as read that the server has not confirmed."""
        return len(self._replica.outbox.waiting)

    @property
    def lag_ms(self) -> int:
        """Return the lag of the server's feed at the last heartbeat, in milliseconds."""
        return self._replica.protocol.lag_ms

    @property
    def position(self) -> str | None:
        """Return how far the client has come, as an id of an event; None before the first snapshot.

        Send it as the header `Last-Event-ID` with your own requests to `/sync/…`: the answer then is not older than
        what the client has received, whichever gateway answers.
        """
        return self._replica.protocol.position

    def events(self) -> Events:
        """Return an iterator of every further event, in commit order, and of each `Resync`.

        It spans disconnects. An event counts as processed once the next one is requested, or after `ack`: with a store,
        a restarted program, and the next iterator, continue after it. A second iterator ends the first.

        Raises:
            Ended: the client does not reconnect any more.

        Example:
            async for event in client.events():
                print(event)
        """
        return self._replica.stream.begin()

    def ack(self, event: Event | Resync) -> None:
        """Acknowledge an event as processed, for a program that leaves its loop and does not want it again.

        Args:
            event: an event or a resync from `events`; everything before it counts as processed, too.

        Example:
            client.ack(event)
            break
        """
        self._replica.stream.ack(event)

    async def changes(self) -> AsyncIterator[State]:
        """Return an iterator of states: the present one, and each later one. Intermediate states may be skipped.

        Raises:
            Ended: the client does not reconnect any more.

        Example:
            async for state in client.changes():
                print(state.status, state.momentum)
        """
        known: list[State] = [self.state]
        yield known[0]
        while not self._replica.stream.finished:
            await self._replica.stream.until(lambda: self.state != known[0])
            known[0] = self.state
            yield known[0]

    async def wait_until_live(self) -> State:
        """Wait until the state is current, and return it.

        Raises:
            Ended: the client does not reconnect any more.
            Offline: the client was closed.

        Example:
            state = await client.wait_until_live()
        """
        await self._replica.stream.surely(lambda: self._replica.protocol.status == "live")
        return self.state

    async def mark_notification_read(self, notification_id: str) -> None:
        """Mark a notification as read. Returns once the mark is stored; the server receives it now or later.

        If the server refuses the mark, `on_error` is called.

        Args:
            notification_id: the notification's id.

        Raises:
            ValueError: the id is not a UUID.
            StoreFailed: the mark could not be stored. It is sent for as long as the program runs, and the store is
                retried.

        Example:
            await client.mark_notification_read(client.state.notifications[0].id)
        """
        self._replica.outbox.add(str(uuid.UUID(notification_id)))
        self._replica.keep()
        # Stored before it is sent, so that a crash repeats the mark and does not lose it. Before `start`, `save` would
        # not return.
        kept = self._started and await self._replica.save()
        await self._post()
        if not kept and self._replica.keeper.keeps:
            raise errors.StoreFailed("The mark could not be stored and would be lost if the program ended now.")

    async def flush(self) -> None:
        """Wait until the server has confirmed every mark.

        Raises:
            Ended: the client does not reconnect any more.
            Offline: the client was closed.

        Example:
            await client.flush()
        """
        await self._replica.stream.surely(lambda: not self._replica.outbox.waiting)

    async def request_momentum_update(self) -> Momentum:
        """Return the momentum with its breakdown and count, which events do not carry.

        Raises:
            Offline: there is no connection.
            RequestFailed: the server refused.

        Example:
            momentum = await client.request_momentum_update()
        """
        answer = await self._ask({"type": "request_momentum_update"})
        assert isinstance(answer, domain.MomentumStateUpdate)
        if self._replica.read_again(answer.data):
            await self._replica.stream.tell()
        return answer.data

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe to channels, now and on each reconnect; offline, with the next connection.

        Args:
            channels: names of channels.

        Raises:
            RequestFailed: one of them is not granted; then none is subscribed to.
            TypeError: `channels` is one string.
            ValueError: the client would have more than 500 channels.

        Example:
            await client.subscribe(["interventions:coaches"])
        """
        names = check_names(channels, self._wanted)
        held = self._replica.protocol.channels if self._replica.protocol.online else self._wanted
        new = [one for one in names if one not in held or one not in self._wanted]
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
        """Unsubscribe from channels.

        Args:
            channels: names of channels.

        Raises:
            TypeError: `channels` is one string.

        Example:
            await client.unsubscribe(["interventions:coaches"])
        """
        names = check_names(channels)
        self._wanted = [channel for channel in self._wanted if channel not in names]
        with suppress(Offline):
            await self._ask({"type": "unsubscribe", "channels": names})

    def reconnect_now(self) -> None:
        """Reconnect without delay, and check an open socket, after the network or the machine was away.

        Example:
            client.reconnect_now()
        """
        self._wake.set()

    # The connection, again and again

    async def _run(self) -> None:
        await self._replica.load()
        failures = 0
        while True:
            began = time.monotonic()
            error = await self._once()
            now = self._clock()
            # If a server accepts and closes at once, the pause must grow. `lost` ends `online`, so it comes after this
            # line.
            failures = 1 if self._replica.protocol.online and time.monotonic() - began > _STEADY_S else failures + 1
            self._replica.protocol.lost(now)
            self._replica.outbox.lost()
            self._reporter.report(error)
            if isinstance(error, Ended):
                if error.code in (_FORBIDDEN, Close.NOT_ALLOWED.code):
                    self._replica.forget()
                self._replica.protocol.ended(now)
                await self._replica.save()
                await self._replica.stream.finish(error)
                return
            await self._replica.stream.tell()
            if isinstance(error, errors.MessageTooLarge):
                self._replica.protocol.forget("too_large")  # it would fail again
                failures = max(failures, _LATER)
            if verdict(getattr(error, "status", None) or getattr(error, "code", None)) == "later":
                failures = max(failures, _LATER)
            # A frozen feed has already cost `patience` seconds, and no server refused the client.
            await self._pause(0.0 if isinstance(error, FeedFrozen) else pause(failures, random.random()))
            # A reconnect before the program has read half of its events would fill the memory again.
            while self._replica.stream.filled:
                await self._pause(_TICK_S)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _once(self) -> ClientError:
        """Run one connection to its end, and return the error that ended it."""
        connection: Connection | None = None
        try:
            token = self._token_sent = await fresh(self._token)
            # Before the connect: another user's data must not be shown, and the position in the address must be this
            # user's.
            self._replica.is_for(subject(token))
            self._asked_for = list(self._wanted)
            last = self._replica.protocol.connecting()
            query = {"user_id": self._user_id, "client_id": self._client_id, "last_event_id": last, "sdk": SDK}
            connection = await connect(address(self._url, query, self._asked_for), token)
            self._replica.opened(time.monotonic())
            self._connection = connection
            async for text in connection.texts():
                await self._take(text)
                if self._replica.stream.full:
                    # The server would close an unread socket as too slow; a later resume brings the same events.
                    return errors.ConnectionLost("The program does not take its events; the connection waits for it.")
            raise AssertionError("the texts of a connection do not end without an error")
        except errors.Gap as error:
            # The reason may be that the server confirmed another user, whose data must not mix with the stored data.
            self._replica.greeted()
            return error
        except ClientError as error:
            # `_look` aborts a frozen socket, which looks like a lost connection here.
            if isinstance(error, errors.ConnectionLost) and connection is not None and self._frozen:
                return FeedFrozen(f"Nothing has come for more than {self._patience:g} s.")
            return error
        except Exception as error:  # the client reconnects after any error
            LOG.exception("the client failed")
            return ClientError(f"The client failed: {type(error).__name__}: {error}.")
        finally:
            self._connection = None
            if connection is not None:
                await connection.close()

    @property
    def _frozen(self) -> bool:
        return self._replica.frozen(time.monotonic(), self._patience)

    async def _take(self, text: str | bytes) -> None:
        for output in self._replica.receive(text, time.monotonic()):
            match output:
                case Answer(message):
                    self._answered(message)
                    continue
                case Resync():
                    self._replica.cache.clear()
                    self._replica.stream.add(output)
                    self._spawn_once("save", self._replica.save())
                case Invalidated(_, keys):
                    persistent = self._replica.cache.drop(keys)
                    self._replica.stream.add(output)
                    self._spawn(self._gone(keys, kept=persistent))
                case Event():
                    self._replica.stream.add(output)
        if self._replica.protocol.state.unsure:
            self._spawn_once("read again", self._read_again())
        await self._replica.stream.tell()

    def _answered(self, message: wire.ServerMessage) -> None:
        connection = self._connection
        if isinstance(message, wire.Authenticated):
            self._reporter.report_refused(message.refused)
        match message:
            case wire.TokenExpiring():
                self._spawn_once("renew", self._renew())
            case wire.SubscriptionConfirmed(ref=None):
                self._replica.greeted()
                self._reporter.report_refused(message.refused)
                self._spawn(self._greeted())
            case domain.NotificationMarkedRead():
                self._replica.read(message.notification_id)
            case wire.Error(ref=str(ref)) if ref.startswith("read:"):
                self._refused(ref.removeprefix("read:"), message)
            case domain.CacheInvalidationConfirmed():
                pass
            case _ if connection is None or not connection.answered(message):
                if isinstance(message, wire.Error):
                    self._reporter.report(RequestFailed(message.code, message.error))

    def _refused(self, notification_id: str, message: wire.Error) -> None:
        self._reporter.report(RequestFailed(message.code, message.error))
        if message.code in _ABOUT_THE_ENTRY:
            self._replica.read(notification_id, gone=message.code == "not_found")
        else:
            self._replica.outbox.later(notification_id)

    # Out

    async def _ask(self, message: dict[str, object]) -> wire.ServerMessage:
        if self._connection is None or not self._replica.protocol.online:
            raise Offline("The client is not connected.")
        return await self._connection.ask(message)

    async def _post(self) -> None:
        """Send the marks in the outbox, a few at a time."""
        connection = self._connection
        if connection is not None and self._replica.protocol.online:
            for notification_id in self._replica.outbox.take(time.monotonic()):
                message = {"type": "mark_notification_read", "notification_id": notification_id}
                await connection.send({**message, "ref": f"read:{notification_id}"})
        await self._replica.stream.tell()

    async def _greeted(self) -> None:
        """Correct the subscriptions if the program changed its wishes while connecting."""
        try:
            if more := [one for one in self._wanted if one not in self._asked_for]:
                await self._ask({"type": "subscribe", "channels": more})
            if less := [one for one in self._asked_for if one not in self._wanted]:
                await self._ask({"type": "unsubscribe", "channels": less})
        except ClientError as error:
            self._reporter.report(error)
        await self._post()

    async def _gone(self, keys: Sequence[str], *, kept: bool) -> None:
        """Acknowledge dropped keys, after asking the store to drop them; a failed save is retried."""
        if kept:
            await self._replica.save()
        self._gone_keys.add(keys)
        self._spawn_once("acknowledge", self._gone_keys.send(lambda: self._connection))

    async def _read_again(self) -> None:
        """Read the momentum where events do not determine it, until the answer is no older than they."""
        while self._replica.protocol.state.unsure and self._replica.protocol.online:
            try:
                await self.request_momentum_update()
            except ClientError as error:
                self._reporter.report(error)
            if self._replica.protocol.state.unsure:
                await asyncio.sleep(_TICK_S)

    async def _renew(self) -> None:
        """Send a fresh token on the open connection. Without one the server closes it, and the next one asks again."""
        try:
            token = await fresh(self._token)
            if token != self._token_sent:  # the same token would expire at once again
                self._token_sent = token
                await self._ask({"type": "authenticate", "token": token})
        except ClientError as error:
            self._reporter.report(error)

    # The clock

    async def _watch(self) -> None:
        """Detect a frozen feed and a machine that was asleep; serve the store and the outbox."""
        every = min(_TICK_S, self._patience / 4)
        while True:
            await asyncio.sleep(every)
            try:
                await self._look()
            except Exception:  # a defect here must not end the watch
                LOG.exception("the client failed")

    async def _look(self) -> None:
        if self._connection is not None:
            if self._frozen:
                self._connection.abort()
            elif self._wake.is_set():
                self._wake.clear()
                self._spawn_once("probe", self._probe(self._connection))
        # One message holds 500 keys, and keys that came during a send were not in it.
        if self._gone_keys:
            self._spawn_once("acknowledge", self._gone_keys.send(lambda: self._connection))
        await self._post()
        if not self._replica.loaded:
            self._spawn_once("load", self._replica.load_again())
        elif self._replica.keeper.is_due(time.monotonic()):
            self._spawn_once("save", self._replica.save())

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
        """Run work in the background, unless it is running already."""
        if any(task.get_name() == name for task in self._tasks):
            work.close()
        else:
            self._spawn(work, name)

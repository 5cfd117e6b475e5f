"""A NATS connection with calls that do not wait for the network.

Messages may be lost, and nothing may depend on one: core NATS delivers at most once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import nats
from nats.aio.client import Client, Srv
from nats.aio.msg import Msg

from momentum_sync import observe
from momentum_sync.limits import FeedLimits
from momentum_sync.tasks import end

_AGAIN_S = 0.2
Handler = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """The operator's choices.

    Attributes:
        urls: `nats://` or `tls://`, perhaps with user and password, or a token; one of them is used.
        ca: file with the certificates to trust; None: those of the system.
    """

    urls: tuple[str, ...] = field(repr=False)  # they may have a password
    ca: str | None = None


class _Client(Client):
    """nats-py's client, with two changes. Only this class uses its private parts, and its version is bounded.

    By itself it takes up TLS only if the server offers it, and would send a password in the clear otherwise. And it
    waits for a server that does not read, without a deadline, before it reconnects to another or closes.
    """

    def _connect_command(self) -> bytes:
        server, info = self._current_server, self._server_info
        if server is not None and server.uri.scheme == "tls" and not info.get("tls_required"):
            self.abort()
            raise nats.errors.Error("MOMENTUM_NATS_URL is tls://, but the server does not offer TLS; enable it there")
        return super()._connect_command()

    async def _attempt_reconnect(self) -> None:
        self.abort()
        await super()._attempt_reconnect()

    async def _connect_to_server(self, server: Srv) -> None:
        self.abort()  # an attempt that came too late leaves its socket open
        await super()._connect_to_server(server)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self.abort()
        await super()._close(status, do_cbs)

    def abort(self) -> None:
        """Drop the connection at once, so that pending calls return."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


async def connect_once(options: BrokerOptions, name: str, seconds: float) -> Client:
    """Connect to NATS without automatic reconnect, for a command. The caller closes the connection.

    Raises:
        nats.errors.Error, OSError, TimeoutError: there is none within `seconds`.
    """
    client = _Client()
    problems: list[Exception] = []

    async def keep(error: Exception) -> None:
        problems.append(error)

    await client.connect(
        list(options.urls), name=name, connect_timeout=max(1, round(seconds)), allow_reconnect=False,
        max_reconnect_attempts=1, tls=_tls(options), error_cb=keep,
    )  # fmt: skip
    return client


def _tls(options: BrokerOptions) -> ssl.SSLContext | None:
    return None if options.ca is None else ssl.create_default_context(cafile=options.ca)


class Broker:
    """A connection that is made again whenever it is lost.

    Args:
        options: the operator's choices.
        name: how NATS lists the connection.
        limits: bounds.
    """

    def __init__(self, options: BrokerOptions, name: str, limits: FeedLimits) -> None:
        self._options = options
        self._name = name
        self._limits = limits
        self._client = _Client()
        self._wanted: dict[str, Handler] = {}
        self._is_ready = False
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._outbox_size = 0
        self._has_mail = asyncio.Event()
        self._is_ending = False
        self._working: list[asyncio.Task[None]] = []
        self._told_at = float("-inf")

    @property
    def is_connected(self) -> bool:
        """Return whether messages can be sent and received now."""
        return self._is_ready and self._client.is_connected

    async def subscribe(self, subject: str, handler: Handler) -> None:
        """Call a handler with the messages on a subject, as soon as there is a connection."""
        self._wanted[subject] = handler
        if self._is_ready:
            await self._take(self._client, subject, handler)

    async def open(self) -> None:
        """Connect in the background, until closed."""
        self._working = [asyncio.create_task(self._keep_connected()), asyncio.create_task(self._send())]

    async def close(self) -> None:
        """Flush queued messages for at most `connect_s`, then disconnect."""
        connecting, sending = self._working
        self._is_ending = True
        self._has_mail.set()
        if self.is_connected:
            await asyncio.wait({sending}, timeout=self._limits.connect_s)
        await end(connecting)
        self._client.abort()
        await end(sending, again_s=_AGAIN_S)  # the library swallows a cancellation while it sends
        await self._bounded(self._client.close(), self._client)

    async def _bounded(self, work: Coroutine[object, object, None], client: _Client) -> None:
        """Await a call to the client. After `connect_s` its connection is dropped."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=self._limits.connect_s)
        if not task.done():
            client.abort()
            await end(task, again_s=_AGAIN_S)
        elif (error := task.exception()) is not None:
            await self._failed(error)

    def publish(self, subject: str, payload: bytes) -> bool:
        """Send a message soon, without waiting. Return False if it was dropped instead."""
        too_large = len(payload) > self._client.max_payload
        if not self.is_connected or too_large or self._outbox_size + len(payload) > self._limits.outbox_bytes:
            return False
        self._outbox.append((subject, payload))
        self._outbox_size += len(payload)
        self._has_mail.set()
        return True

    async def _send(self) -> None:
        while True:
            await self._has_mail.wait()
            self._has_mail.clear()
            while self._outbox:
                subject, payload = self._outbox.popleft()
                self._outbox_size -= len(payload)
                try:
                    await self._client.publish(subject, payload)
                except Exception as error:  # lost, as any message may be; this task goes on
                    await self._failed(error)
            if self._is_ending:
                await self._client.flush()
                return

    async def _keep_connected(self) -> None:
        while True:
            self._is_ready = False
            client, closed = _Client(), asyncio.Event()
            try:
                await self._connect(client, closed)
                self._client = client
                for subject, handler in list(self._wanted.items()):
                    await self._take(client, subject, handler)
                self._is_ready = True
                observe.broker_connected(self.address)
                await self._until_lost(client, closed)
            except Exception as error:
                await self._failed(error)
            finally:
                self._client = client  # `close` ends it
            self._is_ready = False
            client.abort()
            await self._bounded(client.close(), client)
            await asyncio.sleep(self._limits.reconnect_s)

    async def _until_lost(self, client: _Client, closed: asyncio.Event) -> None:
        """Return when the library has given up, or has had no connection for `stuck_s`.

        The library reconnects, but closes for good after an error such as expired credentials.
        """
        clock = asyncio.get_running_loop().time
        connected_at = clock()
        while not closed.is_set() and clock() - connected_at < self._limits.stuck_s:
            if client.is_connected:
                connected_at = clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.reconnect_s):
                    await closed.wait()

    async def _connect(self, client: _Client, closed: asyncio.Event) -> None:
        limits, options = self._limits, self._options

        async def tell() -> None:
            closed.set()

        # With attempts without end this call goes on until there is a connection.
        await client.connect(
            list(options.urls),
            name=self._name,
            connect_timeout=limits.connect_s,
            reconnect_time_wait=limits.reconnect_s,
            max_reconnect_attempts=-1,
            ping_interval=limits.ping_s,
            max_outstanding_pings=2,
            pending_size=limits.outbox_bytes,
            tls=_tls(options),
            error_cb=self._failed,
            reconnected_cb=self._reconnected,
            closed_cb=tell,
        )

    async def _take(self, client: _Client, subject: str, handler: Handler) -> None:
        await client.subscribe(
            subject, cb=_calling(handler), pending_msgs_limit=-1, pending_bytes_limit=self._limits.inbox_bytes
        )

    @property
    def address(self) -> str:
        """Return host and port of the server that is connected; empty without one."""
        url = self._client.connected_url
        return "" if url is None else f"{url.hostname}:{url.port}"

    async def _failed(self, error: BaseException) -> None:
        if self._is_ending:
            return
        # Each attempt to connect fails with an error, and each message that is dropped.
        at = asyncio.get_running_loop().time()
        if at - self._told_at >= self._limits.told_s:
            self._told_at = at
            observe.broker_failed(error, ", ".join(_without_password(url) for url in self._options.urls))

    async def _reconnected(self) -> None:
        self._told_at = float("-inf")
        observe.broker_connected(self.address)


def _calling(handler: Handler) -> Callable[[Msg], Awaitable[None]]:
    async def take(message: Msg) -> None:
        handler(message.data)

    return take


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 4222}"


def subject_of(parts: Sequence[str]) -> str:
    """Return a subject of these parts. NATS separates by dots, and gives meaning to `*`, `>` and spaces."""
    return ".".join("".join(each if each.isalnum() or each in "_-" else "_" for each in part) for part in parts)

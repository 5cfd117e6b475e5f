"""The connection to NATS: a subject to publish on, subscriptions, and nothing that anybody has to wait for.

Messages may be lost, and nothing may depend on one: core NATS delivers at most once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from momentum_sync import observe
from momentum_sync.limits import FeedLimits
from momentum_sync.tasks import end

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
        self._client = Client()
        self._wanted: dict[str, Handler] = {}
        self._is_ready = False
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._outbox_size = 0
        self._has_mail = asyncio.Event()
        self._working: list[asyncio.Task[None]] = []
        self._told_at = float("-inf")

    @property
    def is_connected(self) -> bool:
        """Return whether messages can be sent and received now."""
        return self._client.is_connected

    async def subscribe(self, subject: str, handler: Handler) -> None:
        """Call a handler with the messages on a subject, as soon as there is a connection."""
        self._wanted[subject] = handler
        if self._is_ready:
            await self._take(subject, handler)

    async def open(self) -> None:
        """Connect in the background, for as long as it takes."""
        self._working = [asyncio.create_task(self._connect()), asyncio.create_task(self._send())]

    async def close(self) -> None:
        """Send what waits, if that is possible at once, and disconnect."""
        await end(*self._working)
        if self._client.is_connected:
            try:
                async with asyncio.timeout(self._limits.connect_s):
                    while self._outbox:
                        await self._client.publish(*self._outbox.popleft())
                    await self._client.flush()
            except (nats.errors.Error, TimeoutError, OSError) as error:
                await self._failed(error)
        await self._client.close()

    def publish(self, subject: str, payload: bytes) -> bool:
        """Send a message soon, without waiting. Return False if it was dropped instead."""
        if not self._client.is_connected or self._outbox_size + len(payload) > self._limits.outbox_bytes:
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
                except (nats.errors.Error, OSError) as error:  # lost, as any message may be
                    await self._failed(error)

    async def _connect(self) -> None:
        limits, options = self._limits, self._options
        while True:
            try:
                # With attempts without end this call goes on until there is a connection.
                await self._client.connect(
                    list(options.urls),
                    name=self._name,
                    connect_timeout=limits.connect_s,
                    reconnect_time_wait=limits.reconnect_s,
                    max_reconnect_attempts=-1,
                    ping_interval=limits.ping_s,
                    max_outstanding_pings=2,
                    pending_size=limits.outbox_bytes,
                    tls=self._tls(),
                    error_cb=self._failed,
                    reconnected_cb=self._reconnected,
                )
                break
            except (nats.errors.Error, OSError, TimeoutError) as error:
                await self._failed(error)
                await asyncio.sleep(limits.connect_s)
        self._is_ready = True
        for subject, handler in list(self._wanted.items()):
            await self._take(subject, handler)
        observe.broker_connected(self._server)

    async def _take(self, subject: str, handler: Handler) -> None:
        await self._client.subscribe(
            subject, cb=_calling(handler), pending_msgs_limit=-1, pending_bytes_limit=self._limits.inbox_bytes
        )

    def _tls(self) -> ssl.SSLContext | None:
        if self._options.ca is None:
            return None
        return ssl.create_default_context(cafile=self._options.ca)

    @property
    def _server(self) -> str:
        url = self._client.connected_url
        return "" if url is None else url.hostname or ""

    async def _failed(self, error: Exception) -> None:
        # Each attempt to connect fails with an error, and each message that is dropped.
        at = asyncio.get_running_loop().time()
        if at - self._told_at >= self._limits.told_s:
            self._told_at = at
            observe.broker_failed(error)

    async def _reconnected(self) -> None:
        self._told_at = float("-inf")
        observe.broker_connected(self._server)


def _calling(handler: Handler) -> Callable[[Msg], Awaitable[None]]:
    async def take(message: Msg) -> None:
        handler(message.data)

    return take


def subject_of(parts: Sequence[str]) -> str:
    """Return a subject of these parts. NATS separates by dots, and gives meaning to `*`, `>` and spaces."""
    return ".".join("".join(each if each.isalnum() or each in "_-" else "_" for each in part) for part in parts)

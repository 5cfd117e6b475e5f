"""The server: capture → event log → gateway, started in this order and stopped in reverse."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import psycopg
import uvicorn
from fastapi import FastAPI
from psycopg_pool import PoolTimeout
from pydantic import SecretStr

from momentum_sync import observe
from momentum_sync.capture.preflight import check
from momentum_sync.capture.reader import Capture
from momentum_sync.database.migrate import migrate
from momentum_sync.database.pool import CallerPool
from momentum_sync.errors import Unsuitable
from momentum_sync.eventlog.event_metrics import EventMetrics
from momentum_sync.eventlog.feed import Feed
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.samples import Samples
from momentum_sync.eventlog.table import EventLog
from momentum_sync.eventlog.window import Window
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.http_api import make_api
from momentum_sync.gateway.hub import Broadcast, Hub
from momentum_sync.gateway.listener import bounded_http
from momentum_sync.gateway.send_budget import SendBudget
from momentum_sync.gateway.snapshot import Desk
from momentum_sync.gateway.websocket import protocol_for
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.keys import Authenticator
from momentum_sync.identity.tokens import TokenRules
from momentum_sync.metrics import Scrape
from momentum_sync.settings import Settings
from momentum_sync.tasks import end
from momentum_sync.web.index import mount_index
from momentum_sync.web.pages import mount
from momentum_sync.wire.close import Close

_HOUSEKEEPING_S = 3600.0
# The window holds hundreds of thousands of long-lived objects without a cycle among them. Looking through all of them
# stops every event for a while (1,000 writes/s: p99 60-90 ms, without it 10-30 ms), so it comes with the housekeeping.
_COLLECT_GARBAGE = (5_000, 10, 1_000_000)
_STOP_TIMEOUT_S = 10
_KERNEL_BUFFER = 256 * 1024
_REQUESTS_AT_ONCE = 1_000
_METRICS_EVERY_S = 5.0
_METRICS_TIMEOUT_S = 5.0
_HEARS_WITHIN_S = 2.0  # a beat is due each second
_BATCH_AT_LEAST = 50
_BATCH_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers. `url` is its root; `live` is set once it takes sockets."""

    url: str
    api: FastAPI
    live: asyncio.Event


@contextmanager
def database(settings: Settings, *, again: bool = False) -> Iterator[str]:
    """The connection string of a database that is up to date; the embedded one, started and migrated, if none is given.

    `again` applies migrations to it anew that an earlier version of ours applied before their release. Raises
    Unsuitable for one that cannot be used.
    """
    if settings.database_url is not None:
        check(settings.database_url, settings.slot, capture=settings.capture_url)
        yield settings.database_url
        return
    settings.check_embedded()
    # Linux and macOS only, and a heavy import: for those who have no database of their own.
    from momentum_sync.database.embedded import Embedded

    with Embedded(settings.data_dir) as embedded:
        migrate(embedded.conninfo, tell=observe.migrated, again=again)
        check(embedded.conninfo, settings.slot)
        yield embedded.conninfo


def development_secret(data_dir: Path) -> str:
    """The HS256 secret of development mode: made once, kept in a file that only its owner reads."""
    path = development_secret_path(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(secrets.token_urlsafe(48), encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def development_secret_path(data_dir: Path) -> Path:
    """Where the secret of development mode is kept."""
    return data_dir.expanduser() / "development.secret"


def token_rules(settings: Settings) -> TokenRules:
    """What a good token looks like, under these settings."""
    return TokenRules(
        secret=development_secret(settings.data_dir) if settings.development else _revealed(settings.jwt_secret),
        issuer=settings.issuer,
        audience=settings.jwt_audience,
        anon_key=_revealed(settings.anon_key),
        service_role_key=_revealed(settings.service_role_key),
    )


@asynccontextmanager
async def server(settings: Settings, conninfo: str, *, stopped: asyncio.Event) -> AsyncIterator[Running]:
    """Capture, log and gateway on a prepared database, answering inside the context.

    `stopped` is set if a part of it ends, which none should: whoever waits for it ends the server.
    """
    if settings.development:
        observe.development_secret()
    async with AsyncExitStack() as stack:
        log = await _opened(stack, EventLog(conninfo, settings.slot))
        feed = Feed(Window(settings.window_bytes))
        event_metrics = await _opened(stack, EventMetrics(conninfo))
        samples = await stack.enter_async_context(_measuring(event_metrics, settings.metrics_per_second, stopped))
        capture = Capture(settings.capture_url or conninfo, settings.slot, log, feed, samples)
        pool = await _opened(stack, CallerPool(conninfo, size=settings.pool_size))
        rights = Authorizer(pool, most=settings.max_connections, hears=partial(_hears, capture))
        hub = Hub(
            feed,
            limit=settings.max_connections,
            limit_per_user=settings.max_connections_per_user,
            clock=time.time,
            rights_changed=rights.changed,
            rights_missed=rights.missed,
            delivered=_telling(samples),
        )
        history = History(feed, log)
        gateway = Gateway(
            desk=Desk(pool, rights, feed, history),
            history=history,
            hub=hub,
            send_budget=SendBudget(each=settings.send_buffer_bytes, total=settings.send_total_bytes),
            authenticator=Authenticator(token_rules(settings)),
            live=lambda: capture.state == "live",
            lag=lambda: capture.lag(time.monotonic()),
            reached=lambda: feed.last_id,
            heartbeat=settings.heartbeat.total_seconds(),
            send_buffer=settings.send_buffer_bytes,
            allowed_origins=settings.allowed_origins,
            loopback_origins=settings.development,
            token_in_query=settings.token_in_query,
            metrics_open=settings.metrics_open,
        )
        api = make_api(
            gateway,
            capture_state=lambda: capture.state,
            slot=lambda: asdict(capture.slot),
            publishing=lambda: msgspec.structs.asdict(capture.publishing),
            metrics=Scrape(_readings(gateway, capture, feed)).text,
        )
        await stack.enter_async_context(_capturing(capture, stopped))
        await stack.enter_async_context(_background(_keep_house(log, event_metrics, settings), stopped))
        url = await stack.enter_async_context(_listening(settings, api, gateway, stopped))
        yield Running(url, api, capture.has_begun)
        await _drain(gateway, settings.drain.total_seconds())


class _Opens(Protocol):
    async def open(self) -> None: ...
    async def close(self) -> None: ...


_Resource = TypeVar("_Resource", bound=_Opens)


async def _opened(stack: AsyncExitStack, resource: _Resource) -> _Resource:
    """Open a resource and close it with the stack."""
    await resource.open()
    stack.push_async_callback(resource.close)
    return resource


def _hears(capture: Capture) -> bool:
    """Whether a change of rights is told of about as soon as it happens."""
    return capture.state == "live" and capture.lag(time.monotonic()) < _HEARS_WITHIN_S


def _readings(gateway: Gateway, capture: Capture, feed: Feed) -> dict[str, Callable[[], float]]:
    """What the parts of a server know anyhow, by the names of `metrics.READ`."""
    hub = gateway.hub
    return {
        "momentum_connections": lambda: len(hub),
        "momentum_subscriptions": lambda: hub.subscriptions,
        "momentum_channels": lambda: hub.channels,
        "momentum_queue_bytes": lambda: gateway.send_budget.total,
        "momentum_window_bytes": lambda: feed.window.size,
        "momentum_capture_live": lambda: capture.state == "live",
        "momentum_capture_lag_seconds": gateway.lag,
        "momentum_slot_retained_bytes": lambda: -1 if capture.slot.retained is None else capture.slot.retained,
        "momentum_draining": lambda: gateway.draining,
    }


def _telling(samples: Samples) -> Callable[[Sequence[Broadcast]], None]:
    """What the router tells of events, to the numbers and to the samples."""

    def tell(fanouts: Sequence[Broadcast]) -> None:
        observe.delivered(
            [fanout.event.event_type for fanout in fanouts],
            sum([fanout.frames for fanout in fanouts]),
            sum([fanout.size for fanout in fanouts]),
            [fanout.delay for fanout in fanouts if fanout.delay is not None],
        )
        for fanout in fanouts:
            if fanout.broken is None:
                samples.delivered(fanout.event, fanout.delay)
            else:
                samples.failed(fanout.event, observe.described(fanout.broken))

    return tell


@asynccontextmanager
async def _measuring(event_metrics: EventMetrics, per_second: float, stopped: asyncio.Event) -> AsyncIterator[Samples]:
    """What gathers samples of the events, and writes them, in the background and at the end."""
    samples = Samples(per_second, time.monotonic)
    ended = asyncio.Event()

    async def write() -> None:
        if taken := samples.take():
            try:
                async with asyncio.timeout(_METRICS_TIMEOUT_S):
                    await event_metrics.write(taken)
            except (psycopg.Error, PoolTimeout, TimeoutError) as error:
                observe.metrics_unwritten(error, len(taken))

    async def write_on() -> None:
        dropped = 0
        while not ended.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_METRICS_EVERY_S):
                    await ended.wait()
            await write()
            if samples.dropped > dropped:
                dropped = samples.dropped
                observe.metrics_dropped(dropped)

    task = asyncio.ensure_future(write_on())
    task.add_done_callback(lambda _: stopped.set())
    try:
        yield samples
    finally:
        ended.set()
        await task


async def _drain(gateway: Gateway, seconds: float) -> None:
    """Takes no new sockets, and sends those there are away: in batches, over `seconds` when they are many."""
    gateway.draining = True
    observe.stopping(len(gateway.hub))
    connections = gateway.hub.connections
    batch = max(_BATCH_AT_LEAST, ceil(len(connections) * _BATCH_EVERY_S / max(seconds, _BATCH_EVERY_S)))
    for number, connection in enumerate(connections, 1):
        connection.session.close(Close.RESTART)
        connection.flush()
        if number % batch == 0:
            await asyncio.sleep(_BATCH_EVERY_S)


@asynccontextmanager
async def _capturing(capture: Capture, stopped: asyncio.Event) -> AsyncIterator[None]:
    """Capture in the background; at the end the slot is confirmed behind what was read, if the database is there."""
    task = asyncio.ensure_future(capture.run())
    task.add_done_callback(lambda _: stopped.set())
    try:
        yield
    finally:
        capture.end()
        _, late = await asyncio.wait([task], timeout=_STOP_TIMEOUT_S)
        if late:
            observe.unconfirmed()
            await end(task)
        if not task.cancelled():
            task.result()


@asynccontextmanager
async def _listening(settings: Settings, api: FastAPI, gateway: Gateway, stopped: asyncio.Event) -> AsyncIterator[str]:
    """uvicorn on a socket of ours, so that the port is known, and ours to complain about, before it starts."""
    if settings.pages:
        mount(api)
    mount_index(api, pages=settings.pages)
    config = uvicorn.Config(
        api,
        http=bounded_http(settings.max_connections + _REQUESTS_AT_ONCE),
        ws=protocol_for(gateway),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_STOP_TIMEOUT_S,
    )
    listener = _bind(settings.host, settings.port)
    url = f"http://{_host(settings.host)}:{listener.getsockname()[1]}"
    uvicorn_server = _Uvicorn(config)
    serving = asyncio.ensure_future(uvicorn_server.serve(sockets=[listener]))
    serving.add_done_callback(lambda _: stopped.set())
    serving.add_done_callback(lambda _: uvicorn_server.listens.set())
    await uvicorn_server.listens.wait()
    try:
        observe.listening(url)
        yield url
    finally:
        uvicorn_server.should_exit = True
        await serving


class _Uvicorn(uvicorn.Server):
    """uvicorn without a hand on the process's signals, which belong to whoever runs the server."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What the kernel holds for a client is beyond our bounds, and hides for long whether it reads.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BUFFER)
        listener.bind((host, port))
    except OSError as error:
        raise Unsuitable(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            "Stop what listens there, or choose another: --port 8788",
        ) from error
    return listener


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@asynccontextmanager
async def _background(work: Coroutine[object, object, None], stopped: asyncio.Event) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda _: stopped.set())
    try:
        yield
    finally:
        await end(task)
        if not task.cancelled():
            task.result()


async def _keep_house(log: EventLog, event_metrics: EventMetrics, settings: Settings) -> None:
    """Partitions ahead, expired ones dropped, old metrics deleted; every hour, and again soon if it failed."""
    gc.set_threshold(*_COLLECT_GARBAGE)
    while True:
        pause = _HOUSEKEEPING_S
        try:
            dropped = await log.keep_partitions(retention=settings.retention)
            if dropped:
                observe.partitions_dropped(dropped)
            await event_metrics.clean()
            gc.collect()
        except (psycopg.Error, PoolTimeout) as error:
            observe.housekeeping_failed(error)
            pause = 60.0
        await asyncio.sleep(pause)


@contextmanager
def stopped_by_signals() -> Iterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set. The second signal ends the process at once, wherever it is."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        stopped.set()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield stopped
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()

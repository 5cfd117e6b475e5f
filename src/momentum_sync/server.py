"""Builds a server: capture, gateway or both, started in this order and stopped in reverse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from fastapi import FastAPI

from momentum_sync import observe
from momentum_sync.capture.preflight import check
from momentum_sync.capture.supervisor import Capture
from momentum_sync.database.migrate import migrate
from momentum_sync.database.pool import CallerPool
from momentum_sync.domain.application import MOMENTUM
from momentum_sync.eventlog.broker import Broker, BrokerOptions, subject_of
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.event_metrics import EventMetrics
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.feed_nats import FeedReader, FeedWriter
from momentum_sync.eventlog.followed_tables import FollowedTables
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.receipt_records import ReceiptRecords
from momentum_sync.eventlog.samples import Samples
from momentum_sync.eventlog.session_records import SessionRecords
from momentum_sync.eventlog.window import Window
from momentum_sync.gateway.application import Application
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.http.api import make_api, make_capture_api
from momentum_sync.gateway.http.health import HealthLog
from momentum_sync.gateway.http.metrics import feed_readings, readings
from momentum_sync.gateway.listener import Bound, listening
from momentum_sync.gateway.realtime_sessions import RealtimeSessions
from momentum_sync.gateway.sharing import Sharing
from momentum_sync.gateway.websocket import protocol_for
from momentum_sync.identity.compiled_policies import CompiledPolicies
from momentum_sync.identity.keys import Authenticator
from momentum_sync.lifecycle import (
    background,
    capturing,
    collect_garbage,
    drain,
    keep_house,
    keep_receipts,
    opened,
    postpone_full_collections,
    prepare_log,
    save_receipts,
    writing_metrics,
)
from momentum_sync.limits import Limits
from momentum_sync.metrics import Scrape
from momentum_sync.serving import Source, make_gateway
from momentum_sync.settings import Settings
from momentum_sync.telemetry.spans import EventSpans
from momentum_sync.token_settings import token_rules
from momentum_sync.web.index import mount_index
from momentum_sync.web.pages import mount

if TYPE_CHECKING:
    from momentum_sync.telemetry.otlp import Telemetry

_VERSION = "1"  # of the messages on the broker; processes of different versions do not hear each other
_NO_BROKER = "NATS cannot be reached; gateways poll the log instead"


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers. `url` is its root; `live` is set once it takes sockets."""

    url: str
    api: FastAPI
    live: asyncio.Event


@contextmanager
def database(settings: Settings, *, again: bool = False) -> Iterator[str]:
    """Yield the connection string of a migrated database: the operator's, or an embedded one that is started here.

    Args:
        settings: `database_url` and `data_dir` decide which.
        again: apply migrations of an earlier version again, to the embedded database.

    Raises:
        Unsuitable: the database cannot be used.
    """
    if settings.database_url is not None:
        check(
            settings.database_url, settings.slot, capture=settings.capture_url, captures=settings.role != "gateway"
        )  # fmt: skip
        yield settings.database_url
        return
    settings.check_embedded()
    # Linux and macOS only, and a heavy import: only for those without a database of their own.
    from momentum_sync.database.embedded import Embedded

    with Embedded(settings.data_dir) as embedded:
        migrate(embedded.conninfo, tell=observe.migrated, again=again)
        check(embedded.conninfo, settings.slot)
        yield embedded.conninfo


class _Parts(NamedTuple):
    """The parts of every role, and the stack that stops them."""

    settings: Settings
    limits: Limits
    application: Application
    stack: AsyncExitStack
    stopped: asyncio.Event
    connections: LogConnections
    log: EventLog
    feed: LocalFeed
    samples: Samples
    event_metrics: EventMetrics
    telemetry: Telemetry | None
    spans: EventSpans | None


@asynccontextmanager
async def server(
    settings: Settings,
    conninfo: str,
    *,
    stopped: asyncio.Event,
    limits: Limits | None = None,
    application: Application = MOMENTUM,
) -> AsyncIterator[Running]:
    """Run capture, a gateway, or both in one process, on a migrated database.

    Args:
        settings: the operator's settings; `role` says which.
        conninfo: connection string of the database.
        stopped: set if a part of the server ends, which none should: the caller then ends the server.
        limits: bounds; the defaults if left out.
        application: the application that is served.
    """
    limits = limits or Limits()
    postpone_full_collections()
    async with AsyncExitStack() as stack:
        telemetry = await opened(stack, _telemetry(settings.role)) if settings.otel else None
        spans = None if telemetry is None else EventSpans(settings.otel_traces, telemetry.take, time.time, uuid4().hex)
        # The stack closes in reverse: capture's last append needs these connections.
        connections = await opened(stack, LogConnections(conninfo, limits.log))
        log = EventLog(connections, limits.log, application.schema.per_user_channels)
        event_metrics = await opened(stack, EventMetrics(conninfo))
        samples = Samples(settings.metrics_per_second, time.monotonic)
        parts = _Parts(
            settings, limits, application, stack, stopped, connections, log, LocalFeed(Window(settings.window_bytes)),
            samples, event_metrics, telemetry, spans,
        )  # fmt: skip
        await stack.enter_async_context(writing_metrics(samples, event_metrics, stopped, limits.lifecycle))
        health = HealthLog(settings.role, parts.feed, limits.lifecycle)
        await stack.enter_async_context(background(health.run(), stopped))
        match settings.role:
            case "capture":
                yield await _capture_alone(parts, conninfo)
            case "gateway":
                async with _gateway_alone(parts, conninfo) as running:
                    yield running
            case _:
                capture = _capture(parts, conninfo)
                source = Source(parts.feed, log, samples, capture, None, spans)
                async with _clients(parts, conninfo, source, capture.has_begun, capture) as running:
                    yield running


def _telemetry(role: str) -> Telemetry:
    # The extra is imported only where it is wanted.
    from momentum_sync.telemetry.otlp import Telemetry

    return Telemetry(role)


async def _send_metrics(parts: _Parts, scrape: Scrape) -> None:
    if parts.telemetry is not None:
        await parts.stack.enter_async_context(background(parts.telemetry.run(scrape.families), parts.stopped))


def _capture(parts: _Parts, conninfo: str) -> Capture:
    limits = parts.limits.capture
    if parts.settings.role == "capture":
        # Without the broker, gateways know from a log that moves on that capture is alive.
        limits = replace(limits, idle_confirm_interval_s=parts.limits.feed.report_s)
    return Capture(
        parts.settings.capture_url or conninfo, parts.settings.slot, parts.connections, parts.log, parts.feed,
        parts.samples, parts.application.schema, limits, parts.spans,
    )  # fmt: skip


async def _run_capture(parts: _Parts, capture: Capture) -> None:
    settings, limits = parts.settings, parts.limits
    await prepare_log(parts.connections, settings.retention, limits.lifecycle)
    await parts.stack.enter_async_context(capturing(capture, parts.stopped, limits.lifecycle))
    housekeeping = keep_house(
        parts.connections, parts.event_metrics, SessionRecords(parts.connections), ReceiptRecords(parts.connections),
        settings.retention, limits,
    )  # fmt: skip
    await parts.stack.enter_async_context(background(housekeeping, parts.stopped))


async def _collect_garbage(parts: _Parts, unfreed: Callable[[], int]) -> None:
    await parts.stack.enter_async_context(background(collect_garbage(unfreed, parts.limits.lifecycle), parts.stopped))


async def _broker(parts: _Parts) -> Broker:
    """Return a connection to NATS, which is made in the background."""
    settings = parts.settings
    ca = None if settings.nats_ca is None else str(settings.nats_ca)
    options = BrokerOptions(settings.nats_urls, ca)
    return await opened(parts.stack, Broker(options, f"momentum-sync {settings.role}", parts.limits.feed))


async def _subject(parts: _Parts, name: str) -> str:
    """Return a subject of this database."""
    return subject_of([parts.settings.nats_prefix, _VERSION, await parts.log.identity(), parts.settings.slot, name])


async def _capture_alone(parts: _Parts, conninfo: str) -> Running:
    limits, settings, feed = parts.limits, parts.settings, parts.feed
    broker = await _broker(parts)
    writer = FeedWriter(feed, broker, await _subject(parts, "feed"), limits.feed)
    await parts.stack.enter_async_context(background(writer.run(), parts.stopped))
    capture = _capture(parts, conninfo)
    feed.report(lambda: capture.status()._replace(problem=None if broker.is_connected else _NO_BROKER))
    await _run_capture(parts, capture)
    await _collect_garbage(parts, lambda: 0)
    scrape = Scrape(
        {
            **feed_readings(feed, captures_only=True),
            **_broker_readings(broker),
            "momentum_draining": lambda: 0.0,  # it has no clients to send away
        }
    )
    await _send_metrics(parts, scrape)
    authenticator = Authenticator(token_rules(settings), limits.keys)
    api = make_capture_api(feed, authenticator, scrape.text, limits, metrics_open=settings.metrics_open)
    bound = Bound(settings.host, settings.port, 0, settings.own_port)
    listens = await parts.stack.enter_async_context(listening(api, None, bound, parts.stopped, limits))
    return Running(listens.url, api, capture.has_begun)


async def _share(parts: _Parts, gateway: Gateway, sessions: RealtimeSessions, broker: Broker) -> None:
    """Make a gateway one of several."""
    subject = await _subject(parts, "gateways")
    sharing = Sharing(
        uuid4().hex, partial(broker.publish, subject), gateway.hub, gateway.members, sessions, gateway.rates,
        asyncio.get_running_loop().call_later, parts.limits.peers,
    )  # fmt: skip
    await broker.subscribe(subject, sharing.hear)
    await parts.stack.enter_async_context(background(sharing.run(), parts.stopped))
    parts.stack.callback(sharing.leave)


def _broker_readings(broker: Broker | None) -> dict[str, Callable[[], float]]:
    return {"momentum_nats_connected": lambda: broker is None or broker.is_connected}


@asynccontextmanager
async def _gateway_alone(parts: _Parts, conninfo: str) -> AsyncIterator[Running]:
    limits = parts.limits
    broker = await _broker(parts)
    reader = FeedReader(
        parts.feed, parts.log, parts.connections, broker, await _subject(parts, "feed"), limits.feed
    )  # fmt: skip
    await reader.open()
    await parts.stack.enter_async_context(background(reader.run(), parts.stopped))
    await parts.stack.enter_async_context(background(reader.measure(), parts.stopped))
    rows = FollowedTables(parts.connections, parts.feed, limits.capture)
    source = Source(parts.feed, parts.log, parts.samples, rows, reader, parts.spans)
    async with _clients(parts, conninfo, source, reader.has_begun, None, broker) as running:
        yield running


async def _keep_receipts(parts: _Parts, gateway: Gateway) -> None:
    """Ask for receipts and save them, the last ones when the sockets are closed."""
    records, limits = ReceiptRecords(parts.connections), parts.limits.receipts
    every = parts.settings.receipts
    keeping = keep_receipts(
        gateway.receipts, records, limits, None if every is None else every.total_seconds()
    )  # fmt: skip
    await parts.stack.enter_async_context(background(keeping, parts.stopped))
    parts.stack.push_async_callback(partial(save_receipts, gateway.receipts, records, limits))


@asynccontextmanager
async def _clients(
    parts: _Parts, conninfo: str, source: Source, live: asyncio.Event, capture: Capture | None,
    broker: Broker | None = None,
) -> AsyncIterator[Running]:  # fmt: skip
    """Serve clients, and close their connections at the end. `capture` runs in this process, if it is given."""
    settings, limits, stack, stopped = parts.settings, parts.limits, parts.stack, parts.stopped
    pool = await opened(stack, CallerPool(conninfo, limits.queries, size=settings.pool_size))
    sessions = RealtimeSessions(SessionRecords(parts.connections), limits.resume)
    policies = CompiledPolicies(pool, interval_s=limits.capture.policy_check_interval_s)
    gateway = make_gateway(settings, limits, parts.application, source, pool, sessions, policies)
    if broker is not None:
        await _share(parts, gateway, sessions, broker)
    policies.report(gateway.hub.review_rows)
    await stack.enter_async_context(background(policies.run(), stopped))
    scrape = Scrape({**readings(gateway), **_broker_readings(broker)})
    await _send_metrics(parts, scrape)
    api = make_api(gateway, scrape.text)
    if settings.pages:
        mount(api)
    mount_index(api, pages=settings.pages)
    if capture is not None:
        await _run_capture(parts, capture)
    pings = sessions.pings.run(gateway.files, lambda: gateway.feed.position)
    stack.push_async_callback(sessions.flush)  # when the sockets are closed
    await stack.enter_async_context(background(pings, stopped))
    await stack.enter_async_context(background(sessions.run_saves(), stopped))
    await _keep_receipts(parts, gateway)
    await _collect_garbage(parts, lambda: gateway.unfreed)
    bound = Bound(
        settings.host, settings.port, settings.max_connections, settings.own_port, reuse=settings.reuse_port
    )  # fmt: skip
    if settings.reuse_port:
        # The kernel gives this process a part of all connections as soon as it listens, and others can serve them.
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.lifecycle.listen_s):
                await live.wait()
    listens = await stack.enter_async_context(listening(api, protocol_for(gateway), bound, stopped, limits))
    yield Running(listens.url, api, live)
    if settings.reuse_port:
        listens.stop()
    # Before the stack closes, so that events are still delivered to clients that are not closed yet.
    await drain(gateway, settings.drain.total_seconds())

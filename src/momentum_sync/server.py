"""Builds a server: capture, log and gateway, started in this order and stopped in reverse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

from fastapi import FastAPI

from momentum_sync import observe
from momentum_sync.capture.preflight import check
from momentum_sync.capture.supervisor import Capture
from momentum_sync.database.migrate import migrate
from momentum_sync.database.pool import CallerPool
from momentum_sync.domain.application import MOMENTUM
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.event_metrics import EventMetrics
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.samples import Samples
from momentum_sync.eventlog.session_records import SessionRecords
from momentum_sync.eventlog.window import Window
from momentum_sync.gateway.application import Application
from momentum_sync.gateway.caller_reads import CallerReads
from momentum_sync.gateway.fan_out import FanOut
from momentum_sync.gateway.gateway import Gateway, GatewayOptions
from momentum_sync.gateway.http.api import make_api
from momentum_sync.gateway.http.metrics import readings
from momentum_sync.gateway.hub import Hub
from momentum_sync.gateway.listener import listening
from momentum_sync.gateway.realtime_sessions import RealtimeSessions
from momentum_sync.gateway.row_watches import RowSource, RowWatches
from momentum_sync.gateway.send_budget import SendBudget
from momentum_sync.gateway.topic_members import TopicMembers
from momentum_sync.gateway.websocket import protocol_for
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.compiled_policies import CompiledPolicies
from momentum_sync.identity.event_filter import EventFilter
from momentum_sync.identity.keys import Authenticator
from momentum_sync.identity.row_rights import RowRights
from momentum_sync.identity.topic_rights import TopicRights
from momentum_sync.lifecycle import background, capturing, drain, keep_house, opened, prepare_log, writing_metrics
from momentum_sync.limits import Limits
from momentum_sync.metrics import Scrape
from momentum_sync.settings import Settings
from momentum_sync.token_settings import token_rules
from momentum_sync.web.index import mount_index
from momentum_sync.web.pages import mount


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
        check(settings.database_url, settings.slot, capture=settings.capture_url)
        yield settings.database_url
        return
    settings.check_embedded()
    # Linux and macOS only, and a heavy import: only for those without a database of their own.
    from momentum_sync.database.embedded import Embedded

    with Embedded(settings.data_dir) as embedded:
        migrate(embedded.conninfo, tell=observe.migrated, again=again)
        check(embedded.conninfo, settings.slot)
        yield embedded.conninfo


@asynccontextmanager
async def server(
    settings: Settings,
    conninfo: str,
    *,
    stopped: asyncio.Event,
    limits: Limits | None = None,
    application: Application = MOMENTUM,
) -> AsyncIterator[Running]:
    """Run capture, log and gateway on a migrated database.

    Args:
        settings: the operator's settings.
        conninfo: connection string of the database.
        stopped: set if a part of the server ends, which none should: the caller then ends the server.
        limits: bounds; the defaults if left out.
        application: the application that is served.
    """
    limits = limits or Limits()
    async with AsyncExitStack() as stack:
        # The stack closes in reverse: capture's last append needs these connections.
        connections = await opened(stack, LogConnections(conninfo, limits.log))
        log = EventLog(connections, limits.log, application.schema.per_user_channels)
        feed = LocalFeed(Window(settings.window_bytes))
        event_metrics = await opened(stack, EventMetrics(conninfo))
        samples = Samples(settings.metrics_per_second, time.monotonic)
        await stack.enter_async_context(writing_metrics(samples, event_metrics, stopped, limits.lifecycle))
        capture = Capture(
            settings.capture_url or conninfo, settings.slot, connections, log, feed, samples, application.schema,
            limits.capture,
        )  # fmt: skip
        pool = await opened(stack, CallerPool(conninfo, limits.queries, size=settings.pool_size))
        records = SessionRecords(connections)
        sessions = RealtimeSessions(records, limits.resume)
        policies = CompiledPolicies(pool, interval_s=limits.capture.policy_check_interval_s)
        gateway = _gateway(settings, limits, application, feed, log, pool, samples, sessions, policies, capture)
        policies.report(gateway.hub.review_rows)
        await stack.enter_async_context(background(policies.run(), stopped))
        api = make_api(gateway, Scrape(readings(gateway)).text)
        if settings.pages:
            mount(api)
        mount_index(api, pages=settings.pages)
        await prepare_log(connections, settings.retention, limits.lifecycle)
        await stack.enter_async_context(capturing(capture, stopped, limits.lifecycle))
        housekeeping = keep_house(connections, event_metrics, records, settings.retention, limits.lifecycle)
        await stack.enter_async_context(background(housekeeping, stopped))
        await stack.enter_async_context(background(sessions.run(), stopped))
        stack.push_async_callback(sessions.flush)  # when the sockets are closed
        bound = (settings.host, settings.port, settings.max_connections)
        url = await stack.enter_async_context(listening(api, protocol_for(gateway), bound, stopped, limits))
        yield Running(url, api, capture.has_begun)
        # Before the stack closes, so that capture still delivers events to clients that are not closed yet.
        await drain(gateway, settings.drain.total_seconds())


def _gateway(
    settings: Settings,
    limits: Limits,
    application: Application,
    feed: LocalFeed,
    log: EventLog,
    pool: CallerPool,
    samples: Samples,
    sessions: RealtimeSessions,
    policies: CompiledPolicies,
    source: RowSource,
) -> Gateway:
    def up_to_date() -> bool:
        # Revocations and changed policies arrive through the feed: while it lags, cached grants may be outdated.
        status = feed.status()
        return status.live and status.lag < limits.lifecycle.grants_lag_s

    history = History(feed, log, limits.log)
    topics = TopicRights(pool, policies.is_current)
    policies.also(topics.have_changed)
    rights = RowRights(pool, deletes_by_key=settings.deletes == "key", trusted=policies.trusted)
    authenticator = Authenticator(token_rules(settings), limits.keys)
    authorizer = Authorizer(pool, application.schema, most=settings.max_connections, up_to_date=up_to_date)
    return Gateway(
        _options(settings),
        limits,
        application,
        feed=feed,
        history=history,
        hub=_hub(settings, limits, feed, samples, authorizer, policies),
        send_budget=SendBudget(
            each=settings.send_buffer_bytes, total=settings.send_total_bytes,
            admitted_at_once=limits.delivery.admitted_at_once,
        ),
        authenticator=authenticator,
        authorizer=authorizer,
        event_filter=EventFilter(pool, authorizer, application.schema),
        reads=CallerReads(pool, authorizer, feed),
        rows=RowWatches(authenticator, rights, policies, feed, history, sessions, source, topics),
        members=TopicMembers(
            asyncio.get_running_loop().call_later, limits.sockets.presence_s, sent=observe.sent,
            received=observe.broadcast, unique=lambda: str(uuid4()), failed=observe.failed,
        ),
    )  # fmt: skip


def _hub(
    settings: Settings,
    limits: Limits,
    feed: LocalFeed,
    samples: Samples,
    authorizer: Authorizer,
    policies: CompiledPolicies,
) -> Hub:
    def changed(xid: int, user: UUID | None) -> None:
        authorizer.changed(xid, user)
        if user is not None:
            policies.revoked(xid)

    def missed() -> None:
        authorizer.missed()
        policies.missed()

    return Hub(
        feed,
        limit=settings.max_connections,
        limit_per_user=settings.max_connections_per_user,
        clock=time.time,
        grants_changed=changed,
        row_rights_changed=policies.changed,
        grants_missed=missed,
        delivered=_reporting(samples),
        limits=limits.delivery,
    )


def _options(settings: Settings) -> GatewayOptions:
    return GatewayOptions(
        heartbeat=settings.heartbeat.total_seconds(),
        send_buffer=settings.send_buffer_bytes,
        allowed_origins=settings.allowed_origins,
        loopback_origins=settings.development,
        token_in_query=settings.token_in_query,
        metrics_open=settings.metrics_open,
    )


def _reporting(samples: Samples) -> Callable[[Sequence[FanOut]], None]:
    """Return a function that reports fan-outs to the metrics and to the samples."""

    def report(fan_outs: Sequence[FanOut]) -> None:
        observe.delivered(
            [fan_out.event.event_type for fan_out in fan_outs],
            sum([fan_out.frames for fan_out in fan_outs]),
            sum([fan_out.size for fan_out in fan_outs]),
            [fan_out.delay for fan_out in fan_outs if fan_out.delay is not None],
        )
        samples.delivered((each.event, each.delay) for each in fan_outs if each.broken is None)
        for fan_out in fan_outs:
            if fan_out.broken is not None:
                samples.failed(fan_out.event, observe.described(fan_out.broken))

    return report

"""Puts a gateway together from its parts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple
from uuid import UUID, uuid4

from momentum_sync import observe
from momentum_sync.database.pool import CallerPool
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.history import History, Reader
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.samples import Samples
from momentum_sync.gateway.application import Application
from momentum_sync.gateway.caller_reads import CallerReads
from momentum_sync.gateway.direct_files import DirectFiles
from momentum_sync.gateway.fan_out import FanOut
from momentum_sync.gateway.gateway import Gateway, GatewayOptions
from momentum_sync.gateway.hub import Hub
from momentum_sync.gateway.io_uring import Ring, open_ring
from momentum_sync.gateway.realtime_sessions import RealtimeSessions
from momentum_sync.gateway.receipts import Receipts
from momentum_sync.gateway.row_watches import RowSource, RowWatches
from momentum_sync.gateway.send_budget import SendBudget
from momentum_sync.gateway.topic_members import TopicMembers
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.compiled_policies import CompiledPolicies
from momentum_sync.identity.event_filter import EventFilter
from momentum_sync.identity.keys import Authenticator
from momentum_sync.identity.row_rights import RowRights
from momentum_sync.identity.topic_rights import TopicRights
from momentum_sync.limits import DeliveryLimits, Limits
from momentum_sync.settings import Settings
from momentum_sync.telemetry.spans import EventSpans
from momentum_sync.token_settings import token_rules


class Source(NamedTuple):
    """The feed and the log that a gateway serves, and how to extend them.

    Attributes:
        feed: the feed.
        log: the log.
        samples: takes samples of delivered events.
        rows: has changes of rows become events.
        reader: moves the feed; None where capture does, in this process.
        spans: makes the spans of events that are traced.
    """

    feed: LocalFeed
    log: EventLog
    samples: Samples
    rows: RowSource
    reader: Reader | None
    spans: EventSpans | None = None


def make_gateway(
    settings: Settings,
    limits: Limits,
    application: Application,
    source: Source,
    pool: CallerPool,
    sessions: RealtimeSessions,
    policies: CompiledPolicies,
) -> Gateway:
    """Make a gateway. Nothing runs yet."""
    feed, files = source.feed, DirectFiles(os.write, _ring(settings, limits.delivery))

    def up_to_date() -> bool:
        # Revocations and changed policies arrive through the feed: while it lags, cached grants may be outdated.
        status = feed.status()
        return status.live and status.lag < limits.lifecycle.grants_lag_s

    history = History(feed, source.log, limits.log, source.reader)
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
        files=files,
        hub=_hub(settings, limits, source, authorizer, policies, files),
        send_budget=SendBudget(
            each=settings.send_buffer_bytes, total=settings.send_total_bytes,
            admitted_at_once=limits.delivery.admitted_at_once,
        ),
        authenticator=authenticator,
        authorizer=authorizer,
        event_filter=EventFilter(pool, authorizer, application.schema),
        reads=CallerReads(pool, authorizer, feed),
        rows=RowWatches(authenticator, rights, policies, feed, history, sessions, source.rows, topics),
        members=TopicMembers(
            asyncio.get_running_loop().call_later, files, limits.sockets.presence_s, sent=observe.sent,
            received=observe.broadcast, unique=lambda: str(uuid4()), failed=observe.failed,
        ),
        receipts=Receipts(limits.receipts.most, lambda: feed.generation),
    )  # fmt: skip


def _ring(settings: Settings, limits: DeliveryLimits) -> Ring | None:
    if settings.io_uring == "off":
        return None
    try:
        return open_ring(limits.ring_entries, limits.ring_bytes)
    except OSError as error:
        observe.no_ring(error)
        return None


def _hub(
    settings: Settings,
    limits: Limits,
    source: Source,
    authorizer: Authorizer,
    policies: CompiledPolicies,
    files: DirectFiles,
) -> Hub:
    def changed(xid: int, user: UUID | None) -> None:
        authorizer.changed(xid, user)
        if user is not None:
            policies.revoked(xid)

    def missed() -> None:
        authorizer.missed()
        policies.missed()

    return Hub(
        source.feed,
        limit=settings.max_connections,
        limit_per_user=settings.max_connections_per_user,
        clock=time.time,
        grants_changed=changed,
        row_rights_changed=policies.changed,
        grants_missed=missed,
        delivered=_reporting(source),
        files=files,
        limits=limits.delivery,
    )


def _options(settings: Settings) -> GatewayOptions:
    return GatewayOptions(
        role=settings.role,
        heartbeat=settings.heartbeat.total_seconds(),
        send_buffer=settings.send_buffer_bytes,
        allowed_origins=settings.allowed_origins,
        loopback_origins=settings.development,
        token_in_query=settings.token_in_query,
        metrics_open=settings.metrics_open,
    )


def _reporting(source: Source) -> Callable[[Sequence[FanOut]], None]:
    """Return a function that reports fan-outs to the metrics, the samples and the traces."""
    samples, spans, feed = source.samples, source.spans, source.feed

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
        if spans is not None:
            spans.delivered(feed.epoch, fan_outs)

    return report

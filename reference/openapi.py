"""The OpenAPI description of a gateway, without a database: routes are declared when it is built."""

from __future__ import annotations

import os
from typing import Any, cast

from momentum_sync.database.pool import CallerPool
from momentum_sync.domain.application import MOMENTUM
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.window import Window
from momentum_sync.gateway.caller_reads import CallerReads
from momentum_sync.gateway.dialects.realtime_services import RowServices
from momentum_sync.gateway.direct_files import DirectFiles
from momentum_sync.gateway.gateway import Gateway, GatewayOptions
from momentum_sync.gateway.http.api import make_api
from momentum_sync.gateway.hub import Hub
from momentum_sync.gateway.receipts import Receipts
from momentum_sync.gateway.send_budget import SendBudget
from momentum_sync.gateway.topic_members import TopicMembers
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.event_filter import EventFilter
from momentum_sync.identity.keys import Authenticator
from momentum_sync.identity.tokens import TokenRules
from momentum_sync.limits import Limits


def document() -> dict[str, Any]:
    """Return the description."""
    limits, feed, files = Limits(), LocalFeed(Window(1)), DirectFiles(os.write)
    hub = Hub(
        feed, limit=1, limit_per_user=1, clock=lambda: 0.0, grants_changed=lambda *_: None,
        row_rights_changed=lambda _: None, grants_missed=lambda: None, delivered=lambda *_: None,
        files=files, limits=limits.delivery,
    )  # fmt: skip
    reads = CallerReads(cast(CallerPool, None), cast(Authorizer, None), feed)
    gateway = Gateway(
        GatewayOptions(
            role="all", heartbeat=25.0, send_buffer=1, allowed_origins=(), loopback_origins=False,
            token_in_query=False, metrics_open=False,
        ),
        limits, MOMENTUM, feed=feed, history=History(feed, cast(EventLog, None), limits.log),
        files=files, hub=hub,
        send_budget=SendBudget(each=1, total=1), authenticator=Authenticator(TokenRules(secret="x" * 32), limits.keys),
        authorizer=cast(Authorizer, None), event_filter=cast(EventFilter, None), reads=reads,
        rows=cast(RowServices, None),
        members=TopicMembers(
            lambda *_: None, files, 0.0, sent=lambda *_: None, received=lambda _: None, unique=lambda: "",
            failed=lambda *_: None,
        ),
        receipts=Receipts(1, lambda: 0),
    )  # fmt: skip
    return make_api(gateway, lambda: b"").openapi()

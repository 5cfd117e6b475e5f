"""The momentum app as the engine serves it."""

from __future__ import annotations

from collections.abc import Sequence

from momentum_sync.domain.commands import commands, encode_cache_invalidation
from momentum_sync.domain.reads import SQL, MomentumReads
from momentum_sync.domain.routes import add_routes
from momentum_sync.domain.tables import CACHE_INVALIDATION, SCHEMA
from momentum_sync.gateway.application import Application, SnapshotQuery
from momentum_sync.gateway.caller_reads import CallerReads
from momentum_sync.gateway.dialects.native import Command


def _commands(reads: CallerReads) -> Sequence[Command]:
    return commands(MomentumReads(reads))


MOMENTUM = Application(
    schema=SCHEMA,
    snapshot=SnapshotQuery(
        of_user=SQL["snapshot"],
        without_user=SQL["seen"],
        fields={"momentum": "null", "interventions": "null", "notifications": "[]"},
    ),
    commands=_commands,
    encoders={CACHE_INVALIDATION: encode_cache_invalidation},
    add_routes=add_routes,
)

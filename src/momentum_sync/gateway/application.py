"""An application, as a gateway serves it: its schema, snapshot, messages and HTTP routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter

from momentum_sync.database.connection import Query
from momentum_sync.gateway.caller_reads import CallerReads
from momentum_sync.gateway.dialects.native import Command, Encoder
from momentum_sync.schema import Schema


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotQuery:
    """Queries that read the snapshot of a connection, as the caller.

    Both return `pg_current_snapshot()` and `pg_current_wal_insert_lsn()` as text. `of_user` has the parameter `user_id`
    and also returns one JSON text per field.

    Attributes:
        of_user: for a user's connection.
        without_user: for a connection without a user.
        fields: the fields of the snapshot, each with its JSON for a connection without a user.
    """

    of_user: Query
    without_user: Query
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """Everything that the engine needs of an application.

    Attributes:
        schema: its tables and channels.
        snapshot: the snapshot of a connection.
        commands: makes the handlers of its own messages.
        encoders: encoders by channel, for events that are not sent as `realtime_event` messages.
        add_routes: adds its own routes under `/sync`.
    """

    schema: Schema
    snapshot: SnapshotQuery
    commands: Callable[[CallerReads], Sequence[Command]] = lambda _: ()
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    add_routes: Callable[[APIRouter, CallerReads], None] = lambda _, __: None

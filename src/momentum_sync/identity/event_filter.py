"""The event filter: which events a caller may see, decided by the database as the caller, under row level security.

Only events on channels that are checked per event come here; all others are the caller's by the token alone. An event
that carries the versions of its row is decided by evaluating the caller's policies on that version, not on a later
one. For an event without, the row is selected with every column that the event carries; where policies have changed
since, it must still be the version of the event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar
from uuid import UUID

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from momentum_sync import observe
from momentum_sync.database import queries
from momentum_sync.database.connection import Query
from momentum_sync.database.pool import CallerPool, Params
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Forbidden
from momentum_sync.eventlog.event import Event
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.channels import Filtered
from momentum_sync.identity.tokens import Identity
from momentum_sync.schema import Column, Schema, TableSpec

_SQL = queries.load(__package__)
# No permissive policy and no restriction: the first question allows nothing, but its answer brings the real policies.
_UNKNOWN = ("false", "true")
# Text that PostgreSQL would refuse to cast. Dates are left to it: it has more of them, such as `-infinity`.
_TYPES: Mapping[str, type] = {"uuid": UUID}
_NONE = msgspec.Raw(b"")
T = TypeVar("T")


class _Rows(msgspec.Struct):
    """The versions that an event carries."""

    was: msgspec.Raw = _NONE
    is_: msgspec.Raw = msgspec.field(default=_NONE, name="is")


class _Version(NamedTuple):
    """One version of a row. `id` is even for a version that must be allowed, odd for one that must not."""

    id: int
    row: bytes
    event: Event


class _Allowed(NamedTuple):
    """A row of the statement `allowed_versions`; `policies` is None if the caller may not select from the table."""

    version_ids: list[int]
    snapshot: str
    policies: list[str] | None
    changed: bool


_rows = msgspec.json.Decoder(_Rows)
_columns = msgspec.json.Decoder(dict[str, msgspec.Raw])


class EventFilter:
    """Decides which events callers may see. Its methods raise Unavailable if the database does not answer."""

    def __init__(self, pool: CallerPool, authorizer: Authorizer, schema: Schema) -> None:
        self._pool = pool
        self._authorizer = authorizer
        self._schema = schema
        # Policies by table, from the last answer. An answer that evaluated other policies than those does not count.
        self._policies: dict[str, tuple[str, str] | None] = {}
        self._queries = {table.name: _queries_of(table) for table in schema.tables}
        self._keys = {
            kind: _key_decoder(kind, table.derived.get(kind, table.key))
            for table in schema.tables
            for kind in (*table.event_types, *table.derived)
        }

    async def filter(self, identity: Identity, events: Sequence[tuple[Event, str | None]]) -> Filtered:
        """Decide about events, each with the channel on which the caller would receive it.

        Rows decide, or, for operators' own events and where no row of a user was visible, the channel.
        """
        tables = {event.offset: self._schema.table_of(event.event_type) for event, _ in events}
        visible: set[int] = set()
        for table in self._schema.tables:
            ours = [event for event, _ in events if tables[event.offset] is table and self._names_a_row(event)]
            if ours:
                visible |= await self._visible(identity, table, ours)
        # The key under which a connection gets the events of a per-user channel names its user. So an operator's own
        # event on it is for this caller, and an invisible row does not end the channel.
        visible |= {
            event.offset
            for event, channel in events
            if tables[event.offset] is None and channel in self._schema.per_user_channels
        }
        # On a channel of one user, an invisible row may mean that the caller has lost the channel. On a shared channel
        # it concerns that row alone.
        doubtful = {
            channel
            for event, channel in events
            if event.offset not in visible
            and channel is not None
            and channel not in self._schema.per_user_channels
            and (tables[event.offset] is None or channel not in self._schema.shared_channels)
        }
        if not doubtful:
            return Filtered(visible, [])
        granted = await self._authorizer.granted(identity, None, sorted(doubtful))
        visible |= {
            event.offset for event, channel in events if tables[event.offset] is None and channel in granted.channels
        }
        return Filtered(visible, [channel for channel in sorted(doubtful) if channel not in granted.channels])

    def _names_a_row(self, event: Event) -> bool:
        """Return whether the event names a row. An operator's own event of the same type may not."""
        try:
            if event.rows is None:
                self._keys[event.event_type].decode(event.body)
            else:
                rows = _rows.decode(event.rows)
                for version in filter(None, (bytes(rows.was), bytes(rows.is_))):
                    _columns.decode(version)
        except msgspec.MsgspecError:
            return False
        return True

    async def _visible(self, identity: Identity, table: TableSpec, events: Sequence[Event]) -> set[int]:
        """Return the offsets of the events of one table that the caller may see."""
        plain = [event for event in events if event.rows is None]
        queries_of = self._queries[table.name]
        visible: set[int] = set()
        for kind in table.derived:
            derived = [event for event in plain if event.event_type == kind]
            visible |= await self._selectable(identity, kind, queries_of[kind], derived)
        rows = [event for event in plain if event.event_type not in table.derived]
        visible |= await self._selectable(identity, table.name, queries_of[""], rows)
        return visible | await self._allowed(identity, table, [event for event in events if event.rows is not None])

    async def _selectable(self, identity: Identity, what: str, query: Query, events: Sequence[Event]) -> set[int]:
        """Return the offsets of the events about rows that the caller may select now."""

        def ask(some: Sequence[Event]) -> tuple[Query, Params]:
            bodies = [event.body.decode() for event in some]
            return query, {"offsets": [event.offset for event in some], "bodies": bodies}

        return await self._answered(identity, what, events, lambda event: event, ask, lambda row: set(row[0]))

    async def _allowed(self, identity: Identity, table: TableSpec, events: Sequence[Event]) -> set[int]:
        """Return the offsets of the events with row versions that the caller's policies allow."""
        versions, partial = _versions(events)
        changed = False
        policies: tuple[str, str] | None = None  # those in the question

        def ask(some: Sequence[_Version]) -> tuple[Query, Params]:
            nonlocal policies
            policies = self._policies.get(table.name) or _UNKNOWN
            parameters = {"version_ids": [version.id for version in some], "rows": [v.row.decode() for v in some]}
            return _evaluate(table.name, policies), {**parameters, "table": table.name}

        def read(row: TupleRow) -> set[int] | None:
            nonlocal changed
            answer = _Allowed(*row)
            now = None if answer.policies is None else (str(answer.policies[0]), str(answer.policies[1]))
            self._policies[table.name] = now
            changed = answer.changed
            if now is None:
                return set()
            return set(answer.version_ids) if policies == now else None

        allowed = await self._answered(identity, table.name, versions, lambda version: version.event, ask, read)
        return {
            event.offset
            for event in events
            if event.offset * 2 in allowed
            and event.offset * 2 + 1 not in allowed
            and not (changed and event.offset in partial)  # published when the policies did not need the row
        }

    async def _answered(
        self,
        identity: Identity,
        what: str,
        items: Sequence[T],
        event_of: Callable[[T], Event],
        ask: Callable[[Sequence[T]], tuple[Query, Params]],
        read: Callable[[TupleRow], set[int] | None],
    ) -> set[int]:
        """Ask until the answer's snapshot sees the transactions of all items. Return the result of `read`.

        `read` returns None to have the question asked again. A caller without privileges sees nothing. If a policy
        raises an error, each item is asked about alone, and one that raises it is not visible, as a SELECT of the
        caller would fail.
        """
        found: set[int] = set()
        waiting = list(items)
        async for _ in self._pool.until_visible():
            if not waiting:
                break
            try:
                ((row,),) = await self._pool.ask(identity, ask(waiting))
            except Forbidden:
                return set()
            except psycopg.Error as error:
                if len(waiting) == 1:
                    observe.policy_failed(what, error)
                    return found
                for item in waiting:
                    found |= await self._answered(identity, what, [item], event_of, ask, read)
                return found
            answer = read(row)
            if answer is None:
                continue
            snapshot = Snapshot.parse(row[1])
            if all(snapshot.sees(event_of(item).xid) for item in waiting):
                return answer
        return found


def _versions(events: Sequence[Event]) -> tuple[list[_Version], set[int]]:
    """Return the versions to evaluate, and the offsets of events that carry only a part of the row."""
    versions: list[_Version] = []
    partial: set[int] = set()
    for event in events:
        rows = _rows.decode(event.rows or b"{}")
        was, is_now = bytes(rows.was), bytes(rows.is_)
        if was:
            versions.append(_Version(event.offset * 2, was, event))
            # A row too large for the log is replaced by its user alone; the shipped policies need no more, changed ones
            # may.
            if len(_columns.decode(was)) == 1:
                partial.add(event.offset)
        if is_now:
            # With both versions, the event removes a row from the caller's sight: `was` must be allowed and `is` must
            # not.
            versions.append(_Version(event.offset * 2 + bool(was), is_now, event))
    return versions, partial


def _key_decoder(event_type: str, key: Sequence[Column]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Return a decoder that accepts an event if it has the key of a row."""
    fields = [(column.field or column.name, _TYPES.get(column.type, object)) for column in key]
    return msgspec.json.Decoder(msgspec.defstruct(event_type, fields))


def _queries_of(table: TableSpec) -> dict[str, Query]:
    """Return the queries for a table's events: under "" for those of one row, under their type for derived ones."""

    def columns(some: Sequence[Column]) -> sql.Composable:
        return sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(column.name)) for column in some)

    def values(some: Sequence[Column]) -> sql.Composable:
        return sql.SQL(", ").join(
            sql.SQL("(e.body {} {})::{}").format(
                sql.SQL("->" if column.type == "jsonb" else "->>"),
                sql.Literal(column.field or column.name),
                sql.SQL(column.type),
            )
            for column in some
        )

    of_rows = sql.SQL(_SQL["visible_rows"]).format(
        table=sql.Identifier(table.name), name=sql.Literal(table.name), key=columns(table.key),
        key_values=values(table.key), version=columns(table.version), version_values=values(table.version),
    ).as_bytes()  # fmt: skip
    derived = {
        kind: sql.SQL(_SQL["visible_derived"])
        .format(table=sql.Identifier(table.name), key=columns(key), key_values=values(key))
        .as_bytes()
        for kind, key in table.derived.items()
    }
    return {"": of_rows, **derived}


def _evaluate(table: str, policies: tuple[str, str]) -> Query:
    """Return the query that evaluates policies on given rows. They are the operator's own SQL, from the catalog."""
    # psycopg would take a % in a policy for a placeholder.
    permissive, restrictive = (sql.SQL(policy.replace("%", "%%")) for policy in policies)
    return (
        sql.SQL(_SQL["allowed_versions"])
        .format(
            permissive=permissive,
            restrictive=restrictive,
            type=sql.Identifier("public", table),
            row=sql.Identifier(table),
        )
        .as_bytes()
    )

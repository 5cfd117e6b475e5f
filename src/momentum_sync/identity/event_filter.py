"""Whether a caller may see an event: asked of the database as the caller, under row level security as it stands.

Only for events on channels that are `asked`; all others are the caller's by the token alone. An event that carries the
version of the row that it speaks of is held against the caller's policies: that version, and no later one, must be
allowed. Of an event that carries none the row is SELECTed, with every column that goes out; where policies have been
changed since, it must still be the version of the event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar
from uuid import UUID

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from momentum_sync import observe
from momentum_sync.database import queries
from momentum_sync.database.pool import CallerPool, Params, Query
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Forbidden
from momentum_sync.eventlog.event import CACHE_INVALIDATION, Event
from momentum_sync.identity.authorizer import until_visible
from momentum_sync.identity.tokens import Identity

_SQL = queries.load(__package__)
_UNKNOWN = ("false", "true")
_NONE = msgspec.Raw(b"")
T = TypeVar("T")


class _Named(msgspec.Struct):
    """What names the row that an event speaks of."""

    user_id: UUID


class _Rows(msgspec.Struct):
    """The versions that an event carries."""

    was: msgspec.Raw = _NONE
    is_: msgspec.Raw = msgspec.field(default=_NONE, name="is")


class _Version(NamedTuple):
    """One version of a row; `which` is even for the one that must be allowed, odd for one that must not."""

    which: int
    row: bytes
    event: Event


_named = msgspec.json.Decoder(_Named)
_rows = msgspec.json.Decoder(_Rows)
_columns = msgspec.json.Decoder(dict[str, msgspec.Raw])


class EventFilter:
    """Asks which events callers may see. Unavailable if the database does not answer."""

    def __init__(self, pool: CallerPool) -> None:
        self._pool = pool
        # The policies by table, as the last answer told them; an answer to other policies than those does not count.
        self._policies: dict[str, tuple[str, str] | None] = {}

    async def of(self, identity: Identity, events: Sequence[Event]) -> set[int]:
        """The offsets of those events, each of a row of ours, that the caller may see."""
        seen: set[int] = set()
        for table in dict.fromkeys(event.table for event in events):
            ours = [event for event in events if event.table == table and _is_named(event)]
            if table is None or not ours:
                continue
            plain = [event for event in ours if event.rows is None]
            invalidations = [event for event in plain if event.event_type == CACHE_INVALIDATION]
            rows = [event for event in plain if event.event_type != CACHE_INVALIDATION]
            seen |= await self._there(identity, CACHE_INVALIDATION, invalidations)
            seen |= await self._there(identity, table, rows)
            seen |= await self._allowed(identity, table, [event for event in ours if event.rows is not None])
        return seen

    async def _there(self, identity: Identity, what: str, events: Sequence[Event]) -> set[int]:
        """The offsets of the events whose rows the caller may SELECT now."""

        def ask(some: Sequence[Event]) -> tuple[Query, Params]:
            bodies = [event.body.decode() for event in some]
            return _SQL[f"sees_{what}"], {"numbers": [event.offset for event in some], "bodies": bodies}

        return await self._answered(identity, what, events, lambda event: event, ask, lambda row: set(row[0]))

    async def _allowed(self, identity: Identity, table: str, events: Sequence[Event]) -> set[int]:
        """The offsets of the events whose versions the caller's policies allow."""
        versions: list[_Version] = []
        partial: set[int] = set()
        for event in events:
            rows = _rows.decode(event.rows or b"{}")
            was, is_now = bytes(rows.was), bytes(rows.is_)
            if was:
                versions.append(_Version(event.offset * 2, was, event))
                if len(_columns.decode(was)) == 1:
                    partial.add(event.offset)
            if is_now:
                versions.append(_Version(event.offset * 2 + bool(was), is_now, event))
        changed = False
        policies: tuple[str, str] | None = None  # those in the question

        def ask(some: Sequence[_Version]) -> tuple[Query, Params]:
            nonlocal policies
            policies = self._policies.get(table) or _UNKNOWN
            asked = {"numbers": [version.which for version in some], "rows": [version.row.decode() for version in some]}
            return _held_against(table, policies), {**asked, "table": table}

        def read(row: TupleRow) -> set[int] | None:
            nonlocal changed
            now = None if row[2] is None else (str(row[2][0]), str(row[2][1]))
            self._policies[table] = now
            changed = bool(row[3])
            if now is None:  # not the table, or not all of its columns
                return set()
            return set(row[0]) if policies == now else None

        allowed = await self._answered(identity, table, versions, lambda version: version.event, ask, read)
        return {
            event.offset
            for event in events
            if event.offset * 2 in allowed
            and event.offset * 2 + 1 not in allowed
            and not (changed and event.offset in partial)  # whose row was left out, because the policies were others
        }

    async def _answered(
        self,
        identity: Identity,
        what: str,
        items: Sequence[T],
        of: Callable[[T], Event],
        ask: Callable[[Sequence[T]], tuple[Query, Params]],
        read: Callable[[TupleRow], set[int] | None],
    ) -> set[int]:
        """What is read from the answer, asked until it sees all of the events' transactions; None is asked again.

        What the caller may not ask is no. If a policy fails, each of the items is asked about alone, and of that on
        which it fails the answer is no, as a SELECT of the caller's would fail.
        """
        found: set[int] = set()
        waiting = list(items)
        async for _ in until_visible():
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
                    found |= await self._answered(identity, what, [item], of, ask, read)
                return found
            answer = read(row)
            if answer is None:
                continue
            snapshot = Snapshot.parse(row[1])
            if all(snapshot.sees(of(item).xid) for item in waiting):
                return answer
        return found


def _is_named(event: Event) -> bool:
    """Whether the event names a row; one that only looks like ours may not."""
    try:
        _named.decode(event.body)
        if event.rows is not None:
            _rows.decode(event.rows)
    except msgspec.MsgspecError:
        return False
    return True


def _held_against(table: str, policies: tuple[str, str]) -> sql.Composed:
    """The query that evaluates policies on rows that are given. They are the operator's own SQL, from the catalog."""
    permissive, restrictive = (sql.SQL(policy.replace("%", "%%")) for policy in policies)
    return sql.SQL(_SQL["allowed"]).format(
        permissive=permissive, restrictive=restrictive, type=sql.Identifier("public", table), row=sql.Identifier(table)
    )

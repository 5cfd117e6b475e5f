"""Whether a caller may see an event: its row is SELECTed as the caller, under row level security as it stands.

Only for events on channels that are `asked`; all others are the caller's by the token alone. A row that is gone cannot
be SELECTed, so the caller's policies are held against what the event kept of it: who could see it hears of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from uuid import UUID

import msgspec
import psycopg
from psycopg import sql

from momentum_sync import observe
from momentum_sync.database import queries
from momentum_sync.database.pool import CallerPool
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Forbidden, Unavailable
from momentum_sync.eventlog.event import Event
from momentum_sync.identity.rights import until_visible
from momentum_sync.identity.tokens import Identity

_SQL = queries.load(__package__)


class _Row(msgspec.Struct):
    """What names the row that an event speaks of."""

    user_id: UUID
    score_date: date | None = None
    intervention_id: UUID | None = None
    notification_id: UUID | None = None


_row = msgspec.json.Decoder(_Row)

# By table: what names a row beside its user.
_KEYS: Mapping[str, tuple[str, Callable[[_Row], object]]] = {
    "daily_engagement_scores": ("days", lambda row: row.score_date),
    "coach_interventions": ("ids", lambda row: row.intervention_id),
    "momentum_notifications": ("ids", lambda row: row.notification_id),
}


class Sight:
    """Asks which events callers may see. Unavailable if the database does not answer."""

    def __init__(self, pool: CallerPool) -> None:
        self._pool = pool

    async def of(self, identity: Identity, events: Sequence[Event]) -> set[int]:
        """The numbers of those events, each of a row of ours, that the caller may see."""
        seen: set[int] = set()
        for table, (key, named) in _KEYS.items():
            rows = [(event, row) for event in events if event.table == table and (row := _named(event)) is not None]
            there = await self._there(identity, table, key, [(event, row, named(row)) for event, row in rows])
            for event, _ in rows:
                if event.gone is None:
                    if event.number in there:
                        seen.add(event.number)
                elif event.number not in there and await self._saw(identity, table, event.gone):
                    seen.add(event.number)
        return seen

    async def _there(
        self, identity: Identity, table: str, key: str, rows: list[tuple[Event, _Row, object]]
    ) -> set[int]:
        """The numbers of the events whose rows the caller may SELECT now."""
        found: set[int] = set()
        async for _ in until_visible():
            if not rows:
                break
            asked = {
                "numbers": [event.number for event, _, _ in rows],
                "users": [row.user_id for _, row, _ in rows],
                key: [value for _, _, value in rows],
            }
            try:
                ((numbers, text),) = await self._pool.ask(identity, _SQL[f"sees_{table}"], asked)
            except Forbidden:  # not the table, or not all of its columns
                return set()
            snapshot = Snapshot.parse(text)
            # A row that a snapshot from before the event shows is another than the event's.
            told = {event.number for event, _, _ in rows if snapshot.sees(event.xid)}
            found |= told & set(numbers)
            rows = [row for row in rows if row[0].number not in told]
        return found

    async def _saw(self, identity: Identity, table: str, gone: bytes) -> bool:
        """Whether the caller's policies allow a row that is no longer there."""
        try:
            async with self._pool.as_caller(identity) as connection:
                policy = await (await connection.execute(_SQL["policy"], {"table": table})).fetchone()
                if policy is None:
                    return False
                cursor = await connection.execute(_held_against(table, *policy), {"row": gone.decode()})
                answer = await cursor.fetchone()
        except Forbidden:
            return False
        except (Unavailable, psycopg.Error) as error:
            if isinstance(error, Unavailable):
                raise
            observe.policy_failed(table, error)  # as a SELECT of the caller's would
            return False
        return answer is not None and bool(answer[0])


def _named(event: Event) -> _Row | None:
    """What names the event's row; None for an event that only looks like one of ours."""
    try:
        return _row.decode(event.body)
    except msgspec.MsgspecError:
        return None


def _held_against(table: str, permissive: str, restrictive: str) -> sql.Composed:
    """A query that evaluates policies on a row that is given. They are the operator's own SQL, from the catalog."""
    return sql.SQL(
        "select coalesce(({}) and ({}), false) from jsonb_populate_record(null::public.{}, %(row)s::jsonb) as {}"
    ).format(_as_it_is(permissive), _as_it_is(restrictive), sql.Identifier(table), sql.Identifier(table))


def _as_it_is(expression: str) -> sql.SQL:
    return sql.SQL(expression.replace("%", "%%"))

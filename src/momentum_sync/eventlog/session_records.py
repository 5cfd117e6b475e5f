"""Records of the sessions of Supabase's clients, in `momentum.realtime_sessions`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from momentum_sync.database import queries
from momentum_sync.database.connection import fetch_one
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.position import Position

_SQL = queries.load(__package__)
_cursors = msgspec.json.Decoder(dict[str, str])


class SavedSession(NamedTuple):
    """A row. `is_recent` is None where it is of no interest: for rows to be written; `user_id` is only written."""

    session: int
    identity: str
    ref: int
    cursors: Mapping[str, Position]
    is_recent: bool | None = None
    user_id: UUID | None = None


class SessionRecords:
    """Reads and writes the records. Its methods raise psycopg.Error, or PoolTimeout without a connection."""

    def __init__(self, connections: LogConnections) -> None:
        self._connections = connections

    async def numbers(self, count: int) -> list[int]:
        """Return numbers of new sessions, higher than all before."""
        async with self._connections.writing() as connection:
            (numbers,) = await fetch_one(connection, _SQL["session_numbers"], {"count": count})
        return list(numbers)

    async def save(self, sessions: Sequence[SavedSession]) -> set[int]:
        """Update records. Return the numbers of those that still exist."""
        async with self._connections.writing() as connection:
            rows = await connection.execute(_SQL["save_sessions"], _columns(sessions))
            return {row[0] for row in await rows.fetchall()}

    async def discard(self, before: Sequence[tuple[int, str]]) -> None:
        """Delete the records of an identity that are before a session."""
        async with self._connections.writing() as connection:
            parameters = {"sessions": [number for number, _ in before], "identities": [name for _, name in before]}
            await connection.execute(_SQL["discard_sessions"], parameters)

    async def forget(self, retention: timedelta) -> None:
        """Delete the records of clients that have been away for longer."""
        async with self._connections.writing() as connection:
            await connection.execute(_SQL["forget_sessions"], {"retention": retention})

    @asynccontextmanager
    async def settling(self) -> AsyncIterator[Settling]:
        """Open a transaction in which sessions are settled."""
        async with self._connections.writing() as connection, connection.transaction():
            yield Settling(connection)


class Settling:
    """A transaction that reads the sessions of some clients and replaces them by others."""

    def __init__(self, connection: AsyncConnection[TupleRow]) -> None:
        self._connection = connection

    async def of(self, identities: Iterable[str], *, recent: timedelta) -> list[SavedSession]:
        """Return the sessions of these identities, in the order in which their sockets were accepted."""
        parameters = {"identities": sorted(set(identities)), "recent": recent}
        rows = await self._connection.execute(_SQL["sessions_of"], parameters)
        return [
            SavedSession(session, identity, ref, _positions(cursors), is_recent)
            for session, identity, ref, cursors, is_recent in await rows.fetchall()
        ]

    async def replace(self, ended: Sequence[int], begun: Sequence[SavedSession]) -> None:
        """Delete records and create others."""
        if ended:
            await self._connection.execute(_SQL["end_sessions"], {"sessions": list(ended)})
        if begun:
            await self._connection.execute(_SQL["begin_sessions"], _columns(begun))


def _columns(sessions: Sequence[SavedSession]) -> dict[str, list[object]]:
    return {
        "sessions": [each.session for each in sessions],
        "identities": [each.identity for each in sessions],
        "refs": [each.ref for each in sessions],
        "users": [each.user_id for each in sessions],
        "cursors": [
            msgspec.json.encode({topic: str(at) for topic, at in each.cursors.items()}).decode() for each in sessions
        ],
    }


def _positions(text: str) -> dict[str, Position]:
    return {topic: Position.parse(position) for topic, position in _cursors.decode(text).items()}

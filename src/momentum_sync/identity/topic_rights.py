"""Topic rights: the rights of callers on private topics, decided by the policies of `realtime.messages`.

The policies are evaluated, as the caller, on rows as the topic's messages have them. If a policy calls a function that
its callers cannot name, such as one in a private schema, the policies are tested with real rows, in a transaction that
is rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import LiteralString, NamedTuple

import msgspec
import psycopg
from psycopg import sql

from momentum_sync import observe
from momentum_sync.database import queries
from momentum_sync.database.connection import Query
from momentum_sync.database.pool import CallerPool, Lane, Params
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import Forbidden, Unavailable
from momentum_sync.identity.tokens import Identity
from momentum_sync.identity.topic_access import NOTHING, TopicAccess

_SQL = queries.load(__package__)
_SET_TOPIC: LiteralString = "select set_config('realtime.topic', %(topic)s, true)"
_SERVER: LiteralString = "set local role none"


class _Policies(NamedTuple):
    """Policies of `realtime.messages` for one role, as SQL conditions.

    Attributes:
        read: of the permissive and of the restrictive SELECT policies; both must be true.
        write: the same of the INSERT policies.
    """

    read: tuple[str, str]
    write: tuple[str, str]


class TopicRights:
    """Decides about callers on private topics. Its methods raise Unavailable if the database does not answer.

    Args:
        pool: asks as the caller.
        is_current: whether a snapshot sees every change of policies so far.
    """

    def __init__(self, pool: CallerPool, is_current: Callable[[Snapshot], bool]) -> None:
        self._pool = pool
        self._is_current = is_current
        self._known: dict[str, _Policies] = {}  # by role, from the last answer
        self._reported: dict[str, _Policies | None] = {}  # by role, as last reported to connections

    async def of(self, identity: Identity, topic: str) -> TopicAccess:
        """Return the rights of a caller on a topic, which has no `realtime:`."""
        async for _ in self._pool.until_visible():
            known = self._known.get(identity.role)
            questions: list[tuple[Query, Params]] = [(_SET_TOPIC, {"topic": topic})]
            if known is not None:
                questions += [(_access(known.read), {"topic": topic}), (_access(known.write), {"topic": topic})]
            questions += [(_SQL["message_policies"], {}), (_SET_TOPIC, {"topic": ""})]
            try:
                _, *answers, policies, _ = await self._pool.ask(identity, *questions, lane=Lane.CONNECT)
            except (psycopg.Error, Forbidden):
                if known is None:
                    raise
                # The policies may be other ones by now, which raise no error.
                (policies,) = await self._pool.ask(identity, (_SQL["message_policies"], {}), lane=Lane.CONNECT)
                if not policies:
                    return NOTHING
                self._known[identity.role] = _policies(policies[0])
                found = await self._of_real_rows(identity, topic) if _policies(policies[0]) == known else None
                if found is not None:
                    return found
                continue
            if not policies:  # no schema `realtime`, or none for this role
                return NOTHING
            *texts, snapshot = policies[0]
            now = self._known[identity.role] = _policies(texts)
            self._reported.setdefault(identity.role, now)
            if now == known and self._is_current(Snapshot.parse(snapshot)):
                reads, writes = (frozenset(answer[0][0]) for answer in answers)
                return TopicAccess(reads, writes)
        raise Unavailable("The policies of realtime.messages change faster than they can be read; try again.")

    async def have_changed(self) -> bool:
        """Return whether the policies for a role have changed since the last call, for changes without an event."""
        return any([await self._has_changed(role) for role in list(self._reported)])

    async def _has_changed(self, role: str) -> bool:
        caller = Identity(role, None, msgspec.json.encode({"role": role}).decode(), None)
        (policies,) = await self._pool.ask(caller, (_SQL["message_policies"], {}))
        now = _policies(policies[0]) if policies else None
        before, self._reported[role] = self._reported[role], now
        return now != before

    async def _of_real_rows(self, identity: Identity, topic: str) -> TopicAccess | None:
        """Decide with rows that are inserted and rolled back. A policy that raises an error allows nothing.

        Returns:
            None if a change of policies was not visible yet.
        """
        found, is_current = NOTHING, True
        try:
            async with self._pool.as_caller(identity) as connection:
                # The statements that follow have newer snapshots.
                (snapshot,) = await _row(connection, _SQL["snapshot"], {})
                is_current = self._is_current(Snapshot.parse(str(snapshot)))
                await connection.execute(_SET_TOPIC, {"topic": topic})
                await connection.execute(_SQL["try_messages"])
                (written,) = await _row(connection, _SQL["tried_messages"], {})
                found = TopicAccess(frozenset(), _texts(written))
                await connection.execute(_SERVER)
                (ids,) = await _row(connection, _SQL["place_messages"], {"topic": topic})
                caller: Params = {"role": identity.role, "claims": identity.claims}
                await connection.execute(_SQL["become"], caller)
                (read,) = await _row(connection, _SQL["placed_messages"], {"ids": ids, "topic": topic})
                found = TopicAccess(_texts(read), _texts(written))
                raise psycopg.Rollback
        except (psycopg.Error, Forbidden) as error:
            observe.policy_failed("realtime.messages", error)
        return found if is_current else None


async def _row(
    connection: psycopg.AsyncConnection[tuple[object, ...]], query: LiteralString, parameters: Mapping[str, object]
) -> tuple[object, ...]:
    row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None
    return row


def _texts(value: object) -> frozenset[str]:
    return frozenset(map(str, value)) if isinstance(value, list) else frozenset()


def _policies(texts: Sequence[str]) -> _Policies:
    return _Policies((texts[0], texts[1]), (texts[2], texts[3]))


def _access(policies: tuple[str, str]) -> bytes:
    """Return the query for the extensions that policies allow."""
    # psycopg would take a % in a policy for a placeholder.
    permissive, restrictive = (sql.SQL(policy.replace("%", "%%")) for policy in policies)
    return sql.SQL(_SQL["topic_access"]).format(permissive=permissive, restrictive=restrictive).as_bytes()

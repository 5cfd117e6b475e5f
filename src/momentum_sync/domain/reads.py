"""Reads and writes of the momentum app for clients: as the caller, under row level security."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec
from psycopg import sql

from momentum_sync.database import queries
from momentum_sync.database.connection import Query, fetch_one, fetch_optional
from momentum_sync.errors import Forbidden, NotFound
from momentum_sync.gateway.caller_reads import CallerReads
from momentum_sync.identity.tokens import Identity

SQL = queries.load(__package__)
# `/sync/names` takes as many ids, and `web/static/coach.js` has the same number.
_MOST_PEOPLE = 500
_MOST_INTERVENTIONS = 1_000
_REFUSED = "This token does not allow this operation."


class _Rows(NamedTuple):
    """A JSON array, and whether there are rows at all: none may mean that the caller may not see them."""

    json: str
    found: bool


class MomentumReads:
    """The app's reads. Each returns JSON, and raises RequestError if that is not possible."""

    def __init__(self, reads: CallerReads) -> None:
        self._reads = reads

    async def momentum(self, identity: Identity, user_id: UUID) -> msgspec.Raw:
        """Return `get_realtime_momentum_state`."""
        async with self._reads.consistent(identity, user_id) as connection:
            (text,) = await fetch_one(connection, SQL["momentum"], {"user_id": user_id})
            return _json(text)

    async def interventions(self, identity: Identity, user_id: UUID) -> msgspec.Raw:
        """Return `get_realtime_interventions`."""
        async with self._reads.consistent(identity, user_id) as connection:
            (text,) = await fetch_one(connection, SQL["interventions"], {"user_id": user_id})
            return _json(text)

    async def notifications(self, identity: Identity, user_id: UUID, limit: int) -> msgspec.Raw:
        """Return at most `limit` notifications of a user, newest first."""
        return await self._rows(identity, "notifications", user_id, limit=limit)

    async def history(self, identity: Identity, user_id: UUID, days: int) -> msgspec.Raw:
        """Return a user's scores of the last days, oldest first."""
        return await self._rows(identity, "history", user_id, days=days)

    async def _rows(self, identity: Identity, name: str, user_id: UUID, **parameters: int) -> msgspec.Raw:
        async with self._reads.consistent(identity, user_id) as connection:
            rows = _Rows(*await fetch_one(connection, SQL[name], {"user_id": user_id, **parameters}))
            # Row level security hides rows without an error, so an empty result may mean that the caller has no access.
            if not rows.found and not await self._reads.may_act_for(connection, user_id):
                raise Forbidden(_REFUSED)
            return _json(rows.json)

    async def overview(self, identity: Identity, days: int) -> msgspec.Raw:
        """Return `people`, `days` and `interventions` of everybody whom the caller may see.

        Under the shipped policies that are the caller's own rows, those of assigned users, or all; only these are
        read, and not all of a table to leave nearly all of it out.
        """
        async with self._reads.consistent(identity, None) as connection:
            users, all_interventions = await fetch_one(connection, SQL["overview_users"])
            asked = {"days": days, "people": _MOST_PEOPLE, "interventions": _MOST_INTERVENTIONS, "users": users}
            query = overview_query(some=users is not None, all_interventions=all_interventions)
            (text,) = await fetch_one(connection, query, asked)
            return _json(text)

    async def names(self, identity: Identity, user_ids: Sequence[UUID]) -> msgspec.Raw:
        """Return display names by user id, without the names that the caller may not see."""
        async with self._reads.plain(identity) as connection:
            (text,) = await fetch_one(connection, SQL["names"], {"user_ids": list(user_ids)})
            return _json(text)

    async def mark_read(self, identity: Identity, user_id: UUID, notification_id: UUID) -> None:
        """Mark a notification of a user as opened.

        Raises:
            NotFound: there is none that the caller may see.
            Forbidden: the caller may see it and not change it.
        """
        asked = {"user_id": user_id, "notification_id": notification_id}
        async with self._reads.consistent(identity, user_id):
            pass  # from now on the events sent to the client are visible
        # `consistent` may open a REPEATABLE READ transaction, in which a concurrent update would make this one fail.
        async with self._reads.plain(identity) as connection:
            await connection.execute(SQL["mark_read"], asked)
            # Row level security makes a forbidden UPDATE match no row instead of failing, so the row is read back.
            row = await fetch_optional(connection, SQL["is_read"], asked)
        if row is None:
            raise NotFound("The notification does not exist.")
        if not row[0]:
            raise Forbidden("This token does not allow changing that notification.")


def overview_query(*, some: bool, all_interventions: bool) -> Query:
    """Return the query `overview`: of `some` users or of all, with or without everybody's interventions."""
    return (
        sql.SQL(SQL["overview"])
        .format(
            scores=sql.SQL("s.user_id = any (%(users)s::uuid[])" if some else "true"),
            interventions=sql.SQL("i.user_id = any (%(users)s::uuid[])" if some and not all_interventions else "true"),
        )
        .as_bytes()
    )


def _json(text: object) -> msgspec.Raw:
    return msgspec.Raw(str(text).encode())

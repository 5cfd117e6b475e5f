"""Policies that an operator may create, and the rows visible under them, by SELECTs of each caller."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, sql

Sql = AsyncConnection[tuple[object, ...]]

SHIPPED = "as shipped"
_COACH = "(select public.momentum_caller_role()) = 'coach'"
_ME = "(select auth.uid())"

VARIANTS: dict[str, dict[str, str]] = {
    "coach_interventions": {
        SHIPPED: "",
        "coaches see what is assigned to them": (
            'drop policy "Coaches can view all interventions" on coach_interventions;'
            "create policy v1 on coach_interventions for select to authenticated"
            f" using ({_COACH} and assigned_coach_id = {_ME})"
        ),
        "a crisis is for admins": (
            "create policy v1 on coach_interventions as restrictive for select to authenticated using"
            " (intervention_type <> 'crisis_intervention' or (select public.momentum_caller_role()) = 'admin')"
        ),
        "users see nothing in progress": (
            'drop policy "Users can view own interventions" on coach_interventions;'
            f"create policy v1 on coach_interventions for select using ({_ME} = user_id and status <> 'in_progress')"
        ),
        "nobody reads reasons": (
            "revoke select on coach_interventions from authenticated;"
            "grant select (id, user_id, status) on coach_interventions to authenticated"
        ),
    },
    "daily_engagement_scores": {
        SHIPPED: "",
        "coaches see who needs care": (
            f"create policy v1 on daily_engagement_scores for select using ({_COACH} and momentum_state = 'NeedsCare')"
        ),
        "buddies see each other": (
            "create policy v1 on daily_engagement_scores for select to authenticated using"
            f" (exists (select from buddies b where b.one = {_ME} and b.other = daily_engagement_scores.user_id))"
        ),
        "high scores are hidden": (
            "create policy v1 on daily_engagement_scores as restrictive for select to authenticated"
            " using (final_score < 50)"
        ),
    },
    "momentum_notifications": {
        SHIPPED: "",
        "coaches see them, too": f"create policy v1 on momentum_notifications for select using ({_COACH})",
        "nothing is celebrated": (
            "create policy v1 on momentum_notifications as restrictive for select using"
            " (notification_type <> 'celebration')"
        ),
    },
}
"""By table: what an operator has made of its policies, from those as shipped."""

_AS_SHIPPED: dict[str, str] = {
    "coach_interventions": (
        "drop policy if exists v1 on coach_interventions;"
        'drop policy if exists "Coaches can view all interventions" on coach_interventions;'
        'drop policy if exists "Users can view own interventions" on coach_interventions;'
        'create policy "Coaches can view all interventions" on coach_interventions for select to authenticated'
        f" using ({_COACH});"
        'create policy "Users can view own interventions" on coach_interventions for select to authenticated'
        f" using ({_ME} = user_id); grant select on coach_interventions to authenticated"
    ),
    "daily_engagement_scores": "drop policy if exists v1 on daily_engagement_scores",
    "momentum_notifications": "drop policy if exists v1 on momentum_notifications",
}

# By table: the columns of an event, the key of a row, and the columns that tell its versions apart.
_COLUMNS = {
    "daily_engagement_scores": "id, user_id, score_date, momentum_state, final_score",
    "coach_interventions": "id, user_id, intervention_type, trigger_reason, status, scheduled_date",
    "momentum_notifications": "id, user_id, notification_type, title, message, action_type, action_data, status",
}
_TABLES = {
    "momentum_updates": "daily_engagement_scores",
    "interventions": "coach_interventions",
    "notifications": "momentum_notifications",
}


@dataclass
class Caller:
    """A caller with a token; `role` is the token's `app_metadata.role`."""

    name: str
    subject: UUID
    role: str | None

    @property
    def claims(self) -> dict[str, object]:
        """Return the token's claims."""
        app_metadata = {} if self.role is None else {"role": self.role}
        return {"sub": str(self.subject), "role": "authenticated", "aud": "authenticated", "app_metadata": app_metadata}


@dataclass(frozen=True)
class Row:
    """One version of a row: `key` has the fields of its events."""

    table: str
    id: str
    user: str
    key: tuple[object, ...]


class Oracle:
    """PostgreSQL, queried as each of the callers. `admin` changes users and policies; `asking` only SELECTs."""

    def __init__(self, admin: Sql, asking: Sql, callers: Sequence[Caller]) -> None:
        self._admin = admin
        self._asking = asking
        self._callers = callers

    async def prepare(self) -> None:
        """Create the users, and the operator's own table."""
        for caller in self._callers:
            await self._admin.execute("insert into auth.users (id) values (%s)", (caller.subject,))
        await self._admin.execute("create table buddies (one uuid, other uuid, primary key (one, other))")
        await self._admin.execute("grant select on buddies to authenticated")

    async def close(self) -> None:
        """Close the connection of the queries."""
        await self._asking.close()

    async def set_policies(self, table: str, name: str) -> None:
        """Give a table the policies of a variant, in one transaction."""
        async with self._admin.transaction():
            for statement in f"{_AS_SHIPPED[table]};{VARIANTS[table][name]}".split(";"):
                if statement.strip():
                    await self._admin.execute(statement.encode())

    async def seeing(self, row: Row) -> set[str]:
        """Return the names of the callers that can SELECT the row now, with every column that its events carry."""
        found = await self._select(row.table, _COLUMNS[row.table], "id = %s", (row.id,))
        return {name for name, rows in found.items() if rows}

    async def may_have(self, caller: Caller, channel: str) -> tuple[bool, bool]:
        """Return whether the contract allows the caller a channel, and whether it must be granted."""
        kind, _, whose = channel.partition(":")
        if channel in ("interventions:coaches", "momentum_updates:all"):
            must = caller.role == "admin" or (caller.role == "coach" and channel == "interventions:coaches")
            return must, must
        if caller.role == "admin" or whose == str(caller.subject):
            return True, True
        found = await self._select(_TABLES[kind], "user_id", "user_id = %s", (whose,), callers=[caller])
        visible = bool(found[caller.name])
        return visible, visible and caller.role == "coach" and kind != "notifications"

    async def _select(
        self,
        table: str,
        columns: str,
        where: str,
        parameters: tuple[object, ...],
        callers: Sequence[Caller] | None = None,
    ) -> dict[str, int]:
        found: dict[str, int] = {}
        query = f"select {columns} from public.{table} where {where}".encode()
        for caller in callers or self._callers:
            try:
                async with self._asking.transaction():
                    await self._asking.execute(
                        "select set_config('role', 'authenticated', true), set_config('request.jwt.claims', %s, true)",
                        (json.dumps(caller.claims),),
                    )
                    found[caller.name] = len(await (await self._asking.execute(query, parameters)).fetchall())
            except psycopg.errors.InsufficientPrivilege:
                found[caller.name] = 0
        return found

    async def score(self, user: UUID) -> Row | None:
        """Return the user's score of today."""
        row = await self._one(
            "select id, user_id, score_date, momentum_state, final_score from daily_engagement_scores"
            " where user_id = %s",
            user,
        )
        if row is None:
            return None
        key = (str(row[1]), str(row[2]), row[3], f"{row[4]:.2f}")
        return Row("daily_engagement_scores", str(row[0]), str(row[1]), key)

    async def intervention(self, row_id: UUID) -> Row:
        """Return an intervention."""
        row = await self._one("select id, user_id, trigger_reason from coach_interventions where id = %s", row_id)
        assert row is not None
        return Row("coach_interventions", str(row[0]), str(row[1]), (str(row[1]), str(row[0]), row[2]))

    async def notification(self, row_id: UUID) -> Row:
        """Return a notification."""
        row = await self._one("select id, user_id, title from momentum_notifications where id = %s", row_id)
        assert row is not None
        return Row("momentum_notifications", str(row[0]), str(row[1]), (str(row[1]), str(row[0]), row[2]))

    async def _one(self, query: str, value: UUID) -> tuple[object, ...] | None:
        return await (await self._admin.execute(sql.SQL(query), (value,))).fetchone()

"""Checks of the policies of published tables: compiled, or checked with a query for each change and caller."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

import psycopg
from psycopg_pool import PoolTimeout

from momentum_sync.database.pool import CallerPool, Lane
from momentum_sync.doctor.finding import Finding, Level
from momentum_sync.errors import RequestError
from momentum_sync.identity.compiled_policies import CompiledPolicies
from momentum_sync.identity.row_queries import read_table, tables_query
from momentum_sync.identity.row_tables import RowTable
from momentum_sync.identity.tokens import Identity
from momentum_sync.limits import Limits
from momentum_sync.observe import described

AREA = "tables"
_CALLERS = (
    Identity("authenticated", None, '{"role": "authenticated", "sub": "00000000-0000-0000-0000-000000000000"}', None),
    Identity("anon", None, '{"role": "anon"}', None),
)
_NO_TRIGGER = "changed policies are not noticed at once: no event trigger"
_SHIPPED = "momentum_caller_role"  # the policies for coaches and admins call it
_NEVER_S = 3600.0  # nothing runs at intervals here


async def check_rights(conninfo: str) -> AsyncIterator[Finding]:
    """Yield findings about the policies of published tables, for the roles `authenticated` and `anon`."""
    pool = CallerPool(conninfo, Limits().queries, size=1)
    await pool.open()
    try:
        policies = CompiledPolicies(pool, interval_s=_NEVER_S)
        by_table: dict[str, list[str]] = defaultdict(list)
        checked: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
        for caller in _CALLERS:
            try:
                (rows,) = await pool.ask(caller, tables_query(None), lane=Lane.CONNECT)
                for table in map(read_table, rows):
                    name = f"{table.schema}.{table.name}"
                    if not table.secured:
                        yield _open(name, caller.role)
                    elif reasons := await _why_checked(policies, caller, table):
                        checked[caller.role, reasons].append(name)
                    else:
                        by_table[name].append(caller.role)
            except (RequestError, psycopg.Error, PoolTimeout) as error:
                yield Finding(
                    AREA, "policies", Level.UNKNOWN, f"as {caller.role}: {described(error)}",
                    "The check could not be completed, so the state is unknown.",
                    "momentum-sync migrate --server-role <role>   # if it lacks SET ROLE to authenticated or anon",
                )  # fmt: skip
        for (role, reasons), names in checked.items():
            yield _checked(", ".join(names), role, reasons)
        for name, roles in by_table.items():
            yield Finding(
                AREA,
                "policies",
                Level.OK,
                f"{name}: compiled for {' and '.join(roles)}, so that its changes need no query",
            )
    finally:
        await pool.close()


async def _why_checked(policies: CompiledPolicies, caller: Identity, table: RowTable) -> tuple[str, ...]:
    """Return why the database is asked about each change; nothing if the policies are compiled."""
    if await policies.decider(caller, table.oid) is not None:
        return ()
    return policies.reasons(caller.role, table.oid) or (_NO_TRIGGER,)


def _open(name: str, role: str) -> Finding:
    return Finding(
        AREA, "policies", Level.WARNING, f"{name}: row level security is off, and {role} may SELECT",
        f"Every client with the role {role} gets every change of the table.",
        f"alter table {name} enable row level security;",
    )  # fmt: skip


def _checked(name: str, role: str, reasons: Sequence[str]) -> Finding:
    fix = "Write policies as comparisons of columns with auth.uid(), auth.jwt() or constants: docs/supabase.md, Rights"
    if _NO_TRIGGER in reasons:
        fix = "As the owner of the tables: momentum-sync migrate --again"
    elif any(_SHIPPED in reason for reason in reasons):
        fix = f"Nothing, if only shipped policies apply; others should be written so: {fix.partition(' as ')[2]}"
    return Finding(
        AREA, "policies", Level.NOTE, f"{name}: changes are checked per event for {role} ({'; '.join(reasons)})",
        "With Supabase's protocol each caller needs one query per page of changes, which limits the server to a few"
        " thousand checks per second. A slow policy delays only its own callers.",
        fix,
    )  # fmt: skip

"""Checks of tables: publication, replica identities, triggers, policies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import TupleRow

from momentum_sync.database import adoption
from momentum_sync.doctor.finding import Finding, Level
from momentum_sync.doctor.rows import SQL, rows_of


@dataclass(frozen=True, slots=True)
class _Published:
    name: str
    is_ours: bool
    is_secured: bool
    is_full: bool
    lacks_identity: bool


def check_publication(connection: Connection[TupleRow]) -> Iterator[Finding]:
    """Check the publication of Supabase's protocol and the replica identities of its tables."""
    (is_there,) = connection.execute(SQL["publication"]).fetchone() or (False,)
    if not is_there:
        yield Finding(
            "tables", "publication", Level.NOTE, "there is no supabase_realtime",
            "Clients of Supabase's protocol get changes of the tables in it; native channels need none.",
            "momentum-sync migrate --again",
        )  # fmt: skip
        return
    tables = rows_of(connection, "published", _Published)
    yield Finding(
        "tables", "publication", Level.OK, f"supabase_realtime has {sum(table.is_ours for table in tables)} tables"
    )
    for table in tables:
        if table.lacks_identity:
            yield Finding(
                "tables", "replica identity", Level.PROBLEM, f"{table.name} has none: no primary key, or NOTHING",
                "PostgreSQL refuses every UPDATE and DELETE on a published table without one.",
                f"alter table {table.name} replica identity full;",
            )  # fmt: skip
        elif table.is_ours and not table.is_full and table.is_secured:
            yield Finding(
                "tables", "replica identity", Level.NOTE, f"{table.name}: old rows contain only the primary key",
                "A DELETE can be checked only if the policies read nothing but the key, and an UPDATE carries no old"
                " values.",
                f"alter table {table.name} replica identity full;",
            )  # fmt: skip


def check_triggers(connection: Connection[TupleRow]) -> Iterator[Finding]:
    """Check the triggers that publish, and those of others that run before them."""
    problems = list(adoption.publishing_problems(connection))
    if not problems:
        yield Finding("tables", "triggers", Level.OK, "those that publish are as installed, and enabled")
    for problem in problems:
        found, _, rest = problem.partition(": ")
        why, _, fix = rest.partition("; ")
        is_foreign = found.startswith("the trigger ")
        yield Finding(
            "tables", "other triggers" if is_foreign else "triggers",
            Level.WARNING if is_foreign else Level.PROBLEM, found, f"{why}.", fix,
        )  # fmt: skip


def check_event_trigger(connection: Connection[TupleRow]) -> Iterator[Finding]:
    """Check the event trigger that notices changed policies."""
    if adoption.has_event_trigger(connection):
        yield Finding("tables", "event trigger", Level.OK, "changed policies are noticed in their own transaction")
        return
    yield Finding(
        "tables", "event trigger", Level.WARNING, "momentum_policies is missing",
        "Changed policies are noticed within a second; until then events are filtered by the old policies. No policy"
        " is compiled, so each change is checked with a query.",
        "momentum-sync migrate --again   # if the owner of the tables is a superuser or, on Supabase, postgres;"
        " others may not create one",
    )  # fmt: skip


def check_policies(connection: Connection[TupleRow]) -> Iterator[Finding]:
    """Compare the policies of the app's tables with the shipped ones."""
    found = list(adoption.differences(connection))
    if not found:
        yield Finding(
            "tables", "policies of the app", Level.OK, "equivalent to the shipped ones, so events need no query"
        )  # fmt: skip
    for line in found:
        table, _, said = line.partition(": ")
        if "row level security is off" in said:
            yield Finding(
                "tables", "policies of the app", Level.PROBLEM, line, "Policies apply only with row level security.",
                f"alter table {table} enable row level security;",
            )  # fmt: skip
        elif "user_metadata" in said:
            yield Finding(
                "tables", "policies of the app", Level.PROBLEM, line, "Users can give themselves any role there.",
                "Read auth.jwt() -> 'app_metadata' in the policy, which only the service role can write.",
            )  # fmt: skip
        elif "replica identity" in said:
            continue  # `check_publication` has a finding, if the table is published
        elif "publication" in said:
            yield Finding(
                "tables", "publication", Level.NOTE, line, "Native channels do not need it.",
                f"alter publication supabase_realtime add table {table};",
            )  # fmt: skip
        else:
            yield Finding("tables", "policies of the app", Level.NOTE, line)

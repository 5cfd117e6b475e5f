"""Plan and state of the migrations in a database, and how its own tables differ from the shipped ones.

Nothing here changes anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from momentum_sync.database import queries
from momentum_sync.database.connection import connect
from momentum_sync.database.files import SEED_VERSIONS, Migration, migrations, text
from momentum_sync.domain.tables import SCHEMA
from momentum_sync.errors import Unsuitable
from momentum_sync.identity.policy_equality import are_equal, read_description

_SQL = queries.load(__package__)
_TABLES = ("daily_engagement_scores", "momentum_notifications", "coach_interventions")
_FACTS = {
    "row level security false": "row level security is off, so any user with a token can read every row",
    "readable false": "the role authenticated may not SELECT it, so clients get none of its rows",
}


def plan(conninfo: str) -> list[str]:
    """Return one line for each step that `migrate` would take. Raise Unsuitable if it would refuse the database."""
    with connect(conninfo, application_name="momentum-sync plan") as connection:
        refuse_lesser_owner(connection)
        check_shape(connection)
        bookkeeping, momentum, _, tables, missing = _there(connection)
        applied = applied_versions(connection) if bookkeeping else {}
        lines = [f"create {part}, which Supabase would provide" for part in missing]
        new = [migration for migration in migrations() if migration.version not in applied]
        if new:
            # Only the first migration creates these tables; once it is recorded, a missing table stays missing.
            lines += [
                f"{'adopt' if name in tables else 'create'} public.{name}{', as it is' if name in tables else ''}"
                for name in _TABLES
                if name in tables or new[0].version == SEED_VERSIONS[0]
            ]
        for migration in new:
            lines.append(f"apply {migration.title}")
            lines += [
                f"    {field}: {said}" for field, said in migration.header.items() if field not in ("Needs", "Undo")
            ]
        if bookkeeping and momentum and not connection.execute(_SQL["has_own_tables"]).fetchone():
            lines.append("create the server's own tables and functions of this version, in schema momentum")
        return lines or ["nothing: the database is up to date"]


def status(conninfo: str) -> list[str]:
    """Describe the database: migrations, event trigger, triggers that publish, differences of the app's tables."""
    with connect(conninfo, application_name="momentum-sync status") as connection:
        refuse_lesser_owner(connection)
        bookkeeping, momentum, event_trigger, _, _ = _there(connection)
        applied = applied_versions(connection) if bookkeeping else {}
        lines = [f"{migration.title}: {_state(migration, applied)}" for migration in migrations()]
        if not momentum:
            return lines
        lines.append(
            "changed policies are noticed "
            + (
                "at once"
                if event_trigger
                else "within about a second: there is no event trigger, because creating one requires a superuser"
            )
        )
        publishing = list(publishing_problems(connection))
        return [*lines, *(publishing or ["triggers and functions are as installed"]), *differences(connection)]


def _state(migration: Migration, applied: dict[str, str | None]) -> str:
    if migration.version not in applied:
        return "not applied"
    # The Supabase CLI records a file as several statements, which cannot be compared with its text.
    if applied[migration.version] is None:
        return "applied by another tool"
    return "applied" if applied[migration.version] == migration.sql else "applied with different content"


def applied_versions(connection: Connection[TupleRow]) -> dict[str, str | None]:
    """Return the applied versions, each with the text of its file if that is recorded."""
    return dict(connection.execute(_SQL["applied"]).fetchall())


def has_bookkeeping(connection: Connection[TupleRow]) -> bool:
    """Return whether any migration was ever recorded."""
    return bool(_there(connection)[0])


def has_event_trigger(connection: Connection[TupleRow]) -> bool:
    """Return whether changed policies are noticed in the transaction that changes them."""
    row = connection.execute(_SQL["event_trigger"]).fetchone()
    return row == (True,)


def _there(connection: Connection[TupleRow]) -> tuple[bool, bool, bool, list[str], list[str]]:
    row = connection.execute(_SQL["there"]).fetchone()
    assert row is not None
    return row[0], row[1], row[2], list(row[3]), list(row[4])


def check_shape(connection: Connection[TupleRow]) -> None:
    """Raise Unsuitable, naming the columns, if tables of these names have another shape."""
    try:
        connection.execute(text("database/shape.sql").encode())
    except (psycopg.errors.UndefinedColumn, psycopg.errors.DuplicateObject) as error:
        raise Unsuitable(f"{_capital(error.diag.message_primary)}.", str(error.diag.message_hint)) from None


def _capital(sentence: str | None) -> str:
    return (sentence or "")[:1].upper() + (sentence or "")[1:]


def lesser_owner(connection: Connection[TupleRow]) -> str | None:
    """Return the owner of the app's tables, if it is no superuser and the connection is one.

    Such an owner could leave code on its tables that a migration would run as superuser.
    """
    row = connection.execute(_SQL["lesser_owner"], {"tables": list(_TABLES)}).fetchone()
    return None if row is None else str(row[0])


def refuse_foreign(connection: Connection[TupleRow]) -> None:
    """Raise Unsuitable if an object with one of the product's names belongs to a third role.

    The owner of a table or a function can have code run there with the rights of its callers. Only the catalog is read.
    The log is exempt: `migrate` drops a log of a lesser role, which runs no code of that role.
    """
    names = {"tables": made("table"), "functions": made("function"), "own": made("function", "momentum")}
    row = connection.execute(_SQL["foreign"], names).fetchone()
    if row is not None:
        raise Unsuitable(
            f"{row[0]} belongs to {row[1]}, which could use it to run code with the rights of the migrating role.",
            f"Drop it, rename it or give it to the owner of the tables; or migrate as {row[1]}.",
        )


def made(kind: Literal["table", "function"], schema: str = "public") -> list[str]:
    """Return the names of the objects that `migrate` creates in a schema, beside the log and its tables."""
    pattern = re.compile(rf"create (?:or replace )?{kind} (?:if not exists )?{schema}\.(\w+)")
    scripts = [*(migration.sql for migration in migrations()), text("eventlog/receipts.sql")]
    return sorted({name for script in scripts for name in pattern.findall(script)})


def refuse_lesser_owner(connection: Connection[TupleRow]) -> None:
    """Raise Unsuitable for a superuser if the app's tables or the product's objects have a lesser owner."""
    owner = lesser_owner(connection)
    if owner is None:
        refuse_foreign(connection)
    if owner is not None:
        raise Unsuitable(
            f"The app's tables belong to {owner}, which is not a superuser, but you are one: functions that {owner} may"
            " replace would run with your rights.",
            f"Connect as {owner} and run the same command.",
        )


def publishing_problems(connection: Connection[TupleRow]) -> Iterator[str]:
    """Return damaged triggers and functions, and foreign triggers that run before those that publish."""
    row = connection.execute(
        "select p.found -> 'problems', p.found -> 'foreign_triggers' from momentum.check_publishing() as p (found)"
    ).fetchone()
    assert row is not None
    for problem in row[0]:
        yield f"{problem}: events may not be published; run as the owner of the tables: momentum-sync migrate --again"
    for trigger in row[1]:
        yield (
            f"the trigger {trigger} runs before the publishing trigger: if it updates the row, clients keep the older"
            " version; rename it so that it sorts after the publishing trigger:"
            " alter trigger <name> on <table> rename to z_<name>;"
        )


def accept_equal_policies(connection: Connection[TupleRow]) -> None:
    """Record which changed policies allow the same rows as the shipped ones."""
    for table, shipped, current in connection.execute(_SQL["policies"]).fetchall():
        if are_equal(shipped, current, SCHEMA, table):
            parameters = {"table": table, "shipped": shipped, "described": current}
            connection.execute(_SQL["accept_policies"], parameters)


def differences(connection: Connection[TupleRow]) -> Iterator[str]:
    """Return how the app's tables and policies differ from the shipped ones, and the cost of each difference."""
    names = {(table, line): name for table, name, line in connection.execute(_SQL["policy_names"])}
    for table, shipped, current in connection.execute(_SQL["policies"]).fetchall():
        has, should = read_description(current), read_description(shipped)
        for line in sorted({*has.facts} - {*should.facts}):
            if line in _FACTS:
                yield f"public.{table}: {_FACTS[line]}"
            elif line.startswith("role "):
                yield "public.momentum_caller_role() differs from the shipped version"
        for line in _only_in(has.policies, should.policies, table):
            if (name := names.get((table, line))) is not None:
                yield f'public.{table}: the policy "{name}" is not a shipped policy: {line}'
        for line in _only_in(should.policies, has.policies, table):
            yield f"public.{table}: lacks a shipped policy: {line}"
        yield (
            f"public.{table}: because of these differences, an update writes two events instead of one, and each event"
            " is checked with a query for each subscribed caller; other tables are not affected"
        )
    for table, lacks_old_row, lacks_publication in connection.execute(_SQL["not_full"]).fetchall():
        if lacks_old_row:
            yield f"public.{table}: lacks replica identity full, which Supabase clients that use postgres_changes need"
        if lacks_publication:
            yield (
                f"public.{table}: is not in the publication supabase_realtime, which Supabase clients that use"
                " postgres_changes need"
            )
    for table, name in connection.execute(_SQL["user_metadata"]).fetchall():
        yield f'public.{table}: the policy "{name}" trusts user_metadata, which users can edit themselves'


def _only_in(lines: Sequence[str], others: Sequence[str], table: str) -> list[str]:
    """Return the policies that allow rows or forbid them, and have no equal among the others."""

    def is_only(line: str) -> bool:
        kind = line.partition(" ")[0]
        everything = "permissive true\n" if kind == "restrictive" else ""  # alone, it would allow nothing
        same = ["", *(other for other in others if other.startswith(kind))]
        return not any(are_equal(everything + line, everything + other, SCHEMA, table) for other in same)

    return [line for line in sorted(lines) if is_only(line)]


def server_roles(connection: Connection[TupleRow]) -> list[str]:
    """Return the roles that `migrate --server-role` has given privileges."""
    return [name for name, _ in connection.execute(_SQL["servers"]).fetchall()]


def may_add_triggers(connection: Connection[TupleRow]) -> list[str]:
    """Return tables of the app on which the server's role may create triggers that others would run."""
    return [name for (name,) in connection.execute(_SQL["may_add_triggers"]).fetchall()]

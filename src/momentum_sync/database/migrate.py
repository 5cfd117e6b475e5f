"""Brings a database up to date: bootstrap, the migrations, the server's own tables.

The bookkeeping is the Supabase CLI's, `supabase_migrations.schema_migrations (version, statements, name)`, so that
`supabase db push` and this runner each see what the other has applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import psycopg
from psycopg import Connection, errors, sql
from psycopg.rows import TupleRow

from momentum_sync.database.pool import connect
from momentum_sync.errors import Unsuitable

# Any constant will do; this one spells "momentum" in ASCII.
_LOCK = 0x6D6F6D656E74756D
_LOCK_TIMEOUT = "60s"

_BOOKKEEPING = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (version text not null primary key);
alter table supabase_migrations.schema_migrations add column if not exists statements text[];
alter table supabase_migrations.schema_migrations add column if not exists name text;
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `supabase/migrations/`: `<version>_<name>.sql`."""

    version: str
    name: str
    sql: str


def migrations() -> list[Migration]:
    """The migrations that come with the package, in order."""
    found = []
    for path in sorted(_folder().glob("*.sql")):
        version, _, name = path.stem.partition("_")
        found.append(Migration(version, name, path.read_text(encoding="utf-8")))
    if not found:
        raise Unsuitable("The package holds no migrations.", "Install momentum-sync again.")
    return found


def _folder() -> Path:
    """`supabase/migrations`, which a wheel carries inside the package and a checkout beside it."""
    package = Path(str(resources.files("momentum_sync")))
    inside = package / "supabase" / "migrations"
    return inside if inside.is_dir() else package.parents[1] / "supabase" / "migrations"


def migrate(
    conninfo: str, *, tell: Callable[[str], None], again: bool = False, server_role: str | None = None
) -> list[str]:
    """Applies what is missing and returns the versions applied. Each file is one transaction.

    `tell` hears one line about each step. A second run at the same time waits for the first. Raises Unsuitable
    when the database refuses, with the statement's own message, and for a file that was applied with another text,
    before it was released; `again` applies that anew. `server_role` is a role that gets what the server needs, and
    nothing more.
    """
    with connect(conninfo, application_name="momentum-sync migrate") as connection:
        connection.execute(f"set lock_timeout = '{_LOCK_TIMEOUT}'")
        connection.execute("set client_min_messages = warning")
        _lock(connection)
        try:
            applied = _apply(connection, tell, again=again)
            if server_role is not None:
                _equip(connection, server_role)
                tell(f"{server_role} has what the server needs")
            return applied
        finally:
            connection.execute("select pg_advisory_unlock(%s)", (_LOCK,))


def _lock(connection: Connection[TupleRow]) -> None:
    try:
        connection.execute("select pg_advisory_lock(%s)", (_LOCK,))
    except errors.LockNotAvailable as error:
        raise Unsuitable(
            "Another migration has held its lock for a minute.", "Wait for it to end, then run `momentum-sync migrate`."
        ) from error


def _apply(connection: Connection[TupleRow], tell: Callable[[str], None], *, again: bool) -> list[str]:
    _run(connection, "bootstrap", _text("database/bootstrap.sql"))
    _run(connection, "bookkeeping", _BOOKKEEPING)
    # One statement is a whole file, as we write it down; the Supabase CLI writes down each statement of a file.
    applied: dict[str, str | None] = dict(
        connection.execute(
            "select version, case when cardinality(statements) = 1 then statements[1] end"
            " from supabase_migrations.schema_migrations"
        ).fetchall()
    )
    new = [migration for migration in migrations() if migration.version not in applied]
    other = [migration for migration in migrations() if applied.get(migration.version) not in (None, migration.sql)]
    if other and not again:
        raise Unsuitable(
            f"{other[0].version}_{other[0].name} was applied with another text, from before its release.",
            "Apply it anew, which also makes our policies as shipped: momentum-sync migrate --again",
        )
    new = sorted([*new, *other], key=lambda migration: migration.version)
    for migration in new:
        _run(connection, f"{migration.version}_{migration.name}", migration.sql, record=migration)
        tell(f"applied {migration.version}_{migration.name}")
    _run(connection, "event log", _text("eventlog/schema.sql"))
    return [migration.version for migration in new]


def _equip(connection: Connection[TupleRow], role: str) -> None:
    found = connection.execute(
        "select rolsuper or rolbypassrls, rolinherit from pg_catalog.pg_roles where rolname = %s", (role,)
    ).fetchone()
    named = sql.Identifier(role).as_string()
    if found is None:
        raise Unsuitable(
            f"There is no role {role}.", f"create role {named} login noinherit password '…'; then this command again."
        )
    if found[0]:
        raise Unsuitable(
            f"The role {role} is above row level security, which is to bind the server.",
            f"As a superuser: alter role {named} nosuperuser nobypassrls;",
        )
    if found[1]:
        raise Unsuitable(
            f"The role {role} would have the rights of service_role all the time, by inheriting them.",
            f"As a superuser: alter role {named} noinherit;",
        )
    row = connection.execute("select format(%s, %s::text)", (_text("database/server_role.sql"), role)).fetchone()
    assert row is not None
    _run(connection, f"what {role} needs", row[0])


def _run(connection: Connection[TupleRow], what: str, sql: str, *, record: Migration | None = None) -> None:
    try:
        with connection.transaction():
            connection.execute(sql.encode())
            if record is not None:
                connection.execute(
                    "insert into supabase_migrations.schema_migrations (version, name, statements) values (%s, %s, %s)"
                    " on conflict (version) do update set statements = excluded.statements",
                    (record.version, record.name, [record.sql]),
                )
    except errors.InsufficientPrivilege as error:
        raise Unsuitable(
            f"The database refused {what}: {_sentence(error)}.",
            "Run `momentum-sync migrate` with the role that owns the tables (on Supabase: postgres).",
        ) from error
    except errors.LockNotAvailable as error:
        raise Unsuitable(
            f"{what} waited for a minute for a table that somebody holds, and was rolled back.",
            "End the transaction that holds it (select * from pg_stat_activity), then run `momentum-sync migrate`.",
        ) from error
    except psycopg.DatabaseError as error:
        raise Unsuitable(
            f"{what} failed and was rolled back: {_sentence(error)}.",
            "Mend what the message names, then run `momentum-sync migrate` again.",
        ) from error


def _sentence(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).rstrip(".")


def _text(path: str) -> str:
    return resources.files("momentum_sync").joinpath(path).read_text(encoding="utf-8")

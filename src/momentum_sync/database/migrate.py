"""Brings a database up to date: bootstrap, the migrations, the server's own tables.

The bookkeeping is the Supabase CLI's, `supabase_migrations.schema_migrations (version, statements, name)`, so that
`supabase db push` and this runner each see what the other has applied.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import Connection, errors, sql
from psycopg.rows import TupleRow

from momentum_sync.database.connection import connect
from momentum_sync.errors import Unsuitable

# Any constant will do; this one spells "momentum" in ASCII.
_LOCK = 0x6D6F6D656E74756D
_PATIENCE_S = 60.0
_LOCK_TIMEOUT = "500ms"
_AGAIN_AFTER_S = 0.2

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
    before it was released; `again` applies all of them anew, which repairs what was changed since. `server_role` is a
    role that gets what the server needs, and nothing more.
    """
    with connect(conninfo, application_name="momentum-sync migrate") as connection:
        connection.execute(f"set lock_timeout = '{_PATIENCE_S}s'; set statement_timeout = 0")
        _lock(connection)
        try:
            applied = _apply(connection, tell, again=again)
            if (
                connection.execute("select from pg_event_trigger where evtname = 'momentum_policies'").fetchone()
                is None
            ):
                tell("no event trigger, which takes a superuser: changed policies are noticed within about a second")
            if server_role is not None:
                _equip(connection, server_role)
                tell(f"{server_role} has what the server needs")
            _tell_of_publishing(connection, tell)
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
    _check_owner(connection)
    _run(connection, "bookkeeping", _BOOKKEEPING)
    # One statement is a whole file, as we write it down; the Supabase CLI writes down each statement of a file.
    applied: dict[str, str | None] = dict(
        connection.execute(
            "select version, case when cardinality(statements) = 1 then statements[1] end"
            " from supabase_migrations.schema_migrations"
        ).fetchall()
    )
    ours = migrations()
    other = [migration for migration in ours if applied.get(migration.version) not in (None, migration.sql)]
    if other and not again:
        raise Unsuitable(
            f"{other[0].version}_{other[0].name} was applied with another text, from before its release.",
            "Apply all of ours anew, which also makes our policies as shipped: momentum-sync migrate --again",
        )
    new = ours if again else [migration for migration in ours if migration.version not in applied]
    for migration in new:
        _run(connection, f"{migration.version}_{migration.name}", migration.sql, record=migration)
        tell(f"applied {migration.version}_{migration.name}")
    _run(connection, "event log", _text("eventlog/schema.sql"))
    return [migration.version for migration in new]


def _check_owner(connection: Connection[TupleRow]) -> None:
    """Refuses to work as a superuser on tables of a lesser role, which could leave code there.

    What is ours is handed over to that role first, so that it can migrate.
    """
    row = connection.execute(
        "select pg_get_userbyid(c.relowner)::text from pg_class c join pg_roles owner on owner.oid = c.relowner"
        " join pg_roles me on me.rolname = current_user"
        " where c.relnamespace = 'public'::regnamespace and c.relname = any(%s) and me.rolsuper and not owner.rolsuper"
        " order by c.relname <> 'daily_engagement_scores' limit 1",
        (_made("table"),),
    ).fetchone()
    if row is not None:
        _hand_over(connection, row[0])
        raise Unsuitable(
            f"The app's tables belong to {row[0]}, which is not a superuser; migrate as that role, not as a superuser.",
            f"It now owns the publication supabase_realtime and whatever was migrated before. Connect as"
            f" {sql.Identifier(row[0]).as_string()} and run: momentum-sync migrate --again",
        )


def _made(kind: Literal["table", "function"]) -> list[str]:
    """Return the names of what the migrations make in schema public."""
    made = re.compile(rf"^create (?:or replace )?{kind} (?:if not exists )?public\.(\w+)", re.MULTILINE)
    return sorted({name for migration in migrations() for name in made.findall(migration.sql)})


def _hand_over(connection: Connection[TupleRow], owner: str) -> None:
    """Makes a role the owner of what an earlier migration left to a superuser. None of it runs the role's code."""
    text = _text("database/hand_over.sql")
    with connection.transaction():
        for name, value in (("owner", owner), ("tables", _made("table")), ("functions", _made("function"))):
            given = value if isinstance(value, str) else ",".join(value)
            connection.execute("select set_config('momentum.hand_over_' || %s, %s, true)", (name, given))
        connection.execute(text.encode())


def _tell_of_publishing(connection: Connection[TupleRow], tell: Callable[[str], None]) -> None:
    """Report damaged triggers and functions, and foreign triggers that run before ours."""
    row = connection.execute(
        "select p.found -> 'problems', p.found -> 'foreign_triggers' from momentum.check_publishing() as p (found)"
    ).fetchone()
    assert row is not None
    for problem in row[0]:
        tell(f"{problem}: events are not published; repair it with `momentum-sync migrate --again`")
    for trigger in row[1]:
        tell(
            f"the trigger {trigger} runs before ours: if it updates the row, clients keep the older version;"
            " rename it so that it sorts behind ours"
        )


def _equip(connection: Connection[TupleRow], role: str) -> None:
    named, ourselves = (sql.Identifier(name).as_string() for name in (role, connection.info.user))
    found = connection.execute(
        "select r.rolsuper or r.rolbypassrls,"
        " exists (select from pg_class c where c.relnamespace = 'public'::regnamespace and c.relowner = r.oid),"
        " pg_has_role(current_user, r.oid, 'usage')"
        " from pg_catalog.pg_roles r where r.rolname = %s",
        (role,),
    ).fetchone()
    if found is None:
        raise Unsuitable(
            f"There is no role {role}.",
            f"create role {named} login noinherit password '…'; grant {named} to {ourselves}; then this command again.",
        )
    above, owns, ours = found
    if above or owns:
        raise Unsuitable(
            f"The role {role} {'is above row level security' if above else 'owns tables of the app'}, and row level"
            " security is to bind the server.",
            "Make another role for the server: create role momentum_server login noinherit password '…';",
        )
    if not ours:
        raise Unsuitable(
            f"{ourselves} may not act for {role}.", f"grant {named} to {ourselves}; then this command again."
        )
    # Since PostgreSQL 16 whether rights are inherited belongs to the membership, before that to the role.
    how = "with inherit false, set true" if connection.info.server_version >= 16_00_00 else ""
    text = _text("database/server_role.sql")
    row = connection.execute("select format(%s, %s::text, %s::text)", (text, role, how)).fetchone()
    assert row is not None
    _run(connection, f"what {role} needs", row[0])
    inherits = connection.execute(
        "select pg_has_role(%(role)s, 'service_role', 'usage') or pg_has_role(%(role)s, 'authenticated', 'usage')",
        {"role": role},
    ).fetchone()
    if inherits != (False,):
        raise Unsuitable(
            f"The role {role} has the rights of service_role all the time, by inheriting them.",
            f"alter role {named} noinherit; revoke service_role, authenticated from {named}; then this command again.",
        )


def _run(connection: Connection[TupleRow], what: str, text: str, *, record: Migration | None = None) -> None:
    """Runs a file as one transaction.

    It waits for a lock less long than PostgreSQL takes to look for deadlocks, and begins again, for up to a minute: a
    writer who holds one table and wants the next is not ended for our sake.
    """
    ends = time.monotonic() + _PATIENCE_S
    while True:
        try:
            _run_once(connection, what, text, record)
            return
        except errors.LockNotAvailable as error:
            if time.monotonic() > ends:
                raise Unsuitable(
                    f"{what} waited for {_PATIENCE_S:g} s for a table that somebody holds, and was rolled back.",
                    "End the transaction that holds it (select * from pg_stat_activity), then `momentum-sync migrate`.",
                ) from error
            time.sleep(_AGAIN_AFTER_S)


def _run_once(connection: Connection[TupleRow], what: str, text: str, record: Migration | None) -> None:
    try:
        with connection.transaction():
            connection.execute(f"set local lock_timeout = '{_LOCK_TIMEOUT}'")
            connection.execute(text.encode())
            if record is not None:
                connection.execute(
                    "insert into supabase_migrations.schema_migrations (version, name, statements) values (%s, %s, %s)"
                    " on conflict (version) do update set statements = excluded.statements",
                    (record.version, record.name, [record.sql]),
                )
    except errors.LockNotAvailable:
        raise
    except errors.InsufficientPrivilege as error:
        raise Unsuitable(
            f"The database refused {what}: {_sentence(error)}.",
            "Run `momentum-sync migrate` with the role that owns the tables (on Supabase: postgres).",
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

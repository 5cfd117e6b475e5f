"""Brings a database up to date: bootstrap, migrations, the server's own tables.

The bookkeeping is the Supabase CLI's, `supabase_migrations.schema_migrations (version, statements, name)`, so that
`supabase db push` and this runner recognize each other's applied migrations.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import psycopg
from psycopg import Connection, errors, sql
from psycopg.rows import TupleRow

from momentum_sync.database import adoption
from momentum_sync.database.connection import connect
from momentum_sync.database.files import SEED_VERSIONS, Migration, migrations, text
from momentum_sync.errors import Unsuitable

# Any constant works; this one is "momentum" in ASCII.
_LOCK = 0x6D6F6D656E74756D
PATIENCE_S = 60.0
# Below PostgreSQL's deadlock_timeout, 1 s by default: a migration gives up before a deadlock check could cancel a
# writer.
LOCK_TIMEOUT = "500ms"
_NEEDS_ROLES = (
    "Run `momentum-sync migrate` with the role that owns the tables (on Supabase: postgres). Roles that are missing are"
    " created by a superuser: docs/adopt.md, Plain PostgreSQL."
)
_AGAIN_AFTER_S = 0.2

_BOOKKEEPING = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (version text not null primary key);
alter table supabase_migrations.schema_migrations add column if not exists statements text[];
alter table supabase_migrations.schema_migrations add column if not exists name text;
"""


def migrate(
    conninfo: str,
    *,
    tell: Callable[[str], None],
    again: bool = False,
    server_role: str | None = None,
    patience_s: float = PATIENCE_S,
) -> list[str]:
    """Apply missing migrations, each in one transaction. A second run at the same time waits for the first.

    Args:
        conninfo: the database, as the owner of the app's tables.
        tell: called with one line about each step, and at the end about each difference of the app's tables.
        again: apply all migrations again, which repairs changed objects.
        server_role: a role that gets the privileges that the server needs, and no others.
        patience_s: seconds to wait for another run, and for the locks of each migration.

    Returns:
        The applied versions.

    Raises:
        Unsuitable: the database refuses, with the statement's message; a table has another shape, and nothing was
            changed; or a migration of the package was applied with another text.
    """
    with connect(conninfo, application_name="momentum-sync migrate") as connection:
        connection.execute(f"set lock_timeout = '{patience_s}s'; set statement_timeout = 0")
        _lock(connection, patience_s)
        try:
            applied = _apply(connection, tell, again=again, patience_s=patience_s)
            accept = functools.partial(adoption.accept_equal_policies, connection)
            patiently("comparing policies", "migrate", accept, patience_s)
            if not adoption.has_event_trigger(connection):
                tell("no event trigger (it requires a superuser): changed policies are noticed within about a second")
            if server_role is None:
                _equip_again(connection, tell, patience_s)
            else:
                _equip(connection, server_role, patience_s)
                tell(f"{server_role} has the privileges that the server needs")
                for table in adoption.may_add_triggers(connection):
                    tell(
                        f"service_role, and therefore {server_role}, may create triggers on public.{table}, which run"
                        f" with the rights of every writer; to prevent this: revoke trigger on public.{table} from"
                        " service_role;"
                    )
            for line in adoption.publishing_problems(connection):
                tell(line)
            if applied:
                for line in adoption.differences(connection):
                    tell(line)
            return applied
        finally:
            connection.execute("select pg_advisory_unlock(%s)", (_LOCK,))


def _lock(connection: Connection[TupleRow], patience_s: float) -> None:
    try:
        connection.execute("select pg_advisory_lock(%s)", (_LOCK,))
    except errors.LockNotAvailable as error:
        raise Unsuitable(
            f"Another migration has held its lock for {patience_s:g} s.",
            "Wait for it to end, then run `momentum-sync migrate`.",
        ) from error


def _apply(
    connection: Connection[TupleRow], tell: Callable[[str], None], *, again: bool, patience_s: float
) -> list[str]:
    adoption.check_shape(connection)
    _check_owner(connection)
    _run(connection, "bootstrap", text("database/bootstrap.sql"), patience_s=patience_s)
    _run(connection, "bookkeeping", _BOOKKEEPING, patience_s=patience_s)
    applied = adoption.applied_versions(connection)
    ours = migrations()
    other = [each for each in ours if each.version in applied and applied[each.version] not in (None, each.sql)]
    # An app may have its own content under the seed's versions; not even `again` replaces that.
    seeds = [each for each in other if each.version in SEED_VERSIONS]
    if len(other) > len(seeds) and not again:
        (first, *_) = [each for each in other if each not in seeds]
        raise Unsuitable(
            f"{first.title} was applied with different content, by another version of Momentum Sync.",
            "Apply all migrations again: momentum-sync migrate --again",
        )
    new = (
        [each for each in ours if each not in seeds]
        if again
        else [each for each in ours if each.version not in applied]
    )
    for migration in new:
        _run(connection, migration.title, migration.sql, record=migration, patience_s=patience_s)
        tell(f"applied {migration.title}")
    for name in ("schema", "receipts"):
        _run(connection, f"event log ({name})", text(f"eventlog/{name}.sql"), patience_s=patience_s)
    return [migration.version for migration in new]


def _check_owner(connection: Connection[TupleRow]) -> None:
    """Refuse to work as superuser on tables of a lesser role, which could leave code there.

    The product's objects are handed over to that role first, so that it can migrate.
    """
    owner = adoption.lesser_owner(connection)
    if owner is None:
        adoption.refuse_foreign(connection)
    else:
        _hand_over(connection, owner)
        raise Unsuitable(
            f"The app's tables belong to {owner}, which is not a superuser; migrate as {owner}, not as a superuser.",
            f"{owner} now owns the publication supabase_realtime and all objects of earlier migrations. Connect as"
            f" {sql.Identifier(owner).as_string()} and run: momentum-sync migrate --again",
        )


def _hand_over(connection: Connection[TupleRow], owner: str) -> None:
    """Give a role the objects that an earlier migration left to a superuser. This runs no code of the role."""
    script = text("database/hand_over.sql")
    with connection.transaction():
        tables, functions = (",".join(names) for names in (adoption.made("table"), adoption.made("function")))
        given = {"owner": owner, "tables": tables, "functions": functions}
        for name, value in given.items():
            connection.execute("select set_config('momentum.hand_over_' || %s, %s, true)", (name, value))
        connection.execute(script.encode())


def _equip_again(connection: Connection[TupleRow], tell: Callable[[str], None], patience_s: float) -> None:
    """Give the roles that are servers' already the privileges of this version."""
    for role in adoption.server_roles(connection):
        try:
            _equip(connection, role, patience_s)
        except Unsuitable as error:
            tell(f"{role} may lack privileges of this version: {error} {error.hint}")


def _equip(connection: Connection[TupleRow], role: str, patience_s: float) -> None:
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
            f"create role {named} login noinherit password '…'; grant {named} to {ourselves}; then run this command"
            " again.",
        )
    above, owns, ours = found
    if above or owns:
        raise Unsuitable(
            f"The role {role} {'bypasses row level security' if above else 'owns tables of the app'}, but row level"
            " security must apply to the server.",
            "Make another role for the server: create role momentum_server login noinherit password '…';",
        )
    if not ours:
        raise Unsuitable(
            f"{ourselves} is not a member of {role}.", f"grant {named} to {ourselves}; then run this command again."
        )
    # Since PostgreSQL 16 inheritance is a property of the membership, before of the role.
    how = "with inherit false, set true" if connection.info.server_version >= 16_00_00 else ""
    template = text("database/server_role.sql")
    row = connection.execute("select format(%s, %s::text, %s::text)", (template, role, how)).fetchone()
    assert row is not None
    _run(connection, f"granting privileges to {role}", row[0], patience_s=patience_s)
    # Since PostgreSQL 16, a membership that another role granted keeps its own inherit option, so the result is
    # checked.
    inherits = connection.execute(
        "select pg_has_role(%(role)s, 'service_role', 'usage') or pg_has_role(%(role)s, 'authenticated', 'usage')",
        {"role": role},
    ).fetchone()
    if inherits != (False,):
        raise Unsuitable(
            f"The role {role} inherits the privileges of service_role or authenticated, but must only use them after"
            " SET ROLE.",
            f"alter role {named} noinherit; revoke service_role, authenticated from {named}; then run this command"
            " again.",
        )


def _run(
    connection: Connection[TupleRow], what: str, script: str, *, patience_s: float, record: Migration | None = None
) -> None:
    """Run a file in one transaction."""
    patiently(what, "migrate", lambda: _run_once(connection, what, script, record), patience_s)


def patiently(what: str, command: str, transaction: Callable[[], None], patience_s: float = PATIENCE_S) -> None:
    """Run a transaction that changes tables, and start over while another holds a lock, for up to `patience_s`.

    The transaction must set `lock_timeout` to `LOCK_TIMEOUT`, which is less than PostgreSQL takes to look for
    deadlocks. So no writer that holds one table and wants the next is cancelled because of this transaction.

    Raises:
        Unsuitable: the lock was not free in time.
    """
    ends = time.monotonic() + patience_s
    while True:
        try:
            transaction()
            return
        except errors.LockNotAvailable as error:
            if time.monotonic() > ends:
                raise Unsuitable(
                    f"{what} waited {patience_s:g} s for a lock on a table, and was rolled back.",
                    "End the transaction that holds the lock (see pg_stat_activity), then run"
                    f" `momentum-sync {command}` again.",
                ) from error
            time.sleep(_AGAIN_AFTER_S)


def _run_once(connection: Connection[TupleRow], what: str, script: str, record: Migration | None) -> None:
    try:
        with connection.transaction():
            connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
            connection.execute(script.encode())
            # In the migration's own transaction, so that its record and its effect cannot differ.
            if record is not None:
                connection.execute(
                    "insert into supabase_migrations.schema_migrations (version, name, statements) values (%s, %s, %s)"
                    " on conflict (version) do update set statements = excluded.statements",
                    (record.version, record.name, [record.sql]),
                )
    except errors.LockNotAvailable:
        # `_run` starts over; the last handler would turn it into a failure of the migration.
        raise
    except errors.InsufficientPrivilege as error:
        raise Unsuitable(
            f"The database refused {what}: {_sentence(error)}.",
            _NEEDS_ROLES
            if what == "bootstrap"
            else "Run `momentum-sync migrate` with the role that owns the tables (on Supabase: postgres).",
        ) from error
    except psycopg.DatabaseError as error:
        raise Unsuitable(
            f"{what} failed and was rolled back: {_sentence(error)}.",
            error.diag.message_hint or "Fix the cause, then run `momentum-sync migrate` again.",
        ) from error


def _sentence(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).rstrip(".")

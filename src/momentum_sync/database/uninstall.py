"""Removes the objects that the migrations created, and leaves the app's tables and data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg
from psycopg import Connection, errors
from psycopg.rows import TupleRow

from momentum_sync.database import queries
from momentum_sync.database.adoption import has_bookkeeping, made, refuse_lesser_owner
from momentum_sync.database.connection import connect
from momentum_sync.database.files import SEED_VERSIONS, migrations, text
from momentum_sync.database.migrate import LOCK_TIMEOUT, patiently
from momentum_sync.errors import Unsuitable

_SQL = queries.load(__package__)


def uninstall(conninfo: str, *, slot: str, tell: Callable[[str], None], capture: str | None = None) -> None:
    """Remove the slot, triggers, functions and schemas of Momentum Sync.

    Args:
        conninfo: the database, as the owner of the app's tables.
        slot: the configured replication slot; the one of the log is dropped, too.
        tell: called with one line about each thing that was removed or stays.
        capture: connection string of a role that may drop the slot, if the owner may not.

    Raises:
        Unsuitable: a server is running, or objects of the operator depend on those to remove. Nothing was removed.
    """
    with connect(conninfo, application_name="momentum-sync uninstall") as connection:
        # Ownership comes first: a function of a lesser role would run with the rights of a superuser.
        refuse_lesser_owner(connection)
        try:
            row = connection.execute(_SQL["log_slot"]).fetchone()
        except (errors.UndefinedTable, errors.InvalidSchemaName):
            row = None
        except errors.InsufficientPrivilege as error:
            raise Unsuitable(
                f"The database refused: {error.diag.message_primary}.",
                "Run it as the role that owns the tables; nothing was removed.",
            ) from None
        try:
            servers = connection.execute(_SQL["servers"]).fetchall()
        except (errors.InvalidSchemaName, errors.UndefinedFunction):
            servers = []
        # A server that waits for the slot is not reading it, and would create it again.
        if connection.execute(_SQL["running"]).fetchone():
            raise Unsuitable("A server is connected to this database.", "Stop it, then run this command again.")
        using = _users_of_realtime(connection)
        slots = connection.execute(_SQL["slots"], {"names": [slot, *(row or ())]}).fetchall()
        for name, active in slots:
            if active:
                raise Unsuitable(
                    f"A server is reading the replication slot {name}.",
                    "Stop that server, then run this command again.",
                )
        patiently("uninstall", "uninstall", lambda: _drop(connection, keeps_realtime=bool(using)))
        left = [name for (name,) in connection.execute(_SQL["left_behind"]).fetchall()]
    tell("removed triggers, functions, the event log and the schemas momentum and momentum_log")
    if using:
        tell(
            f"left schema realtime and the publication supabase_realtime_messages_publication, which the app uses"
            f" ({', '.join(using)}); without Supabase's Realtime server nobody gets the messages any longer"
        )
    # Dropping a slot cannot be rolled back, so it follows the transaction that may still fail.
    for name, _ in slots:
        _drop_slot(conninfo if capture is None else capture, name, tell)
    _tell_what_stays(tell, left, servers)


def _tell_what_stays(tell: Callable[[str], None], left: Sequence[str], servers: Sequence[tuple[str, bool]]) -> None:
    tell("left public.daily_engagement_scores, momentum_notifications and coach_interventions: data, policies, grants")
    tell(
        "left replica identity full and the publication supabase_realtime, because clients of the app may need them;"
        " to undo: alter table … replica identity default; alter publication supabase_realtime drop table …"
    )
    if left:
        tell(f"left {'; '.join(left)}, because the app may use or have replaced them")
    for server, owns in servers:
        undo = (
            f"revoke anon, authenticated, service_role from {server};   -- not dropped: it owns objects"
            if owns
            else f"drop owned by {server}; drop role {server};"
        )
        tell(f"left the role {server}, which may become service_role: {undo}")


def _users_of_realtime(connection: Connection[TupleRow]) -> list[str]:
    """Return the app's objects that use schema realtime. Raise Unsuitable if functions of the app would fail."""
    calling = connection.execute(_SQL["users_of_momentum"], {"ours": made("function")}).fetchall()
    if calling:
        raise Unsuitable(
            f"Functions of the app call Momentum Sync: {', '.join(name for (name,) in calling)}.",
            "Drop or change them first, or their callers will fail; nothing was removed.",
        )
    return [name for (name,) in connection.execute(_SQL["users_of_realtime"]).fetchall()]


def _drop(connection: Connection[TupleRow], *, keeps_realtime: bool) -> None:
    """Drop the objects that the migrations created and recorded, in one transaction."""
    seeds = [migration for migration in migrations() if migration.version in SEED_VERSIONS]
    try:
        with connection.transaction():
            connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
            functions = ",".join(made("function", "momentum"))
            connection.execute("select set_config('momentum.uninstall_functions', %s, true)", (functions,))
            keeps = "no" if keeps_realtime else "yes"
            connection.execute("select set_config('momentum.uninstall_realtime', %s, true)", (keeps,))
            connection.execute(text("database/uninstall.sql").encode())
            if has_bookkeeping(connection):
                # The seed's versions may be recorded with the app's own files; `forget` removes such a record only if
                # its text is ours.
                versions = [each.version for each in migrations() if each not in seeds]
                given = {"seed_versions": [seed.version for seed in seeds], "texts": [seed.sql for seed in seeds]}
                connection.execute(_SQL["forget"], {"versions": versions, **given})
    except errors.DependentObjectsStillExist as error:
        raise Unsuitable(
            f"Other objects depend on Momentum Sync: {error.diag.message_detail}",
            "Drop or change them first; nothing was removed.",
        ) from None
    except errors.InsufficientPrivilege as error:
        raise Unsuitable(
            f"The database refused: {error.diag.message_primary}.",
            "Run it as the role that owns the tables; nothing was removed.",
        ) from None


def _drop_slot(conninfo: str, name: str, tell: Callable[[str], None]) -> None:
    try:
        with connect(conninfo, application_name="momentum-sync uninstall", name="MOMENTUM_CAPTURE_URL") as connection:
            connection.execute(_SQL["drop_slot"], {"slot": name})
    except psycopg.Error as error:
        tell(
            f"the replication slot {name} could not be dropped and retains WAL ({error.diag.message_primary or error});"
            f" drop it as a role with REPLICATION: select pg_drop_replication_slot('{name}')"
        )
    else:
        tell(f"removed the replication slot {name}")

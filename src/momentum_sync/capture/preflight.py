"""Checks of a database and of the server's roles in it. Each failed check names the command that mends it.

Two roles may share the work: one reads the WAL and needs REPLICATION, the other does everything else and needs no
privilege above row level security.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from momentum_sync.capture.slot import APPLICATION, Held
from momentum_sync.database import queries
from momentum_sync.database.connection import connect
from momentum_sync.errors import Unsuitable

_SQL = queries.load(__package__)
_OLDEST = 15


@dataclass(frozen=True, slots=True)
class _Server:
    """A row of the statement `server`."""

    version: int
    wal_level: str
    encoding: str
    max_slots: int
    max_senders: int
    slots: int
    senders: int
    may_replicate: bool
    role: str
    standbys: str
    is_replica: bool
    database: str


@dataclass(frozen=True, slots=True)
class _Log:
    """A row of the statement `log`."""

    role: str
    is_there: bool
    app_owner: str | None
    is_whole: bool
    is_equipped: bool
    database: str


def check(conninfo: str, slot: str, *, capture: str | None = None, captures: bool = True) -> None:
    """Raise Unsuitable, with the command that mends it, for a database that the server cannot work with.

    Args:
        conninfo: connection string of the database.
        slot: name of the replication slot.
        capture: the connection string for reading the WAL, if that is another.
        captures: whether this process reads the WAL at all; a gateway does not.
    """
    if captures:
        name = "DATABASE_URL" if capture is None else "MOMENTUM_CAPTURE_URL"
        database = _check_capture(capture or conninfo, slot, name)
    with connect(conninfo, application_name="momentum-sync check") as connection:
        log = connection.cursor(row_factory=class_row(_Log)).execute(_SQL["log"]).fetchone()
        assert log is not None
        # Two addresses may lead to one cluster, so the database's name and the postmaster's start are compared, not
        # host and port.
        if captures and log.database != database:
            raise Unsuitable(
                "MOMENTUM_CAPTURE_URL and DATABASE_URL are not the same database.",
                "Use the same host, port and database in both; only user and password may differ.",
            )
        if not captures:
            server = _server(connection)
            _check_primary(server, "DATABASE_URL", "must write sessions and metrics")
            _check_server(server.version, server.wal_level, server.encoding)
        _check_log(connection, log, slot)


def _check_capture(conninfo: str, slot: str, name: str) -> str:
    """Check the database as capture reads it. Return its identity."""
    with connect(conninfo, application_name="momentum-sync check", name=name) as connection:
        server = _server(connection)
        _check_primary(server, name, "must write its event log and create a replication slot")
        _check_server(server.version, server.wal_level, server.encoding)
        if not server.may_replicate:
            raise Unsuitable(
                f"The role {server.role} lacks REPLICATION.",
                f"As a superuser: alter role {_identifier(server.role)} with replication; or set a role that has it in"
                " MOMENTUM_CAPTURE_URL.",
            )
        _check_slot(connection, server, slot)
        # PostgreSQL would count the slot's WAL sender as a synchronous standby. Each commit would wait until capture
        # confirms it.
        if re.search(rf"\*|{APPLICATION}", server.standbys):
            raise Unsuitable(
                f"synchronous_standby_names is {server.standbys}, so every commit would wait for Momentum Sync.",
                "As a superuser: alter system set synchronous_standby_names = '<your standbys by name>'; "
                "select pg_reload_conf();",
            )
        return server.database


def _server(connection: Connection[TupleRow]) -> _Server:
    server = connection.cursor(row_factory=class_row(_Server)).execute(_SQL["server"]).fetchone()
    assert server is not None
    return server


def _check_primary(server: _Server, name: str, why: str) -> None:
    if server.is_replica:
        raise Unsuitable(
            f"The database is a read replica; the server {why}.", f"Set {name} to the address of the primary."
        )


def _check_log(connection: Connection[TupleRow], log: _Log, slot: str) -> None:
    if not log.is_there:
        raise Unsuitable("The database is not migrated to this version.", "Run: momentum-sync migrate")
    if not log.is_whole:
        raise Unsuitable(
            "Functions of this version are missing in schema momentum.", "Run: momentum-sync migrate --again"
        )
    if not log.is_equipped:
        raise Unsuitable(
            f"The role {log.role} lacks privileges that the server needs: on the tables of schema momentum, its"
            " functions, or to become authenticated and service_role.",
            f"As {log.app_owner}, the owner of the tables, run:"
            f" momentum-sync migrate --server-role {_quoted(log.role)}",
        )
    other = connection.execute(_SQL["log_slot"], {"slot": slot}).fetchone()
    if other is not None:
        raise Unsuitable(
            f"The event log of this database belongs to the replication slot {other[0]}, which still exists.",
            f"Set MOMENTUM_SLOT={other[0]}, or drop that slot: select pg_drop_replication_slot('{other[0]}');",
        )


def _check_slot(connection: Connection[TupleRow], server: _Server, slot: str) -> None:
    held = connection.cursor(row_factory=class_row(Held)).execute(_SQL["slot"], {"slot": slot}).fetchone()
    if held is None and server.slots >= server.max_slots:
        raise Unsuitable(
            f"All {server.max_slots} replication slots of the server are in use.",
            "Drop an unused slot (select pg_drop_replication_slot('…');), or as a superuser: "
            f"alter system set max_replication_slots = {server.max_slots + 10}; then restart PostgreSQL.",
        )
    if server.senders >= server.max_senders:
        raise Unsuitable(
            f"All {server.max_senders} WAL senders of the server are in use.",
            f"As a superuser: alter system set max_wal_senders = {server.max_senders + 10}; then restart PostgreSQL.",
        )
    if held is not None and (not held.ours or held.plugin != "pgoutput"):
        raise Unsuitable(
            f"The replication slot {slot} belongs to another program (plugin {held.plugin}, database {held.database}).",
            f"Choose another name: MOMENTUM_SLOT={slot}_2",
        )


def _check_server(version: int, wal_level: str, encoding: str) -> None:
    if version < _OLDEST:
        raise Unsuitable(
            f"PostgreSQL {version} is too old; {_OLDEST} is the oldest that works.",
            f"Upgrade with pg_upgrade --new-bindir=…/{_OLDEST}/bin, or use a newer server.",
        )
    if wal_level != "logical":
        raise Unsuitable(
            f"wal_level is {wal_level}, but reading changes requires logical.",
            "As a superuser: alter system set wal_level = 'logical'; then restart PostgreSQL.",
        )
    if encoding != "UTF8":
        raise Unsuitable(
            f"The database encoding is {encoding}, but events require UTF8.",
            "Move the data to a new database: create database … encoding 'UTF8' template template0;",
        )


def _identifier(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def _quoted(name: str) -> str:
    """Quote an argument for a shell."""
    return name if re.fullmatch(r"[A-Za-z0-9_.-]+", name) else "'" + name.replace("'", "'\\''") + "'"

"""Checks of a database and of the server's roles in it. Each problem names the command that fixes it.

Two roles may share the work: one reads the WAL and needs REPLICATION, the other does everything else and needs no
privilege above row level security.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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


@dataclass(frozen=True, slots=True)
class Examined:
    """Result of one preflight check. A `problem` keeps the server from working."""

    check: str
    found: str
    problem: Unsuitable | None = None


def check(conninfo: str, slot: str, *, capture: str | None = None, captures: bool = True) -> None:
    """Raise Unsuitable, with the command that fixes it, for a database that the server cannot work with.

    Args:
        conninfo: connection string of the database.
        slot: name of the replication slot.
        capture: the connection string for reading the WAL, if that is another.
        captures: whether this process reads the WAL at all; a gateway does not.
    """
    for examined in examine(conninfo, slot, capture=capture, captures=captures):
        if examined.problem is not None:
            raise examined.problem


def examine(conninfo: str, slot: str, *, capture: str | None = None, captures: bool = True) -> Iterator[Examined]:
    """Yield the findings of each check, to the end or to one that the later ones depend on. Arguments as for `check`.

    Raises:
        Unsuitable: the database cannot be reached.
    """
    identity = None
    if captures:
        name = "DATABASE_URL" if capture is None else "MOMENTUM_CAPTURE_URL"
        with connect(capture or conninfo, application_name="momentum-sync check", name=name) as connection:
            server = _server(connection)
            yield _primary(server, name, "must write its event log and create a replication slot")
            yield from examine_server(server.version, server.wal_level, server.encoding)
            yield _right_to_read(server)
            yield _free_slots(server, held=_held(connection, slot) is not None)
            yield _free_senders(server)
            yield _slot(_held(connection, slot), slot)
            yield _standbys(server)
            identity = server.database
    with connect(conninfo, application_name="momentum-sync check") as connection:
        log = connection.cursor(row_factory=class_row(_Log)).execute(_SQL["log"]).fetchone()
        assert log is not None
        if identity is None:
            server = _server(connection)
            yield _primary(server, "DATABASE_URL", "must write sessions and metrics")
            yield from examine_server(server.version, server.wal_level, server.encoding)
        elif capture is not None:
            yield _one_database(identity, log.database)
        yield (migrated := _migrations(log))
        if migrated.problem is None:
            yield (privileges := _privileges(log))
            if privileges.problem is None:
                yield _slot_of_the_log(connection, slot)


def _server(connection: Connection[TupleRow]) -> _Server:
    server = connection.cursor(row_factory=class_row(_Server)).execute(_SQL["server"]).fetchone()
    assert server is not None
    return server


def _held(connection: Connection[TupleRow], slot: str) -> Held | None:
    return connection.cursor(row_factory=class_row(Held)).execute(_SQL["slot"], {"slot": slot}).fetchone()


def _primary(server: _Server, name: str, why: str) -> Examined:
    problem = Unsuitable(
        f"The database is a read replica; the server {why}.", f"Set {name} to the address of the primary."
    )
    found = "a read replica" if server.is_replica else "the address is that of the primary"
    return Examined("primary", found, problem if server.is_replica else None)


def examine_server(version: int, wal_level: str, encoding: str) -> Iterator[Examined]:
    """Yield whether a server of this major version, `wal_level` and encoding can be used."""
    too_old = Unsuitable(
        f"PostgreSQL {version} is too old; {_OLDEST} is the oldest that works.",
        f"Upgrade with pg_upgrade --new-bindir=…/{_OLDEST}/bin, or use a newer server.",
    )
    yield Examined("version", f"PostgreSQL {version}", too_old if version < _OLDEST else None)
    too_low = Unsuitable(
        f"wal_level is {wal_level}, but reading changes requires logical.",
        "As a superuser: alter system set wal_level = 'logical'; then restart PostgreSQL.",
    )
    yield Examined("WAL level", wal_level, too_low if wal_level != "logical" else None)
    other = Unsuitable(
        f"The database encoding is {encoding}, but events require UTF8.",
        "Move the data to a new database: create database … encoding 'UTF8' template template0;",
    )
    yield Examined("encoding", encoding, other if encoding != "UTF8" else None)


def _right_to_read(server: _Server) -> Examined:
    if server.may_replicate:
        return Examined("REPLICATION privilege", f"{server.role} has REPLICATION")
    problem = Unsuitable(
        f"The role {server.role} lacks REPLICATION.",
        f"As a superuser: alter role {_identifier(server.role)} with replication; or set a role that has it in"
        " MOMENTUM_CAPTURE_URL.",
    )
    return Examined("REPLICATION privilege", f"{server.role} lacks REPLICATION", problem)


def _free_slots(server: _Server, *, held: bool) -> Examined:
    found = f"{server.slots} of {server.max_slots} in use"
    if held or server.slots < server.max_slots:
        return Examined("free replication slots", found)
    problem = Unsuitable(
        f"All {server.max_slots} replication slots of the server are in use.",
        "Drop an unused slot (select pg_drop_replication_slot('…');), or as a superuser: "
        f"alter system set max_replication_slots = {server.max_slots + 10}; then restart PostgreSQL.",
    )
    return Examined("free replication slots", found, problem)


def _free_senders(server: _Server) -> Examined:
    found = f"{server.senders} of {server.max_senders} in use"
    if server.senders < server.max_senders:
        return Examined("free WAL senders", found)
    problem = Unsuitable(
        f"All {server.max_senders} WAL senders of the server are in use.",
        f"As a superuser: alter system set max_wal_senders = {server.max_senders + 10}; then restart PostgreSQL.",
    )
    return Examined("free WAL senders", found, problem)


def _slot(held: Held | None, slot: str) -> Examined:
    if held is None:
        return Examined("replication slot", f"{slot} does not exist; serve creates it")
    if held.ours and held.plugin == "pgoutput":
        return Examined("replication slot", f"{slot} exists")
    problem = Unsuitable(
        f"The replication slot {slot} belongs to another program (plugin {held.plugin}, database {held.database}).",
        f"Choose another name: MOMENTUM_SLOT={slot}_2",
    )
    return Examined("replication slot", f"{slot} belongs to another program", problem)


def _standbys(server: _Server) -> Examined:
    # PostgreSQL would count the slot's WAL sender as a synchronous standby. Each commit would wait until capture
    # confirms it.
    if not re.search(rf"\*|{APPLICATION}", server.standbys):
        return Examined("synchronous standbys", server.standbys or "none")
    problem = Unsuitable(
        f"synchronous_standby_names is {server.standbys}, so every commit would wait for Momentum Sync.",
        "As a superuser: alter system set synchronous_standby_names = '<your standbys by name>'; "
        "select pg_reload_conf();",
    )
    return Examined("synchronous standbys", server.standbys, problem)


def _one_database(capture: str, log: str) -> Examined:
    # Two addresses may lead to one cluster, so the database's name and the postmaster's start are compared, not host
    # and port.
    if capture == log:
        return Examined("one database", "MOMENTUM_CAPTURE_URL and DATABASE_URL lead to the same one")
    problem = Unsuitable(
        "MOMENTUM_CAPTURE_URL and DATABASE_URL are not the same database.",
        "Use the same host, port and database in both; only user and password may differ.",
    )
    return Examined("one database", "two different databases", problem)


def _migrations(log: _Log) -> Examined:
    if not log.is_there:
        problem = Unsuitable("The database is not migrated to this version.", "Run: momentum-sync migrate")
        return Examined("migrations", "not those of this version", problem)
    if not log.is_whole:
        problem = Unsuitable(
            "Functions of this version are missing in schema momentum.", "Run: momentum-sync migrate --again"
        )
        return Examined("migrations", "functions are missing", problem)
    return Examined("migrations", "the tables and functions of this version are there")


def _privileges(log: _Log) -> Examined:
    if log.is_equipped:
        return Examined("privileges", f"{log.role} has those that the server needs")
    if log.role == log.app_owner:
        problem = Unsuitable(
            f"The role {log.role} owns the app's tables, and lacks membership in anon, authenticated or service_role.",
            "As a superuser: create role momentum_server login noinherit password '<password>'; grant momentum_server"
            f" to {_identifier(log.role)}; then: momentum-sync migrate --server-role momentum_server, and use that role"
            " in DATABASE_URL.",
        )
        return Examined("privileges", f"{log.role} lacks privileges", problem)
    problem = Unsuitable(
        f"The role {log.role} lacks privileges that the server needs: on the tables of schema momentum, its"
        " functions, or to become authenticated and service_role.",
        f"As {log.app_owner}, the owner of the tables, run: momentum-sync migrate --server-role {_quoted(log.role)}",
    )
    return Examined("privileges", f"{log.role} lacks privileges", problem)


def _slot_of_the_log(connection: Connection[TupleRow], slot: str) -> Examined:
    other = connection.execute(_SQL["log_slot"], {"slot": slot}).fetchone()
    if other is None:
        return Examined("event log's slot", slot)
    problem = Unsuitable(
        f"The event log of this database belongs to the replication slot {other[0]}, which still exists.",
        f"Set MOMENTUM_SLOT={other[0]}, or drop that slot: select pg_drop_replication_slot('{other[0]}');",
    )
    return Examined("event log's slot", str(other[0]), problem)


def _identifier(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def _quoted(name: str) -> str:
    """Quote an argument for a shell."""
    return name if re.fullmatch(r"[A-Za-z0-9_.-]+", name) else "'" + name.replace("'", "'\\''") + "'"

"""Checks of the database: suitability, the event stream, tables and policies.

They need no more privileges than the server has, and change nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from momentum_sync.capture.preflight import Examined, examine
from momentum_sync.database.connection import PINNED, connect
from momentum_sync.doctor import tables
from momentum_sync.doctor.finding import Finding, Level
from momentum_sync.doctor.rows import SQL, rows_of
from momentum_sync.errors import MomentumError, Unsuitable
from momentum_sync.observe import described
from momentum_sync.settings import Settings
from momentum_sync.version import __version__

_WHY = {
    "primary": "Events are read from the WAL and written to a log, which a replica cannot do.",
    "version": "Older versions lack what the stream needs.",
    "WAL level": "Below `logical`, the WAL lacks what logical decoding needs.",
    "encoding": "Clients get JSON, which is UTF-8.",
    "REPLICATION privilege": "Capture reads the changes through a replication slot.",
    "free replication slots": "Capture needs one of its own.",
    "free WAL senders": "Capture uses one while it runs.",
    "replication slot": "The slot marks how far changes are safely in the event log.",
    "synchronous standbys": "PostgreSQL would treat capture as a synchronous standby, for which every commit waits.",
    "one database": "Events would come from one database and snapshots from another.",
    "migrations": "The triggers that publish, and the server's own tables, come with the migrations.",
    "privileges": "The server uses a role of its own, which may do only what it needs.",
    "event log's slot": "Two servers with different slots would number the same events differently.",
}
_CLOCKS_AGREE_S = 2.0
_SLOT_BEHIND = 1024**3
_CONNECTIONS_LEFT = 30  # of one server, by default


@dataclass(frozen=True, slots=True)
class _Session:
    pid: int
    now: float
    max_connections: int
    connections: int
    keep_size: str


@dataclass(frozen=True, slots=True)
class _Slot:
    name: str
    is_active: bool
    wal_status: str
    retained: int | None
    behind: int | None
    reserve: int | None
    blocked_by: list[int]


@dataclass(frozen=True, slots=True)
class _Transaction:
    what: str
    seconds: float | None
    who: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Role:
    name: str
    is_superuser: bool
    bypasses: bool
    owns_tables: bool


@dataclass(frozen=True, slots=True)
class _Log:
    size: int
    partitions: int
    covers: float | None
    has_tomorrow: bool | None


def check_database(settings: Settings, conninfo: str, *, old_s: float = 300.0) -> Iterator[Finding]:
    """Yield the findings of all database checks. A check that fails does not stop the others.

    Args:
        settings: the operator's settings.
        conninfo: connection string of the database.
        old_s: seconds after which an open transaction is reported.
    """
    try:
        yield from _preflight(settings, conninfo)
        with connect(conninfo, application_name="momentum-sync doctor") as connection:
            for area, name, check in _checks(settings, connection, old_s):
                yield from guarded(area, name, check)
    except Unsuitable as error:
        yield Finding("database", "connection", Level.PROBLEM, str(error), "Nothing works without it.", error.hint)
    except psycopg.Error as error:  # the connection was lost meanwhile
        yield Finding(
            "database", "connection", Level.UNKNOWN, f"lost during the checks: {described(error)}",
            "The other checks of the database were not done.", "momentum-sync doctor   # again",
        )  # fmt: skip


def guarded(area: str, name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check, or that it failed."""
    try:
        yield from check()
    except (psycopg.Error, MomentumError, OSError, TimeoutError) as error:
        yield Finding(
            area, name, Level.UNKNOWN, f"the check failed: {described(error)}",
            "The check could not be completed, so the state is unknown.",
            "Run it again; if a privilege is missing, as the owner of the tables.",
        )  # fmt: skip


def _checks(
    settings: Settings, connection: Connection[TupleRow], old_s: float
) -> Iterator[tuple[str, str, Callable[[], Iterator[Finding]]]]:
    yield "database", "pooler, clock and connections", partial(_session, connection)
    yield "database", "role", partial(_role, connection, is_embedded=settings.database_url is None)
    yield "database", "role settings", partial(_role_settings, connection)
    yield "stream", "slots", partial(_slots, connection, settings.slot)
    yield "stream", "transactions", partial(_transactions, connection, old_s)
    yield "tables", "publication", partial(tables.check_publication, connection)
    (is_migrated,) = connection.execute(SQL["is_migrated"]).fetchone() or (False,)
    if is_migrated:
        yield "stream", "dropped slot", partial(_dropped_slot, connection)
        yield "stream", "log", partial(_log, connection, settings)
        yield "tables", "triggers", partial(tables.check_triggers, connection)
        yield "tables", "event trigger", partial(tables.check_event_trigger, connection)
        yield "tables", "policies of the app", partial(tables.check_policies, connection)
        yield "servers", "versions", partial(_servers, connection)


def _preflight(settings: Settings, conninfo: str) -> Iterator[Finding]:
    for examined in examine(
        conninfo, settings.slot, capture=settings.capture_url, captures=settings.role != "gateway"
    ):  # fmt: skip
        yield _finding_of(examined)


def _finding_of(examined: Examined) -> Finding:
    problem = examined.problem
    if problem is None:
        return Finding("database", examined.check, Level.OK, examined.found)
    return Finding("database", examined.check, Level.PROBLEM, str(problem), _WHY[examined.check], problem.hint)


def _session(connection: Connection[TupleRow]) -> Iterator[Finding]:
    began = time.time()
    (session,) = rows_of(connection, "session", _Session)
    took = time.time() - began
    # A pooler answers the handshake itself, and makes up the process id by which a query can be cancelled.
    if session.pid == connection.info.backend_pid:
        yield Finding("database", "pooler", Level.OK, f"direct connection; a query takes {took * 1000:.0f} ms")
    else:
        yield Finding(
            "database", "pooler", Level.WARNING, "the connection goes through a pooler",
            "A pooler in transaction mode loses the settings and roles of a session, and adds time to each query.",
            "Use the direct address in DATABASE_URL; on Supabase: db.<project>.supabase.co:5432",
        )  # fmt: skip
    off = session.now - (began + took / 2)
    if abs(off) <= _CLOCKS_AGREE_S + took / 2:
        yield Finding("database", "clocks", Level.OK, "the database's and this machine's agree within 2 s")
    else:
        yield Finding(
            "database", "clocks", Level.WARNING, f"the database's clock is {abs(off):.0f} s "
            f"{'ahead of' if off > 0 else 'behind'} this machine's",
            "Tokens expire by this machine's clock; times in events and the log's days are by the database's.",
            "Synchronize both with NTP: timedatectl set-ntp true",
        )  # fmt: skip
    left = session.max_connections - session.connections
    found = f"{session.connections} of {session.max_connections} in use"
    if left >= _CONNECTIONS_LEFT:
        yield Finding("database", "connections", Level.OK, found)
    else:
        yield Finding(
            "database", "connections", Level.WARNING, found,
            f"One server opens up to {_CONNECTIONS_LEFT}; without a free one clients wait, and then get an error.",
            f"As a superuser: alter system set max_connections = {session.max_connections + 100}; restart PostgreSQL;"
            " or set MOMENTUM_POOL_SIZE lower",
        )  # fmt: skip


def _role(connection: Connection[TupleRow], *, is_embedded: bool) -> Iterator[Finding]:
    (role,) = rows_of(connection, "role", _Role)
    powers = [
        name
        for name, has in (
            ("is a superuser", role.is_superuser),
            ("bypasses row level security", role.bypasses and not role.is_superuser),
            ("owns tables of the app", role.owns_tables and not role.is_superuser),
        )
        if has
    ]
    if not powers:
        yield Finding("database", "role", Level.OK, f"{role.name}, to which row level security applies")
        return
    if is_embedded:
        yield Finding("database", "role", Level.OK, f"{role.name}, the superuser of the embedded PostgreSQL")
        return
    yield Finding(
        "database", "role", Level.WARNING, f"{role.name} {' and '.join(powers)}",
        "Every query for a client runs under the client's role, so row level security applies to clients; but the"
        " server's own role has more privileges than it needs.",
        f"alter role {role.name} nobypassrls;" if role.name == "momentum_server" and role.bypasses else
        "create role momentum_server login noinherit password '…'; grant momentum_server to current_user;\n"
        "momentum-sync migrate --server-role momentum_server   # then use it in DATABASE_URL; see SECURITY.md",
    )  # fmt: skip


def _role_settings(connection: Connection[TupleRow]) -> Iterator[Finding]:
    rows = connection.execute(SQL["role_settings"]).fetchall()
    if not rows:
        yield Finding("database", "role settings", Level.OK, "none for the server's role or the database")
        return
    # Names alone: a setting such as app.settings.jwt_secret is a secret.
    found = [f"{whose}: {setting.partition('=')[0]}" for whose, setting in rows]
    pinned = [setting for _, setting in rows if setting.partition("=")[0].lower() in PINNED]
    rest = f"; without effect on the server, which pins its own: {len(pinned)}" if pinned else ""
    yield Finding("database", "role settings", Level.NOTE, f"{', '.join(found)}{rest}")


def _slots(connection: Connection[TupleRow], ours: str) -> Iterator[Finding]:
    slots = rows_of(connection, "slots", _Slot)
    (session,) = rows_of(connection, "session", _Session)
    own = next((slot for slot in slots if slot.name == ours), None)
    if own is None:
        yield Finding("stream", "replication slot", Level.NOTE, f"{ours} does not exist; serve creates it")
    else:
        yield _own_slot(own)
    yield _retention(session.keep_size, own)
    for slot in slots:
        if slot.name != ours and not slot.is_active and (slot.retained or 0) > _SLOT_BEHIND:
            yield Finding(
                "stream", "other slots", Level.WARNING, f"{slot.name} has no reader and retains {_size(slot.retained)}",
                "WAL that a slot needs is not removed, until the disk is full.",
                f"If nobody needs it: select pg_drop_replication_slot('{slot.name}');",
            )  # fmt: skip


def _own_slot(slot: _Slot) -> Finding:
    found = (
        f"{slot.name} is {'being read' if slot.is_active else 'not being read'}, {_size(slot.behind)} behind,"
        f" and retains {_size(slot.retained)} of WAL"
    )
    if slot.wal_status == "lost":
        return Finding(
            "stream", "replication slot", Level.PROBLEM, f"{slot.name} is lost: the WAL that it needs was removed",
            "Changes were missed. The next serve replaces the slot, and every client starts with a new snapshot.",
            "momentum-sync serve   # replaces it; a larger max_slot_wal_keep_size keeps this from happening again",
        )  # fmt: skip
    if not slot.is_active:
        return Finding(
            "stream", "replication slot", Level.WARNING, found,
            "No server reads it: events are delayed, and WAL accumulates.",
            "momentum-sync serve   # if one runs, its log says why capture has ended",
        )  # fmt: skip
    if slot.behind is None:
        return _new_slot(slot)
    if slot.behind > _SLOT_BEHIND:
        return Finding(
            "stream", "replication slot", Level.WARNING, found,
            "Capture is decoding a large transaction, or cannot write the event log.",
            "See `capture` and `log` in the server's log. Long transactions, listed below, also delay it.",
        )  # fmt: skip
    return Finding("stream", "replication slot", Level.OK, found)


def _new_slot(slot: _Slot) -> Finding:
    """Return the finding about a slot that is being created: it waits for all transactions that were open before."""
    found = f"{slot.name} is being created"
    if not slot.blocked_by:
        return Finding("stream", "replication slot", Level.NOTE, found)
    processes = ", ".join(map(str, slot.blocked_by))
    return Finding(
        "stream", "replication slot", Level.PROBLEM, f"{found}, and waits for process {processes}",
        "A new slot waits for every transaction that was open before it, in all databases of the cluster.",
        "\n".join(f"select pg_terminate_backend({process});" for process in slot.blocked_by),
    )  # fmt: skip


def _retention(keep_size: str, own: _Slot | None) -> Finding:
    if keep_size != "-1":
        left = "" if own is None or own.reserve is None else f"; {_size(own.reserve)} are left"
        return Finding("stream", "retained WAL", Level.OK, f"max_slot_wal_keep_size is {keep_size}{left}")
    return Finding(
        "stream", "retained WAL", Level.WARNING, "max_slot_wal_keep_size is -1: unlimited",
        "While no server runs, the slot keeps WAL until the disk is full and PostgreSQL stops.",
        "As a superuser: alter system set max_slot_wal_keep_size = '50GB';\nselect pg_reload_conf();",
    )  # fmt: skip


def _transactions(connection: Connection[TupleRow], old_s: float) -> Iterator[Finding]:
    found = rows_of(connection, "transactions", _Transaction, seconds=old_s)
    sees, role = connection.execute(SQL["sees_sessions"]).fetchone() or (False, "")
    if not sees:
        yield Finding(
            "stream", "transactions", Level.NOTE, f"{role} does not see when transactions of other roles began",
            "An old transaction retains WAL, and a new slot or epoch waits for its end; doctor cannot name it.",
            f"As a superuser: grant pg_read_all_stats to {role};",
        )  # fmt: skip
    elif not found:
        yield Finding("stream", "transactions", Level.OK, f"none is older than {old_s / 60:g} minutes")
    for each in found[:5]:
        open_for = "for an unknown time" if each.seconds is None else f"for {each.seconds / 60:,.0f} minutes"
        hidden = "" if each.seconds is not None else "\ngrant pg_read_all_stats to current_user;   # shows the time"
        yield Finding(
            "stream", "transactions", Level.NOTE if each.seconds is None else Level.WARNING,
            f"{each.what} ({each.who}) has been open {open_for}",
            "WAL since its beginning is retained, and a new slot or epoch waits for its end.",
            f"As a superuser: {each.remedy}{hidden}",
        )  # fmt: skip


def _dropped_slot(connection: Connection[TupleRow]) -> Iterator[Finding]:
    for (name,) in connection.execute(SQL["dropped_slot"]).fetchall():
        yield Finding(
            "stream", "dropped slot", Level.WARNING, f"the event log was read through the slot {name}, which is gone",
            "Changes since it was dropped are not in the log. With a new slot another epoch begins: clients get"
            " snapshots in place of a resume.",
            "momentum-sync serve   # creates it again",
        )  # fmt: skip


def _log(connection: Connection[TupleRow], settings: Settings) -> Iterator[Finding]:
    (log,) = rows_of(connection, "log", _Log)
    days = settings.retention.total_seconds() / 86_400
    covers = "no events yet" if log.covers is None else f"covering {log.covers / 86_400:.1f} of {days:g} days"
    found = f"{_size(log.size)} in {log.partitions} partitions, {covers}"
    if log.covers and log.covers > 3_600 and log.covers < 86_400 * days:
        found += f"; about {_size(int(log.size / log.covers * 86_400 * days))} when full"
    if log.partitions and not log.has_tomorrow:
        yield Finding(
            "stream", "log", Level.WARNING, f"{found}; there is no partition for tomorrow",
            "Partitions are created two days ahead, every hour. A missing one means that housekeeping fails or that"
            " no server runs.",
            "momentum-sync serve, or: select momentum.keep_partitions(null);",
        )  # fmt: skip
        return
    yield Finding("stream", "log", Level.OK, found)


def _servers(connection: Connection[TupleRow]) -> Iterator[Finding]:
    servers = connection.execute(SQL["servers"]).fetchall()
    if not servers:
        yield Finding(
            "servers", "versions", Level.NOTE, "no server is connected to this database", fix="momentum-sync serve"
        )
        return
    listed = ", ".join(f"{version} on {address}" for version, address in servers)
    others = sorted({version for version, _ in servers} - {__version__})
    if not others:
        yield Finding("servers", "versions", Level.OK, listed)
        return
    yield Finding(
        "servers", "versions", Level.WARNING, f"{listed}; this command is {__version__}",
        "Gateways and captures of different versions may not understand each other's messages on NATS; gateways then"
        " read the log, which is slower.",
        "Upgrade all of them, capture last: docs/upgrade.md",
    )  # fmt: skip


def _size(count: int | None) -> str:
    """Return bytes in words."""
    if count is None:
        return "an unknown amount"
    for size, unit in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"

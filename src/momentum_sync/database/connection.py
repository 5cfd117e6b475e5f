"""Connections to PostgreSQL: settings pinned, waits bounded, errors without secrets.

A role, a database or the environment may carry settings that change the data that the server reads or the time that it
may take (`alter role … set idle_session_timeout`, PGCLIENTENCODING). Every setting that matters is therefore given with
the connection itself, as a startup parameter, which takes precedence over all of those. Unlike `SET` it leaves nothing
behind in a session that a connection pooler shares with others.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import LiteralString

import psycopg
from psycopg import AsyncConnection, Connection, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from momentum_sync.errors import Unsuitable

Query = LiteralString | bytes
"""A statement. A composed one is rendered once, with `as_bytes()`: psycopg keeps the parsed form of text alone."""

_CONNECT_TIMEOUT_S = 5
_CHECK_TIMEOUT_S = 5.0
_TRANSACTION_TIMEOUT = 17_00_00  # the first server_version_num that has it
_DIRECT = "Use the direct address of PostgreSQL, not a pooler: on Supabase, host db.<project>.supabase.co, port 5432."

# No object in `public` or in the temporary schema may shadow a built-in one: search_path leaves out the former and ends
# with the latter.
PINNED: Mapping[str, str] = MappingProxyType({
    "search_path": "pg_catalog,pg_temp",
    "datestyle": "ISO,MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "row_security": "on",
    "quote_all_identifiers": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "statement_timeout": "30s",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "60s",
    "idle_session_timeout": "0",
    "client_min_messages": "warning",
    # The server's side of a half-open connection.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30s",
})  # fmt: skip
"""Settings of every connection, in PostgreSQL's spelling."""

# The client's side of a half-open connection: with these, the kernel reports a dead peer within about 25 s.
_KEEPALIVES: Mapping[str, int] = MappingProxyType({
    "keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000,
})  # fmt: skip


def pinned(conninfo: str, *, application_name: str, settings: Mapping[str, str] | None = None, **more: str) -> str:
    """Return a connection string with every setting that matters.

    Args:
        conninfo: the operator's connection string; its own `options` come before those added here.
        application_name: name of the connection in `pg_stat_activity`.
        settings: settings beside, or in place of, those in `PINNED`.
        more: other parameters of libpq, such as `replication`.
    """
    given = conninfo_to_dict(conninfo)
    network: dict[str, str | int] = {"connect_timeout": _CONNECT_TIMEOUT_S, **_KEEPALIVES}
    # libpq ignores PGOPTIONS once a connection string has `options`. PostgreSQL lets the last `-c` of a setting win.
    options = [str(given.get("options") or os.environ.get("PGOPTIONS") or "")]
    options += [f"-c {name}={_escaped(value)}" for name, value in {**PINNED, **(settings or {})}.items()]
    return make_conninfo(
        conninfo,
        **{name: value for name, value in network.items() if name not in given},
        **more,
        application_name=application_name,
        client_encoding="UTF8",
        options=" ".join(filter(None, options)),
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]
"""A bounded pool of connections in autocommit."""


async def settle(connection: AsyncConnection[TupleRow]) -> None:
    """Pin settings that only newer versions of PostgreSQL know: no version accepts an unknown startup parameter."""
    if connection.info.server_version >= _TRANSACTION_TIMEOUT:
        await connection.execute("set transaction_timeout = 0")


def make_pool(conninfo: str, name: str, *, size: int, wait: float, settings: Mapping[str, str] | None = None) -> Pool:
    """Return a closed pool of at most `size` connections, in autocommit. Waits for one end after `wait` seconds."""

    async def configure(connection: AsyncConnection[TupleRow]) -> None:
        async with bounded(connection, _CHECK_TIMEOUT_S):
            await settle(connection)

    return Pool(
        pinned(conninfo, application_name=f"momentum-sync {name}", settings=settings),
        min_size=1,
        max_size=size,
        timeout=wait,
        open=False,
        configure=configure,
        check=_check,
        reconnect_timeout=60.0,
        kwargs={"autocommit": True},
        name=name,
    )


async def _check(connection: AsyncConnection[TupleRow]) -> None:
    """Check a pooled connection before use. Raise psycopg.OperationalError if it has ended.

    An idle connection has something to read only if it has ended or was notified. So the usual query, which costs a
    round trip before each use, is sent only then.
    """
    if _has_something_to_read(connection.fileno()):
        async with bounded(connection, _CHECK_TIMEOUT_S):
            await AsyncConnectionPool.check_connection(connection)


def _has_something_to_read(file: int) -> bool:
    # select() fails for file descriptors above 1023, which a server with thousands of sockets has.
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))


@asynccontextmanager
async def using(pool: Pool, seconds: float) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """Lend a pool's connection for at most `seconds`; then it is cut, and its user gets OperationalError.

    The pool's other connections are replaced, too, those in use when they are returned: PostgreSQL ends a slow
    statement before that, so the network has probably lost this connection, and then all. A silent one would be noticed
    only when it is used, after its deadline.
    """
    cuts: list[None] = []
    try:
        async with pool.connection() as connection, bounded(connection, seconds, lambda: cuts.append(None)):
            yield connection
    finally:
        # Also if they were replaced a moment ago: nobody knows when the network failed.
        if cuts:
            await pool.drain()


@asynccontextmanager
async def bounded(
    connection: AsyncConnection[TupleRow], seconds: float, on_cut: Callable[[], object] = lambda: None
) -> AsyncIterator[None]:
    """Cut the connection, and call `on_cut`, if the block takes longer than `seconds`.

    Cancelling the task is not enough: psycopg then asks the server to cancel and waits for its answer, on a connection
    that may be dead. Shutting the socket down ends the wait at once, with psycopg.OperationalError.
    """

    def end() -> None:
        on_cut()
        cut(connection.pgconn)

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        yield
    finally:
        timer.cancel()


def cut(pgconn: pq.abc.PGconn) -> None:
    """Shut a connection's socket down; a pending read ends."""
    # Without a socket the connection is closed already.
    with suppress(psycopg.OperationalError, OSError), socket.socket(fileno=os.dup(pgconn.socket)) as copy:
        # Only a shutdown wakes the event loop's wait; closing libpq's own descriptor would let the next socket reuse
        # its number.
        copy.shutdown(socket.SHUT_RDWR)


def connect(conninfo: str, *, application_name: str, name: str = "DATABASE_URL") -> Connection[TupleRow]:
    """Open a connection for a command's own work, in autocommit.

    Raises:
        Unsuitable: the connection failed. The message has host and port but no password; the hint names the setting.
    """
    check_conninfo(conninfo, name)
    return _opened(lambda: psycopg.connect(pinned(conninfo, application_name=application_name), autocommit=True), name)


def _opened(connecting: Callable[[], Connection[TupleRow]], name: str) -> Connection[TupleRow]:
    try:
        connection = connecting()
    except psycopg.OperationalError as error:
        sentence = summary(str(error))
        if "startup parameter" in sentence:
            raise Unsuitable(f"{name} points to a connection pooler: {sentence}.", _DIRECT) from None
        raise Unsuitable(
            f"The database cannot be reached: {sentence}.",
            f"Set {name}=postgresql://user:password@host:5432/database, or unset it for an embedded PostgreSQL.",
        ) from None
    # A pooler with `ignore_startup_parameters = options` accepts the settings and drops them, so one of them is read
    # back.
    row = connection.execute("select current_setting('search_path')").fetchone()
    if row is None or str(row[0]).replace(" ", "") != PINNED["search_path"]:
        connection.close()
        raise Unsuitable(f"{name} points to a connection pooler that drops startup parameters.", _DIRECT)
    return connection


def check_conninfo(conninfo: str, name: str) -> None:
    """Refuse a string that is not a connection string.

    Raises:
        Unsuitable: it cannot be parsed. Nothing of it is quoted, because a part of the password may be anywhere in
            it.
    """
    try:
        parts = conninfo_to_dict(conninfo)
    except psycopg.Error:
        # A port that is no number makes the check below refuse the string.
        parts = {"port": "none"}
    # libpq takes the text after an unescaped @ in a password for the host, and the text before an unescaped / for the
    # port.
    ports = str(parts.get("port") or "").split(",")
    if "@" in str(parts.get("host") or "") or not all(port.isdigit() or not port for port in ports):
        raise Unsuitable(
            f"{name} is not a PostgreSQL connection string; its value is hidden because it may contain a password.",
            f"Write {name}=postgresql://user:password@host:5432/database, with every character of the password other"
            " than letters and digits percent-encoded (@ is %40, / is %2F).",
        )


def summary(message: str) -> str:
    """Return the one informative line of libpq's message about a connection, with host and port."""
    lines = [line.strip().removeprefix("- ") for line in message.strip().splitlines()]
    reasons = [line for line in lines if line and not line.startswith("Multiple connection attempts failed")]
    return (reasons[0] if reasons else "no reason was given").rstrip(".")


async def fetch_optional(
    connection: AsyncConnection[TupleRow], query: Query, parameters: Mapping[str, object] | None = None
) -> TupleRow | None:
    """Return the first row of a query, or None."""
    return await (await connection.execute(query, parameters)).fetchone()


async def fetch_one(
    connection: AsyncConnection[TupleRow], query: Query, parameters: Mapping[str, object] | None = None
) -> TupleRow:
    """Return the row of a query that always has one."""
    row = await fetch_optional(connection, query, parameters)
    assert row is not None
    return row

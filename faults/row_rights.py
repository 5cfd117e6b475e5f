"""Random rights on rows: clients of Supabase's protocol receive exactly the changes of rows that they can SELECT.

A row that leaves a client's sight arrives as a DELETE.

Callers of several roles listen to tables whose policies, grants and memberships change at random, while rows are
written. Before and after each write the row is selected in PostgreSQL as each of them, without any code of the product.

python -m faults.row_rights                        1,000 deliveries, with a random seed
python -m faults.row_rights --deliveries 10000     more deliveries
python -m faults.row_rights --seed 7               the same run again
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import jwt
import websockets
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from websockets.asyncio.client import ClientConnection

from faults.nemesis import Servers
from faults.proxy import Proxy
from faults.rights import Verdict, command, on_a_database
from faults.subscribers import SECRET

_TABLES = [f"t{number}" for number in range(5)]
_MARKS = "marks"
_COLUMNS = ("id", "owner", "title", "size", "flag")
_ANSWER_S = 30.0
_ROWS = 12
USERS = [UUID(int=1), UUID(int=2)]
TITLES, SIZES, FLAGS = ["a", "b", "A", "", None], [0, 1, 2, None], [True, False, None]
OWNERS = [*USERS, UUID(int=3), None]
_ATOMS = [
    "auth.uid() = owner", "(select auth.uid()) = owner", "owner = auth.uid()", "auth.uid()::text = owner::text",
    "title = 'a'", "title in ('a', 'b')", "title <> 'a'", "flag", "size = 1", "owner is null", "title is not null",
    "auth.jwt() ->> 'team' = title", "size = (auth.jwt() ->> 'size')::int", "auth.role() = 'authenticated'",
    "auth.jwt() -> 'app_metadata' ->> 'role' = 'admin'", "true", "false", "flag = true", "auth.uid() is not null",
    # These are left to the database.
    "lower(title) = 'a'", "size > 0", "title like 'a%'", "coalesce(flag, true)", "title is distinct from 'b'",
    "exists (select from public.members m where m.id = owner)", "length(title) = size",
]  # fmt: skip
Claims = dict[str, Any]
CALLERS: list[tuple[str, Claims]] = [
    ("authenticated", {"sub": str(USERS[0]), "team": "a", "size": "1"}),
    ("authenticated", {"sub": str(USERS[1]), "app_metadata": {"role": "admin"}}),
    ("anon", {}),
]
"""Callers that row level security applies to."""
_MORE_CALLERS: list[tuple[str, Claims]] = [
    ("auditor", {"sub": str(USERS[1]), "team": "b"}), ("service_role", {}),
]  # fmt: skip
ROLES = ("anon", "authenticated", "auditor")

Sql = AsyncConnection[tuple[object, ...]]
Row = dict[str, Any]


def condition(chance: Random, depth: int = 2) -> str:
    """Return the SQL of a random condition."""
    if depth == 0 or chance.random() < 0.3:
        return chance.choice(_ATOMS)
    if chance.random() < 0.2:
        return f"not ({condition(chance, depth - 1)})"
    return f"({condition(chance, depth - 1)}) {chance.choice(['and', 'or'])} ({condition(chance, depth - 1)})"


@dataclass(frozen=True)
class Seen:
    """A change as one caller gets it. The rows have the columns that it was shown."""

    type: str
    record: Row | None
    old: Row | None


@dataclass
class Write:
    """A committed write, and the part that each caller may get: nothing, an operation, or one of several.

    `before` are the columns of the old row that each caller might see; a caller that saw nothing is missing. With
    `rights_changed`, the change may be decided by others than those at its commit.
    """

    operation: str
    table: str
    id: int
    may: dict[str, set[str | None]]
    before: dict[str, Row]
    after: dict[str, Row]
    rights_changed: bool = False


class Listener:
    """One caller's socket. `got` are the changes received, by table and id of the row."""

    def __init__(self, name: str, role: str, claims: Claims) -> None:
        self.name = name
        self.role = role
        self.claims: Claims = {"role": role, **claims}
        self.got: dict[tuple[str, int], list[Seen]] = {}
        self.order: dict[str, list[int]] = {}
        self.broken: list[str] = []
        self._mark = 0
        self._socket: ClientConnection
        self._heard = asyncio.Event()
        self._reading: asyncio.Task[None]

    async def connect(self, stack: AsyncExitStack, address: str) -> None:
        """Join a topic for each table."""
        now = int(time.time())
        token = jwt.encode({**self.claims, "aud": "authenticated", "exp": now + 86_400}, SECRET, algorithm="HS256")
        self._socket = await stack.enter_async_context(
            websockets.connect(
                f"ws://{address}/realtime/v1/websocket?vsn=2.0.0&client_id={self.name}&apikey={token}",
                open_timeout=_ANSWER_S, max_queue=None,
            )
        )  # fmt: skip
        for number, table in enumerate((*_TABLES, _MARKS)):
            payload = {"config": {"postgres_changes": [{"event": "*", "schema": "public", "table": table}]}}
            await self._socket.send(json.dumps([str(number), str(number), f"realtime:{table}", "phx_join", payload]))
        replies = 0
        async with asyncio.timeout(_ANSWER_S):
            while replies <= len(_TABLES):
                replies += json.loads(await self._socket.recv())[3] == "phx_reply"
        self._reading = asyncio.create_task(self._read())
        stack.callback(self._reading.cancel)

    async def until_mark(self, number: int) -> None:
        """Wait until a row that was written after everything else has come."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                while self._mark < number and not self._reading.done():
                    await self._heard.wait()
                    self._heard.clear()
        except TimeoutError:
            pass
        if self._mark < number:
            self.broken.append(f"LOSS: {self.name} did not get mark {number}")

    async def _read(self) -> None:
        try:
            async for text in self._socket:
                _, _, topic, event, payload = json.loads(text)
                if event == "postgres_changes":
                    self._take(payload["data"])
                elif event in ("phx_close", "phx_error"):
                    self.broken.append(f"{self.name}: {topic} ended")
        finally:
            self._heard.set()

    def _take(self, data: dict[str, Any]) -> None:
        record, old = data.get("record"), data.get("old_record")
        row: Row = (old if data["type"] == "DELETE" else record) or {}
        if data["table"] == _MARKS:
            self._mark = row["id"]
            self._heard.set()
            return
        self.got.setdefault((data["table"], row["id"]), []).append(Seen(data["type"], record, old))
        self.order.setdefault(data["table"], []).append(row["id"])


class World:
    """The objects that are changed at random, and the expected results."""

    def __init__(self, connection: Sql, listeners: Sequence[Listener], chance: Random, verdict: Verdict) -> None:
        self._db = connection
        self._listeners = listeners
        self._chance = chance
        self._verdict = verdict
        self._next = dict.fromkeys(_TABLES, 1)
        self._there: dict[str, set[int]] = {table: set() for table in _TABLES}
        self._mark = 0
        self._writes: list[Write] = []

    async def prepare(self) -> None:
        """Create the tables."""
        await self._execute("create table public.members (id uuid primary key)")
        await self._execute("create table public.marks (id int primary key)")
        await self._execute("create role auditor nologin; grant usage on schema public, auth to auditor")
        for table in _TABLES:
            await self._execute(
                f"create table public.{table} (id int primary key, owner uuid, title text, size int, flag boolean)"
            )
            await self._execute(f"alter table public.{table} enable row level security, replica identity full")
            await self._policies(table)
        names = ", ".join(f"public.{table}" for table in (*_TABLES, _MARKS))
        await self._execute(f"grant select on {names}, public.members to anon, authenticated, auditor, service_role")
        await self._execute(f"alter publication supabase_realtime add table {names}")

    async def round(self) -> None:
        """Change rights, write rows, and check the changes that came."""
        self._writes = []
        for listener in self._listeners:
            listener.got.clear()
            listener.order.clear()
        for _ in range(self._chance.choice((0, 1, 1, 2))):
            await self._change_rights(self._chance.choice(_TABLES), grants=True)
        for _ in range(self._chance.randint(5, 25)):
            await self._write(self._chance.choice(_TABLES))
            if self._chance.random() < 0.05:
                await self._change_rights(self._chance.choice(_TABLES), grants=False)
                await self._look_again()
        self._mark += 1
        await self._execute(f"insert into public.marks values ({self._mark})")
        for listener in self._listeners:
            await listener.until_mark(self._mark)
            self._judge(listener)

    # Rights

    async def _change_rights(self, table: str, *, grants: bool) -> None:
        kinds = ["policies", "policies", "policies", "members", "members", "security"]
        kind = self._chance.choice([*kinds, "grants", "grants"] if grants else kinds)
        self._verdict.done[kind] += 1
        await getattr(self, f"_{kind}")(table)

    async def _policies(self, table: str) -> None:
        async with self._db.transaction():
            for (name,) in await self._rows(
                f"select polname from pg_policy where polrelid = 'public.{table}'::regclass"
            ):
                await self._execute(f"drop policy {name} on public.{table}")
            for number in range(self._chance.randint(1, 3)):
                kind = "restrictive" if number and self._chance.random() < 0.3 else "permissive"
                role = self._chance.choice(["public", "public", *ROLES])
                await self._execute(
                    f"create policy p{number} on public.{table} as {kind} for select to {role}"
                    f" using ({condition(self._chance)})"
                )

    async def _members(self, _: str) -> None:
        member = self._chance.choice(OWNERS[:3])
        if self._chance.random() < 0.5:
            await self._execute(f"delete from public.members where id = '{member}'")
        else:
            await self._execute(f"insert into public.members values ('{member}') on conflict do nothing")

    async def _security(self, table: str) -> None:
        verb = "disable" if self._chance.random() < 0.3 else "enable"
        await self._execute(f"alter table public.{table} {verb} row level security")

    async def _grants(self, table: str) -> None:
        role = self._chance.choice(ROLES)
        some = ", ".join(["id", *self._chance.sample(_COLUMNS[1:], self._chance.randint(0, 4))])
        async with self._db.transaction():
            await self._execute(f"revoke all on public.{table} from {role}")
            match self._chance.randint(0, 3):
                case 0:
                    await self._execute(f"grant select ({some}) on public.{table} to {role}")
                case 1 | 2:
                    await self._execute(f"grant select on public.{table} to {role}")

    # Rows

    async def _write(self, table: str) -> None:
        """Write one row; each row is written once a round."""
        written = {write.id for write in self._writes if write.table == table}
        free = sorted(self._there[table] - written)
        operation = self._chance.choice(["INSERT", "UPDATE", "UPDATE", "DELETE"]) if free else "INSERT"
        if len(self._there[table]) > _ROWS and free:
            operation = "DELETE"
        row = self._next[table] if operation == "INSERT" else self._chance.choice(free)
        values = [self._chance.choice(each) for each in (OWNERS, TITLES, SIZES, FLAGS)]
        self._verdict.done[operation] += 1
        async with self._db.transaction():
            before = await self._visible(table, row) if operation != "INSERT" else {}
            if operation == "INSERT":
                await self._db.execute(
                    f"insert into public.{table} values (%s, %s, %s, %s, %s)".encode(), (row, *values)
                )
                self._next[table] += 1
                self._there[table].add(row)
            elif operation == "UPDATE":
                await self._db.execute(
                    f"update public.{table} set owner = %s, title = %s, size = %s, flag = %s where id = %s".encode(),
                    (*values, row),
                )
            else:
                await self._db.execute(f"delete from public.{table} where id = %s".encode(), (row,))
                self._there[table].discard(row)
            after = await self._visible(table, row) if operation != "DELETE" else {}
        write = Write(operation, table, row, {}, before, after)
        for listener in self._listeners:
            write.may[listener.name] = {_outcome(write, listener.name)}
        self._writes.append(write)

    async def _look_again(self) -> None:
        """Allow what the changed rights say as well: a change is decided by those at its commit, or by later ones."""
        for write in self._writes:
            write.rights_changed = True
            after = await self._visible(write.table, write.id) if write.operation != "DELETE" else {}
            for listener in self._listeners:
                if listener.name in after:
                    write.may[listener.name].add(write.operation)
                    write.after.setdefault(listener.name, after[listener.name])
                elif write.operation == "INSERT":
                    write.may[listener.name].add(None)
                else:  # whether the old row could be seen under the new rights, no SELECT says any longer
                    write.may[listener.name] |= {None, "DELETE"}

    async def _visible(self, table: str, row: int) -> dict[str, Row]:
        """Return the row as each caller that may select it sees it, by the caller's name."""
        found: dict[str, Row] = {}
        for listener in self._listeners:
            columns = [
                name for name in _COLUMNS
                if (await self._rows(
                    f"select has_column_privilege('{listener.role}', 'public.{table}', '{name}', 'select')"
                ))[0][0]
            ]  # fmt: skip
            if not columns:
                continue
            async with self._db.transaction(force_rollback=True):
                await self._db.execute(
                    "select set_config('request.jwt.claims', %s, true), set_config('role', %s, true)",
                    (json.dumps(listener.claims), listener.role),
                )
                shown = ", ".join(columns)
                rows = await self._rows(
                    f"select to_jsonb(t)::text from (select {shown} from public.{table} where id = {row}) t"
                )
            if rows:
                found[listener.name] = json.loads(str(rows[0][0]))
        return found

    # The verdict

    def _judge(self, listener: Listener) -> None:
        wrong = self._verdict.wrong
        wrong += listener.broken
        written = {(write.table, write.id): write for write in self._writes}
        for key, seen in listener.got.items():
            if key not in written:
                wrong.append(f"LEAK: {listener.name} got {seen} of {key}, which was not written")
            elif len(seen) > 1:
                wrong.append(f"TWICE: {listener.name} got {seen} of {key}")
        for key, write in written.items():
            seen = listener.got.get(key, [])
            got = seen[0].type if seen else None
            if got is None:
                self._verdict.withheld += 1
            else:
                self._verdict.deliveries += 1
            may = write.may[listener.name]
            if got not in may:
                what = "LOSS" if got is None else "LEAK"
                wrong.append(f"{what}: {listener.name} got {got} of the {write.operation} of {key}, not one of {may}")
            elif got is not None:
                self._judge_columns(listener, write, seen[0])
        for table, order in listener.order.items():
            expected = [write.id for write in self._writes if write.table == table and write.id in order]
            if order != expected:
                wrong.append(f"ORDER: {listener.name} got {order} of {table}, not {expected}")

    def _judge_columns(self, listener: Listener, write: Write, seen: Seen) -> None:
        after, before = write.after.get(listener.name), write.before.get(listener.name, {"id": write.id})
        if seen.record is not None and seen.type != "DELETE" and seen.record != after:
            self._verdict.wrong.append(f"VALUES: {listener.name} got {seen.record} for {after} in {write.table}")
        old = seen.old or {}
        if not write.rights_changed and not old.items() <= before.items():
            self._verdict.wrong.append(f"LEAK: {listener.name} got the old row {old} for {before} in {write.table}")

    async def _execute(self, statement: str) -> None:
        await self._db.execute(statement.encode())

    async def _rows(self, query: str) -> list[tuple[object, ...]]:
        return await (await self._db.execute(query.encode())).fetchall()


def _outcome(write: Write, name: str) -> str | None:
    """Return the operation that a caller gets; None for nothing."""
    if name in write.after:
        return write.operation
    return "DELETE" if name in write.before else None


def run(
    seed: int, deliveries: int, *, mutation: str | None = None, seconds: float = 3600.0, logs: Path | None = None
) -> Verdict:
    """Change at random until this many deliveries were checked, the time is over, or something is wrong.

    `logs` keeps the server's output.
    """
    return on_a_database(lambda conninfo, log: _run(seed, deliveries, seconds, conninfo, log, mutation), logs)


async def _run(seed: int, deliveries: int, seconds: float, conninfo: str, log: Path, mutation: str | None) -> Verdict:
    verdict = Verdict(seed)
    proxy = Proxy()
    await proxy.start()
    servers = Servers(
        make_conninfo(conninfo, user="momentum_server"), SECRET, proxy, log, mutation,
        capture=make_conninfo(conninfo, user="momentum_capture"), environment={"MOMENTUM_ROLES": "auditor"},
    )  # fmt: skip
    ends = time.monotonic() + seconds
    listeners = [
        Listener(f"{role}{number}", role, claims) for number, (role, claims) in enumerate((*CALLERS, *_MORE_CALLERS))
    ]
    try:
        async with await AsyncConnection.connect(conninfo, autocommit=True) as connection, AsyncExitStack() as stack:
            world = World(connection, listeners, Random(seed), verdict)
            await world.prepare()
            await connection.execute("grant auditor to momentum_server")
            await servers.until(await servers.start(), "live")
            for listener in listeners:
                await listener.connect(stack, f"127.0.0.1:{proxy.port}")
            while verdict.deliveries < deliveries and time.monotonic() < ends and not verdict.wrong:
                await world.round()
    finally:
        await proxy.stop()
        for process in servers.processes.values():
            process.kill()
            await asyncio.to_thread(process.wait, 30)
    return verdict


if __name__ == "__main__":
    command("faults.row_rights", __doc__, run, deliveries=1_000)

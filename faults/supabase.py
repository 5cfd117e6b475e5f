"""One history with devices that use Supabase's clients: a seed in, a verdict out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from uuid import UUID

import psycopg

from faults.checker import Change
from faults.clusters import Migrated
from faults.database import SERVER, Database, clock_environment, clock_of_children
from faults.devices import MESSAGES, Device, make_devices
from faults.fleet import FLEET_FAULTS, Fleet, nemesis_of
from faults.history import SECRET, Verdict
from faults.nemesis import FAULTS, Servers
from faults.proxy import Proxy
from faults.row_checker import Findings, What, check
from faults.witness import Witness, versions
from faults.workload import ROW_TABLES, RowWriters
from momentum_sync.database.embedded import Embedded, short_folder

_USERS = 3
_SETTLED_S = 150.0  # a client waits up to a minute between its attempts
_MARKED_S = 5.0
# Changes since the last answered ping may come again; after a crash, changes since positions were
# saved. Pauses and a slow database add to both, and a save on a dead connection of the database ends after 30 s.
_WINDOW_S = 45.0
_LEFT_OUT = frozenset({
    "table truncated", "slow policy",  # of the app
    # These clients name no position, and the records of those that they had are restored, too: docs/supabase.md. Where
    # two captures wait for the slot, the one that takes it may not have followed the history before.
    "copy restored while no server runs",
})  # fmt: skip
_ENDS_HISTORY = frozenset({
    "slot dropped", "log truncated", "copy restored under the server", "failover to a lagging standby",
    "clock of the database stepped",
})  # fmt: skip

_TABLES = """
create table fault_grants (caller uuid, owner uuid, primary key (caller, owner));
create table fault_rows (
    id bigint generated always as identity, owner uuid, number bigint, note text, primary key (id, number));
create table fault_shared_rows (
    id bigint generated always as identity, owner uuid, number bigint, note text, primary key (id, number));
alter table fault_rows replica identity full;
alter table fault_shared_rows replica identity full;
alter table fault_rows enable row level security;
alter table fault_shared_rows enable row level security;
create policy mine on fault_rows for select to authenticated using (auth.uid() = owner);
create policy granted on fault_shared_rows for select to authenticated using (exists (
    select from fault_grants g where g.caller = auth.uid() and g.owner = fault_shared_rows.owner));
grant select on fault_rows, fault_shared_rows, fault_grants to authenticated;
alter publication supabase_realtime add table fault_rows, fault_shared_rows;
create policy own on realtime.messages for select to authenticated
    using (realtime.topic() = 'fault_messages:' || (select auth.uid()));
create function tell_fault_rows() returns trigger language plpgsql security definer set search_path = pg_catalog as $$
begin
    if tg_op <> 'INSERT' and old.owner is distinct from new.owner then
        perform realtime.send(
            jsonb_build_object('operation', 'DELETE', 'number', old.number), 'row', 'fault_messages:' || old.owner);
    end if;
    if tg_op <> 'DELETE' then
        perform realtime.send(
            jsonb_build_object('operation', tg_op, 'number', new.number), 'row', 'fault_messages:' || new.owner);
    end if;
    return null;
end $$;
create trigger tell after insert or update or delete on fault_rows for each row execute function tell_fault_rows();
"""


def run_supabase(
    seed: int, seconds: float, *, mutation: str | None = None, only: list[str] | None = None, logs: Path | None = None,
    settle: float = _SETTLED_S, gateways: bool = False,
) -> Verdict:  # fmt: skip
    """Run one history of this many seconds; see `history.run`."""
    with short_folder() as folder, clock_of_children(folder), Migrated(folder) as postgres:
        users = [
            str(UUID(int=Random(f"{seed}-users-{number}").getrandbits(128), version=4)) for number in range(_USERS)
        ]
        with psycopg.connect(postgres.conninfo, autocommit=True) as connection:
            connection.execute(f"create role {SERVER} superuser login")
            connection.execute(_TABLES.encode())
            for user in users:
                connection.execute("insert into auth.users (id) values (%s)", (user,))
                connection.execute("insert into fault_grants values (%s, %s)", (user, user))
        verdict = asyncio.run(_run(seed, seconds, postgres, folder, users, mutation, only, settle, gateways=gateways))
        verdict.keep_log(folder / "servers.log", logs, broken_on_purpose=mutation is not None)
        return verdict


async def _run(
    seed: int, seconds: float, postgres: Embedded, folder: Path, users: list[str], mutation: str | None,
    only: list[str] | None, settle: float, *, gateways: bool,
) -> Verdict:  # fmt: skip
    database = Database(postgres, folder, Witness(postgres.conninfo, _events, {}))
    database.witness.begin()
    proxy = Proxy(spread=Random(seed) if gateways else None)
    await proxy.start()
    await database.proxy.start()
    servers = (Fleet if gateways else Servers)(
        database.servers_conninfo, SECRET, proxy, folder / "servers.log", mutation,
        # Clients notice a dead connection first, as phones do: the server still takes it for open when they are back.
        environment={**clock_environment(folder, "server"), "MOMENTUM_HEARTBEAT": "20s"},
    )  # fmt: skip
    nemesis = nemesis_of(servers, database, proxy, Random(seed))
    devices = make_devices(users)
    wrong: list[str] = []
    writers: RowWriters | None = None
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_stop, servers, proxy, database)
        await servers.start_all(folder)
        await asyncio.gather(*[
            device.start(stack, f"http://127.0.0.1:{proxy.port}", SECRET) for device in devices
        ])  # fmt: skip
        writers = RowWriters(postgres.conninfo, users, "", seed, count=3)
        database.writers = writers
        try:
            await nemesis.rage(
                seconds, only or [name for name in (FLEET_FAULTS if gateways else FAULTS) if name not in _LEFT_OUT]
            )
            await servers.until(servers.serving, "live")
        except TimeoutError:
            wrong.append(f"the server did not become live again; it had been through {dict(nemesis.faults)}")
        finally:
            await asyncio.to_thread(writers.stop)
        branches = await _until_settled(devices, database, writers, 0.0 if wrong else settle)
        if any(one.wrong for device in devices for one in _findings(device, branches).values()):
            servers.ask()  # an unanswered join waits for something
    await asyncio.to_thread(database.close)
    verdict = Verdict(seed=seed, wrong=wrong, transactions=writers.committed, faults=dict(nemesis.faults))
    may_end = bool(_ENDS_HISTORY & nemesis.faults.keys())
    _judge(verdict, devices, branches, may_end=may_end)
    if verdict.wrong:
        with (folder / "servers.log").open("a") as log:
            print(*[line for device in devices for line in device.trace], sep="\n", file=log)
    return verdict


async def _stop(servers: Servers, proxy: Proxy, database: Database) -> None:
    await proxy.stop()
    await servers.stop()
    await database.proxy.stop()


def _events(table: str, operation: str, columns: str) -> Iterator[Change]:
    """Return the change as the old and the new owner of a row get it."""
    if table not in ROW_TABLES:
        return
    old, new = versions(operation, columns)
    before, owner = old.get("owner") or new["owner"], str(new["owner"])
    row = (table, str(new["id"]))
    yield Change((operation, int(str(new["number"]))), owner, frozenset(), row, None, 0.0)
    if before != owner:  # the row has gone out of sight
        yield Change(("DELETE", int(str(old["number"]))), str(before), frozenset(), row, None, 0.0)


def _of(branches: Sequence[Sequence[Change]], table: str, user: str) -> list[list[What]]:
    """Return the changes of a table that a user may see. Messages report those of one table, in the same order."""
    wanted = ROW_TABLES[0] if table == MESSAGES else table
    return [
        [(str(change.what[0]), int(str(change.what[1]))) for change in branch
         if change.row[0] == wanted and change.user == user]
        for branch in branches
    ]  # fmt: skip


def _findings(device: Device, branches: Sequence[Sequence[Change]]) -> dict[str, Findings]:
    window = float("inf") if device.is_shared else _WINDOW_S
    return {
        table: check(list(records), _of(branches, table, device.user), window=window)
        for table, records in device.records.items()
    }


async def _until_settled(
    devices: Sequence[Device], database: Database, writers: RowWriters, settle: float
) -> list[list[Change]]:
    """Wait until the record of every device is complete, or for as long as this may take. Return the branches.

    Now and then last rows are written: after a gap a client gets only changes from after its join.
    """
    ends = time.monotonic() + settle
    while True:
        await asyncio.to_thread(writers.mark)
        branches = [list(branch) for branch in await asyncio.to_thread(database.witness.tell)]
        look_until = time.monotonic() + min(_MARKED_S, settle)
        while time.monotonic() < look_until:
            await asyncio.sleep(0.5)
            if not any(one.wrong for device in devices for one in _findings(device, branches).values()):
                return branches
        if time.monotonic() > ends:
            return branches


def _judge(verdict: Verdict, devices: Sequence[Device], branches: Sequence[Sequence[Change]], *, may_end: bool) -> None:
    verdict.events = sum(map(len, branches))
    for device in devices:
        verdict.wrong += device.broken
        for table, found in _findings(device, branches).items():
            verdict.wrong += [f"{device.name}, {table}: {sentence}" for sentence in found.wrong]
            if not device.is_shared:
                verdict.doubled += found.doubled
                verdict.oldest = max(verdict.oldest, found.oldest)
        if device.gaps and not may_end:
            verdict.wrong.append(f"{device.name}: {device.gaps} gaps were told, and no history had ended")
        verdict.received += sum(map(len, device.records.values()))
        verdict.connects += device.joins
        verdict.resumes += device.resumes
        verdict.resyncs += device.gaps

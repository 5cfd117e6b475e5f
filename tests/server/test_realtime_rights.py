"""Random policies, of which some are compiled and some are not: each caller gets the rows that a SELECT would show."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
import websockets

from faults.row_rights import CALLERS, FLAGS, OWNERS, SIZES, TITLES, USERS, condition
from tests.fixtures.postgres import Sql
from tests.fixtures.server import ANON_KEY, TIMEOUT_S, Server, sign


def create(sql: Sql, chance: Random, name: str) -> list[str]:
    """Create a table with random policies and grants. Return the policies."""
    sql.execute(
        f"create table public.{name} (id int primary key, owner uuid, title text, size int, flag boolean);"
        f" alter table public.{name} enable row level security;"
        f" grant select on public.{name} to authenticated, service_role;"
        f" alter publication supabase_realtime add table public.{name}"
    )
    if chance.random() < 0.7:
        sql.execute(f"grant select on public.{name} to anon")
    policies = []
    for number in range(chance.randint(1, 3)):
        kind = "restrictive" if number and chance.random() < 0.3 else "permissive"
        role = chance.choice(["public", "public", "authenticated", "anon"])
        policies.append(f"p{number} on public.{name} as {kind} for select to {role} using ({condition(chance)})")
        sql.execute(f"create policy {policies[-1]}")
    return policies


def visible(sql: Sql, name: str, role: str, claims: dict[str, Any]) -> set[int]:
    """Return the rows that a caller may select."""
    with sql.transaction():
        sql.execute("select set_config('request.jwt.claims', %s, true)", (json.dumps({"role": role, **claims}),))
        sql.execute(f"set local role {role}")
        try:
            with sql.transaction():
                return {row[0] for row in sql.execute(f"select id from public.{name}").fetchall()}
        except psycopg.errors.InsufficientPrivilege:
            return set()
        finally:
            sql.execute("reset role")


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
async def test_everybody_gets_what_a_select_would_show(server: Server, db: Sql, seed: int) -> None:
    chance = Random(seed)
    db.execute(
        "create table public.members (id uuid primary key); grant select on public.members to anon, authenticated;"
        f" insert into public.members values ('{USERS[0]}');"
        " create table public.marks (id int primary key); grant select on public.marks to anon, authenticated;"
        " alter publication supabase_realtime add table public.marks"
    )
    names = [f"t{number}" for number in range(6)]
    policies = {name: create(db, chance, name) for name in names}
    async with AsyncExitStack() as stack:
        clients = []
        for role, claims in CALLERS:
            key = ANON_KEY if role == "anon" else sign(None, role=role, **claims)
            url = f"{server.ws}/realtime/v1/websocket?vsn=2.0.0&apikey={key}"
            client = await stack.enter_async_context(websockets.connect(url, max_queue=None))
            for number, name in enumerate([*names, "marks"]):
                bindings = [{"event": "INSERT", "schema": "public", "table": name}]
                await client.send(
                    json.dumps([str(number), str(number), f"realtime:{name}", "phx_join",
                                {"config": {"postgres_changes": bindings}}])
                )  # fmt: skip
            clients.append(client)
        for client in clients:
            replies = 0
            while replies < len(names) + 1:
                replies += json.loads(await asyncio.wait_for(client.recv(), TIMEOUT_S))[3] == "phx_reply"
        for number in range(25):
            for name in names:
                row = (number, *[chance.choice(each) for each in (OWNERS, TITLES, SIZES, FLAGS)])
                db.execute(f"insert into public.{name} values (%s, %s, %s, %s, %s)", row)
        db.execute("insert into public.marks values (1)")
        for client, (role, claims) in zip(clients, CALLERS, strict=True):
            found: dict[str, list[int]] = {name: [] for name in names}
            while (frame := json.loads(await asyncio.wait_for(client.recv(), TIMEOUT_S)))[2] != "realtime:marks" or (
                frame[3] != "postgres_changes"
            ):
                if frame[3] == "postgres_changes":
                    found[frame[4]["data"]["table"]].append(frame[4]["data"]["record"]["id"])
            for name in names:
                expected = sorted(visible(db, name, role, claims))
                assert found[name] == expected, (seed, role, policies[name])


async def test_a_row_behind_a_change_of_policies_in_one_transaction_is_decided_by_the_new_ones(
    server: Server, db: Sql, user: UUID
) -> None:
    """PostgreSQL could pass on a row before the message that it follows directly, from another subtransaction."""
    db.execute(
        "create table public.notes (id int primary key); alter table public.notes enable row level security;"
        " grant select on public.notes to authenticated; alter publication supabase_realtime add table public.notes;"
        " create policy everybody on public.notes for select to authenticated using (true);"
        " insert into public.notes values (0)"  # an insert into an empty table writes more than the row
    )
    url = f"{server.ws}/realtime/v1/websocket?vsn=2.0.0&apikey={sign(user)}"
    async with websockets.connect(url, max_queue=None) as client:
        config = {"postgres_changes": [{"event": "*", "schema": "public", "table": "notes"}]}
        await client.send(json.dumps(["1", "1", "realtime:a", "phx_join", {"config": config}]))
        while json.loads(await asyncio.wait_for(client.recv(), TIMEOUT_S))[3] != "system":
            pass
        insert = "do $$ begin insert into public.notes values (%d); exception when division_by_zero then null; end $$"
        with db.transaction():
            db.execute(insert % 1)
            db.execute("drop policy everybody on public.notes")
            db.execute(insert % 2)
        db.execute("select realtime.send('{}', 'done', 'a', false)")
        seen, event = [], ""
        while event != "broadcast":
            *_, event, payload = json.loads(await asyncio.wait_for(client.recv(), TIMEOUT_S))
            seen += [payload["data"]["record"]["id"]] if event == "postgres_changes" else []
        assert seen == [1]

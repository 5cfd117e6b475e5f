"""Rights on private topics under random policies of realtime.messages: PostgreSQL's own decisions for each caller."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from psycopg.conninfo import make_conninfo

from momentum_sync.database.pool import CallerPool
from momentum_sync.errors import Unauthenticated
from momentum_sync.identity.tokens import Identity
from momentum_sync.identity.topic_access import EXTENSIONS, TopicAccess
from momentum_sync.identity.topic_rights import TopicRights
from momentum_sync.limits import QueryLimits
from tests.fixtures.postgres import SERVER_ROLE, Sql

USERS = [UUID(int=number, version=4) for number in (1, 2)]
TOPICS = ["a", "room:1", f"user:{USERS[0]}", "org:x"]
CALLERS: list[tuple[str, dict[str, Any]]] = [
    ("anon", {}), ("authenticated", {"sub": str(USERS[0])}), ("authenticated", {"sub": str(USERS[1]), "org": "x"}),
    ("service_role", {}),
]  # fmt: skip
SIMPLE = [
    "realtime.topic() = 'a'", "topic like 'room:%'", "realtime.topic() = 'user:' || (select auth.uid())",
    "extension = 'broadcast'", "realtime.messages.extension in ('presence')", "private", "event is null", "true",
    "false",
    "(select auth.jwt()) ->> 'org' = split_part(realtime.topic(), ':', 2)",
    "exists (select from public.members m where m.user_id = (select auth.uid()) and m.room = realtime.topic())",
    "private.may_enter(realtime.topic())", "length(topic) > 3", "inserted_at > now() - interval '1 hour'",
]  # fmt: skip
CREATE = f"""
create table public.members (user_id uuid, room text);
insert into public.members values ('{USERS[0]}', 'room:1'), ('{USERS[1]}', 'a');
grant select on public.members to authenticated;
create schema private;
create function private.may_enter(room text) returns boolean language sql stable security definer
    set search_path = '' as $$ select room <> 'a' and auth.uid() is not null $$;
"""


def condition(chance: Random, depth: int = 0) -> str:
    if depth < 2 and chance.random() < 0.5:
        parts = [condition(chance, depth + 1) for _ in range(2)]
        return f"({chance.choice([' and ', ' or ']).join(parts)})"
    found = chance.choice(SIMPLE)
    return f"(not ({found}))" if chance.random() < 0.15 else f"({found})"


def add_policies(sql: Sql, chance: Random) -> list[str]:
    """Create random policies. Return them."""
    made = []
    for number in range(chance.randint(1, 5)):
        kind = "restrictive" if number and chance.random() < 0.25 else "permissive"
        command = chance.choice(["select", "insert", "all"])
        using = "" if command == "insert" else f"using ({condition(chance)})"
        has_check = command == "insert" or (command == "all" and chance.random() < 0.5)
        check = f"with check ({condition(chance)})" if has_check else ""
        role = chance.choice(["public", "authenticated", "authenticated", "anon"])
        made.append(f"p{number} on realtime.messages as {kind} for {command} to {role} {using} {check}")
        sql.execute(f"create policy {made[-1]}".encode())
    return made


def allowed(sql: Sql, role: str, claims: dict[str, Any], topic: str) -> TopicAccess:
    """Return the rights that PostgreSQL gives a caller. Tries real rows, which are rolled back."""

    def become() -> None:
        sql.execute("select set_config('request.jwt.claims', %s, true)", (json.dumps({"role": role, **claims}),))
        sql.execute("select set_config('realtime.topic', %s, true)", (topic,))
        sql.execute(f"set local role {role}".encode())

    insert = b"insert into realtime.messages (topic, extension, private) values (%s, %s, true)"
    reads, writes = set[str](), set[str]()
    for extension in EXTENSIONS:
        try:
            with sql.transaction(force_rollback=True):
                become()
                sql.execute(insert, (topic, extension))
                writes.add(extension)
        except psycopg.Error:
            pass
    try:
        with sql.transaction(force_rollback=True):
            for extension in EXTENSIONS:
                sql.execute(insert, (topic, extension))
            become()
            query = "select extension from realtime.messages where topic = %s"
            reads = {row[0] for row in sql.execute(query, (topic,)).fetchall()}
    except psycopg.Error:
        pass
    return TopicAccess(frozenset(reads), frozenset(writes))


@pytest_asyncio.fixture
async def pool(database: str) -> AsyncIterator[CallerPool]:
    pool = CallerPool(make_conninfo(database, user=SERVER_ROLE), QueryLimits(), size=4)
    await pool.open()
    yield pool
    await pool.close()


def identity(role: str, claims: dict[str, Any]) -> Identity:
    subject = UUID(claims["sub"]) if "sub" in claims else None
    return Identity(role, subject, json.dumps({"role": role, **claims}), None)


@pytest.mark.parametrize("seed", range(4))
async def test_rights_are_those_of_the_database(pool: CallerPool, db: Sql, seed: int) -> None:
    chance = Random(seed)
    db.execute(CREATE.encode())
    rights = TopicRights(pool, lambda _: True)
    compared = granted = 0
    for _ in range(8):
        policies = add_policies(db, chance)
        for role, claims in CALLERS:
            for topic in TOPICS:
                wanted = allowed(db, role, claims, topic)
                found = await rights.of(identity(role, claims), topic)
                assert found == wanted, (policies, role, claims, topic)
                compared += 1
                granted += bool(wanted.reads) + bool(wanted.writes)
        for number in range(len(policies)):
            db.execute(f"drop policy p{number} on realtime.messages".encode())
    assert compared == 8 * len(CALLERS) * len(TOPICS)
    assert 0 < granted < 2 * compared
    assert db.execute("select count(*) from realtime.messages").fetchone() == (0,)


async def test_an_answer_from_before_a_change_does_not_count(pool: CallerPool, db: Sql) -> None:
    """A commit is in the WAL before snapshots see it: for as long as it waits for a standby."""
    db.execute(CREATE.encode())
    caller = identity(*CALLERS[1])
    for policy in ("true", "private.may_enter(realtime.topic())"):
        db.execute(f"create policy p on realtime.messages for select to authenticated using ({policy})".encode())
        answers = [False, False, True]
        rights = TopicRights(pool, lambda _: answers.pop(0))  # noqa: B023
        assert EXTENSIONS[0] in (await rights.of(caller, "room:1")).reads
        assert answers == []
        db.execute("drop policy p on realtime.messages")


async def test_policies_that_raise_no_error_any_longer_need_no_rows(pool: CallerPool, db: Sql) -> None:
    db.execute(CREATE.encode())
    rights = TopicRights(pool, lambda _: True)
    caller = identity(*CALLERS[1])
    next_xid = "select pg_snapshot_xmax(pg_current_snapshot())::text"
    for policy, uses_rows in (("private.may_enter(realtime.topic())", True), ("true", False)):
        db.execute(f"create policy p on realtime.messages for select to authenticated using ({policy})".encode())
        await rights.of(caller, "room:1")
        before = db.execute(next_xid.encode()).fetchone()
        assert EXTENSIONS[0] in (await rights.of(caller, "room:1")).reads
        assert (db.execute(next_xid.encode()).fetchone() != before) is uses_rows
        db.execute("drop policy p on realtime.messages")


async def test_a_policy_that_raises_an_error_allows_nothing(pool: CallerPool, db: Sql) -> None:
    rights = TopicRights(pool, lambda _: True)
    caller = identity(*CALLERS[1])
    db.execute("create policy p on realtime.messages for select to authenticated using (1 / (length(topic) - 1) > 0)")
    db.execute("create policy q on realtime.messages for insert to authenticated with check (extension = 'broadcast')")
    writes = frozenset(EXTENSIONS[:1])
    for _ in range(2):
        assert await rights.of(caller, "a") == TopicAccess(frozenset(), writes), "and takes nothing else away"
        assert await rights.of(caller, "ab") == TopicAccess(frozenset(EXTENSIONS), writes)


async def test_what_a_policy_writes_is_rolled_back(pool: CallerPool, db: Sql) -> None:
    db.execute(
        "create table public.notes (n int); grant insert on public.notes to authenticated;"
        " create function public.noting() returns boolean language plpgsql as"
        " 'begin insert into public.notes values (1); return true; end';"
        " create policy p on realtime.messages for select to authenticated using (public.noting())"
    )
    assert EXTENSIONS[0] in (await TopicRights(pool, lambda _: True).of(identity(*CALLERS[1]), "a")).reads
    assert db.execute("select count(*) from public.notes").fetchone() == (0,)


async def test_without_row_level_security_or_privileges(pool: CallerPool, db: Sql) -> None:
    rights = TopicRights(pool, lambda _: True)
    caller = identity(*CALLERS[1])
    db.execute("alter table realtime.messages disable row level security")
    assert await rights.of(caller, "a") == TopicAccess(frozenset(EXTENSIONS), frozenset(EXTENSIONS))
    db.execute("revoke insert on realtime.messages from authenticated")
    assert await rights.of(caller, "a") == TopicAccess(frozenset(EXTENSIONS), frozenset())
    db.execute("revoke select on realtime.messages from authenticated")
    assert await rights.of(caller, "a") == TopicAccess(frozenset(), frozenset())
    db.execute("revoke usage on schema realtime from authenticated")
    assert await rights.of(caller, "a") == TopicAccess(frozenset(), frozenset())
    db.execute("drop schema realtime cascade")
    assert await rights.of(caller, "a") == TopicAccess(frozenset(), frozenset())


async def test_the_topic_stays_with_its_caller(pool: CallerPool, db: Sql) -> None:
    """Questions of several callers share a transaction."""
    db.execute("create policy p on realtime.messages for select to authenticated using (realtime.topic() = topic)")
    rights = TopicRights(pool, lambda _: True)
    caller = identity(*CALLERS[1])
    assert EXTENSIONS[0] in (await rights.of(caller, "it's \\ a % topic")).reads
    ((row,),) = await pool.ask(caller, ("select current_setting('realtime.topic', true)", {}))
    assert not row[0]


async def test_a_revoked_token_has_no_rights(pool: CallerPool, db: Sql) -> None:
    db.execute("create policy p on realtime.messages for select to authenticated using (true)")
    db.execute("insert into auth.users (id) values (%s)", (USERS[0],))
    db.execute("select momentum.revoke(%s)", (USERS[0],))
    with pytest.raises(Unauthenticated):
        await TopicRights(pool, lambda _: True).of(identity(*CALLERS[1]), "a")


async def test_changes_without_an_event_are_found(pool: CallerPool, db: Sql) -> None:
    rights = TopicRights(pool, lambda _: True)
    caller = identity(*CALLERS[1])
    await rights.of(caller, "a")
    assert not await rights.have_changed()
    db.execute("create policy p on realtime.messages for insert to authenticated with check (true)")
    assert (await rights.of(caller, "a")).writes == frozenset(EXTENSIONS)
    assert await rights.have_changed(), "connections from before have not been told"
    assert not await rights.have_changed()
    db.execute("revoke usage on schema realtime from authenticated")
    assert await rights.have_changed()
    assert not await rights.have_changed()

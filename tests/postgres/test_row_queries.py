"""How PostgreSQL plans the questions about rights on rows: a page is one search, not one for each of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest

from momentum_sync.database.connection import Query, pinned
from momentum_sync.database.pool import Params
from momentum_sync.identity.row_queries import read_table, rows_query, select_query, tables_query
from momentum_sync.identity.row_tables import RowTable
from tests.fixtures.postgres import Sql, temporary_database

TABLES = """
create table public.tasks (id bigint primary key, team bigint, title text);
create table public.members (team bigint, name text, primary key (name, team));
insert into public.tasks select n, n, 'task ' || n from generate_series(1, 20000) n;
insert into public.members select n % 500, 'name ' || n from generate_series(1, 20000) n;
alter table public.tasks enable row level security;
create role reader;
grant select on public.tasks, public.members to reader;
create policy assigned on public.tasks for select to reader using (
    exists (select from public.members m where m.team = tasks.team and m.name = current_setting('test.name')));
analyze;
set role reader;
set test.name = 'name 7'
"""
ROWS = [json.dumps({"id": number, "team": number, "title": f"task {number}"}) for number in range(1, 101)]


@pytest.fixture(scope="module")
def reader(cluster: str) -> Iterator[Sql]:
    with temporary_database(cluster) as conninfo:
        with psycopg.connect(pinned(conninfo, application_name="test"), autocommit=True) as connection:
            for statement in TABLES.strip().split(";\n"):
                connection.execute(statement.encode())
            yield connection
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("drop owned by reader")
            connection.execute("drop role reader")


@pytest.fixture(scope="module")
def tasks(reader: Sql) -> RowTable:
    row = reader.execute("select 'public.tasks'::regclass::oid::bigint").fetchone()
    assert row is not None
    (found,) = reader.execute(*tables_query([row[0]]))
    return read_table(found)


def plan_of(reader: Sql, question: tuple[Query, Params]) -> str:
    query, params = question
    assert isinstance(query, bytes)
    return "\n".join(row[0] for row in reader.execute(b"explain " + query, params))


def answer(reader: Sql, question: tuple[Query, Params]) -> list[int]:
    row = reader.execute(*question).fetchone()
    assert row is not None
    return sorted(row[0])


def test_policy_with_exists_is_joined_and_not_asked_for_each_row(reader: Sql, tasks: RowTable) -> None:
    question = rows_query(tasks, ROWS)
    assert answer(reader, question) == [6]
    assert "SubPlan" not in plan_of(reader, question)


def test_rows_that_exist_are_found_by_their_key(reader: Sql, tasks: RowTable) -> None:
    question = select_query(tasks, ROWS)
    assert answer(reader, question) == [6]
    plan = plan_of(reader, question)
    assert "tasks_pkey" in plan
    assert "Seq Scan on tasks" not in plan

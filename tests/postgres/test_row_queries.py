"""PostgreSQL's plans for the questions about rights on rows: one search a page, not one for each of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest
from msgspec import structs

from momentum_sync.database.connection import Query, pinned
from momentum_sync.database.pool import Params
from momentum_sync.identity.row_queries import operand_query, read_table, rows_query, select_query, tables_query
from momentum_sync.identity.row_tables import RowTable
from tests.fixtures.postgres import Sql, temporary_database

TABLES = """
create table public.tasks (id bigint primary key, team bigint, title text);
create table public.members (team bigint, name text, value text, primary key (name, team));
create index on public.members (team);
insert into public.tasks select n, n, 'task ' || n from generate_series(1, 20000) n;
insert into public.members select n % 500, 'name ' || n, case n % 500 when 7 then '7' else 'no number' end
    from generate_series(1, 20000) n;
alter table public.tasks enable row level security;
create table public.codes (code character(3), bits bit(4), codes character(3)[], primary key (code, bits));
insert into public.codes values ('abc', '1010', '{abc,def}');
alter table public.codes enable row level security;
create role reader;
grant select on public.tasks, public.members, public.codes to reader;
create policy own on public.codes for select to reader using (
    code = 'abc' and bits = b'1010' and 'def' = any (codes));
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


def table(reader: Sql, name: str) -> RowTable:
    row = reader.execute("select %s::regclass::oid::bigint", (name,)).fetchone()
    assert row is not None
    (found,) = reader.execute(*tables_query([row[0]]))
    return read_table(found)


@pytest.fixture(scope="module")
def tasks(reader: Sql) -> RowTable:
    return table(reader, "public.tasks")


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


@pytest.mark.parametrize(
    "condition", ["m.name = 'name 7'", "m.value::int = 7"], ids=["a join", "only rows that match have a value"]
)
def test_for_one_row_a_policy_reads_no_more_than_a_select_by_key_would(
    reader: Sql, tasks: RowTable, condition: str
) -> None:
    policy = f"exists (select from public.members m where m.team = tasks.team and {condition})"
    changed = structs.replace(tasks, policies=(policy, "true"))
    row = json.dumps({"id": 7, "team": 7, "title": "x"})
    question = rows_query(changed, [row])
    assert answer(reader, question) == [0]
    assert "Seq Scan on members" not in plan_of(reader, question)


def test_values_of_types_with_a_length_are_read_whole(reader: Sql) -> None:
    codes = table(reader, "public.codes")
    rows = [
        json.dumps({"code": code, "bits": bits, "codes": ["abc", "def"]})
        for code, bits in (("abc", "1010"), ("abd", "1010"), ("abc", "1011"))
    ]
    assert answer(reader, rows_query(codes, rows)) == [0]
    assert answer(reader, select_query(codes, rows)) == [0]
    for name, value in (("code", "abc"), ("bits", "1010")):
        column = codes.column(name)
        assert column is not None
        assert reader.execute(*operand_query(column.type_sql, [value])).fetchall() == [([f'"{value}"'],)]

"""Column values as JSON, compared with the database's own `to_jsonb`, type by type."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from momentum_sync.capture.catalog import TypeRow, resolve
from momentum_sync.capture.values import ColumnType, to_json
from momentum_sync.database import queries
from momentum_sync.database.connection import pinned

TYPES = """
create type mood as enum ('ok', 'not "ok"', 'a,b', '{x}', 'NULL', '');
create domain positive as int check (value > 0);
create domain moods as mood[];
create type inner_pair as (n numeric, t text);
create type pair as (a int, gone int, b text, "c ""d" inner_pair, e timestamptz[], f moods);
alter type pair drop attribute gone;
create type period as range (subtype = timestamptz);
create domain pairs as pair[];
"""
# Literals that hypothesis would hardly find, by type.
LITERALS: dict[str, list[str]] = {
    "bool": ["t", "f"],
    "int2": ["-32768", "0"],
    "int8": ["9223372036854775807", "-1"],
    "numeric": ["NaN", "Infinity", "-Infinity", "1.500", "1e300", "-0.0", "123456789012345678901234567890.123456789"],
    "float8": ["NaN", "Infinity", "-Infinity", "1e20", "1e-7", "-0", "0.1", "1.7976931348623157e308"],
    "float4": ["NaN", "1e-30", "3.4028235e38", "16777217"],
    "oid": ["4294967295"],
    "money": ["12.34", "-1"],
    "date": ["2026-11-28", "infinity", "-infinity", "0044-03-15 BC", "12026-01-01"],
    "timestamp": ["2026-11-28 10:00:00.123456", "infinity", "-infinity", "0044-03-15 10:00:00 BC", "12026-01-01"],
    "timestamptz": ["2026-11-28 10:00:00.5+05:30", "infinity", "-infinity", "0044-03-15 10:00:00 BC", "1850-01-01"],
    "time": ["10:00:00.1", "24:00:00"],
    "timetz": ["10:00:00+02", "10:00:00.25-08:30"],
    "interval": ["1 year 2 mons 3 days 04:05:06.7", "-1 day"],
    "uuid": ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"],
    "bytea": ["\\x00ff", ""],
    "char": ["a", ""],
    "bpchar(5)": ["ab"],
    "name": ["a name"],
    "text": ["", "NULL", "null", '\t\n"\\', "ü😀", "'", "{}", "()"],
    "json": ['{"b":1,  "a":[1.0,null]}', '"x"', "null", " 1 ", '{"a":1,"a":2}', "\n[\n]\n"],
    "jsonb": ['{"b": 1, "a": [1.0, null]}', '"x"', "null", "1e400"],
    "jsonpath": ["$.a[*] ? (@ > 1)"],
    "inet": ["10.0.0.1/8", "::1"],
    "macaddr": ["08:00:2b:01:02:03"],
    "bit(3)": ["101"],
    "varbit": ["", "1"],
    "tsvector": ["a:1 fat:2,4"],
    "point": ["(1,2.5)"],
    "box": ["((1,1),(0,0))"],
    "int4range": ["[1,5)", "empty", "(,)"],
    "int4multirange": ["{[1,2),[5,8)}", "{}"],
    "tstzrange": ["[2026-01-01,2026-01-02)"],
    "int2vector": ["1 2 3", ""],
    "oidvector": ["1 4294967295"],
    "pg_lsn": ["16/B374D848"],
    "regclass": ["pg_class"],
    "mood": ["ok", 'not "ok"', "a,b", "{x}", "NULL", ""],
    "positive": ["7"],
    "period": ["[2026-01-01,2026-01-02)"],
    "int4[]": ["{}", "{1,NULL,-3}", "{{1,2},{3,4}}", "[0:1]={5,6}", "[-1:0][2:2]={{1},{2}}"],
    "text[]": ['{"",NULL,"NULL",null,"a\\"b\\\\c","{}",",","ü"}', '{" "}'],
    "bool[]": ["{t,f,NULL}"],
    "numeric[]": ["{NaN,1.50}"],
    "timestamptz[]": ["{infinity,2026-01-01}", "{}"],
    "jsonb[]": ['{"{\\"a\\": [1, \\"x\\"]}",null,"null"}'],
    "bytea[]": ['{"\\\\x00ff"}'],
    "box[]": ["{((1,1),(0,0));((2,2),(1,1))}", "{}"],
    "mood[]": ['{ok,"not \\"ok\\"","a,b","{x}","NULL",NULL,""}'],
    "moods": ['{ok,"a,b"}'],
    "pair": ["(,,,,)", '(1,"a ""b"", (c)\\\\",,,)', '(1,"","(1.50,""x,y"")","{2026-01-01,NULL}","{ok,""a,b""}")'],
    "pair[]": ['{"(1,a,\\"(2,b)\\",,)",NULL}'],
    "pairs": ['{"(1,a,\\"(2,\\"\\"b c\\"\\")\\",,)"}'],
    "inner_pair": ["(NaN,)"],
}


@pytest.fixture(scope="module")
def database(cluster: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Return a connection with the settings of the replication connection, in a database of its own."""
    with psycopg.connect(cluster, autocommit=True) as main:
        main.execute("create database column_values")
        try:
            where = psycopg.conninfo.make_conninfo(cluster, dbname="column_values")
            with psycopg.connect(pinned(where, application_name="values"), autocommit=True) as connection:
                connection.execute("set search_path = public, pg_catalog")
                connection.execute(TYPES)
                yield connection
        finally:
            main.execute("drop database column_values with (force)")


@pytest.fixture(scope="module")
def type_of(database: psycopg.Connection[tuple[Any, ...]]) -> Callable[[str], ColumnType]:
    """Return a function: a type by its name in SQL."""
    query = queries.load("momentum_sync.capture")["types"]

    def find(name: str) -> ColumnType:
        (oid,) = database.execute("select to_regtype(%s)::oid::bigint", (name,)).fetchone() or (None,)
        assert oid is not None, name
        return resolve([TypeRow(*row) for row in database.execute(query, {"oids": [oid]})])[oid]

    return find


def compare(connection: psycopg.Connection[tuple[Any, ...]], name: str, kind: ColumnType, value: object) -> None:
    """Let the database render a value as text and as JSON, and make the one from the other."""
    query = sql.SQL("select format('%%s', v), to_jsonb(v)::text from (select %s::{} as v) s").format(sql.SQL(name))
    row = connection.execute(query, (value,)).fetchone()
    assert row is not None
    text, wanted = row
    assert parsed(to_json(text, kind)) == parsed(wanted), (name, text, wanted)


def parsed(text: str | bytes) -> object:
    """Parse JSON with exact numbers."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


@pytest.mark.parametrize("name", LITERALS)
def test_a_type_becomes_the_json_of_to_jsonb(
    database: psycopg.Connection[tuple[Any, ...]], type_of: Callable[[str], ColumnType], name: str
) -> None:
    kind = type_of('"char"' if name == "char" else name)
    for literal in LITERALS[name]:
        compare(database, '"char"' if name == "char" else name, kind, literal)


def test_every_built_in_type_that_a_column_may_have_is_covered(database: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Arrays, ranges and all the types of a category have one rule, so one of each is enough."""
    rows = database.execute(
        "select t.typname from pg_type t where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b'"
        " and t.typelem = 0 and t.typcategory in ('B', 'N', 'D') order by 1"
    ).fetchall()
    reg = {"regclass", "regcollation", "regconfig", "regdictionary", "regnamespace", "regoper", "regoperator",
           "regproc", "regprocedure", "regrole", "regtype"}  # fmt: skip
    assert {name for (name,) in rows} - reg - {"int4"} <= set(LITERALS)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
AWKWARD = st.text("{}(),;\"\\' N\tüab", max_size=8)
STRATEGIES: dict[str, st.SearchStrategy[object]] = {
    "int8": st.integers(-(2**63), 2**63 - 1),
    "float8": st.floats().map(repr),
    "float4": st.floats(width=32).map(repr),
    "numeric": st.decimals(allow_nan=False).map(str),
    "text": TEXT | AWKWARD,
    "timestamp": st.datetimes().map(str),
    "timestamptz": st.datetimes().map(lambda at: f"{at}+03:30"),
    "date": st.dates().map(str),
    "bytea": st.binary(max_size=8),
    "text[]": st.lists(st.none() | TEXT | AWKWARD, max_size=4),
    "text[][]": st.integers(1, 3).flatmap(
        lambda n: st.lists(st.lists(st.none() | AWKWARD, min_size=n, max_size=n), min_size=1, max_size=3)
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_random_values_become_the_json_of_to_jsonb(
    database: psycopg.Connection[tuple[Any, ...]], type_of: Callable[[str], ColumnType], name: str
) -> None:
    kind = type_of(name.replace("[][]", "[]"))

    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    @given(STRATEGIES[name])
    def check(value: object) -> None:
        compare(database, name, kind, value)

    check()


def test_random_composites_become_the_json_of_to_jsonb(
    database: psycopg.Connection[tuple[Any, ...]], type_of: Callable[[str], ColumnType]
) -> None:
    kind = type_of("pair")
    query = (
        "select format('%%s', v), to_jsonb(v)::text from (select"
        " row(%s::int, %s::text, row(%s::numeric, %s::text)::inner_pair, null, null)::pair as v) s"
    )

    @settings(max_examples=150)
    @given(st.none() | st.integers(0, 9), st.none() | TEXT | AWKWARD, st.none() | TEXT | AWKWARD)
    def check(number: int | None, outer: str | None, inner: str | None) -> None:
        row = database.execute(query, (number, outer, number, inner)).fetchone()
        assert row is not None
        assert parsed(to_json(row[0], kind)) == parsed(row[1])

    check()

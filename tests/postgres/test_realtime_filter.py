"""Filters that are decided without the database, compared with the database's own operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from momentum_sync.database.connection import pinned
from momentum_sync.wire.realtime_filter import Condition, Operator, holds

OPERATORS = {
    Operator.EQ: "=", Operator.NEQ: "<>", Operator.LT: "<", Operator.LTE: "<=", Operator.GT: ">", Operator.GTE: ">=",
    Operator.IS_DISTINCT: "is distinct from",
}  # fmt: skip
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)
VALUES: dict[str, st.SearchStrategy[str]] = {
    "int2": st.integers(-3, 3).map(str),
    "int4": st.integers(-3, 3).map(str),
    "int8": st.one_of(st.integers(2**53 - 1, 2**53 + 2), st.integers(-2, 2)).map(str),
    "oid": st.integers(0, 3).map(str),
    "numeric": st.sampled_from(
        ["NaN", "Infinity", "-Infinity", "1", "1.0", "1.00", "-0.0", "0", "1e3", "1000", "1e-20"]
    ),
    "bool": st.sampled_from(["t", "f", "true", "no", "1"]),
    "text": st.one_of(TEXTS, st.sampled_from(["a", "A", "ä", "a\u0308"])),
    "varchar": TEXTS,
    "name": TEXTS,
    "uuid": st.sampled_from(["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{a0eebc999c0b4ef8bb6d6bb9bd380a11}", "0" * 32]),
    "date": st.sampled_from(["2026-11-28", "28 Nov 2026", "infinity", "0044-03-15 BC", "20261129"]),
    "bytea": st.sampled_from(["\\x00ff", "\\x00FF", "\\000\\377", ""]),
    "bpchar": TEXTS,
    "float8": st.sampled_from(["1", "1.0", "NaN", "-0"]),
    "timestamptz": st.sampled_from(["2026-11-28 10:00+02", "2026-11-28 08:00+00"]),
}


@pytest.fixture(scope="module")
def connection(cluster: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(pinned(cluster, application_name="test"), autocommit=True) as connection:
        yield connection


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@pytest.mark.parametrize("kind", VALUES)
def test_what_is_decided_here_is_what_the_database_decides(
    connection: psycopg.Connection[tuple[Any, ...]], kind: str, data: st.DataObject
) -> None:
    operator = data.draw(st.sampled_from([*OPERATORS, Operator.IN, Operator.IS]))
    negated = data.draw(st.booleans())
    value = data.draw(st.one_of(st.none(), VALUES[kind]))
    column = sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(kind))
    operands: tuple[str, ...]
    if operator is Operator.IS:
        allowed = ("null", "true", "false", "unknown") if kind == "bool" else ("null",)
        operands = (data.draw(st.sampled_from(allowed)),)
        expression = sql.SQL("{} is {}").format(column, sql.SQL(operands[0]))
    elif operator is Operator.IN:
        operands = tuple(data.draw(st.lists(VALUES[kind], min_size=1, max_size=3)))
        expression = sql.SQL("{} = any ({}::{}[])").format(column, sql.Literal(list(operands)), sql.SQL(kind))
    else:
        operands = (data.draw(VALUES[kind]),)
        expression = sql.SQL("{} {} {}::{}").format(
            column, sql.SQL(OPERATORS[operator]), sql.Literal(operands[0]), sql.SQL(kind)
        )
    # `unknown` is a keyword of its own only for booleans.
    row = connection.execute(
        sql.SQL("select (case when {negated} then not ({test}) else ({test}) end) is true, to_jsonb({column})::text,"
                " array(select to_jsonb(o.text::{kind})::text from unnest({operands}::text[]) as o (text))").format(
            negated=sql.Literal(negated), test=expression, column=column, kind=sql.SQL(kind),
            operands=sql.Literal([] if operator is Operator.IS else list(operands)),
        )
    ).fetchone()  # fmt: skip
    assert row is not None
    expected, json_value, json_operands = row
    told = holds(
        Condition("a", operator, negated, operands),
        kind,
        [operand.encode() for operand in json_operands],
        b"null" if json_value is None else json_value.encode(),
    )
    assert told is None or told is expected
    decided = kind in ("int2", "int4", "int8", "oid", "bool") and operator in (Operator.EQ, Operator.IN, Operator.IS)
    assert told is not None or not decided, "these are never left to the database"

"""Builds the queries of row rights. Policies are the operator's own SQL, and the values of filters are parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
from psycopg import sql
from psycopg.rows import TupleRow

from momentum_sync.database import queries
from momentum_sync.database.connection import Query
from momentum_sync.database.pool import Params
from momentum_sync.identity.row_tables import RowColumn, RowTable
from momentum_sync.wire.realtime_filter import Operator
from momentum_sync.wire.row_change import Row
from momentum_sync.wire.row_watch import Test

_SQL = queries.load(__package__)
PUBLICATION = "supabase_realtime"
"""The publication that names the tables whose changes clients may ask for."""
SNAPSHOT: tuple[Query, Params] = (_SQL["snapshot"], {})
"""Asks for the snapshot alone."""

_OPERATORS: Mapping[Operator, str] = {
    Operator.EQ: "=", Operator.NEQ: "<>", Operator.LT: "<", Operator.LTE: "<=", Operator.GT: ">", Operator.GTE: ">=",
    Operator.LIKE: "like", Operator.ILIKE: "ilike", Operator.MATCH: "~", Operator.IMATCH: "~*",
    Operator.IS_DISTINCT: "is distinct from",
}  # fmt: skip
_PATTERNS = frozenset({Operator.LIKE, Operator.ILIKE, Operator.MATCH, Operator.IMATCH})
_STATEMENTS = 256
_SIZES = (2, 16, 128, 1_024, 8_192)  # of pages; an update has two versions
_columns = msgspec.json.Decoder(list[tuple[str, str, str, str, bool, bool]])


def tables_query(relations: Sequence[int] | None) -> tuple[Query, Params]:
    """Return the query for tables with these ids; None: for those that are published."""
    return _SQL["row_tables"], {"relations": relations, "publication": PUBLICATION}


def read_table(row: TupleRow) -> RowTable:
    """Return the table of a row of that query."""
    oid, schema, name, secured, permissive, restrictive, needed, columns, identity, _ = row
    return RowTable.build(
        oid, schema, name, secured=secured, policies=(permissive, restrictive),
        needed=None if needed is None else frozenset(needed), columns=_columns.decode(columns),
        identity=frozenset(identity),
    )  # fmt: skip


def rows_query(table: RowTable, rows: Sequence[str]) -> tuple[Query, Params]:
    """Return the query that evaluates the policies of a table on versions of rows, each as JSON."""
    return _rows_statement(table, _most(rows)), {"versions": f"[{','.join(rows)}]"}


def select_query(table: RowTable, rows: Sequence[str]) -> tuple[Query, Params]:
    """Return the query that finds rows by their key, as they are now. The table must have a key.

    A row counts only if it still has the values that the policies read.
    """
    return _select_statement(table, _most(rows)), {"versions": f"[{','.join(rows)}]"}


def evaluated_columns(table: RowTable) -> frozenset[str] | None:
    """Return the columns that `rows_query` reads of a row; None for all of them."""
    return table.needed


def selected_columns(table: RowTable) -> frozenset[str]:
    """Return the columns that `select_query` reads of a row."""
    return (table.needed or frozenset()) | table.key


def encode_row(row: Row, columns: frozenset[str] | None) -> str:
    """Return the JSON of some columns of a row, or of all."""
    return msgspec.json.encode({name: row[name] for name in row if columns is None or name in columns}).decode()


def _most(rows: Sequence[str]) -> int:
    """Return about the number of rows, or more: each number has a statement of its own."""
    return next((most for most in _SIZES if most >= len(rows)), len(rows))


@lru_cache(maxsize=_STATEMENTS)
def _rows_statement(table: RowTable, most: int) -> bytes:
    # psycopg would take a % in a policy for a placeholder.
    permissive, restrictive = (sql.SQL(policy.replace("%", "%%")) for policy in table.policies)
    alias = _name(table.name)
    needed = [column for column in table.columns if table.needed is not None and column.name in table.needed]
    source: sql.Composable
    if table.needed is None:
        source = sql.SQL("jsonb_populate_record(null::{}, e.version) as {}").format(
            _name(table.schema, table.name), alias
        )
    elif not needed:
        source = sql.SQL("(select) as {}").format(alias)
    else:
        # Only these columns: others may have types without a null, such as a domain, and no value in this version.
        defined = [_definition(column) for column in needed]
        source = sql.SQL("jsonb_to_record(e.version) as {} ({})").format(alias, sql.SQL(", ").join(defined))
    return sql.SQL(_SQL["allowed_rows"]).format(
        row=source, permissive=permissive, restrictive=restrictive, most=sql.Literal(most)
    ).as_bytes()  # fmt: skip


@lru_cache(maxsize=_STATEMENTS)
def _select_statement(table: RowTable, most: int) -> bytes:
    names = selected_columns(table)
    columns = [column for column in table.columns if column.name in names]
    # The rows have every column of the key, and with `=` an index finds them.
    key = [sql.SQL("t.{0} = v.{0}").format(_name(name)) for name in sorted(table.key)]
    same = [
        sql.SQL("(t.{0} is not distinct from v.{0} or not e.version ? {1})").format(
            _name(column.name), sql.Literal(column.name.replace("%", "%%"))
        )
        for column in columns
        if column.name not in table.key
    ]
    return sql.SQL(_SQL["selected_rows"]).format(
        definitions=sql.SQL(", ").join(map(_definition, columns)), table=_name(table.schema, table.name),
        same=sql.SQL(" and ").join(key + same), most=sql.Literal(most),
    ).as_bytes()  # fmt: skip


def operand_query(type_sql: str, values: Sequence[str]) -> tuple[Query, Params]:
    """Return the query for the JSON of values of a type."""
    kind = sql.SQL(type_sql.replace("%", "%%"))
    return sql.SQL(_SQL["operand"]).format(type=kind).as_bytes(), {"values": list(values)}


def _definition(column: RowColumn) -> sql.Composable:
    return sql.SQL("{} {}").format(_name(column.name), sql.SQL(column.definition.replace("%", "%%")))


def _name(*parts: str) -> sql.Identifier:
    """Return an identifier in a query with parameters, in which psycopg would take a % for one."""
    return sql.Identifier(*(part.replace("%", "%%") for part in parts))


def test_query(test: Test, value: bytes) -> tuple[Query, Params]:
    """Return the query of one test, with the operators of SQL."""
    condition = test.condition
    column, kind = sql.SQL("t.value"), sql.SQL(test.type_sql.replace("%", "%%"))
    defined = sql.SQL(test.definition.replace("%", "%%"))
    if condition.operator is Operator.IS:
        # The words are the grammar's own: `null`, `true`, `false` and `unknown`.
        expression = sql.SQL("{} is {}").format(column, sql.SQL(condition.values[0]))
    elif condition.operator is Operator.IN:
        expression = sql.SQL("{} = any (%(values)s::text[]::{}[])").format(column, kind)
    elif condition.operator in _PATTERNS:
        operator = sql.SQL(_OPERATORS[condition.operator])
        expression = sql.SQL("{}::text {} %(operand)s::text").format(column, operator)
    else:
        operator = sql.SQL(_OPERATORS[condition.operator])
        expression = sql.SQL("{} {} %(operand)s::text::{}").format(column, operator, kind)
    if condition.negated:
        expression = sql.SQL("not ({})").format(expression)
    query = sql.SQL(_SQL["tested"]).format(condition=expression, type=defined).as_bytes()
    row = '{"value":' + value.decode() + "}"
    return query, {"row": row, "operand": condition.values[0], "values": list(condition.values)}

"""Row rights: which changes of rows a caller may see, decided by the database as the caller.

A change is decided on the version of the row that it carries, not on the current row. The policies are evaluated on
given rows, and in the same snapshot the catalog says which policies apply now: an answer about others does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from momentum_sync import observe
from momentum_sync.database import queries
from momentum_sync.database.connection import Query
from momentum_sync.database.pool import CallerPool, Lane, Params
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import BadRequest, Forbidden, Unavailable
from momentum_sync.eventlog.event import Event
from momentum_sync.identity.decider import seen_change
from momentum_sync.identity.row_tables import RowColumn, RowTable, SeenChange
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.realtime_filter import Condition, Operator
from momentum_sync.wire.row_change import Change, Row, parse_change
from momentum_sync.wire.row_watch import Test

_SQL = queries.load(__package__)
PUBLICATION = "supabase_realtime"
"""The publication that names the tables whose changes clients may ask for."""

_OPERATORS: Mapping[Operator, str] = {
    Operator.EQ: "=", Operator.NEQ: "<>", Operator.LT: "<", Operator.LTE: "<=", Operator.GT: ">", Operator.GTE: ">=",
    Operator.LIKE: "like", Operator.ILIKE: "ilike", Operator.MATCH: "~", Operator.IMATCH: "~*",
    Operator.IS_DISTINCT: "is distinct from",
}  # fmt: skip
_MOST_OPERANDS = 20_000
_SNAPSHOT: tuple[Query, Params] = (_SQL["snapshot"], {})
_PATTERNS = frozenset({Operator.LIKE, Operator.ILIKE, Operator.MATCH, Operator.IMATCH})
_columns = msgspec.json.Decoder(list[tuple[str, str, str, str, bool, bool]])


class _Version(NamedTuple):
    """One version of a row. `id` is even for the row that a change leaves or deletes, odd for that before an update."""

    id: int
    row: Row
    event: Event


class RowRights:
    """Decides which changes of rows callers may see. Its methods raise Unavailable if the database does not answer.

    Args:
        pool: asks as the caller.
        trusted: returns a table as a role may read it, if that is known to be up to date.
        deletes_by_key: send a `DELETE` whose old row cannot be checked to all callers, with its key, as Supabase does.
    """

    def __init__(
        self, pool: CallerPool, *, deletes_by_key: bool, trusted: Callable[[str, int], RowTable | None]
    ) -> None:
        self._pool = pool
        self._trusted = trusted
        self.deletes_by_key = deletes_by_key
        # By role and id, from the last answer: the question of policies depends on the role alone.
        self._known: dict[tuple[str, int], RowTable] = {}
        # Joins and reviews of many clients ask for the same again.
        self._operands: dict[tuple[str, tuple[str, ...]], tuple[bytes, ...]] = {}
        self._private: set[RowTable] = set()  # tables with policies that their callers cannot evaluate

    async def operands(self, identity: Identity, type_sql: str, values: Sequence[str]) -> tuple[bytes, ...]:
        """Return the JSON of values of a type. Raise BadRequest with the database's words if they are none."""
        key = (type_sql, tuple(values))
        if key not in self._operands:
            query = sql.SQL(_SQL["operand"]).format(type=sql.SQL(type_sql.replace("%", "%%"))).as_bytes()
            found = (await self._one(identity, query, {"values": list(values)}))[0]
            if len(self._operands) >= _MOST_OPERANDS:
                self._operands.clear()
            self._operands[key] = tuple(text.encode() for text in found)
        return self._operands[key]

    async def check_pattern(self, identity: Identity, condition: Condition) -> None:
        """Raise BadRequest with the database's words if a condition's pattern is malformed."""
        await self._one(identity, *_test_query(Test(condition, "text", "text", "text", ()), b'""'))

    async def tested(self, identity: Identity, tests: Sequence[tuple[Test, bytes]]) -> list[bool]:
        """Return for each test and value whether it holds. A test that raises an error does not."""
        if not tests:
            return []
        try:
            answers = await self._pool.ask(identity, *[_test_query(test, value) for test, value in tests])
        except psycopg.Error as error:
            if len(tests) == 1:
                observe.policy_failed("a filter", error)
                return [False]
            return [held for each in tests for held in await self.tested(identity, [each])]
        return [bool(row[0]) for (row,) in answers]

    async def _one(self, identity: Identity, query: Query, params: Params) -> TupleRow:
        try:
            ((row,),) = await self._pool.ask(identity, (query, params), lane=Lane.CONNECT)
        except psycopg.Error as error:
            raise BadRequest("bad_filter", (error.diag.message_primary or str(error)).strip()) from error
        return row

    async def seen(self, identity: Identity, events: Sequence[tuple[Event, int]]) -> dict[int, SeenChange]:
        """Return what the caller sees of changes, each with the id of its relation, by offset."""
        found: dict[int, SeenChange] = {}
        by_relation: dict[int, list[Event]] = {}
        for event, relation in events:
            by_relation.setdefault(relation, []).append(event)
        for relation, ours in by_relation.items():
            found.update(await self._seen(identity, relation, ours))
        return found

    async def _seen(self, identity: Identity, relation: int, events: Sequence[Event]) -> dict[int, SeenChange]:
        """Decide about the changes of one relation, once the snapshot sees all of their transactions."""
        # While policies are told of in commit order, they need not be read with each answer.
        trusted = self._trusted(identity.role, relation)
        async for _ in self._pool.until_visible():
            table = trusted or self._known.get((identity.role, relation))
            asked = [_SNAPSHOT if trusted is not None else tables_query([relation])]
            evaluated, selected = self._versions(events, table)
            if table is not None and evaluated:
                asked.append(rows_query(table, [(version.id, version.row) for version in evaluated]))
            if table is not None and (by_key := _select_query(table, selected)) is not None:
                asked.append(by_key)
            try:
                rows, *answers = await self._pool.ask(identity, *asked)
            except (psycopg.Error, Forbidden) as error:
                # The table may have changed since the question was made, or a policy has raised an error.
                if not await self._is_known(identity, relation, table):
                    trusted = None  # the notice of the change is still to come
                    continue
                if table is not None and isinstance(error, Forbidden) and table not in self._private:
                    # The caller may be bound by a policy whose parts it may not name, such as a function in a private
                    # schema. A policy is read once, by the owner; so the rows themselves are asked for.
                    self._private.add(table)
                    continue
                return await self._one_by_one(identity, relation, events, error)
            if not rows:
                self._known.pop((identity.role, relation), None)
                return {}
            now = trusted or read_table(rows[0])
            if trusted is None:
                self._known[identity.role, relation] = now
            snapshot = Snapshot.parse(rows[0][-1])
            if table == now and all(snapshot.sees(event.xid) for event in events):
                allowed = {number for ((found,),) in answers for number in found}
                return self._decided(now, events, allowed)
        raise Unavailable("The policies of a table change faster than they can be read; try again in a moment.")

    def _versions(self, events: Sequence[Event], table: RowTable | None) -> tuple[list[_Version], list[_Version]]:
        """Return the versions on which the policies are evaluated, and those whose rows are selected instead."""
        evaluated: list[_Version] = []
        selected: list[_Version] = []
        if table is None or not table.secured:
            return evaluated, selected
        is_private = table in self._private
        for event in events:
            change = parse_change(event.body)
            if change.type == "TRUNCATE":
                continue
            row, old = _Version(event.offset * 2, change.row, event), _row_before(change)
            if not is_private and table.can_check(change.row):
                evaluated.append(row)
            elif change.type != "DELETE":
                selected.append(row)
            if old is not None and not is_private and table.can_check(old):
                evaluated.append(_Version(event.offset * 2 + 1, old, event))
        return evaluated, selected

    async def _is_known(self, identity: Identity, relation: int, table: RowTable | None) -> bool:
        """Return whether the table is still as it was asked about. Keep it as it is now."""
        (rows,) = await self._pool.ask(identity, tables_query([relation]))
        if rows:
            self._known[identity.role, relation] = read_table(rows[0])
        else:
            self._known.pop((identity.role, relation), None)
        return self._known.get((identity.role, relation)) == table

    async def _one_by_one(
        self, identity: Identity, relation: int, events: Sequence[Event], error: Exception
    ) -> dict[int, SeenChange]:
        """Decide about each change alone; one whose policies raise an error is not seen, as a SELECT would fail."""
        found: dict[int, SeenChange] = {}
        if len(events) == 1:
            observe.policy_failed(str(relation), error)
            return found
        for event in events:
            found.update(await self._seen(identity, relation, [event]))
        return found

    def _decided(self, table: RowTable, events: Sequence[Event], allowed: set[int]) -> dict[int, SeenChange]:
        found: dict[int, SeenChange] = {}
        for event in events:
            change = parse_change(event.body)
            seen: SeenChange | None
            if change.type == "TRUNCATE" or not table.secured:
                seen = SeenChange(table)
            elif change.type == "DELETE" and (table in self._private or not table.can_check(change.row)):
                seen = SeenChange(table, is_gone=True, old_columns=table.key) if self.deletes_by_key else None
            else:
                was_seen = event.offset * 2 + 1 in allowed if _row_before(change) is not None else None
                seen = seen_change(table, is_seen=event.offset * 2 in allowed, was_seen=was_seen)
            if seen is not None:
                found[event.offset] = seen
        return found


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


def _row_before(change: Change) -> Row | None:
    """Return the row before an update, if the change has all of it."""
    return change.old_record if change.type == "UPDATE" and change.has_whole_old_row else None


def rows_query(table: RowTable, rows: Sequence[tuple[int, Row]]) -> tuple[Query, Params]:
    """Return the query that evaluates policies on given rows. They are the operator's own SQL, from the catalog."""
    # psycopg would take a % in a policy for a placeholder.
    permissive, restrictive = (sql.SQL(policy.replace("%", "%%")) for policy in table.policies)
    alias = _name(table.name)
    needed = [column for column in table.columns if table.needed is not None and column.name in table.needed]
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
    query = sql.SQL(_SQL["allowed_rows"]).format(row=source, permissive=permissive, restrictive=restrictive).as_bytes()
    names = table.needed
    texts = [
        _encode_row({name: value for name, value in row.items() if names is None or name in names}) for _, row in rows
    ]
    return query, {"ids": [number for number, _ in rows], "rows": texts}


def _select_query(table: RowTable, versions: Sequence[_Version]) -> tuple[Query, Params] | None:
    """Return the query that finds given rows by their key, as they are now; None for a table without a key.

    A row counts only if it still has the values that the policies read.
    """
    names = [column.name for column in table.columns if column.name in (table.needed or ()) or column.is_key]
    rows = [version for version in versions if all(name in version.row for name in table.key)]
    if not table.key or not rows:
        return None
    columns = [column for column in table.columns if column.name in names]
    same = sql.SQL(" and ").join(
        sql.SQL("(t.{0} is not distinct from v.{0} or not e.version ? {1})").format(
            _name(column.name), sql.Literal(column.name.replace("%", "%%"))
        )
        for column in columns
    )
    query = sql.SQL(_SQL["selected_rows"]).format(
        definitions=sql.SQL(", ").join(map(_definition, columns)), table=_name(table.schema, table.name), same=same
    )  # fmt: skip
    texts = [_encode_row({name: value for name, value in one.row.items() if name in names}) for one in rows]
    return query.as_bytes(), {"ids": [one.id for one in rows], "rows": texts}


def _definition(column: RowColumn) -> sql.Composable:
    return sql.SQL("{} {}").format(_name(column.name), sql.SQL(column.definition.replace("%", "%%")))


def _name(*parts: str) -> sql.Identifier:
    """Return an identifier in a query with parameters, in which psycopg would take a % for one."""
    return sql.Identifier(*(part.replace("%", "%%") for part in parts))


def _encode_row(row: Row) -> str:
    return msgspec.json.encode(row).decode()


def _test_query(test: Test, value: bytes) -> tuple[Query, Params]:
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

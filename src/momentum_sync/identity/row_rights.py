"""Row rights: which changes of rows a caller may see, decided by the database as the caller.

A change is decided on the version of the row that it carries, not on the current row. The policies are evaluated on
given rows, and in the same snapshot the catalog says which policies apply now: an answer about others does not count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import psycopg
from psycopg.rows import TupleRow

from momentum_sync import observe
from momentum_sync.database.connection import Query
from momentum_sync.database.pool import CallerPool, Lane, Params
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import BadRequest, Forbidden, Unavailable
from momentum_sync.eventlog.event import Event
from momentum_sync.identity.decider import seen_change
from momentum_sync.identity.row_queries import (
    SNAPSHOT,
    encode_row,
    evaluated_columns,
    operand_query,
    read_table,
    rows_query,
    select_query,
    selected_columns,
    tables_query,
    test_query,
)
from momentum_sync.identity.row_tables import RowTable, SeenChange
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.realtime_filter import Condition
from momentum_sync.wire.row_change import Change, Row, parse_change
from momentum_sync.wire.row_watch import Test

_MOST_OPERANDS = 20_000
_PAGES = 16


class _Version(NamedTuple):
    """One version of a row. `id` is even for the row that a change leaves or deletes, odd for that before an update."""

    id: int
    row: Row


class _Question(NamedTuple):
    """A question about versions of rows. Versions with the same values are asked about once.

    Attributes:
        query: it returns indexes into `ids`, and the snapshot.
        ids: the versions with each of the rows asked about.
    """

    query: tuple[Query, Params]
    ids: list[list[int]]


class _Page(NamedTuple):
    """Changes of one table, and the questions about them, which are the same for all callers.

    Attributes:
        table: as the callers' role may read it.
        is_private: the policies cannot be evaluated by callers.
        events: the changes, by offset.
        open: offsets of changes that all callers see.
        keys: offsets of deleted rows that cannot be checked.
        questions: what has to be asked.
    """

    table: RowTable
    is_private: bool
    events: dict[int, Event]
    open: list[int]
    keys: list[int]
    questions: list[_Question]


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
        self._pages: dict[tuple[int, ...], _Page] = {}  # asked about for one caller after the other

    async def operands(self, identity: Identity, type_sql: str, values: Sequence[str]) -> tuple[bytes, ...]:
        """Return the JSON of values of a type. Raise BadRequest with the database's words if they are none."""
        key = (type_sql, tuple(values))
        plain = [plain_operand(type_sql, value) for value in values]
        if None not in plain:
            return tuple(each for each in plain if each is not None)
        if key not in self._operands:
            found = (await self._one(identity, *operand_query(type_sql, values)))[0]
            if len(self._operands) >= _MOST_OPERANDS:
                self._operands.clear()
            self._operands[key] = tuple(text.encode() for text in found)
        return self._operands[key]

    async def check_pattern(self, identity: Identity, condition: Condition) -> None:
        """Raise BadRequest with the database's words if a condition's pattern is malformed."""
        await self._one(identity, *test_query(Test(condition, "text", "text", "text", ()), b'""'))

    async def tested(self, identity: Identity, tests: Sequence[tuple[Test, bytes]]) -> list[bool]:
        """Return for each test and value whether it holds. A test that raises an error does not."""
        if not tests:
            return []
        try:
            answers = await self._pool.ask(identity, *[test_query(test, value) for test, value in tests])
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
        """Return the visible part of changes, each with the id of its relation, by offset."""
        found: dict[int, SeenChange] = {}
        by_relation: dict[int, list[Event]] = {}
        for event, relation in events:
            by_relation.setdefault(relation, []).append(event)
        for relation, ours in by_relation.items():
            found.update(await self._seen(identity, relation, ours))
        return found

    async def _seen(self, identity: Identity, relation: int, events: Sequence[Event]) -> dict[int, SeenChange]:
        """Decide about the changes of one relation, once the snapshot sees all of their transactions."""
        # While events report policies in commit order, they need not be read with each answer.
        trusted = self._trusted(identity.role, relation)
        async for _ in self._pool.until_visible():
            table = trusted or self._known.get((identity.role, relation))
            page = None if table is None else self._page(table, events)
            queries = [question.query for question in page.questions] if page is not None else []
            if trusted is None or not queries:
                queries.append(SNAPSHOT if trusted is not None else tables_query([relation]))
            try:
                answers = await self._pool.ask(identity, *queries)
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
            if not answers[-1]:
                self._known.pop((identity.role, relation), None)
                return {}
            now = trusted or read_table(answers[-1][0])
            if trusted is None:
                self._known[identity.role, relation] = now
            snapshot = Snapshot.parse(answers[-1][0][-1])
            if page is not None and table == now and all(snapshot.sees(event.xid) for event in events):
                return self._decided(page, [row[0] for (row,) in answers[: len(page.questions)]])
        raise Unavailable("The policies of a table change faster than they can be read; try again in a moment.")

    def _page(self, table: RowTable, events: Sequence[Event]) -> _Page:
        """Return the questions about changes. Callers with the same events share it."""
        is_private = table in self._private
        key = (id(table), *map(id, events))  # the page holds these objects
        page = self._pages.get(key)
        if page is None or page.is_private is not is_private:
            page = _page(table, events, is_private=is_private)
            while len(self._pages) >= _PAGES:
                del self._pages[next(iter(self._pages))]
            self._pages[key] = page
        return page

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

    def _decided(self, page: _Page, answers: Sequence[Sequence[int]]) -> dict[int, SeenChange]:
        table = page.table
        found = dict.fromkeys(page.open, SeenChange(table))
        if self.deletes_by_key:
            found |= dict.fromkeys(page.keys, SeenChange(table, is_gone=True, old_columns=table.key))
        allowed = {
            number
            for question, places in zip(page.questions, answers, strict=True)
            for place in places
            for number in question.ids[place]
        }
        for offset in {number // 2 for number in allowed}:
            has_before = _row_before(parse_change(page.events[offset].body)) is not None
            was_seen = offset * 2 + 1 in allowed if has_before else None
            seen = seen_change(table, is_seen=offset * 2 in allowed, was_seen=was_seen)
            if seen is not None:
                found[offset] = seen
        return found


def _page(table: RowTable, events: Sequence[Event], *, is_private: bool) -> _Page:
    evaluated: list[_Version] = []
    selected: list[_Version] = []
    page = _Page(table, is_private, {event.offset: event for event in events}, [], [], [])
    for event in events:
        change = parse_change(event.body)
        if change.type == "TRUNCATE" or not table.secured:
            page.open.append(event.offset)
            continue
        row, old = _Version(event.offset * 2, change.row), _row_before(change)
        if not is_private and table.can_check(change.row):
            evaluated.append(row)
        elif change.type == "DELETE":
            page.keys.append(event.offset)
        elif table.key and all(name in change.row for name in table.key):
            selected.append(row)
        if old is not None and not is_private and table.can_check(old):
            evaluated.append(_Version(event.offset * 2 + 1, old))
    if evaluated:
        rows, ids = _distinct(evaluated, evaluated_columns(table))
        page.questions.append(_Question(rows_query(table, rows), ids))
    if selected:
        rows, ids = _distinct(selected, selected_columns(table))
        page.questions.append(_Question(select_query(table, rows), ids))
    return page


def _distinct(versions: Sequence[_Version], columns: frozenset[str] | None) -> tuple[list[str], list[list[int]]]:
    """Return the distinct rows as JSON, and the versions with each."""
    found: dict[str, list[int]] = {}
    for version in versions:
        found.setdefault(encode_row(version.row, columns), []).append(version.id)
    return list(found), list(found.values())


def _row_before(change: Change) -> Row | None:
    """Return the row before an update, if the change has all of it."""
    return change.old_record if change.type == "UPDATE" and change.has_whole_old_row else None


_PLAIN: Mapping[str, re.Pattern[str]] = {
    "uuid": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "text": re.compile(r"[\w .@:-]*", re.ASCII),
    **dict.fromkeys(("integer", "bigint"), re.compile(r"0|-?[1-9]\d{0,8}")),
}


def plain_operand(type_sql: str, value: str) -> bytes | None:
    """Return the JSON of a value that needs no database: each client of a table may filter by another one."""
    pattern = _PLAIN.get(type_sql)
    if pattern is None or pattern.fullmatch(value) is None:
        return None
    return value.encode() if type_sql in ("integer", "bigint") else b'"' + value.encode() + b'"'

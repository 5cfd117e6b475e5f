"""Policies compiled for decisions without the database, and kept up to date.

A policy is compiled if its form is known (`policy_parser`), and if the database then decides the same about made-up
rows for made-up callers. A changed policy precedes, as an event, the changes that it applies to, where the event
trigger of the migrations is installed; without it, nothing is compiled, and every change is checked.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
import psycopg
from psycopg.rows import TupleRow

from momentum_sync import observe
from momentum_sync.database import queries
from momentum_sync.database.connection import Query
from momentum_sync.database.pool import CallerPool, Lane, Params
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import RequestError, Unauthenticated
from momentum_sync.identity.decider import Decider
from momentum_sync.identity.policy import (
    All,
    Any,
    Claim,
    Condition,
    Constant,
    Equal,
    Holds,
    IsNull,
    Kind,
    Not,
    NotDecidable,
    Operand,
    Value,
    bind,
    decide,
)
from momentum_sync.identity.policy_parser import KINDS, parse_policies
from momentum_sync.identity.row_queries import read_table, rows_query, tables_query
from momentum_sync.identity.row_tables import RowTable
from momentum_sync.identity.tokens import Identity, service_role

_SQL = queries.load(__package__)
_MOST_ROWS = 200  # made-up rows
_MOST_COMPILED = 10_000
_MOST_ADMITTED = 50_000
_MOST_REVOCATIONS = 50_000
_USERS = ("3f0c2f6e-2c1b-4f6e-9d8e-5a1b7c9d0e11", "9a7d1b52-6b0f-4e1c-8a52-0c4e8f3b7d22")
_GUESSES: Mapping[Kind, tuple[Value, ...]] = {
    Kind.UUID: _USERS, Kind.TEXT: ("", "other", *_USERS), Kind.INTEGER: (0, 1, 7), Kind.BOOLEAN: (True, False),
}  # fmt: skip
_bodies = msgspec.json.Decoder(dict[str, str])
_claims = msgspec.json.Decoder(dict[str, object])
_times = msgspec.json.Decoder(dict[str, float])
# A body of `auth.uid()` and its like that depends on the claims alone: it reads no table.
_PLAIN = re.compile(
    r"(?:\s|select\b|coalesce\b|nullif\b|current_setting\b|true\b|uuid\b|jsonb?\b|text\b|'[^']*'|::|->>?|[(),;])+",
    re.IGNORECASE,
)


class CompiledPolicies:
    """The policies of published tables, by role.

    Args:
        pool: asks as the caller.
        interval_s: interval at which the catalog is read again, for changes without an event.

    Attributes:
        generation: counts changes; a decider of an earlier one must not be used.
    """

    def __init__(self, pool: CallerPool, *, interval_s: float) -> None:
        self._pool = pool
        self._interval_s = interval_s
        self.generation = 0
        self._changed_by: list[int] = []
        self._tables: dict[tuple[str, int], RowTable | None] = {}
        self._published: dict[str, list[int]] = {}
        self._lists: dict[str, list[RowTable]] = {}
        self._admitted: set[Identity] = set()
        self._revoked: dict[str, float] | None = None  # by user, as far as all are known
        self._locks: dict[object, asyncio.Lock] = {}
        # None for a table with policies that are not compiled.
        self._conditions: dict[RowTable, Condition | None] = {}
        self._reasons: dict[RowTable, tuple[str, ...]] = {}
        self._on_change: Callable[[], None] = lambda: None
        self._others: list[Callable[[], Awaitable[bool]]] = []

    def report(self, on_change: Callable[[], None]) -> None:
        """Register `on_change`, which is called when the policies of a table have changed without an event."""
        self._on_change = on_change

    def also(self, has_changed: Callable[[], Awaitable[bool]]) -> None:
        """Ask this, too, when the catalog is read again."""
        self._others.append(has_changed)

    def is_current(self, snapshot: Snapshot) -> bool:
        """Return whether a snapshot sees every change so far."""
        return all(snapshot.sees(xid) for xid in self._changed_by)

    def changed(self, xid: int) -> None:
        """Note that a transaction has changed policies, or objects that they depend on. Older answers do not count."""
        self._changed_by = [*self._changed_by[-99:], xid]
        self._forget()

    def missed(self) -> None:
        """Forget everything: changes may have been missed, and transaction ids of another primary mean nothing."""
        self._changed_by = []
        self._admitted = set()
        self._revoked = None
        self._forget()

    def _forget(self) -> None:
        self.generation += 1
        self._tables = {}
        self._conditions = {}  # a function may be another one now
        self._reasons = {}
        self._lists = {}

    async def decider(self, identity: Identity, relation: int) -> Decider | None:
        """Return the decider of a table's changes for a caller; None if the database has to.

        Raises:
            Unavailable: the database does not answer.
        """
        key = (identity.role, relation)
        while key not in self._tables:
            async with self._locks.setdefault(key, asyncio.Lock()):  # many ask at once after a restart
                generation = self.generation
                if key not in self._tables:
                    table = await self._load(identity, relation)
                    if generation == self.generation:
                        self._tables[key] = table
        table = self._tables[key]
        condition = None if table is None else self._conditions.get(table)
        if table is None or condition is None:
            return None
        try:
            return Decider(table, bind(condition, _claims.decode(identity.claims)))
        except NotDecidable:
            return None

    def trusted(self, role: str, relation: int) -> RowTable | None:
        """Return a table as a role may read it; None if that is not known, or if its changes have no event."""
        return self._tables.get((role, relation))

    def reasons(self, role: str, relation: int) -> tuple[str, ...]:
        """Return why a table's policies are not compiled for a role, as far as that is known."""
        table = self._tables.get((role, relation))
        return () if table is None else self._reasons.get(table, ())

    async def _load(self, identity: Identity, relation: int) -> RowTable | None:
        """Return the table as it is, once the snapshot sees every change so far; None if its changes have no event."""
        async for _ in self._pool.until_visible():
            ((tells, functions),), rows = await self._pool.ask(
                identity, (_SQL["tells_policies"], {}), tables_query([relation]), lane=Lane.CONNECT
            )
            if not rows or not tells:
                return None
            snapshot = Snapshot.parse(rows[0][-1])
            if self.is_current(snapshot):
                break
        table = read_table(rows[0])
        if len(self._conditions) >= _MOST_COMPILED:
            self._conditions.clear()
            self._reasons.clear()
        if table not in self._conditions:
            self._conditions[table] = await self._compile(identity, table, _bodies.decode(functions))
        return table

    async def _compile(self, identity: Identity, table: RowTable, functions: Mapping[str, str]) -> Condition | None:
        if not table.secured:
            return All(())
        kinds = {column.name: kind for column in table.columns if (kind := KINDS.get(column.type_name)) is not None}
        try:
            for name, body in functions.items():
                if not _PLAIN.fullmatch(body):
                    raise NotDecidable(f"the function auth.{name}() is not the usual one")
            condition = parse_policies(*table.policies, table.name, kinds)
            await self._prove(identity, table, condition, kinds)
        except (NotDecidable, RequestError, psycopg.Error) as error:
            reasons = error.reasons if isinstance(error, NotDecidable) else (observe.described(error),)
            self._reasons[table] = reasons
            observe.policy_not_compiled(f"{table.schema}.{table.name}", identity.role, "; ".join(reasons))
            return None
        return condition

    async def _prove(
        self, identity: Identity, table: RowTable, condition: Condition, kinds: Mapping[str, Kind]
    ) -> None:
        """Compare the condition with the policies themselves. Raise NotDecidable if the database decides otherwise."""
        rows = list(_made_up_rows(condition, table, kinds))
        if table.needed is None:
            raise NotDecidable("a policy reads the row as a whole")
        encoded = [msgspec.json.encode(row).decode() for row in rows]
        for claims in _made_up_claims(condition, identity.role):
            try:
                bound = bind(condition, claims)
            except NotDecidable:
                continue
            caller = Identity(identity.role, None, msgspec.json.encode(claims).decode(), None)
            ((allowed,),) = await self._pool.ask(caller, rows_query(table, encoded), lane=Lane.CONNECT)
            decided = {number for number, row in enumerate(rows) if decide(bound, row) is True}
            if set(allowed[0]) != decided:
                raise NotDecidable("the database decides otherwise")

    # Changes without an event

    async def published(self, identity: Identity) -> list[RowTable]:
        """Return the published tables that the caller may select from. Raise Unauthenticated for a revoked token."""
        await self.admit(identity)
        while (tables := self._lists.get(identity.role)) is None:
            async with self._locks.setdefault(identity.role, asyncio.Lock()):
                generation = self.generation
                if identity.role not in self._lists:
                    rows = await self._ask_visible(identity, tables_query(None))
                    found = [read_table(row) for row in rows]
                    self._published[identity.role] = [table.oid for table in found]
                    if generation == self.generation:
                        self._lists[identity.role] = found
        return tables

    async def _ask_visible(self, identity: Identity, query: tuple[Query, Params]) -> list[TupleRow]:
        """Ask as a caller, once the snapshot sees every change so far."""
        rows: list[TupleRow] = []
        async for _ in self._pool.until_visible():
            here, rows = await self._pool.ask(identity, (_SQL["snapshot"], {}), query, lane=Lane.CONNECT)
            if self.is_current(Snapshot.parse(here[0][0])):
                break
        return rows

    # Revoked tokens

    async def admit(self, identity: Identity) -> None:
        """Raise Unauthenticated for a revoked token. Where all revocations are known, no query is needed."""
        if identity in self._admitted:
            return
        admitted = self._admitted
        if self._revoked is None:
            async with self._locks.setdefault("revocations", asyncio.Lock()):
                if self._revoked is None:
                    await self._load_revocations()
        revoked = self._is_revoked(identity)
        if revoked is None:
            await self._ask_visible(identity, (_SQL["snapshot"], {}))  # the database refuses it
        elif revoked:
            raise Unauthenticated("The token was revoked.", "token_revoked")
        if len(admitted) >= _MOST_ADMITTED:
            admitted.clear()
        admitted.add(identity)  # a revocation replaces the set

    def _is_revoked(self, identity: Identity) -> bool | None:
        """Return whether a token was revoked; None if only the database knows."""
        if self._revoked is None:
            return None
        at = self._revoked.get(str(identity.subject))
        issued = _claims.decode(identity.claims).get("iat", 0)
        if at is None:
            return False
        return issued <= at if isinstance(issued, int | float) else None

    async def _load_revocations(self) -> None:
        admitted = self._admitted
        async for _ in self._pool.until_visible():
            question = (_SQL["revocations"], {"most": _MOST_REVOCATIONS + 1})
            (((text, found),),) = await self._pool.ask(service_role(), question, lane=Lane.CONNECT)
            if self.is_current(Snapshot.parse(text)):
                break
        revoked = None if found is None else _times.decode(found)
        # With too many, or after a further revocation, each token is asked about.
        if revoked is not None and len(revoked) <= _MOST_REVOCATIONS and admitted is self._admitted:
            self._revoked = revoked

    def revoked(self, xid: int) -> None:
        """Note that a transaction has revoked tokens: those that were admitted are looked at again."""
        self.generation += 1  # a join that is under way is looked at again, too
        self._changed_by = [*self._changed_by[-99:], xid]
        self._admitted = set()
        self._revoked = None

    async def run(self) -> None:
        """Read the catalog again at intervals, for ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                if await self._is_outdated() or any([await has_changed() for has_changed in self._others]):
                    self._forget()
                    self._on_change()
            except (RequestError, psycopg.Error) as error:
                observe.failed("the policies of published tables", error)

    async def _is_outdated(self) -> bool:
        for role in {role for role, _ in self._tables} | self._published.keys():
            caller = Identity(role, None, msgspec.json.encode({"role": role}).decode(), None)
            known = {
                relation: table for (by, relation), table in self._tables.items() if by == role and table is not None
            }
            (rows, listed) = await self._pool.ask(caller, tables_query(sorted(known)), tables_query(None))
            now = {row[0]: read_table(row) for row in rows}
            if any(now.get(relation) != table for relation, table in known.items()):
                return True
            oids = [row[0] for row in listed]
            if self._published.get(role, oids) != oids:
                self._published[role] = oids
                return True
        return False


def _made_up_rows(condition: Condition, table: RowTable, kinds: Mapping[str, Kind]) -> Sequence[dict[str, Value]]:
    """Return rows with the columns that the policies read, in combinations of telling values."""
    constants = [each.value for each in _operands(condition) if isinstance(each, Constant)]
    names = sorted(table.needed or ())
    choices: list[list[Value]] = []
    for name in names:
        kind = kinds.get(name)
        if kind is None:
            raise NotDecidable(f"column {name}")
        fitting = [value for value in constants if isinstance(value, bool) == (kind is Kind.BOOLEAN)]
        texts = kind in (Kind.TEXT, Kind.UUID)
        fitting = [value for value in fitting if isinstance(value, str) == texts]
        if kind is Kind.UUID:
            fitting = [value for value in fitting if len(str(value)) == 36]
        choices.append(list(dict.fromkeys([*fitting, *_GUESSES[kind], None])))
    total = math.prod(map(len, choices))
    rows: list[dict[str, Value]] = []
    for number in range(min(total, _MOST_ROWS)):
        # Spread over all combinations; 7,919 is a prime.
        place = number if total <= _MOST_ROWS else number * 7_919 % total
        row: dict[str, Value] = {}
        for name, values in zip(names, choices, strict=True):
            place, index = divmod(place, len(values))
            row[name] = values[index]
        rows.append(row)
    return rows


def _made_up_claims(condition: Condition, role: str) -> list[dict[str, object]]:
    """Return claims of several callers: with and without the claims that the policies read."""
    constants = [each.value for each in _operands(condition) if isinstance(each, Constant)]
    texts = [value for value in constants if isinstance(value, str)] or ["other"]
    found: list[dict[str, object]] = [{"role": role}, {"role": role, "sub": _USERS[0]}]
    for text in texts[:4]:
        claims: dict[str, object] = {"role": role, "sub": _USERS[1]}
        for claim in (each for each in _operands(condition) if isinstance(each, Claim)):
            if claim.path[0] not in claims:
                _put(claims, claim.path, "7" if claim.kind is Kind.INTEGER else text)
        found.append(claims)
    return found


def _put(claims: dict[str, object], path: Sequence[str], value: str) -> None:
    for name in path[:-1]:
        inner = claims.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        claims = inner
    claims[path[-1]] = value


def _operands(condition: Condition) -> list[Operand]:
    match condition:
        case Equal(left, right):
            return [left, right]
        case IsNull(operand) | Holds(operand):
            return [operand]
        case Not(part):
            return _operands(part)
        case All(parts) | Any(parts):
            return [operand for part in parts for operand in _operands(part)]

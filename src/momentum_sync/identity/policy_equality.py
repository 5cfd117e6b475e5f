"""Proves that two sets of policies, as the catalog prints them, allow an authenticated caller the same rows.

Each set is read as one condition in SQL's logic of three values. Its atoms are comparisons, subqueries, and policies
of a form that is not read, which are compared by their text. Two conditions are equal if each choice of values of the
atoms makes both true or neither. So `True` is a proof; `False` only means that none was found.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

from momentum_sync.identity.policy import (
    All,
    Any,
    Claim,
    Column,
    Condition,
    Constant,
    Equal,
    Holds,
    Kind,
    Not,
    NotDecidable,
    Operand,
    decide,
)
from momentum_sync.identity.policy_parser import KINDS, PolicyParser, function_name
from momentum_sync.schema import Schema

_MOST_ATOMS = 8  # of which there are three to that power of choices
_KINDS = ("permissive", "restrictive")
# The callers have this role; a policy for others is false for them.
_ROLE = Constant("authenticated", Kind.TEXT)
_MOST_STEPS = 200_000  # conditions that are decided, about half a second
_ONE, _BOTH = frozenset({"this"}), frozenset({"this", "expression"})
_JSON = _BOTH | {"only_json_types"}
# The parts of a subquery that are read in full. A node with any other part is not compared.
_READ: Mapping[type[exp.Expr], frozenset[str]] = {
    exp.And: _BOTH, exp.Or: _BOTH, exp.EQ: _BOTH, exp.Dot: _BOTH, exp.Not: _ONE, exp.Paren: _ONE, exp.Exists: _ONE,
    exp.Subquery: _ONE, exp.From: _ONE, exp.Where: _ONE, exp.TableAlias: _ONE, exp.DataType: _ONE, exp.Boolean: _ONE,
    exp.In: frozenset({"this", "query"}), exp.Select: frozenset({"expressions", "from_", "where"}),
    exp.Table: frozenset({"this", "db", "alias"}), exp.Column: frozenset({"this", "table"}),
    exp.Identifier: frozenset({"this", "quoted"}), exp.Alias: frozenset({"this", "alias"}),
    exp.Literal: frozenset({"this", "is_string"}), exp.Cast: frozenset({"this", "to"}), exp.Anonymous: _ONE,
    exp.JSONExtract: _JSON, exp.JSONExtractScalar: _JSON,
}  # fmt: skip
_INNER = "\0inner"  # no name in PostgreSQL has this character


class Described(NamedTuple):
    """A description of a table's policies, by `momentum.describe_policies`.

    Attributes:
        facts: lines about the table and its privileges.
        policies: lines `permissive EXPRESSION` and `restrictive EXPRESSION`.
    """

    facts: list[str]
    policies: list[str]


def read_description(described: str) -> Described:
    """Read the lines of a description; an expression may span several."""
    found = Described([], [])
    lines = found.facts
    for line in described.split("\n"):
        if line.startswith(("row level", "readable", "assignments", "role ", "unknown", "no such")):
            lines = found.facts
            lines.append(line)
        elif line.startswith(("permissive ", "restrictive ")):
            lines = found.policies
            lines.append(line)
        elif lines:
            lines[-1] += "\n" + line
    return found


def are_equal(one: str, other: str, schema: Schema, table: str) -> bool:
    """Return whether two descriptions of a table's policies are shown to be equal.

    Args:
        one: a description, by `momentum.describe_policies`.
        other: another of the same table.
        schema: the app's tables; their functions, of which the descriptions tell if one is another than it was.
        table: the table.
    """
    left, right = read_description(one), read_description(other)
    if left == right:
        return True
    if left.facts != right.facts:
        return False
    functions = {name: Claim(path, Kind.TEXT) for name, path in schema.claims.items()}
    columns = {
        column.name: KINDS[column.type]
        for spec in schema.tables
        if spec.name == table
        for column in (*spec.key, *spec.version)
        if column.type in KINDS
    }
    reader = _Reader(PolicyParser("", columns, functions), frozenset({"auth.uid", "auth.role", "auth.jwt", *functions}))
    try:
        return _are_equal(_condition(left.policies, reader), _condition(right.policies, reader))
    except RecursionError:
        return False


def _are_equal(*conditions: Condition) -> bool:
    atoms = sorted({atom for condition in conditions for atom in _atoms(condition)}, key=repr)
    if len(atoms) > _MOST_ATOMS or 3 ** len(atoms) * sum(map(_size, conditions)) > _MOST_STEPS:
        return False
    names = [f"{number}" for number in range(len(atoms))]
    replaced = dict(zip(atoms, (Holds(Column(name, Kind.BOOLEAN)) for name in names), strict=True))
    left_simple, right_simple = (_replace(condition, replaced) for condition in conditions)
    for values in itertools.product((True, False, None), repeat=len(atoms)):
        row = dict(zip(names, values, strict=True))
        if (decide(left_simple, row) is True) != (decide(right_simple, row) is True):
            return False
    return True


class _Reader:
    """Reads one expression; a part that the parser does not know becomes an atom, named by its text."""

    def __init__(self, parser: PolicyParser, functions: frozenset[str]) -> None:
        self._parser = parser
        self._functions = functions  # others may be volatile: two calls in one expression may differ

    def read(self, text: str) -> Condition:
        try:
            return self._condition(parse_one(text, dialect="postgres"))
        except (SqlglotError, RecursionError, NotDecidable):
            return _opaque(text)

    def _condition(self, node: exp.Expr) -> Condition:
        match node:
            case exp.Paren():
                return self._condition(node.this)
            case exp.And():
                return All((self._condition(node.left), self._condition(node.right)))
            case exp.Or():
                return Any((self._condition(node.left), self._condition(node.right)))
            case exp.Not():
                return Not(self._condition(node.this))
        try:
            return self._parser.condition(node)
        except NotDecidable:
            if not all(self._is_read(each) for each in node.walk()):
                raise
            return _opaque(_normal(node).sql(dialect="postgres"))

    def _is_read(self, node: exp.Expr) -> bool:
        if isinstance(node, exp.Anonymous) and not isinstance(node.parent, exp.Dot):
            return False
        if isinstance(node, exp.Dot) and function_name(node) not in self._functions:
            return False
        if isinstance(node, exp.Subquery) and isinstance(node.this, exp.Select) and len(node.this.expressions) != 1:
            return False
        read = _READ.get(type(node))
        return read is not None and set(_given(node)) <= read


def _condition(policies: Sequence[str], reader: _Reader) -> Condition:
    """Return the condition of the lines of policies. Without a permissive one, nothing is allowed."""
    read: dict[str, list[Condition]] = {kind: [] for kind in _KINDS}
    for line in policies:
        kind, _, text = line.partition(" ")
        read[kind].append(reader.read(text))
    return All((Any(tuple(read["permissive"])), *read["restrictive"]))


def _given(node: exp.Expr) -> list[str]:
    return [name for name, value in node.args.items() if value]


def _opaque(text: str) -> Condition:
    # No column of PostgreSQL can have this name.
    return Holds(Column(f"\0{text}", Kind.BOOLEAN))


def _normal(node: exp.Expr) -> exp.Expr:
    """Return a subquery on one table without its alias, equalities in one order, and `(select f())` as `f()`."""
    tables = list(node.find_all(exp.Table))
    alias = tables[0].alias or tables[0].name if len(tables) == 1 else None

    def change(each: exp.Expr) -> exp.Expr:
        if isinstance(each, exp.Subquery) and not (set(_given(each.this)) - {"expressions"}):
            inner = each.this.expressions[0]
            found = inner.this if isinstance(inner, exp.Alias) else inner
            assert isinstance(found, exp.Expr)
            return found
        if isinstance(each, exp.Table) and alias is not None:
            each.set("alias", None)
        if isinstance(each, exp.Column) and each.table == alias:
            each.set("table", exp.to_identifier(_INNER, quoted=True))
        return each

    changed = node.copy().transform(change)
    for equality in changed.find_all(exp.EQ):
        left, right = sorted((equality.left, equality.right), key=lambda side: side.sql(dialect="postgres"))
        equality.set("this", left)
        equality.set("expression", right)
    return changed


def _atoms(condition: Condition) -> Set[Condition]:
    match condition:
        case Not(part):
            return _atoms(part)
        case All(parts) | Any(parts):
            return {atom for part in parts for atom in _atoms(part)}
    atom = _plain(condition)
    return set() if isinstance(atom, bool) else {atom}


def _replace(condition: Condition, replaced: Mapping[Condition, Condition]) -> Condition:
    match condition:
        case Not(part):
            return Not(_replace(part, replaced))
        case All(parts) | Any(parts):
            return type(condition)(tuple(_replace(part, replaced) for part in parts))
    atom = _plain(condition)
    if isinstance(atom, bool):
        return All(()) if atom else Any(())
    return replaced[atom]


def _plain(condition: Condition) -> Condition | bool:
    """Return an atom in the one form that it has; its truth, if it is the same for every row and caller."""
    if not isinstance(condition, Equal):
        return condition
    one, other = sorted((_operand(condition.left), _operand(condition.right)), key=repr)
    if isinstance(one, Constant) and isinstance(other, Constant):
        return one.value == other.value
    return Equal(one, other)


def _operand(operand: Operand) -> Operand:
    return _ROLE if isinstance(operand, Claim) and operand.path == ("role",) else operand


def _size(condition: Condition) -> int:
    match condition:
        case Not(part):
            return 1 + _size(part)
        case All(parts) | Any(parts):
            return 1 + sum(map(_size, parts))
    return 1

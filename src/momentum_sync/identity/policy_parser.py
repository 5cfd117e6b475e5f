"""Reads policies as the catalog prints them. Other forms are left to the database: nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

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
    IsNull,
    Kind,
    Not,
    NotDecidable,
    Operand,
)

Part = TypeVar("Part")

KINDS: Mapping[str, Kind] = {
    "uuid": Kind.UUID, "text": Kind.TEXT, "varchar": Kind.TEXT, "int2": Kind.INTEGER, "int4": Kind.INTEGER,
    "int8": Kind.INTEGER, "bool": Kind.BOOLEAN,
}  # fmt: skip
"""By `pg_type.typname`: the types of columns in conditions."""

_CASTS = {
    exp.DType.TEXT: Kind.TEXT, exp.DType.VARCHAR: Kind.TEXT, exp.DType.UUID: Kind.UUID, exp.DType.INT: Kind.INTEGER,
    exp.DType.BIGINT: Kind.INTEGER,
}  # fmt: skip
_BOTH = frozenset({"this", "expression"})
_ONE = frozenset({"this"})
_PARTS: Mapping[type[exp.Expr], frozenset[str]] = {
    exp.Paren: _ONE, exp.Boolean: _ONE, exp.Not: _ONE, exp.Neg: _ONE, exp.Any: _ONE, exp.Subquery: _ONE,
    exp.And: _BOTH, exp.Or: _BOTH, exp.EQ: _BOTH, exp.NEQ: _BOTH, exp.Is: _BOTH | {"negate"}, exp.Dot: _BOTH,
    exp.Literal: frozenset({"this", "is_string"}), exp.Column: frozenset({"this", "table"}),
    exp.Cast: frozenset({"this", "to"}), exp.Array: frozenset({"expressions"}),
    exp.JSONExtract: frozenset({"this", "expression", "only_json_types"}),
    exp.JSONExtractScalar: frozenset({"this", "expression", "only_json_types"}),
}  # fmt: skip
"""The parts of each kind of node that are read."""

_TRUE, _FALSE = All(()), Any(())
_USER = Claim(("sub",), Kind.UUID)
_USER_AS_TEXT = Claim(("sub",), Kind.TEXT, is_uuid=True)


def parse_policies(permissive: str, restrictive: str, table: str, kinds: Mapping[str, Kind]) -> Condition:
    """Return the condition of a table's policies, both of which must be true.

    Args:
        permissive: as `pg_get_expr` prints them, joined by OR.
        restrictive: the same, joined by AND.
        table: the table's name, which may qualify columns.
        kinds: the types of its columns; columns of other types are missing.

    Raises:
        NotDecidable: some of them have a form that is not known here; with a reason for each.
    """
    parser = PolicyParser(table, kinds)
    return All(_each(parser.read, permissive, restrictive))


class PolicyParser:
    """Reads conditions.

    Args:
        table: the table's name, which may qualify columns.
        kinds: the types of its columns.
        functions: the values of functions without arguments, by `schema.name`, beside those of the schema `auth`.
    """

    def __init__(
        self, table: str, kinds: Mapping[str, Kind], functions: Mapping[str, Operand] = MappingProxyType({})
    ) -> None:
        self._table = table
        self._kinds = kinds
        self._functions = {"auth.uid": _USER, "auth.role": Claim(("role",), Kind.TEXT), **functions}

    def read(self, text: str) -> Condition:
        """Return the condition of a text. Raise NotDecidable."""
        try:
            return self.condition(parse_one(text, dialect="postgres"))
        except (SqlglotError, RecursionError) as error:
            raise NotDecidable("a form that is not known here") from error

    def condition(self, node: exp.Expr) -> Condition:
        """Return the condition of a node. Raise NotDecidable."""
        _check_form(node)
        match node:
            case exp.Paren():
                return self.condition(node.this)
            case exp.Boolean():
                return _TRUE if node.this else _FALSE
            case exp.And():
                return All(_each(self.condition, *_chain(node)))
            case exp.Or():
                return Any(_each(self.condition, *_chain(node)))
            case exp.Not():
                return Not(self.condition(node.this))
            case exp.Is() if isinstance(node.expression, exp.Null):
                found = IsNull(self._operand(node.this))
                return Not(found) if node.args.get("negate") else found
            case exp.EQ() if isinstance(node.expression, exp.Any):
                return self._any(node.this, node.expression)
            case exp.EQ():
                return self._equal(node.left, node.right)
            case exp.NEQ():
                return Not(self._equal(node.left, node.right))
        operand = self._operand(node)
        if operand.kind is not Kind.BOOLEAN:
            raise _unknown(node)
        return Holds(operand)

    def _equal(self, one: exp.Expr, other: exp.Expr) -> Condition:
        left, right = self._operand(one), self._operand(other)
        if left.kind is not right.kind:
            raise NotDecidable(f"{left.kind.value} = {right.kind.value}")
        return Equal(left, right)

    def _any(self, one: exp.Expr, other: exp.Any) -> Condition:
        _check_form(other)
        array = other.this
        while isinstance(array, exp.Paren):
            array = array.this
        if not isinstance(array, exp.Array):
            raise _unknown(array)
        _check_form(array)
        return Any(tuple(self._equal(one, each) for each in array.expressions))

    def _operand(self, node: exp.Expr) -> Operand:
        _check_form(node)
        match node:
            case exp.Paren():
                return self._operand(node.this)
            case exp.Subquery():
                return self._operand(_selected(node))
            case exp.Column():
                return self._column(node)
            case exp.Literal():
                return _literal(node)
            case exp.Boolean():
                return Constant(bool(node.this), Kind.BOOLEAN)
            case exp.Neg() if isinstance(node.this, exp.Literal):
                found = _literal(node.this)
                if isinstance(found.value, int) and found.kind is Kind.INTEGER:
                    return Constant(-found.value, Kind.INTEGER)
            case exp.Cast():
                return self._cast(node)
            case exp.Dot():
                if (value := self._functions.get(function_name(node))) is not None:
                    return value
            case exp.JSONExtractScalar():
                return Claim(_path(node), Kind.TEXT)
        raise _unknown(node)

    def _column(self, node: exp.Column) -> Column:
        name, table = node.this.this, node.table
        if table not in ("", self._table) or name not in self._kinds or node.args.get("db"):
            raise NotDecidable(f"column {name}")
        return Column(name, self._kinds[name])

    def _cast(self, node: exp.Cast) -> Operand:
        inner, wanted = self._operand(node.this), _CASTS.get(node.to.this)
        if wanted is None or node.to.expressions:  # a length would cut the value
            raise NotDecidable(f"cast to {node.to.sql(dialect='postgres')}")
        if wanted is inner.kind:
            return inner
        if wanted is Kind.TEXT and isinstance(inner, Column) and inner.kind is Kind.UUID:
            return Column(inner.name, Kind.TEXT)  # in JSON it is the same
        if wanted is Kind.TEXT and inner == _USER:
            return _USER_AS_TEXT
        if isinstance(inner, Claim) and inner.kind is Kind.TEXT:
            return Claim(inner.path, wanted)
        if isinstance(inner, Constant) and wanted is Kind.UUID and isinstance(inner.value, str):
            return Constant(inner.value.lower(), Kind.UUID)
        raise NotDecidable("cast")


def _chain(node: exp.And | exp.Or) -> list[exp.Expr]:
    """Return the operands of a chain of AND, or of OR. A loop, because a policy may have hundreds of them."""
    found: list[exp.Expr] = []
    waiting: list[exp.Expr] = [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, exp.And | exp.Or) and type(each) is type(node):
            _check_form(each)
            waiting += (each.right, each.left)
        else:
            found.append(each)
    return found


def _each(read: Callable[[Part], Condition], *parts: Part) -> tuple[Condition, ...]:
    """Return the conditions of all parts. Raise NotDecidable with the reasons of all that cannot be read."""
    found: list[Condition] = []
    reasons: dict[str, None] = {}
    for part in parts:
        try:
            found.append(read(part))
        except NotDecidable as error:
            reasons.update(dict.fromkeys(error.reasons))
    if reasons:
        raise NotDecidable(*reasons)
    return tuple(found)


def _check_form(node: exp.Expr) -> None:
    """Raise NotDecidable for a node with a part that is not read here, which may change its meaning."""
    read = _PARTS.get(type(node))
    if read is None or not {name for name, part in node.args.items() if part} <= read:
        raise _unknown(node)


def _unknown(node: exp.Expr) -> NotDecidable:
    return NotDecidable(f"not compiled: {node.sql(dialect='postgres', normalize_functions=False)[:200]}")


def _selected(node: exp.Subquery) -> exp.Expr:
    """Return the one expression of a subquery without a table, as Supabase recommends them: `(select auth.uid())`."""
    select = node.this
    if not isinstance(select, exp.Select) or {name for name, value in select.args.items() if value} != {"expressions"}:
        raise NotDecidable("a subquery")
    (one, *others) = select.expressions
    if others or not isinstance(one, exp.Expr):
        raise NotDecidable("a subquery")
    inner = one.this if isinstance(one, exp.Alias) else one
    assert isinstance(inner, exp.Expr)
    return inner


def _literal(node: exp.Literal) -> Constant:
    if node.is_string:
        return Constant(node.this, Kind.TEXT)
    if str(node.this).isdigit():
        return Constant(int(node.this), Kind.INTEGER)
    raise NotDecidable("a number")


def function_name(node: exp.Dot) -> str:
    """Return the schema and name of a call without arguments; an empty string for anything else."""
    call = node.expression
    if not isinstance(node.this, exp.Identifier) or not isinstance(call, exp.Anonymous) or call.expressions:
        return ""
    return f"{node.this.this}.{call.this}"


def _path(node: exp.Expr) -> tuple[str, ...]:
    """Return the names along `->` and `->>` from `auth.jwt()`."""
    while isinstance(node, exp.Paren):
        node = node.this
    if isinstance(node, exp.Subquery):
        return _path(_selected(node))
    if isinstance(node, exp.Dot) and function_name(node) == "auth.jwt":
        return ()
    if not isinstance(node, exp.JSONExtract | exp.JSONExtractScalar):
        raise _unknown(node)
    _check_form(node)
    name = node.expression
    while isinstance(name, exp.Cast | exp.Paren):
        if isinstance(name, exp.Cast) and name.to.this is not exp.DType.TEXT:
            raise NotDecidable("an index")
        name = name.this
    if not isinstance(name, exp.Literal) or not name.is_string:
        raise NotDecidable("an index")
    return (*_path(node.this), str(name.this))

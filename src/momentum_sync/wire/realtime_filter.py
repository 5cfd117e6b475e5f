"""Filters of `postgres_changes`: `column=[not.]operator.value`, joined by commas, all of which must hold.

Grammar: Supabase, "Realtime Protocol", section "Filters". A value with a comma, a parenthesis, a quotation mark or a
backslash is in double quotes, as in PostgREST. Semantics: those of the SQL operator on the column's type, where null is
neither true nor false.

`holds` decides the common cases on the JSON of a change. A comparison that depends on a collation, on a locale or
on a type's own operators is left to the database.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from enum import Enum

import msgspec


class Operator(Enum):
    """An operator by its name in a filter."""

    EQ = "eq"
    NEQ = "neq"
    LT = "lt"
    LTE = "lte"
    GT = "gt"
    GTE = "gte"
    IN = "in"
    LIKE = "like"
    ILIKE = "ilike"
    IS = "is"
    MATCH = "match"
    IMATCH = "imatch"
    IS_DISTINCT = "isdistinct"


class Condition(msgspec.Struct, frozen=True):
    """One condition of a filter.

    Attributes:
        column: the column.
        operator: the operator.
        negated: whether `not.` stood before it.
        values: its operand, as text; several for `in`.
    """

    column: str
    operator: Operator
    negated: bool
    values: tuple[str, ...]


class MalformedFilter(ValueError):
    """A filter that the grammar does not allow. The text is the one of Supabase's `system` message."""

    def __init__(self, parts: Sequence[str]) -> None:
        super().__init__(f"Error parsing `filter` params: {msgspec.json.encode(list(parts)).decode()}")


MOST_VALUES = 100
"""Values of one `in`, as at Supabase."""

_IS = frozenset({"null", "true", "false", "unknown"})
_OPERATORS = {operator.value: operator for operator in Operator}
# A quoted value, or text up to the next comma: PostgREST, "Reserved characters".
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_NUMBERS = frozenset({"int2", "int4", "int8", "numeric"})
# Equal values have equal text, whatever the collation: PostgreSQL's deterministic collations compare bytes.
_EQUAL_TEXT = frozenset({"uuid", "text", "varchar", "name", "date", "bytea", "oid"})
_ORDER = (Operator.LT, Operator.LTE, Operator.GT, Operator.GTE)
_PATTERN = (Operator.LIKE, Operator.ILIKE, Operator.MATCH, Operator.IMATCH)


def parse_filter(text: str) -> tuple[Condition, ...]:
    """Return the conditions of a filter; none for an empty one. Raise MalformedFilter."""
    conditions: list[Condition] = []
    at = 0
    while at < len(text):
        column, equals, rest = text[at:].partition("=")
        name, dot, _ = rest.partition(".")
        negated = name == "not" and dot == "."
        if negated:
            rest = rest.removeprefix("not.")
            name, dot, _ = rest.partition(".")
        operator = _OPERATORS.get(name)
        if not column.strip() or not equals or not dot or operator is None:
            raise MalformedFilter(text[at:].split("=", 1))
        operand = rest[len(name) + 1 :]
        values, used = _values(operator, operand, text[at:])
        conditions.append(Condition(column.strip(), operator, negated, values))
        at = len(text) - len(operand) + used
        if at < len(text):
            if text[at] != "," or at + 1 == len(text):
                raise MalformedFilter(text.split("=", 1))
            at += 1
    return tuple(conditions)


def _values(operator: Operator, operand: str, whole: str) -> tuple[tuple[str, ...], int]:
    """Return the values at the beginning of the operand, and the characters that they take."""
    malformed = MalformedFilter(whole.split("=", 1))
    if operator is not Operator.IN:
        value, used = _value(operand, ",")
        if operator is Operator.IS and value.lower() not in _IS:
            raise malformed
        return (value.lower() if operator is Operator.IS else value,), used
    if not operand.startswith("("):
        raise malformed
    values: list[str] = []
    at = 1
    while operand[at : at + 1] != ")":
        value, used = _value(operand[at:], ",)")
        values.append(value)
        at += used
        if operand[at : at + 1] == ",":
            at += 1
        elif operand[at : at + 1] != ")":
            raise malformed
    if not 0 < len(values) <= MOST_VALUES:
        raise malformed
    return tuple(values), at + 1


def _value(text: str, ends: str) -> tuple[str, int]:
    """Return the value at the beginning of a text, which ends before one of the characters, and its length there."""
    if (quoted := _QUOTED.match(text)) is not None:
        return _ESCAPE.sub(r"\1", quoted[1]), quoted.end()
    end = min((place for place in map(text.find, ends) if place >= 0), default=len(text))
    return text[:end], end


def holds(condition: Condition, type_name: str, operands: Sequence[bytes], value: bytes) -> bool | None:
    """Return whether a condition is true for a value of its column; None if only the database can tell.

    Args:
        condition: the condition.
        type_name: `pg_type.typname` of the column.
        operands: the JSON of the condition's values as `to_jsonb` makes it of the column's type; not used by `is`.
        value: the JSON of the column's value in a change.
    """
    truth = _truth(condition, type_name, operands, value)
    if truth is _Truth.UNDECIDED:
        return None
    return truth is (_Truth.FALSE if condition.negated else _Truth.TRUE)


class _Truth(Enum):
    """SQL's truth values, and one that only the database can decide."""

    TRUE = "true"
    FALSE = "false"
    NULL = "null"
    UNDECIDED = "undecided"


def _truth(condition: Condition, type_name: str, operands: Sequence[bytes], value: bytes) -> _Truth:
    operator = condition.operator
    is_null = value == b"null" and type_name not in ("json", "jsonb")
    if operator is Operator.IS:
        return _is(condition.values[0], type_name, value, is_null=is_null)
    if operator is Operator.IS_DISTINCT:
        equal = _Truth.FALSE if is_null else _equal(type_name, operands[0], value)
        return _INVERSE[equal]
    if is_null:
        return _Truth.NULL
    if operator is Operator.IN:
        each = [_equal(type_name, operand, value) for operand in operands]
        if _Truth.TRUE in each:
            return _Truth.TRUE
        return _Truth.UNDECIDED if _Truth.UNDECIDED in each else _Truth.FALSE
    if operator in _PATTERN:
        return _Truth.UNDECIDED
    if operator in _ORDER:
        return _ordered(operator, type_name, operands[0], value)
    equal = _equal(type_name, operands[0], value)
    return equal if operator is Operator.EQ else _INVERSE[equal]


_INVERSE = {
    _Truth.TRUE: _Truth.FALSE, _Truth.FALSE: _Truth.TRUE, _Truth.NULL: _Truth.NULL, _Truth.UNDECIDED: _Truth.UNDECIDED,
}  # fmt: skip


def _of(true: bool) -> _Truth:
    return _Truth.TRUE if true else _Truth.FALSE


def _is(wanted: str, type_name: str, value: bytes, *, is_null: bool) -> _Truth:
    if wanted == "null":
        # A composite is null if all of its attributes are.
        simple = is_null or type_name in _NUMBERS or type_name in _EQUAL_TEXT or type_name == "bool"
        return _of(is_null) if simple else _Truth.UNDECIDED
    if wanted == "unknown":
        return _of(is_null)
    return _of(value == wanted.encode())


def _equal(type_name: str, operand: bytes, value: bytes) -> _Truth:
    if type_name in _NUMBERS:
        one, other = _number(operand), _number(value)
        return _Truth.UNDECIDED if one is None or other is None else _of(one == other)
    if type_name in _EQUAL_TEXT or type_name == "bool":
        return _of(msgspec.json.decode(operand) == msgspec.json.decode(value))
    return _Truth.UNDECIDED


def _ordered(operator: Operator, type_name: str, operand: bytes, value: bytes) -> _Truth:
    if type_name not in _NUMBERS:
        return _Truth.UNDECIDED
    limit, number = _number(operand), _number(value)
    if limit is None or number is None:
        return _Truth.UNDECIDED
    match operator:
        case Operator.LT:
            return _of(number < limit)
        case Operator.LTE:
            return _of(number <= limit)
        case Operator.GT:
            return _of(number > limit)
        case _:
            return _of(number >= limit)


def _number(text: bytes) -> Decimal | None:
    """Return a JSON number; None for NaN and infinity, which are strings."""
    return None if text.startswith(b'"') else Decimal(text.decode())

"""Policies that are decided without the database: conditions on a row and a caller's claims.

SQL's logic has three values; None stands for null. Only operators are here whose meaning on JSON values is the same as
in PostgreSQL: equality of uuid, text with a deterministic collation, integers and booleans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from uuid import UUID

import msgspec

Value = str | int | bool | None
Claims = Mapping[str, object]


class Kind(Enum):
    """A type that values of both sides of an equality have."""

    UUID = "uuid"
    TEXT = "text"
    INTEGER = "integer"
    BOOLEAN = "boolean"


class NotDecidable(Exception):
    """The database has to decide: the policy, or a claim, is of another form.

    Args:
        reasons: sentences or phrases without a full stop.
    """

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class Column(msgspec.Struct, frozen=True):
    """The value of a column."""

    name: str
    kind: Kind


class Claim(msgspec.Struct, frozen=True):
    """A value within the token's claims, as `->` and `->>` find it, cast to a type; first to uuid, if `is_uuid`."""

    path: tuple[str, ...]
    kind: Kind
    is_uuid: bool = False


class Constant(msgspec.Struct, frozen=True):
    """A value."""

    value: Value
    kind: Kind


Operand = Column | Claim | Constant


class Equal(msgspec.Struct, frozen=True):
    """An equality of two values; null if one is null."""

    left: Operand
    right: Operand


class IsNull(msgspec.Struct, frozen=True):
    """SQL's IS NULL."""

    operand: Operand


class Holds(msgspec.Struct, frozen=True):
    """A boolean value."""

    operand: Operand


class Not(msgspec.Struct, frozen=True):
    """SQL's NOT."""

    part: Condition


class All(msgspec.Struct, frozen=True):
    """SQL's AND; true without parts."""

    parts: tuple[Condition, ...]


class Any(msgspec.Struct, frozen=True):
    """SQL's OR; false without parts."""

    parts: tuple[Condition, ...]


Condition = Equal | IsNull | Holds | Not | All | Any


def bind(condition: Condition, claims: Claims) -> Condition:
    """Return the condition for one caller, with values in place of claims.

    Raises:
        NotDecidable: a claim has a form that PostgreSQL would cast, or refuse to cast, in its own way.
    """
    match condition:
        case Equal(left, right):
            return Equal(_bound(left, claims), _bound(right, claims))
        case IsNull(operand):
            return IsNull(_bound(operand, claims))
        case Holds(operand):
            return Holds(_bound(operand, claims))
        case Not(part):
            return Not(bind(part, claims))
        case All(parts):
            return All(tuple(bind(part, claims) for part in parts))
        case Any(parts):
            return Any(tuple(bind(part, claims) for part in parts))


def _bound(operand: Operand, claims: Claims) -> Operand:
    if not isinstance(operand, Claim):
        return operand
    found: object = claims
    for name in operand.path:
        if not isinstance(found, Mapping):
            raise NotDecidable(f"claim {name}")
        found = found.get(name)
        if found is None:
            return Constant(None, operand.kind)
    if not isinstance(found, str):
        raise NotDecidable(f"claim {operand.path[-1]}")
    text = str(_cast(found, Kind.UUID)) if operand.is_uuid else found
    return Constant(_cast(text, operand.kind), operand.kind)


def _cast(text: str, kind: Kind) -> Value:
    """Cast a text as PostgreSQL does, where that is plain."""
    if kind is Kind.TEXT:
        return text
    if kind is Kind.UUID:
        try:
            if str(UUID(text)) == text.lower():
                return text.lower()
        except ValueError:
            pass
    if kind is Kind.INTEGER and text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10:
        return int(text)
    raise NotDecidable(f"a claim that is no plain {kind.value}")


def simplified(condition: Condition) -> Condition:
    """Return an equal condition without conjunctions and disjunctions of one part."""
    match condition:
        case Not(part):
            return Not(simplified(part))
        case All(parts) | Any(parts):
            simple: list[Condition] = []
            for part in map(simplified, parts):
                # A nested part of the same kind is flattened; an empty one vanishes.
                simple += part.parts if isinstance(part, All | Any) and type(part) is type(condition) else [part]
            return simple[0] if len(simple) == 1 else type(condition)(tuple(simple))
    return condition


def decide(condition: Condition, row: Mapping[str, Value]) -> bool | None:
    """Return the truth of a bound condition for a row, which has every column of it."""
    match condition:
        case Equal(left, right):
            one, other = _value(left, row), _value(right, row)
            return None if one is None or other is None else one == other
        case IsNull(operand):
            return _value(operand, row) is None
        case Holds(operand):
            value = _value(operand, row)
            return None if value is None else value is True
        case Not(part):
            truth = decide(part, row)
            return None if truth is None else not truth
        case All(parts):
            truths = [decide(part, row) for part in parts]
            return False if False in truths else None if None in truths else True
        case Any(parts):
            truths = [decide(part, row) for part in parts]
            return True if True in truths else None if None in truths else False


def _value(operand: Operand, row: Mapping[str, Value]) -> Value:
    if isinstance(operand, Column):
        return row[operand.name]
    assert isinstance(operand, Constant)
    return operand.value


def keys(condition: Condition) -> frozenset[tuple[str, Value]] | None:
    """Return columns with values, one of which every row has for which a bound condition is true; None if unknown.

    The empty set means that it is true for no row.
    """
    match condition:
        case Equal(Column(name, _), Constant(value, _)) | Equal(Constant(value, _), Column(name, _)):
            return frozenset() if value is None else frozenset({(name, value)})
        case Equal(Constant(one, _), Constant(other, _)):
            return None if one is not None and one == other else frozenset()
        case Holds(Column(name, _)):
            return frozenset({(name, True)})
        case Any(parts):
            return _union(keys(part) for part in parts)
        case All(parts):
            found = [each for part in parts if (each := keys(part)) is not None]
            return min(found, key=len) if found else None
        case _:
            return None


def _union(each: Iterable[frozenset[tuple[str, Value]] | None]) -> frozenset[tuple[str, Value]] | None:
    found: frozenset[tuple[str, Value]] = frozenset()
    for some in each:
        if some is None:
            return None
        found |= some
    return found


def columns(condition: Condition) -> frozenset[str]:
    """Return the names of the columns in a condition."""
    match condition:
        case Equal(left, right):
            return frozenset(each.name for each in (left, right) if isinstance(each, Column))
        case IsNull(operand) | Holds(operand):
            return frozenset({operand.name}) if isinstance(operand, Column) else frozenset()
        case Not(part):
            return columns(part)
        case All(parts) | Any(parts):
            return frozenset(name for part in parts for name in columns(part))

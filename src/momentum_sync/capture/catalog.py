"""Column types by their ids, from the database's catalog."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from momentum_sync.capture.values import ColumnType, Kind
from momentum_sync.database import queries

_SQL = queries.load(__package__)

# `json_categorize_type` tells these apart by their ids, which are the same in every PostgreSQL.
_KINDS: Mapping[int, Kind] = {
    16: Kind.BOOLEAN,
    20: Kind.NUMBER, 21: Kind.NUMBER, 23: Kind.NUMBER, 700: Kind.NUMBER, 701: Kind.NUMBER, 1700: Kind.NUMBER,
    1114: Kind.TIMESTAMP,
    1184: Kind.TIMESTAMPTZ,
    114: Kind.JSON, 3802: Kind.JSON,
}  # fmt: skip
_VECTORS = frozenset({22, 30})  # int2vector and oidvector: arrays with text without braces


class TypeRow(NamedTuple):
    """A row of `types`. Ids that are zero stand for none."""

    oid: int
    name: str
    base: int
    element: int
    delimiter: str
    attributes: list[str]
    attribute_types: list[int]
    is_composite: bool


async def load_types(connection: AsyncConnection[TupleRow], oids: Iterable[int]) -> dict[int, ColumnType]:
    """Return the types with these ids. One that no longer exists is missing."""
    async with connection.cursor(row_factory=class_row(TypeRow)) as cursor:
        await cursor.execute(_SQL["types"], {"oids": sorted(oids)})
        return resolve(await cursor.fetchall())


def resolve(rows: Iterable[TypeRow]) -> dict[int, ColumnType]:
    """Return types from their rows, each of which must come with the rows of its parts."""
    by_oid = {row.oid: row for row in rows}
    done: dict[int, ColumnType] = {}

    def of(oid: int) -> ColumnType:
        if oid not in done:
            done[oid] = _make(by_oid[oid])
        return done[oid]

    def _make(row: TypeRow) -> ColumnType:
        if row.base:  # a domain: its values are those of its base type
            base = of(row.base)
            return ColumnType(
                name=row.name, kind=base.kind, element=base.element, delimiter=base.delimiter, fields=base.fields
            )
        if row.element:
            return ColumnType(
                name=row.name,
                kind=Kind.ARRAY,
                element=of(row.element),
                delimiter=" " if row.oid in _VECTORS else row.delimiter,
            )
        if row.is_composite:
            fields = zip(row.attributes, map(of, row.attribute_types), strict=True)
            return ColumnType(name=row.name, kind=Kind.COMPOSITE, fields=tuple(fields))
        return ColumnType(name=row.name, kind=_KINDS.get(row.oid, Kind.TEXT))

    return {oid: of(oid) for oid in by_oid}

"""Changes of rows as events: the JSON that Supabase's clients get as `data`.

Fields and values: Supabase, "Realtime Protocol", section "Postgres changes". The column list and the values are whole
here; a gateway leaves out columns that a caller may not see or did not select.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import msgspec

from momentum_sync.capture.row_messages import (
    UNCHANGED,
    Delete,
    Identity,
    Insert,
    Relation,
    RowMessage,
    Update,
    Values,
)
from momentum_sync.capture.values import ColumnType, Kind, MalformedValue, to_json

_encode = msgspec.json.Encoder().encode
_MOST = 1024 * 1024
_MOST_VALUE = 64
_UNKNOWN = ColumnType(name="unknown", kind=Kind.TEXT)  # a type that has been dropped since


class UnknownRelation(Exception):
    """A change that fits no description. PostgreSQL describes each relation before its first change."""


class RowChanges:
    """Encodes the changes of relations that the stream has described."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}
        self._types: dict[int, ColumnType] = {}
        self._described: dict[int, _Described] = {}

    def describe(self, relation: Relation) -> None:
        """Take the description that holds for the relation's following changes."""
        self._relations[relation.oid] = relation
        self._described.pop(relation.oid, None)

    def missing_types(self, relation: Relation) -> set[int]:
        """Return the ids of the types in a relation that are not known yet."""
        return {column.type_oid for column in relation.columns} - self._types.keys()

    def learn(self, asked: Iterable[int], types: Mapping[int, ColumnType]) -> None:
        """Take the types that were asked for. One that no longer exists has text values from now on."""
        for oid in asked:
            self._types[oid] = types.get(oid, _UNKNOWN)
        self._described.clear()

    def encode(self, message: RowMessage, relation_oid: int, committed_at: float) -> bytes:
        """Return the JSON of a change of one relation.

        A change of more than 1 MiB has the values of at most 64 bytes only, and says so in `errors`, as at Supabase.

        Args:
            message: the change; a Truncate may name further relations.
            relation_oid: the relation.
            committed_at: seconds since 1970.

        Raises:
            UnknownRelation: the relation has not been described, or with other columns.
        """
        described = self._described.get(relation_oid) or self._describe(relation_oid)
        for values in _rows_of(message):
            if len(values) != len(described.names):
                raise UnknownRelation(
                    f"a row of relation {relation_oid} has {len(values)} values, not {len(described.names)}"
                )
        body = _change(_Row(described, None), message, committed_at)
        return body if len(body) <= _MOST else _change(_Row(described, _MOST_VALUE), message, committed_at)

    def _describe(self, relation_oid: int) -> _Described:
        relation = self._relations.get(relation_oid)
        if relation is None:
            raise UnknownRelation(f"the stream has a change of relation {relation_oid} without its description")
        types = tuple(self._types[column.type_oid] for column in relation.columns)
        described = self._described[relation_oid] = _Described(
            relation.identity is Identity.FULL,
            b'{"schema":' + _encode(relation.schema) + b',"table":' + _encode(relation.name) + b',"commit_timestamp":',
            b',"columns":' + _encode([
                {"name": column.name, "type": of.name} for column, of in zip(relation.columns, types, strict=True)
            ]),
            tuple(_encode(column.name) + b":" for column in relation.columns),
            types,
            relation,
        )  # fmt: skip
        return described


class _Described(NamedTuple):
    """A relation, and the JSON that all of its changes have in common.

    Attributes:
        is_whole: the old row has all columns, not only the key.
        head: up to the time of the commit.
        columns: names and types.
        names: each column's name and a colon.
        types: each column's type.
        relation: the relation.
    """

    is_whole: bool
    head: bytes
    columns: bytes
    names: tuple[bytes, ...]
    types: tuple[ColumnType, ...]
    relation: Relation


def _change(row: _Row, message: RowMessage, committed_at: float) -> bytes:
    kind, record, old = b"TRUNCATE", b"{}", b"{}"
    match message:
        case Insert(new=new):
            kind, record, old = b"INSERT", row.object(new), b""
        case Update(old=before, new=new):
            # Without an old row the key has not changed.
            kind, record, old = b"UPDATE", row.object(new, before), row.old(new if before is None else before)
        case Delete(old=before):
            kind, record, old = b"DELETE", b"", row.old(before)
    described = row.described
    parts = [described.head, _timestamp(committed_at), b',"type":"', kind, b'"', described.columns]
    if record:
        parts += [b',"record":', record]
    if old:
        parts += [b',"old_record":', old]
    parts += [b',"errors":', _encode(row.errors or None), b"}"]
    return b"".join(parts)


def _rows_of(message: RowMessage) -> list[Values]:
    match message:
        case Insert(new=new):
            return [new]
        case Update(old=old, new=new):
            return [new] if old is None else [old, new]
        case Delete(old=old):
            return [old]
    return []


class _Row:
    """Encodes the rows of one change. With `most`, values of more bytes of JSON are left out."""

    __slots__ = ("_most", "described", "errors")

    def __init__(self, described: _Described, most: int | None) -> None:
        self.described = described
        self.errors: list[str] = [] if most is None else ["Error 413: Payload Too Large"]
        self._most = most

    def old(self, values: Values) -> bytes:
        """Return the JSON of the columns of the old row that the replica identity has."""
        if self.described.is_whole:
            return self.object(values)
        pairs = zip(self.described.relation.columns, values, strict=True)
        return self.object(tuple([value if column.is_key else UNCHANGED for column, value in pairs]))

    def object(self, values: Values, before: Values | None = None) -> bytes:
        """Return a JSON object of the values, without those that the stream has left out.

        `before` are the values of the old row, which has what the UPDATE did not change if the identity is full.
        """
        fields: list[bytes] = []
        described, most = self.described, self._most
        for place, (name, value, of) in enumerate(zip(described.names, values, described.types, strict=True)):
            if value is UNCHANGED:
                # A null in the old row stands for a column outside of the key: an unchanged value is never null.
                value = (None if before is None else before[place]) or UNCHANGED
                if value is UNCHANGED:
                    continue
            try:
                text = b"null" if value is None else to_json(value, of)
            except MalformedValue as error:
                # The type has changed since the commit, such as a composite that has gained an attribute.
                column = msgspec.json.decode(name[:-1], type=str)
                self.errors.append(f"the value of {column} is text, because its type has changed: {error}")
                text = _encode(value)
            if most is None or len(text) <= most:
                fields.append(name + text)
        return b"{" + b",".join(fields) + b"}"


@lru_cache(maxsize=8)
def _timestamp(seconds: float) -> bytes:
    """Return the JSON of a time as Supabase's clients get it: UTC, with milliseconds."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return _encode(text)

"""Decoder of the replication stream's messages about rows: relations, inserts, updates, deletes and truncates.

Format: PostgreSQL, "Logical Replication Message Formats", protocol version 1, with values as text.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Final

import msgspec

from momentum_sync.capture.pgoutput import ProtocolError

_U8 = struct.Struct("!B")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_TEXT, _NULL, _UNCHANGED = b"tnu"
_MOST_COLUMNS = 1_600  # PostgreSQL's own limit; a larger count would allocate for bytes that never come


class Unchanged(Enum):
    """A value that was stored out of line and that the UPDATE did not change: the stream leaves it out."""

    TOAST = "unchanged"


UNCHANGED: Final = Unchanged.TOAST
Value = str | None | Unchanged
Values = tuple[Value, ...]
"""The values of a row, by the columns of its relation. None is null."""


class Identity(Enum):
    """The replica identity of a table: the columns of the old row that updates and deletes carry."""

    DEFAULT = "d"
    NOTHING = "n"
    FULL = "f"
    INDEX = "i"


class RelationColumn(msgspec.Struct, frozen=True, gc=False):
    """A column of a relation. `is_key` tells whether it is part of the replica identity."""

    name: str
    type_oid: int
    is_key: bool


class Relation(msgspec.Struct, frozen=True):
    """A table as of the messages that follow. It is sent before the first of them, and again after each change."""

    oid: int
    schema: str
    name: str
    identity: Identity
    columns: tuple[RelationColumn, ...]


class Insert(msgspec.Struct, frozen=True, gc=False):
    """A new row."""

    relation: int
    new: Values


class Update(msgspec.Struct, frozen=True, gc=False):
    """A changed row.

    Attributes:
        relation: id of the relation.
        old: values of the old row: all with identity FULL, those of the key if the key changed, None otherwise.
        new: values of the new row.
    """

    relation: int
    old: Values | None
    new: Values


class Delete(msgspec.Struct, frozen=True, gc=False):
    """A deleted row. `old` has all values with identity FULL, and otherwise those of the key, with nulls beside it."""

    relation: int
    old: Values


class Truncate(msgspec.Struct, frozen=True, gc=False):
    """Relations that were emptied together."""

    relations: tuple[int, ...]


RowMessage = Relation | Insert | Update | Delete | Truncate


def decode_row(payload: bytes) -> RowMessage | None:
    """Decode the payload of an XLogData message. Return None for a kind that is not about rows.

    Raises:
        ProtocolError: the payload is malformed.
    """
    reader = _Reader(payload)
    try:
        message = _decode(reader)
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ProtocolError(f"a row message of the replication stream is malformed: {error}") from None
    if message is not None and reader.at != len(payload):
        raise ProtocolError(f"a row message has {len(payload) - reader.at} bytes too many")
    return message


def decode_relation(payload: bytes) -> Relation:
    """Decode the payload of a message that describes a relation.

    Raises:
        ProtocolError: it is malformed, or another message.
    """
    message = decode_row(payload)
    if not isinstance(message, Relation):
        raise ProtocolError("a description of a relation was expected")
    return message


def _decode(reader: _Reader) -> RowMessage | None:
    match reader.letter():
        case "R":
            return _relation(reader)
        case "I":
            relation = reader.number(_U32)
            reader.expect("N")
            return Insert(relation, reader.values())
        case "U":
            relation = reader.number(_U32)
            old = None
            kind = reader.letter()
            if kind in ("K", "O"):
                old = reader.values()
                kind = reader.letter()
            if kind != "N":
                raise ValueError(f"an update has a part {kind!r}")
            return Update(relation, old, reader.values())
        case "D":
            relation = reader.number(_U32)
            reader.expect("KO")
            return Delete(relation, reader.values())
        case "T":
            count = reader.number(_U32)
            reader.number(_U8)  # CASCADE and RESTART IDENTITY
            return Truncate(tuple([reader.number(_U32) for _ in range(min(count, len(reader.data)))]))
    return None


def _relation(reader: _Reader) -> Relation:
    oid = reader.number(_U32)
    # An empty name stands for pg_catalog.
    schema, name = reader.text() or "pg_catalog", reader.text()
    identity = Identity(reader.letter())
    columns = []
    for _ in range(reader.count()):
        flags = reader.number(_U8)
        column, type_oid = reader.text(), reader.number(_U32)
        reader.number(_U32)  # the type modifier
        columns.append(RelationColumn(column, type_oid, bool(flags & 1)))
    return Relation(oid, schema, name, identity, tuple(columns))


class _Reader:
    """Reads fields one after the other."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def letter(self) -> str:
        letter = chr(self.data[self.at])
        self.at += 1
        return letter

    def expect(self, letters: str) -> None:
        if (letter := self.letter()) not in letters:
            raise ValueError(f"a part {letter!r} where one of {letters!r} belongs")

    def number(self, kind: struct.Struct) -> int:
        (number,) = kind.unpack_from(self.data, self.at)
        self.at += kind.size
        return int(number)

    def count(self) -> int:
        count = self.number(_U16)
        if count > _MOST_COLUMNS:
            raise ValueError(f"{count} columns")
        return count

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text

    def values(self) -> Values:
        """Read a row. The methods above are not used here: a call for each field would cost more than the rest."""
        count, data, at = self.count(), self.data, self.at
        found: list[Value] = []
        for _ in range(count):
            kind = data[at]
            at += 1
            if kind == _TEXT:
                (length,) = _U32.unpack_from(data, at)
                start = at + 4
                at = start + length
                if at > len(data):
                    raise ValueError("a value is truncated")
                found.append(data[start:at].decode())
            elif kind == _NULL:
                found.append(None)
            elif kind == _UNCHANGED:
                found.append(UNCHANGED)
            else:
                raise ValueError(f"a value of kind {chr(kind)!r}")
        self.at = at
        return tuple(found)

"""The change of a row in an event's body, and its visible part for one caller.

The body is `data` of Supabase's `postgres_changes`; `capture/row_changes` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import lru_cache

import msgspec

Row = Mapping[str, msgspec.Raw]
"""The values of a row as JSON, by column. Columns that the stream has left out are missing."""

_encode = msgspec.json.Encoder().encode
# Connections that catch up look at the same changes one after the other. A parsed change refers to its body, which the
# window holds, too; large ones, of at most 1 MiB, are few.
_PARSED, _PARSED_LARGE, _LARGE = 8_192, 64, 16 * 1024


class ChangedColumn(msgspec.Struct, frozen=True):
    """A column, and `pg_type.typname` of its type when the row changed."""

    name: str
    type: str


class Change(msgspec.Struct, frozen=True):
    """A change.

    Attributes:
        schema: the table's schema when the row changed.
        table: the table.
        type: `INSERT`, `UPDATE`, `DELETE` or `TRUNCATE`.
        commit_timestamp: JSON.
        columns: the table's columns.
        record: the new row; None for `DELETE`.
        old_record: the old row, as far as the replica identity has it; None for `INSERT`.
        errors: JSON.
    """

    schema: str
    table: str
    type: str
    commit_timestamp: msgspec.Raw
    columns: tuple[ChangedColumn, ...]
    errors: msgspec.Raw
    record: dict[str, msgspec.Raw] | None = None
    old_record: dict[str, msgspec.Raw] | None = None

    @property
    def has_whole_old_row(self) -> bool:
        """Return whether the replica identity has every column of the old row."""
        return self.old_record is not None and len(self.old_record) == len(self.columns)

    @property
    def row(self) -> Row:
        """Return the row that filters apply to: the new one, or that of a `DELETE`."""
        if self.type == "DELETE":
            return self.old_record or {}
        return self.record or {}


_decoder = msgspec.json.Decoder(Change)


def parse_change(body: bytes) -> Change:
    """Parse an event's body. Raise msgspec.MsgspecError if it is no change of a row."""
    return _parse_large(body) if len(body) > _LARGE else _parse(body)


_parse = lru_cache(maxsize=_PARSED)(_decoder.decode)
_parse_large = lru_cache(maxsize=_PARSED_LARGE)(_decoder.decode)


def as_delete(change: Change) -> Change:
    """Return the `DELETE` that reports a row which an `UPDATE` took out of a caller's sight."""
    return msgspec.structs.replace(change, type="DELETE", record=None, old_record=change.old_record or {})


def encode_change(change: Change, columns: Set[str] | None, old_columns: Set[str] | None = None) -> bytes:
    """Return the JSON of a change. `columns` limits both rows, `old_columns` the old row further; None: all of them."""

    def shown(name: str) -> bool:
        return columns is None or name in columns

    parts = [
        b'{"schema":', _encode(change.schema), b',"table":', _encode(change.table), b',"commit_timestamp":',
        bytes(change.commit_timestamp), b',"type":"', change.type.encode(), b'","columns":',
        _encode([column for column in change.columns if shown(column.name)]),
    ]  # fmt: skip
    old = change.old_record
    if old is not None and old_columns is not None:
        old = {name: value for name, value in old.items() if name in old_columns}
    for name, row in (("record", change.record), ("old_record", old)):
        if row is not None:
            values = [_encode(column) + b":" + bytes(value) for column, value in row.items() if shown(column)]
            parts += [b',"', name.encode(), b'":{', b",".join(values), b"}"]
    return b"".join((*parts, b',"errors":', bytes(change.errors), b"}"))

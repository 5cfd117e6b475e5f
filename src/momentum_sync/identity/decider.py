"""Decides about changes of one table for one caller, without the database."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from momentum_sync.identity.policy import Condition, Value, columns, decide, keys
from momentum_sync.identity.row_tables import RowTable, SeenChange
from momentum_sync.wire.row_change import Change, Row

_decode = msgspec.json.decode


class Undecided(Exception):
    """The database has to be asked about this change."""


class Decider:
    """The policies of a table, bound to a caller.

    Args:
        table: the table, as the caller's role may read it.
        condition: its policies for the caller.

    Attributes:
        table: the table.
        keys: columns with values, one of which every row has that the caller may see; None if unknown.
    """

    __slots__ = ("_condition", "_names", "_types", "keys", "table")

    def __init__(self, table: RowTable, condition: Condition) -> None:
        self.table = table
        self._condition = condition
        self._names = columns(condition)
        self._types = {column.name: column.type_name for column in table.columns if column.name in self._names}
        self.keys = keys(condition)

    def seen(self, change: Change) -> SeenChange | None:
        """Return what the caller sees of a change; None for nothing.

        Raises:
            Undecided: the change lacks a column, or the column had another type.
        """
        if change.type == "TRUNCATE" or not self.table.secured:
            return SeenChange(self.table, is_gone=False)
        if any(self._types.get(column.name, column.type) != column.type for column in change.columns):
            raise Undecided
        if decide(self._condition, self._values(change.row)) is True:
            return SeenChange(self.table, is_gone=False)
        if change.type == "UPDATE" and change.has_whole_old_row:
            before: Row = change.old_record or {}
            if decide(self._condition, self._values(before)) is True:
                return SeenChange(self.table, is_gone=True)
        return None

    def _values(self, row: Row) -> Mapping[str, Value]:
        try:
            return {name: _decode(row[name]) for name in self._names}
        except KeyError:
            raise Undecided from None

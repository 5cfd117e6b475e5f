"""Decides about changes of one table for one caller, without the database."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from momentum_sync.identity.policy import All, Condition, Value, columns, decide, keys, simplified
from momentum_sync.identity.row_tables import RowTable, SeenChange
from momentum_sync.wire.row_change import Change, Row

_decode = msgspec.json.decode


def seen_change(table: RowTable, *, is_seen: bool, was_seen: bool | None) -> SeenChange | None:
    """Return the visible part of a change, given the visibility of the row after it and before; None for nothing.

    `was_seen` is None if the change has no whole old row apart from its row.
    """
    key = table.key or None
    if is_seen:
        # The row as it was before it came into sight is not the caller's.
        return SeenChange(table, old_columns=None if was_seen is not False else table.key)
    return SeenChange(table, is_gone=True, old_columns=key) if was_seen else None


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
        self._condition = simplified(condition)
        self._names = columns(condition)
        self._types = {column.name: column.type_name for column in table.columns if column.name in self._names}
        self.keys = keys(condition)

    @property
    def allows_all(self) -> bool:
        """Return whether the caller may see every change of the table."""
        return not self.table.secured or self._condition == All(())

    def seen(self, change: Change) -> SeenChange | None:
        """Return the visible part of a change; None for nothing.

        Raises:
            Undecided: the change lacks a column, or the column had another type.
        """
        if change.type == "TRUNCATE" or not self.table.secured:
            return SeenChange(self.table)
        if change.columns != self.table.signature and any(
            self._types.get(column.name, column.type) != column.type for column in change.columns
        ):
            raise Undecided
        is_seen = decide(self._condition, self._values(change.row)) is True
        was_seen: bool | None = None
        if change.type == "UPDATE" and change.has_whole_old_row:
            was_seen = decide(self._condition, self._values(change.old_record or {})) is True
        return seen_change(self.table, is_seen=is_seen, was_seen=was_seen)

    def _values(self, row: Row) -> Mapping[str, Value]:
        try:
            return {name: _decode(row[name]) for name in self._names}
        except KeyError:
            raise Undecided from None

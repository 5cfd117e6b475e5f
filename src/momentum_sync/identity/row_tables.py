"""Published tables, as a role may read them, and decisions about their changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from momentum_sync.wire.row_change import Change, ChangedColumn, Row


class RowColumn(msgspec.Struct, frozen=True):
    """A column.

    Attributes:
        name: the column.
        type_name: `pg_type.typname` of its type.
        type_sql: the type in SQL, without a length, which would cut other values.
        definition: the type with the column's collation.
        selectable: whether the role may select it.
        is_key: whether it belongs to the primary key.
    """

    name: str
    type_name: str
    type_sql: str
    definition: str
    selectable: bool
    is_key: bool


class RowTable(msgspec.Struct, frozen=True):
    """A table, as one role may read it.

    Attributes:
        oid: the relation.
        schema: its schema.
        name: the table.
        secured: whether row level security applies to the role.
        policies: one SQL condition for the permissive policies and one for the restrictive ones; both must be true.
        needed: the columns that the policies read; None if one reads the row as a whole.
        columns: its columns.
        signature: the same as changes have them.
        identity: names of the columns that the replica identity has of an old row.
        shown: names of the columns that the role may select; None if it may select all of them.
        key: names of the primary key's columns.
    """

    oid: int
    schema: str
    name: str
    secured: bool
    policies: tuple[str, str]
    needed: frozenset[str] | None
    columns: tuple[RowColumn, ...]
    signature: tuple[ChangedColumn, ...]
    identity: frozenset[str]
    shown: frozenset[str] | None
    key: frozenset[str]

    @classmethod
    def build(
        cls,
        oid: int,
        schema: str,
        name: str,
        *,
        secured: bool,
        policies: tuple[str, str],
        needed: frozenset[str] | None,
        columns: Sequence[tuple[str, str, str, str, bool, bool]],
        identity: frozenset[str],
    ) -> RowTable:
        """Build a table; each column has the fields of `RowColumn`."""
        every = tuple(RowColumn(*column) for column in columns)
        shown = frozenset(column.name for column in every if column.selectable)
        return cls(
            oid, schema, name, secured, policies, needed, every,
            tuple(ChangedColumn(column.name, column.type_name.partition(" ")[0]) for column in every), identity,
            None if len(shown) == len(every) else shown,
            frozenset(column.name for column in every if column.is_key),
        )  # fmt: skip

    def can_check(self, row: Row) -> bool:
        """Return whether a version of a row has every column that the policies read."""
        if self.needed is None:
            return all(column.name in row for column in self.columns)
        return all(name in row for name in self.needed)

    @property
    def checks_deletes(self) -> bool:
        """Return whether the old row of a `DELETE` has every column that the policies read."""
        if not self.secured:
            return True
        needed = frozenset(column.name for column in self.columns) if self.needed is None else self.needed
        return needed <= self.identity

    def shown_of(self, change: Change) -> frozenset[str] | None:
        """Return the columns of a change that the role may select; None for all of them.

        A change from before a column was dropped or renamed has one that the table has no longer, and nobody can say
        whether the role might have selected it.
        """
        if change.columns == self.signature:
            return self.shown
        same = frozenset(each.name for each in change.columns if each in self.signature)
        return same if self.shown is None else same & self.shown

    def column(self, name: str) -> RowColumn | None:
        """Return a column that the role may select; None if no column has this name."""
        return next((column for column in self.columns if column.name == name and column.selectable), None)


class SeenChange(NamedTuple):
    """A change that a caller may see.

    Attributes:
        table: its table as the caller may read it.
        is_gone: the caller sees only that the row has left its sight: the change becomes a `DELETE`.
        old_columns: columns of the old row that it sees; None for all of them.
    """

    table: RowTable
    is_gone: bool = False
    old_columns: frozenset[str] | None = None

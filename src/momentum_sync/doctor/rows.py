"""Rows of the doctor's statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from momentum_sync.database import queries

SQL = queries.load(__package__)
"""The statements, by name."""

_Row = TypeVar("_Row")


def rows_of(connection: Connection[TupleRow], name: str, kind: type[_Row], **parameters: object) -> Sequence[_Row]:
    """Return the rows of a statement as objects with its columns as attributes."""
    return connection.cursor(row_factory=class_row(kind)).execute(SQL[name], parameters or None).fetchall()

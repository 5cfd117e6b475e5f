"""The tables and channels of an application, as the engine needs them.

The engine delivers events to the clients that may see them. It takes the app's own facts from here: which event types
belong to which table, how an event names its row, and which channels a user has. `domain/` declares the momentum
app; `tests/server/test_other_domain.py` declares another one in a single file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Column:
    """A column and the field of the event that has its value; `type` is the column's PostgreSQL type."""

    name: str
    type: str = "text"
    field: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """A table in the schema `public` with rows that events describe.

    Attributes:
        name: the table.
        event_types: the types of events that describe one row.
        key: columns that name the row.
        version: columns that tell versions of the row apart; all of them are in the event.
        derived: event types that only need some row with these columns, such as a user's cache keys.
    """

    name: str
    event_types: tuple[str, ...]
    key: tuple[Column, ...]
    version: tuple[Column, ...]
    derived: dict[str, tuple[Column, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """All tables and channels of an application.

    Attributes:
        tables: the tables.
        own_channels: the channels of every user, with `{user_id}` where the user's id stands.
        shared_channels: channels with rows of many users, granted by the caller's role and not by a row.
        per_user_channels: channels that deliver an event only to the connections of its `user_id`.
        grant: SQL function in `public` that takes a channel and returns `granted`, `checked` (each event) or null.
        may_act_for: SQL function in `public` that takes a user's id and returns whether the caller may act for it.
        claims: SQL functions without arguments, by `schema.name`, that return a text of the caller's token; its names.
    """

    tables: tuple[TableSpec, ...]
    own_channels: tuple[str, ...]
    shared_channels: frozenset[str]
    per_user_channels: frozenset[str]
    grant: str
    may_act_for: str
    claims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def own(self, user_id: UUID | None) -> list[str]:
        """Return the channels that every connection of a user has; none without a user."""
        if user_id is None:
            return []
        user = str(user_id)
        return [name.replace("{user_id}", user) for name in self.own_channels]

    def table_of(self, event_type: str) -> TableSpec | None:
        """Return the table of the row that an event type describes; None for an operator's own event."""
        for table in self.tables:
            if event_type in table.event_types or event_type in table.derived:
                return table
        return None

"""Channels as a caller has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Granted:
    """Channels that a caller may have, in the order asked for.

    `checked` are those on which rows, or policies that an operator changed, decide: the database is asked about each
    event. All others are granted by the token alone.
    """

    channels: list[str] = field(default_factory=list)
    checked: frozenset[str] = frozenset()


class Filtered(NamedTuple):
    """Offsets of the events that the caller may see, and channels of one user that the caller can no longer have."""

    visible: set[int]
    lost: list[str]

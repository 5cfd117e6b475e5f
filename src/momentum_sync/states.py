"""State machines with declared transitions. ARCHITECTURE.md shows the same tables, and a test compares them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import Enum
from typing import TypeVar

S = TypeVar("S", bound=Enum)


class IllegalTransition(AssertionError):
    """A defect: the code entered a state that cannot follow the one before."""


def enter(current: S, wanted: S, transitions: Mapping[S, Set[S]]) -> S:
    """Return `wanted`. Raise IllegalTransition unless it may follow `current`, or is the same."""
    if wanted is not current and wanted not in transitions[current]:
        raise IllegalTransition(f"{type(current).__name__}: {current.name} -> {wanted.name}")
    return wanted

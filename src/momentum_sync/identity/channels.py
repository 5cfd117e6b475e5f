"""Channels as a caller has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from momentum_sync.eventlog.event import CACHE_INVALIDATION


@dataclass(frozen=True, slots=True)
class Granted:
    """The channels that a caller may have, in the order asked for.

    Of those in `asked` rows decide, or policies that an operator has changed: whether the caller may see an event is
    asked of the database for each. All others are the caller's by the token alone.
    """

    channels: list[str] = field(default_factory=list)
    asked: frozenset[str] = frozenset()


def own_channels(user_id: UUID | None) -> list[str]:
    """The four channels of a user; none for nobody."""
    if user_id is None:
        return []
    return [f"momentum_updates:{user_id}", f"interventions:{user_id}", f"notifications:{user_id}", CACHE_INVALIDATION]


def is_shared(channel: str) -> bool:
    """Whether the channel is of many users' rows, so that it is had by what somebody is, and not by any row."""
    return channel in ("interventions:coaches", "momentum_updates:all")

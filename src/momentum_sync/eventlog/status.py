"""The feed's status: capture reports it, and gateways use it for health, heartbeats and cached grants."""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import Enum
from typing import NamedTuple


class CaptureState(Enum):
    """State of the process that reads the slot."""

    STARTING = "starting"
    CATCHING_UP = "catching_up"
    LIVE = "live"
    WAITING = "waiting"
    BROKEN = "broken"


CAPTURE_TRANSITIONS: Mapping[CaptureState, Set[CaptureState]] = {
    CaptureState.STARTING: {CaptureState.CATCHING_UP, CaptureState.WAITING, CaptureState.BROKEN},
    CaptureState.CATCHING_UP: {CaptureState.LIVE, CaptureState.WAITING, CaptureState.BROKEN},
    CaptureState.LIVE: {CaptureState.WAITING, CaptureState.BROKEN},
    CaptureState.WAITING: {CaptureState.CATCHING_UP, CaptureState.BROKEN},
    CaptureState.BROKEN: {CaptureState.CATCHING_UP, CaptureState.WAITING},
}
"""`catching_up`: the slot is held, and no lag probe has come back yet. `waiting`: another instance holds it."""


class SlotState(NamedTuple):
    """State of the replication slot.

    `state` is `reading`, `idle` (it has no reader, and retains WAL), `lost` (the WAL that it needs was removed),
    `absent` or `unknown` (the database was not asked yet, or does not answer). `retained` is the WAL that it retains,
    in bytes; `reserve` how many more bytes it may retain before it is lost (None: as many as the disk has).
    """

    state: str
    retained: int | None
    reserve: int | None


class Triggers(NamedTuple):
    """State of the triggers and functions that publish.

    `problems` names those that are not as `migrate` installed them, `foreign_triggers` triggers of others that run
    before them on the same row.
    """

    problems: list[str]
    foreign_triggers: list[str]


UNKNOWN_SLOT = SlotState("unknown", None, None)


class FeedStatus(NamedTuple):
    """Status of the feed.

    `lag` is the number of seconds by which it may be behind the database; `problem` says what an operator should look
    at although clients are served.
    """

    state: CaptureState
    lag: float
    slot: SlotState
    triggers: Triggers
    problem: str | None = None

    @property
    def live(self) -> bool:
        """Return whether new clients can be served."""
        return self.state is CaptureState.LIVE

"""Checks a client's record of the changes of one table against the changes that its user may see.

Shares no code with the server. A record is correct if, in each part between gaps that were told, every change came in
commit order without a gap. After a connection was lost, changes may come again, from a short time before it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

What = tuple[str, int]
"""A change as clients see it: the operation, and the number of the row's version."""


@dataclass(frozen=True)
class Came:
    """A change that arrived, `at` monotonic seconds."""

    what: What
    at: float


@dataclass(frozen=True)
class Joined:
    """The topic was joined, for the first time or again."""


@dataclass(frozen=True)
class Gap:
    """The server said that changes may be missing."""


Record = Came | Joined | Gap


@dataclass
class Findings:
    """The result of a check. `doubled` counts changes that came again; `oldest` is the highest age of one in seconds.

    The age is the time from its first arrival to the last sign of life before the connection was lost.
    """

    wrong: list[str] = field(default_factory=list)
    doubled: int = 0
    oldest: float = 0.0


def check(records: Sequence[Record], branches: Sequence[Sequence[What]], *, window: float) -> Findings:
    """Check one topic's record.

    Args:
        records: they are in order. It begins before the first change of the first branch.
        branches: histories, each from the beginning; the last one is the present.
        window: highest age of a change that may come again.
    """
    parts: list[list[Record]] = [[]]
    for record in records:
        if isinstance(record, Gap):
            parts.append([])
        else:
            parts[-1].append(record)
    found = Findings()
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        tried = [
            _check_part(part, branch, is_first=number == 0, until_end=is_last, window=window)
            for branch in (branches[-1:] if is_last else branches)
        ]
        best = min(tried, key=lambda one: len(one.wrong))
        found.wrong += best.wrong
        found.doubled += best.doubled
        found.oldest = max(found.oldest, best.oldest)
    return found


def _check_part(
    part: Sequence[Record], branch: Sequence[What], *, is_first: bool, until_end: bool, window: float
) -> Findings:
    found = Findings()
    places = {what: place for place, what in enumerate(branch)}
    expected: int | None = 0 if is_first else None
    first_at: dict[int, float] = {}
    highest, last_at, lost_at, may_repeat = -1, 0.0, 0.0, False
    for record in part:
        if not isinstance(record, Came):
            may_repeat, lost_at = True, last_at
            continue
        last_at = record.at
        place = places.get(record.what)
        if place is None:
            found.wrong.append(f"{record.what} came, which was never committed for it here")
            continue
        if place != expected and expected is not None:
            if place > expected:
                found.wrong.append(f"missing: {branch[expected]} to {branch[place - 1]}, before {record.what}")
            elif not may_repeat:
                found.wrong.append(f"{record.what} came after {branch[expected - 1]}, on the same connection")
        if place <= highest:
            found.doubled += 1
            age = lost_at - first_at.get(place, lost_at)
            found.oldest = max(found.oldest, age)
            if age > window:
                found.wrong.append(f"{record.what} came again {age:.1f} s later")
        first_at.setdefault(place, record.at)
        highest, expected, may_repeat = max(highest, place), place + 1, False
    if until_end and highest != len(branch) - 1:
        found.wrong.append(f"at the end {len(branch) - 1 - highest} changes are missing")
    return found

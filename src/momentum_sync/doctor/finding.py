"""What a check has found, and what follows from all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How much a finding matters.

    `ok`: as it should be. `note`: nothing has to be done. `warning`: it works, and costs something or will break.
    `problem`: something does not work. `unknown`: the check itself failed.
    """

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Attributes:
        area: group of the check, such as `database`.
        check: name of the check.
        level: how much it matters.
        found: what is there.
        why: why it matters; empty where all is well.
        mend: the command or the setting that mends it; empty where nothing has to be mended.
    """

    area: str
    check: str
    level: Level
    found: str
    why: str = ""
    mend: str = ""


def exit_status(findings: Iterable[Finding], *, strict: bool) -> int:
    """Return 1 if there is a problem or a check that failed, with `strict` also for a warning; else 0."""
    bad = {Level.PROBLEM, Level.UNKNOWN} | ({Level.WARNING} if strict else set())
    return int(any(finding.level in bad for finding in findings))

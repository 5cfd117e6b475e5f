"""Findings of checks, and the exit status that follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """Severity of a finding.

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
    """Result of one check.

    Attributes:
        area: group of the check, such as `database`.
        check: name of the check.
        level: how much it matters.
        found: the present state.
        why: why it matters; empty where all is well.
        fix: the command or setting that fixes it; empty if nothing has to be fixed.
    """

    area: str
    check: str
    level: Level
    found: str
    why: str = ""
    fix: str = ""


def exit_status(findings: Iterable[Finding], *, strict: bool) -> int:
    """Return 1 if there is a problem or a check that failed, with `strict` also for a warning; else 0."""
    bad = {Level.PROBLEM, Level.UNKNOWN} | ({Level.WARNING} if strict else set())
    return int(any(finding.level in bad for finding in findings))

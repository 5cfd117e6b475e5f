"""Findings as text for people, and as JSON for programs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from momentum_sync.doctor.finding import Finding, Level

_COLORS = {
    Level.OK: "32", Level.NOTE: "36", Level.WARNING: "33", Level.PROBLEM: "31", Level.UNKNOWN: "31",
}  # fmt: skip
_LEVEL_WIDTH = max(len(level.value) for level in Level)
_PART_WIDTH = 6


def lines(findings: Sequence[Finding], *, width: int, colored: bool) -> Iterator[str]:
    """Yield the table of findings: one line for each, with why and how to mend it below, grouped by area."""
    check_width = max((len(finding.check) for finding in findings), default=0)
    area = None
    order = list(dict.fromkeys(finding.area for finding in findings))
    for finding in sorted(findings, key=lambda finding: order.index(finding.area)):
        if finding.area != area:
            if area is not None:
                yield ""
            area = finding.area
            yield area
        word = finding.level.value.ljust(_LEVEL_WIDTH)
        start = f"  {_color(word, finding.level) if colored else word}  {finding.check.ljust(check_width)}  "
        indent = _LEVEL_WIDTH + check_width + 6
        first, *rest = textwrap.wrap(finding.found, max(20, width - indent)) or [""]
        yield start + first
        yield from (" " * indent + line for line in rest)
        for part, sentence in (("why", finding.why), ("fix", finding.fix)):
            if sentence:
                yield from _part(part, sentence, indent, width)


def _part(name: str, sentence: str, indent: int, width: int) -> Iterator[str]:
    # A command has to stay on one line, so that it can be copied.
    is_command = name == "fix"
    pieces = sentence.splitlines() if is_command else textwrap.wrap(sentence, max(20, width - indent - _PART_WIDTH))
    for number, piece in enumerate(pieces):
        yield f"{' ' * indent}{(name + ':').ljust(_PART_WIDTH) if number == 0 else ' ' * _PART_WIDTH}{piece}"


def summary(findings: Sequence[Finding]) -> str:
    """Return the last line: how many findings there are of each level."""
    counts = Counter(finding.level for finding in findings)
    counted = [
        f"{counts[level]} {name if counts[level] == 1 else plural}"
        for level, name, plural in (
            (Level.PROBLEM, "problem", "problems"),
            (Level.UNKNOWN, "check that failed", "checks that failed"),
            (Level.WARNING, "warning", "warnings"),
            (Level.NOTE, "note", "notes"),
        )
        if counts[level]
    ]
    checks = "1 check" if len(findings) == 1 else f"{len(findings)} checks"
    return f"{checks}: {', '.join(counted) if counted else 'no problems found'}"


def as_json(findings: Sequence[Finding]) -> str:
    """Return a JSON array of objects with the attributes of `Finding`."""
    return msgspec.json.format(msgspec.json.encode(findings), indent=2).decode()


def _color(word: str, level: Level) -> str:
    return f"\x1b[{_COLORS[level]}m{word}\x1b[0m"

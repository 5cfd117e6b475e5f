"""Results: values beside others of the same run, as a table, as JSON, and against their aims."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Line:
    """One measure, with a value for each round. `beside` was measured in the same run; the ratio is of the medians.

    The aim applies to the ratio if there is one, else to the median: at least `least`, at most `most`.
    """

    what: str
    unit: str
    values: Sequence[float]
    beside: str = ""
    beside_values: Sequence[float] = ()
    least: float | None = None
    most: float | None = None

    @property
    def value(self) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.values)

    @property
    def beside_value(self) -> float | None:
        """Return the median of the value measured beside it."""
        return statistics.median(self.beside_values) if self.beside_values else None

    @property
    def ratio(self) -> float | None:
        """Return the ratio of both."""
        return self.value / self.beside_value if self.beside_value else None

    @property
    def reached(self) -> bool | None:
        """Return whether the aim is reached; None without an aim."""
        measured = self.value if self.ratio is None else self.ratio
        if self.least is not None:
            return measured >= self.least
        return None if self.most is None else measured <= self.most

    @property
    def aim(self) -> str:
        """Return the aim in words."""
        if self.least is not None:
            return f"≥ {_number(self.least)}"
        return "" if self.most is None else f"≤ {_number(self.most)}"

    def as_json(self) -> dict[str, object]:
        """Return all fields."""
        return {
            "what": self.what,
            "unit": self.unit,
            "value": self.value,
            "values": list(self.values),
            "beside": self.beside or None,
            "beside_value": self.beside_value,
            "beside_values": list(self.beside_values),
            "ratio": self.ratio,
            "least": self.least,
            "most": self.most,
            "reached": self.reached,
        }


def line_of(read: Mapping[str, Any]) -> Line:
    """Return the line of an object that `Line.as_json` has made."""
    return Line(
        read["what"], read["unit"], read["values"], read["beside"] or "", read["beside_values"], read["least"],
        read["most"],
    )  # fmt: skip


def replaced(lines: Sequence[Line], by: Sequence[Line]) -> list[Line]:
    """Return the lines, those that were measured again in their places, and new ones at the end."""
    again = {(line.what, line.beside): line for line in by}
    found = [again.pop((line.what, line.beside), line) for line in lines]
    return [*found, *again.values()]


class Bench:
    """The size of a run: a number of rounds, or one small round that only shows that everything works."""

    def __init__(self, *, rounds: int, quick: bool, console: Console) -> None:
        self._rounds = 1 if quick else rounds
        self.quick = quick
        self._console = console

    def rounds(self, what: str) -> Iterator[int]:
        """Yield the numbers of the rounds, with progress."""
        for number in range(1, self._rounds + 1):
            self.tell(f"{what} ({number}/{self._rounds})")
            yield number

    def sizes(self, *sizes: int) -> tuple[int, ...]:
        """Return these sizes; one small one in a quick run."""
        return (max(2, sizes[0] // 20),) if self.quick else sizes

    def tell(self, text: str) -> None:
        """Report progress on standard error."""
        self._console.print(f"[dim]… {text}[/dim]", highlight=False)


def table(lines: Sequence[Line]) -> Table:
    """Return a table for a terminal."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "measured", "", "beside", "", "ratio", "aim", ""):
        made.add_column(name, justify="left" if not name else "right")
    for line in lines:
        reached = {True: "[green]reached[/]", False: "[red]not reached[/]", None: ""}[line.reached]
        beside = "" if line.beside_value is None else _number(line.beside_value)
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        made.add_row(line.what, _number(line.value), line.unit, beside, line.beside, ratio, line.aim, reached)
    return made


def markdown(lines: Sequence[Line]) -> str:
    """Return the same table for a page."""
    rows = ["| what | measured | beside it | ratio | aim | |", "|---|---:|---:|---:|---:|---|"]
    for line in lines:
        beside = "" if line.beside_value is None else f"{_number(line.beside_value)} ({line.beside})"
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        reached = {True: "reached", False: "**not reached**", None: ""}[line.reached]
        rows.append(
            f"| {line.what} | {_number(line.value)} {line.unit} | {beside} | {ratio} | {line.aim} | {reached} |"
        )
    return "\n".join(rows) + "\n"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")

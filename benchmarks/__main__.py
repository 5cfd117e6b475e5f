"""Measures side by side on this machine, and prints a table. With --write it also writes docs/performance.*."""

from __future__ import annotations

import argparse
import gc
import json
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from benchmarks import (
    at_rest,
    beside,
    big_transaction,
    compare,
    connects,
    fan_out,
    gateways,
    latency,
    memory,
    realtime,
    rows,
    sizes,
    throughput,
    topics,
    triggers,
)
from benchmarks.chart import svg
from benchmarks.machine import LOAD_CORES, described, pin
from benchmarks.report import Bench, Line, line_of, markdown, replaced, table

MEASURES: dict[str, ModuleType] = {
    "fan_out": fan_out,
    "latency": latency,
    "throughput": throughput,
    "triggers": triggers,
    "memory": memory,
    "connects": connects,
    "at_rest": at_rest,
    "big_transaction": big_transaction,
    "sizes": sizes,
    "rows": rows,
    "realtime": realtime,
    "topics": topics,
    "gateways": gateways,
    "compare": compare,
}
DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Parse the command line, measure, and print a table."""
    told = "\n".join(f"  {name:16} {(module.__doc__ or '').splitlines()[0]}" for name, module in MEASURES.items())
    parser = argparse.ArgumentParser(
        prog="script/bench",
        description=__doc__,
        epilog=f"what is measured:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", choices=[*MEASURES, []], metavar="what", help="only these of the below")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each, of which the median counts (3)")
    parser.add_argument("--quick", action="store_true", help="one small round, to see that all of it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, with those of each round")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw them, as SVG")
    parser.add_argument(
        "--write", action="store_true",
        help="bring docs/performance.{json,svg,md} up to date, or the lines of the named measures",
    )  # fmt: skip
    parser.add_argument(
        "--beside", type=Path, metavar="CHECKOUT", help="compare quick rounds with those of another version"
    )
    given = parser.parse_args()
    if given.beside is not None:
        beside.compare(given.beside.resolve(), given.what or list(MEASURES), rounds=given.rounds)
        return
    if given.write and given.quick:
        parser.error("--write is for measures at their size")
    page = _Page.read() if given.write and given.what else None
    if page is not None and page.machine != described():
        parser.error(f"the page is of another machine, {page.machine}: measure everything")
    pin(LOAD_CORES)
    console = Console(stderr=True)
    bench = Bench(rounds=given.rounds, quick=given.quick, console=console)
    lines: list[Line] = []
    failed: list[str] = []
    for name in given.what or MEASURES:
        before = len(lines)
        try:
            lines.extend(MEASURES[name].measure(bench))
        except (Exception, SystemExit) as error:  # the others take long and do not need it
            failed.append(name)
            if isinstance(error, SystemExit):
                console.print(f"[red]{name}:[/] {escape(str(error))}", highlight=False)
            else:
                console.print_exception()
        gc.collect()  # measures switch it off, and sockets of one must not stay open in the next
        console.print(table(lines[before:]))
    today = datetime.now(UTC).date().isoformat()
    text = _Page(described(), today, lines).as_json(failed)
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    if given.picture:
        given.picture.write_text(svg(lines), encoding="utf-8")
    if given.write and not failed:
        written = _Page(described(), today, lines) if page is None else page.updated(today, lines)
        written.write()
    Console().print(table(lines))
    if failed:
        kept = ""
        if given.write:
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", prefix="momentum-sync-bench-", suffix=".json", delete=False
            ) as unfinished:
                unfinished.write(text)
            kept = f" The page is as it was; what was measured is in {unfinished.name}"
        raise SystemExit(f"Could not measure {', '.join(failed)}: see above.{kept}")


class _Page(NamedTuple):
    """The measures of docs/performance.md."""

    machine: str
    date: str
    lines: Sequence[Line]

    @classmethod
    def read(cls) -> _Page:
        read = json.loads((DOCS / "performance.json").read_text(encoding="utf-8"))
        return cls(read["machine"], read["date"], [line_of(line) for line in read["lines"]])

    def updated(self, today: str, lines: Sequence[Line]) -> _Page:
        first = self.date.split(" to ")[0]
        return self._replace(
            date=first if first == today else f"{first} to {today}", lines=replaced(self.lines, lines)
        )  # fmt: skip

    def as_json(self, failed: Sequence[str]) -> str:
        numbers = {
            "machine": self.machine, "date": self.date, "failed": failed,
            "lines": [line.as_json() for line in self.lines],
        }  # fmt: skip
        return json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"

    def write(self) -> None:
        (DOCS / "performance.json").write_text(self.as_json([]), encoding="utf-8")
        (DOCS / "performance.svg").write_text(svg(self.lines), encoding="utf-8")
        _put(DOCS / "performance.md", f"Measured on {self.date}, {self.machine}.\n\n{markdown(self.lines)}")


def _put(page: Path, table: str) -> None:
    """Put the table between its marks on the page."""
    marks = "<!-- script/bench --write -->", "<!-- end -->"
    old = page.read_text(encoding="utf-8")
    new = re.sub(f"{marks[0]}.*{marks[1]}", lambda _: f"{marks[0]}\n{table}{marks[1]}", old, flags=re.DOTALL)
    page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

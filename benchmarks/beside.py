"""Another version of this project beside this one: `script/bench --beside CHECKOUT`.

Both are measured in turn, round by round, each by its own benchmarks, and the medians are compared. A checkout is a
clone of the repository at the other version; it runs in this one's virtual environment.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Line(NamedTuple):
    """One measured value."""

    what: str
    value: float
    unit: str


def measure(checkout: Path, what: str) -> list[Line]:
    """Run one round of one of a checkout's benchmarks."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = Path(folder) / "numbers.json"
        environment = {**os.environ, "PYTHONPATH": f"{checkout / 'src'}:{checkout}"}
        command = [sys.executable, "-m", "benchmarks", what, "--quick", "--json", str(numbers)]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if not numbers.exists():
            raise SystemExit(f"The benchmark {what} of {checkout} failed:\n{done.stderr[-2000:]}")
        lines = json.loads(numbers.read_text(encoding="utf-8"))["lines"]
    return [Line(line["what"], float(line["value"]), line["unit"]) for line in lines]


def compare(other: Path, what: Sequence[str], *, rounds: int) -> None:
    """Print the medians of both, and this one's as a ratio of the other's. Name the lines that only one has."""
    if not (other / "benchmarks" / "__main__.py").exists():
        raise SystemExit(f"{other} is not a checkout of this repository.")
    print(f"{f'median of {rounds}':58}{other.name:>12}{'here':>12}{'ratio':>8}", flush=True)
    for each in what:
        there, here = [], []
        for number in range(rounds):
            print(f"… {each} ({number + 1}/{rounds})", file=sys.stderr, flush=True)
            there.append(measure(other, each))
            here.append(measure(ROOT, each))
        before, now = _by_name(there), _by_name(here)
        for name in {**before, **now}:
            if name not in before or name not in now:
                print(f"{name[:57]:58}only {'here' if name in now else other.name}", flush=True)
                continue
            was = statistics.median(line.value for line in before[name])
            found = statistics.median(line.value for line in now[name])
            ratio = f"{found / was:8.3f}" if was else " " * 8
            print(f"{name[:57]:58}{was:12,.5g}{found:12,.5g}{ratio}  {now[name][0].unit}", flush=True)


def _by_name(rounds: Sequence[Sequence[Line]]) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {}
    for line in itertools.chain.from_iterable(rounds):
        found.setdefault(line.what, []).append(line)
    return found

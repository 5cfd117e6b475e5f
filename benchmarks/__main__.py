"""Measures side by side on this machine, prints a table, and writes what docs/performance.md shows."""

from __future__ import annotations

import argparse
from types import ModuleType

from rich.console import Console

from benchmarks import at_rest, big_transaction, connects, fan_out, latency, memory, throughput, triggers
from benchmarks.machine import LOAD_CORES, pin
from benchmarks.report import Bench, Line, table

MEASURES: dict[str, ModuleType] = {
    "fan_out": fan_out,
    "latency": latency,
    "throughput": throughput,
    "triggers": triggers,
    "memory": memory,
    "connects": connects,
    "at_rest": at_rest,
    "big_transaction": big_transaction,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*MEASURES, []], help="these measures only; all without a name")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each, of which the median counts (3)")
    parser.add_argument("--quick", action="store_true", help="one small round, to see that all of it works")
    given = parser.parse_args()
    pin(LOAD_CORES)
    bench = Bench(rounds=given.rounds, quick=given.quick, console=Console(stderr=True))
    lines: list[Line] = []
    for name in given.what or MEASURES:
        lines += MEASURES[name].measure(bench)
    Console().print(table(lines))


if __name__ == "__main__":
    main()

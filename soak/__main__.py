"""A server under load for hours: `python -m soak --hours 2`.

Clients come and go and resume, scores change, and every half minute half of the server's connections to the database
are cut. At the end, memory, open files, retained WAL and the log's bytes per event must be as at the
beginning. No client may have missed an event or received one twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from soak.chart import chart
from soak.run import Result, soak
from soak.verdict import Sample, trends


def main() -> None:
    """Parse the command line and run. The exit status is 1 if something grows or was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=2.0, help="how long (2)")
    parser.add_argument("--rate", type=float, default=50.0, help="changes a second (50)")
    parser.add_argument("--clients", type=int, default=200, help="at a time (200)")
    parser.add_argument("--out", type=Path, help="folder for soak.json and soak.svg")
    given = parser.parse_args()
    result = soak(given.hours * 3600, given.rate, given.clients, _tell)
    sys.exit(_judge(result, given.out))


def _tell(sample: Sample) -> None:
    print(
        f"{sample.at / 60:7.1f} min  {sample.rss / 2**20:6.1f} MiB  {sample.files:5} files  {sample.clients:4} clients"
        f"  WAL {sample.retained / 2**20:7.1f} MiB  log {sample.log / 2**20:7.1f} MiB  {sample.events:9,} events"
        f"  {sample.received:9,} received  lag {sample.lag_ms} ms",
        flush=True,
    )


def _judge(result: Result, out: Path | None) -> int:
    found = trends(result.samples)
    print(f"\n{result.connects:,} connects, {result.received:,} events received, {result.faults:,} faults")
    for trend in found:
        word = "flat" if trend.is_flat else "GROWS"
        print(f"  {trend.what:28} {trend.first:16,.0f} → {trend.last:16,.0f} {trend.unit:6} {word}")
    for sentence in result.wrong[:20]:
        print(f"  WRONG {sentence}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        _write(out, result, result.samples)
    return int(bool(result.wrong) or not all(trend.is_flat for trend in found))


def _write(out: Path, result: Result, samples: Sequence[Sample]) -> None:
    document = {
        "connects": result.connects, "received": result.received, "faults": result.faults, "wrong": result.wrong,
        "samples": [sample.as_json() for sample in samples],
    }  # fmt: skip
    (out / "soak.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (out / "soak.svg").write_text(chart(samples), encoding="utf-8")


if __name__ == "__main__":
    main()

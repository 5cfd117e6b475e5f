"""Random histories under faults, judged by an independent witness.

python -m faults                      one history of 30 seconds, with a random seed
python -m faults --seed 7             the same schedule again
python -m faults --minutes 30         one after another, for this long
python -m faults --gateways           with two captures, three gateways and NATS
python -m faults --clients supabase   with Supabase's own clients, which script/test installs
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from faults.devices import installed_clients
from faults.fleet import FLEET_FAULTS
from faults.history import Verdict, run
from faults.mutations import MUTATIONS
from faults.supabase import run_supabase


def main() -> None:
    """Parse the command line and run. The exit status is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="of the first history; the next ones count on")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long a history is disturbed (30)")
    parser.add_argument("--minutes", type=float, help="histories one after another for so long; else a single one")
    parser.add_argument("--clients", choices=("native", "supabase"), default="native", help="whose protocol (native)")
    parser.add_argument("--gateways", action="store_true", help="two captures and three gateways for one server")
    parser.add_argument("--only", action="append", choices=FLEET_FAULTS, help="this fault alone; may be repeated")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="a server with this defect on purpose")
    parser.add_argument("--logs", type=Path, help="a file for what the servers of the last history said")
    given = parser.parse_args()
    if given.clients == "supabase":
        try:
            installed_clients()
        except RuntimeError as error:
            parser.error(str(error))
    seed = int(time.time()) if given.seed is None else given.seed
    ends = time.monotonic() + (given.minutes or 0) * 60
    verdicts: list[Verdict] = []
    while not verdicts or time.monotonic() < ends:
        verdict = (run if given.clients == "native" else run_supabase)(
            seed, given.seconds, mutation=given.mutation, only=given.only, logs=given.logs, gateways=given.gateways
        )
        verdicts.append(verdict)
        _tell(verdict, given)
        if verdict.wrong and given.logs:
            break  # this run writes the file
        seed += 1
    _sum_up(verdicts)
    raise SystemExit(1 if any(verdict.wrong for verdict in verdicts) else 0)


def _tell(verdict: Verdict, given: argparse.Namespace) -> None:
    is_native = given.clients == "native"
    again = "" if is_native else f" {verdict.doubled:,} came twice (at most {verdict.oldest:.1f} s old),"
    print(
        f"seed {verdict.seed}: {verdict.transactions:,} transactions, {verdict.events:,} events,"
        f" {verdict.received:,} records of clients, {verdict.connects:,} {'connects' if is_native else 'joins'},"
        f" {verdict.resumes:,} resumes, {verdict.resyncs:,} {'snapshots' if is_native else 'gaps told'},{again}"
        f" {sum(verdict.faults.values())} faults: "
        + ("as it must be" if not verdict.wrong else f"{len(verdict.wrong)} WRONG"),
        flush=True,
    )
    for sentence in verdict.wrong[:20]:
        print(f"    {sentence}")
    if verdict.wrong:
        more = ("" if is_native else " --clients supabase") + (" --gateways" if given.gateways else "")
        print(f"  again: python -m faults --seed {verdict.seed} --seconds {given.seconds:g}{more}", flush=True)
        if verdict.log is not None:
            print(f"  its servers and clients: {verdict.log}", flush=True)


def _sum_up(verdicts: list[Verdict]) -> None:
    faults: Counter[str] = Counter()
    for verdict in verdicts:
        faults.update(verdict.faults)
    print(
        f"\n{len(verdicts)} histories, {sum(v.transactions for v in verdicts):,} transactions,"
        f" {sum(v.events for v in verdicts):,} events, {sum(v.received for v in verdicts):,} records,"
        f" {sum(v.resumes for v in verdicts):,} resumes; {sum(1 for v in verdicts if v.wrong)} wrong"
    )
    for name, count in faults.most_common():
        print(f"  {count:5}  {name}")


if __name__ == "__main__":
    main()

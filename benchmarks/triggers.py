"""Cost of the triggers for writers: pgbench updating scores with them, without them, and with the seed's NOTIFYs.

Eight writers and then 32 at once, each update a transaction, PostgreSQL and pgbench on all cores, no readers. The
number
matters: NOTIFY takes one lock for the whole database until its commit is flushed, so such commits cannot share a flush.
The three take short turns, because the speed of flushes changes within minutes.
"""

from __future__ import annotations

import re
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from benchmarks.environment import environment, programs, switch
from benchmarks.machine import ALL_CORES, LOAD_CORES, pin
from benchmarks.report import Bench, Line

USERS = 1000
WRITERS = (8, 32)
SECONDS = 3  # seconds of a turn after the first, in which new backends fill caches and compile functions
TURNS = 3
OURS = ("momentum_score_realtime_trigger", "momentum_cache_invalidation_trigger")
SEED = ("seed_publish", "seed_invalidate")
SCRIPT = """
\\set user random(0, {last})
\\set score random(0, 10000)
update public.daily_engagement_scores set final_score = :score::numeric / 100
where user_id = ('00000000-0000-4000-8000-' || lpad(to_hex(:user::int), 12, '0'))::uuid;
"""


def measure(bench: Bench) -> Iterator[Line]:
    """Measure transactions per second of each, in turns."""
    (users,) = bench.sizes(USERS)
    seconds, turns = (1, 1) if bench.quick else (SECONDS, TURNS)
    kinds: tuple[tuple[str, ...], ...] = ((), OURS, SEED)
    tps = {(writers, kind): list[float]() for writers in WRITERS for kind in kinds}
    pin(ALL_CORES)
    try:
        with environment(users) as (conninfo, folder), psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(Path(__file__).with_name("peers").joinpath("seed.sql").read_text(encoding="utf-8"))
            script = folder / "update.sql"
            script.write_text(SCRIPT.format(last=users - 1), encoding="utf-8")
            for _ in bench.rounds(f"{len(tps)} times {turns} turns of {seconds} s"):
                for writers in WRITERS:
                    reached = {kind: list[float]() for kind in kinds}
                    for turn in range(turns):
                        for kind in kinds[turn:] + kinds[:turn]:
                            prepare(connection, kind)
                            reached[kind].append(pgbench(conninfo, script, writers, seconds))
                    for kind in kinds:
                        tps[writers, kind].append(statistics.mean(reached[kind]))
    finally:
        pin(LOAD_CORES)
    few, many = WRITERS
    yield Line("updates with the triggers", "tx/s", tps[few, OURS], "no trigger", tps[few, ()], least=0.80)
    yield Line("updates with the triggers", "tx/s", tps[few, OURS], "the seed's six NOTIFYs", tps[few, SEED], least=2.3)
    yield Line(f"the same, {many} writers", "tx/s", tps[many, OURS], "no trigger", tps[many, ()])
    yield Line(f"the same, {many} writers", "tx/s", tps[many, OURS], "the seed's six NOTIFYs", tps[many, SEED])


def prepare(connection: psycopg.Connection[TupleRow], kind: Sequence[str]) -> None:
    """Enable these triggers and no others, on a table without dead rows."""
    switch(connection, on=kind, off=[trigger for trigger in (*OURS, *SEED) if trigger not in kind])
    connection.execute("vacuum full public.daily_engagement_scores")
    connection.execute("checkpoint")


def pgbench(conninfo: str, script: Path, writers: int, seconds: int) -> float:
    """Return transactions per second, without the first second."""
    given = conninfo_to_dict(conninfo)
    ran = subprocess.run(
        [programs() / "pgbench", "-n", "-M", "prepared", "-c", str(writers), "-j", "2", "-T", str(seconds + 2),
         "-P", "1", "-f", script, "-h", str(given["host"]), "-U", str(given["user"]), str(given["dbname"])],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    told = re.findall(r"^progress: ([\d.]+) s, ([\d.]+) tps", ran.stderr, re.MULTILINE)[: seconds + 1]
    if ran.returncode or len(told) <= seconds:  # the report of the last second may be missing
        raise SystemExit(f"pgbench failed: {ran.stderr}")
    at = [float(second) for second, _ in told]
    done = sum(float(told[i][1]) * (at[i] - at[i - 1]) for i in range(1, len(told)))
    return done / (at[-1] - at[0])

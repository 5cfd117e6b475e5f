"""Feeds random bytes, guided by coverage, until something breaks or the time is over.

python -m fuzz frames                frames of a client
python -m fuzz realtime              frames of Supabase's clients
python -m fuzz replication           messages of the database, and ids of clients
python -m fuzz http                  requests made from the OpenAPI description, with every check of schemathesis
python -m fuzz frames --seconds 600  for this long; default 30

All but `http` need atheris, which exists for Linux on x86-64; it names the file with the finding.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import tempfile
from pathlib import Path


def coverage(target: str, seconds: int, rest: list[str]) -> None:
    """Run libFuzzer on a target. It ends the process, with status 0 if nothing was found."""
    try:
        import atheris
    except ModuleNotFoundError:
        print("atheris is needed, which there is for Linux on x86-64 and Python up to 3.13.", file=sys.stderr)
        raise SystemExit(2) from None

    with atheris.instrument_imports(include=["momentum_sync", "websockets"]):
        module = importlib.import_module(f"fuzz.{target}")
        importlib.import_module("momentum_sync.observe").configure(level="ERROR")

    async def fuzz(corpus: str) -> None:  # some code asks for the running event loop
        findings = tempfile.mkdtemp(prefix="fuzz-") + "/"
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={seconds}",
                "-max_len=8192",
                "-print_final_stats=1",
                f"-artifact_prefix={findings}",
                *rest,
                corpus,
            ],
            module.one,
        )
        atheris.Fuzz()

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(module.SEEDS):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        asyncio.run(fuzz(corpus))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=["frames", "realtime", "replication", "http"])
    parser.add_argument("--seconds", type=int, default=30)
    given, rest = parser.parse_known_args()
    if given.target == "http":
        from fuzz.http import run

        raise SystemExit(run(given.seconds, rest))
    coverage(given.target, given.seconds, rest)


if __name__ == "__main__":
    main()

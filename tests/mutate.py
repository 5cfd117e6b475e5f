"""Mutation testing of the pure modules: `script/mutate [MODULE …]`.

mutmut makes single changes to a module (a comparison, a constant, an argument left out), and only the module's own unit
tests run. A change that no test notices is printed. Changes that cannot be noticed, because the program behaves the
same, are listed with a reason in `tests/equivalent_mutants.txt`. The texts of errors are left alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.txt"
AIM = 0.9

# By module: its unit tests.
TESTS = {
    "bench/tally": ["test_tally"],
    "capture/broadcasts": ["test_broadcasts"],
    "capture/lag_probe": ["test_lag_probe"],
    "capture/reader_watch": ["test_reader_watch"],
    "capture/pgoutput": ["test_pgoutput"],
    "capture/row_changes": ["test_row_changes"],
    "capture/row_messages": ["test_row_messages"],
    "capture/sequencer": ["test_sequencer"],
    "capture/values": ["test_values"],
    "doctor/report": ["test_doctor"],
    "database/lsn": ["test_visibility", "test_event"],
    "database/queries": ["test_queries"],
    "database/visibility": ["test_visibility"],
    "eventlog/envelope": ["test_event", "test_sequencer"],
    "eventlog/event": ["test_event"],
    "eventlog/feed": ["test_feed"],
    "eventlog/follower": ["test_follower"],
    "eventlog/position": ["test_event"],
    "eventlog/resume": ["test_event"],
    "eventlog/row_index": ["test_row_index", "test_routes"],
    "eventlog/samples": ["test_samples"],
    "eventlog/window": ["test_window", "test_row_index"],
    "gateway/arrival": ["test_arrival"],
    "gateway/peers": ["test_peers"],
    "gateway/receipts": ["test_receipts"],
    "gateway/direct_files": ["test_direct_files", "test_io_uring"],
    "gateway/fan_out": ["test_fan_out"],
    "gateway/cursor": ["test_cursor"],
    "gateway/dialects/native": ["test_native"],
    "gateway/dialects/realtime": ["test_realtime", "test_realtime_messages", "test_realtime_private"],
    "gateway/dialects/realtime_answers": ["test_realtime_answers"],
    "gateway/dialects/realtime_errors": ["test_realtime", "test_realtime_private"],
    "gateway/dialects/realtime_messages": ["test_realtime_messages", "test_realtime_private"],
    "gateway/dialects/realtime_place": ["test_realtime_place"],
    "gateway/dialects/realtime_replay": ["test_realtime_private"],
    "gateway/dialects/realtime_resume": ["test_realtime_resume"],
    "gateway/dialects/realtime_rights": ["test_realtime_private", "test_realtime"],
    "gateway/dialects/realtime_rows": ["test_realtime", "test_realtime_private"],
    "gateway/dialects/realtime_topic": ["test_realtime", "test_realtime_topic", "test_realtime_private"],
    "gateway/handshake": ["test_handshake"],
    "gateway/hub": ["test_hub"],
    "gateway/presence": ["test_presence"],
    "gateway/routes": ["test_routes"],
    "gateway/send_budget": ["test_send_budget"],
    "gateway/subscribers": ["test_fan_out"],
    "gateway/topic_members": ["test_topic_members", "test_realtime_messages"],
    "identity/decider": ["test_policy", "test_realtime_topic"],
    "identity/policy": ["test_policy"],
    "identity/policy_parser": ["test_policy"],
    "identity/policy_equality": ["test_policy_equality"],
    "identity/row_tables": ["test_row_change"],
    "identity/tokens": ["test_tokens"],
    "schema": ["test_event", "test_authorizer"],
    "sdk/outbox": ["sdk/test_outbox", "sdk/test_vectors"],
    "sdk/protocol": ["sdk/test_protocol", "sdk/test_vectors"],
    "sdk/state": ["sdk/test_state", "sdk/test_vectors"],
    "states": ["test_states"],
    "telemetry/spans": ["test_spans"],
    "token_bucket": ["test_token_bucket"],
    "wire/from_server": ["test_messages", "sdk/test_vectors"],
    "wire/messages": ["test_messages"],
    "wire/phoenix": ["test_phoenix"],
    "wire/realtime_broadcast": ["test_realtime_messages", "test_broadcasts"],
    "wire/realtime_filter": ["test_realtime_filter"],
    "wire/realtime_join": ["test_realtime_join"],
    "wire/row_change": ["test_row_change"],
    "wire/row_watch": ["test_row_watch"],
}

_PYPROJECT = """\
[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
pythonpath = [".", "src"]

[tool.mutmut]
source_paths = ["src"]
only_mutate = ["src/momentum_sync/{module}.py"]
pytest_add_cli_args_test_selection = {tests}
also_copy = ["spec"]
"""
_SENTENCE = re.compile(r"""f?"[^"]*"|str\((?:error|bad)\)|\bsentence\b""")
_RUN = """\
import mutmut.mutation.mutators as mutators
kept = [each for each in mutators.mutation_operators if "string" not in each[1].__name__]
mutators.mutation_operators[:] = kept
from mutmut.__main__ import cli
cli()
"""


class Mutant(NamedTuple):
    """A changed module. `change` is the changed line before and after."""

    name: str
    change: str


class Result(NamedTuple):
    """The mutants of one module: how many there are, and those that no test noticed."""

    total: int
    survivors: list[Mutant]


def equivalent() -> dict[str, str]:
    """Return the listed changes that cannot be noticed, with their reasons, by `module: before => after`."""
    entries = {}
    for line in EQUIVALENT.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            change, _, reason = line.rpartition(" -- ")
            entries[change] = reason
    return entries


def mutate(module: str) -> Result:
    """Make all changes to one module, and run its tests on each."""
    tests = [f"tests/unit/{name}.py" for name in TESTS[module]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("src", "spec", "tests/unit"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "tests" / "__init__.py").touch()
        (folder / "pyproject.toml").write_text(_PYPROJECT.format(module=module, tests=tests), encoding="utf-8")
        (folder / "run.py").write_text(_RUN, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
        clean = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if clean.returncode != 0:  # every change would count as noticed
            raise SystemExit(f"{module}: its tests fail without any change:\n{clean.stdout[-2000:]}")
        ran = _mutmut(folder, "run")
        lines = _mutmut(folder, "results", "--all", "true").splitlines()
        results = [match.groups() for line in lines if (match := re.match(r"\s+(\S+): (.+)", line))]
        if not results:
            raise SystemExit(f"{module}: mutmut made no mutants:\n{ran[-2000:]}")
        unnoticed = [mutant for mutant, state in results if state in ("survived", "no tests", "suspicious")]
        survivors = [Mutant(each, _change(_mutmut(folder, "show", each))) for each in unnoticed]
        texts = [mutant for mutant in survivors if _is_text(mutant.change)]
        return Result(len(results) - len(texts), [mutant for mutant in survivors if mutant not in texts])


def _is_text(change: str) -> bool:
    """Return whether a change replaces or drops the sentence of an error and nothing else."""
    before, _, after = change.partition(" => ")
    for found in _SENTENCE.finditer(before):
        if found.group() in ("sentence", "str(error)", "str(bad)") or " " in found.group():
            head, tail = before[: found.start()], before[found.end() :]
            if after in (f"{head}None{tail}", f"{head}{tail}"):
                return True
    return False


def _mutmut(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "run.py", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )  # fmt: skip
    return done.stdout + done.stderr


def _change(diff: str) -> str:
    """Return `before => after` of a diff."""

    def lines(sign: str) -> Iterator[str]:
        for line in diff.splitlines():
            if line.startswith(sign) and not line.startswith(sign * 3):
                yield line[1:].strip()

    return f"{' '.join(lines('-'))} => {' '.join(lines('+'))}"


def main(arguments: Sequence[str]) -> int:
    """Print a table. The exit status is 1 if a module is below the aim."""
    parser = argparse.ArgumentParser(prog="script/mutate", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as eventlog/window; default: all")
    parser.add_argument("--list", action="store_true", help="print the changes that no test noticed")
    given = parser.parse_args(arguments)
    known, below = equivalent(), False
    for module in given.modules or sorted(TESTS):
        total, survivors = mutate(module)
        real = [mutant for mutant in survivors if f"{module}: {mutant.change}" not in known]
        equal = len(survivors) - len(real)
        share = 1 - len(real) / max(1, total - equal)
        below = below or share < AIM
        print(f"{module:26} {total - len(survivors):4} of {total - equal:4} noticed, {share:4.0%}", end="")
        print(f"; {equal} equivalent" if equal else "", flush=True)
        for mutant in real if given.list else ():
            print(f"    {module}: {mutant.change}")
    return 1 if below else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

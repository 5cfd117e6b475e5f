"""Short runs of the fuzzing commands, and the same targets with inputs of hypothesis."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import frames, realtime, replication
from momentum_sync.eventlog.event import Event


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fuzz", *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("target", ["frames", "realtime", "replication"])
def test_steered_by_coverage(target: str) -> None:
    done = run(target, "--seconds", "6")
    if importlib.util.find_spec("atheris") is None:
        assert (done.returncode, done.stdout) == (2, "")
        assert "Linux on x86-64" in done.stderr
        return
    assert done.returncode == 0, done.stderr[-3000:]
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert executed is not None
    assert int(executed[1]) > len({"frames": frames, "realtime": realtime, "replication": replication}[target].SEEDS), (
        "and changes of them"
    )


def test_http_with_every_check_of_schemathesis() -> None:
    done = run("http", "--seconds", "10")
    assert done.returncode == 0, re.sub(r"(.)\1{40,}", r"\1…", done.stdout)[-5000:]
    assert "12 selected / 12 total" in done.stdout


def _mutated(module: ModuleType) -> st.SearchStrategy[bytes]:
    """Return seeds of a target, cut, joined and changed in places, or arbitrary bytes."""
    seeds = st.sampled_from(module.SEEDS)

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        data = bytearray(b"".join(draw(st.lists(seeds, min_size=1, max_size=4))))
        for place, byte in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)):
            data[place] = byte
        return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)

    return st.one_of(build(), st.binary(max_size=300))


@settings(max_examples=300)
@given(_mutated(replication))
def test_replication(data: bytes) -> None:
    replication.one(data)


@pytest.mark.parametrize("target", [frames, realtime], ids=["frames", "realtime"])
async def test_frames(target: ModuleType) -> None:
    @settings(max_examples=300)
    @given(_mutated(target))
    def one(data: bytes) -> None:
        target.one(data)

    one()


def test_the_targets_notice_what_they_are_there_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that leaks an exception, and one that keeps too much, are detected."""
    seed = replication.SEEDS[3]
    monkeypatch.setattr(replication, "decode", lambda data: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replication.one(seed)
    monkeypatch.undo()
    monkeypatch.setattr(Event, "build", lambda **_: (_ for _ in ()).throw(KeyError("x")))
    with pytest.raises(KeyError):
        replication.one(seed)

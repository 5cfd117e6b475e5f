"""The benchmarks run, some from end to end, and their report is correct. No measured value is asserted."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from benchmarks import __main__ as program
from benchmarks.chart import svg
from benchmarks.load_clients import pong_to
from benchmarks.report import Bench, Line, markdown, table

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("line", "ratio", "reached"),
    [
        (Line("a", "tx/s", [90, 80, 70], "b", [100], least=0.8), 0.8, True),
        (Line("a", "tx/s", [79], "b", [100], least=0.8), 0.79, False),
        (Line("a", "ms", [3, 1, 2], "b", [1], most=1.5), 2.0, False),
        (Line("a", "kB", [9], most=10), None, True),
        (Line("a", "s", [9]), None, None),
    ],
)
def test_a_line_is_held_against_its_aim(line: Line, ratio: float | None, reached: bool | None) -> None:
    assert line.ratio == ratio
    assert line.reached is reached


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        (b"\x89\x00", b""),
        (b"\x89\x0212", b"12"),
        (b'{"a":1}\x89\x0212\x81\x7e\x01\x2c{"b":2}', b"12"),
        (b"\x89\x011\x89\x012", b"2"),
        (b'\x81\x7e\x89\x05{"a":1}', None),
    ],
)
def test_load_clients_answer_pings_wherever_they_come(data: bytes, payload: bytes | None) -> None:
    answer = pong_to(data)
    assert (None if answer is None else answer[6:]) == payload


def test_lines_become_a_table_a_page_and_a_picture() -> None:
    lines = [Line("one & two", "ms", [1.0], "floor", [2.0], most=0.4), Line("a frame", "µs", [3.0])]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(lines))
    assert "not reached" in console.export_text()
    assert "| one & two | 1 ms | 2 (floor) | 0.50 | ≤ 0.4 | **not reached** |" in markdown(lines)
    assert "one &amp; two" in svg(lines)


@pytest.mark.parametrize("error", [TimeoutError("nobody answers"), SystemExit("nobody answers [/x]")])
def test_a_measure_that_fails_does_not_cost_the_others(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(_: Bench) -> Iterator[Line]:
        yield Line("before it broke", "µs", [2.0])
        raise error

    def works(_: Bench) -> Iterator[Line]:
        yield Line("a frame", "µs", [3.0])

    docs = tmp_path / "docs"
    docs.mkdir()
    for page in ("performance.md", "performance.json", "performance.svg"):
        (docs / page).write_text("as it was", encoding="utf-8")
    monkeypatch.setattr(
        program, "MEASURES", {"breaks": SimpleNamespace(measure=breaks), "works": SimpleNamespace(measure=works)}
    )
    monkeypatch.setattr(program, "DOCS", docs)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(program, "pin", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["bench", "--write"])
    with pytest.raises(SystemExit, match=r"Could not measure breaks: .* The page is as it was"):
        program.main()
    assert {page.read_text(encoding="utf-8") for page in docs.iterdir()} == {"as it was"}
    (unfinished,) = tmp_path.glob("*.json")
    numbers = json.loads(unfinished.read_text(encoding="utf-8"))
    assert numbers["failed"] == ["breaks"]
    assert [line["what"] for line in numbers["lines"]] == ["before it broke", "a frame"]
    assert "nobody answers" in capsys.readouterr().err


def test_measures_that_are_named_bring_their_own_lines_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"one": 1.0, "two": 2.0}

    def of(name: str) -> SimpleNamespace:
        return SimpleNamespace(measure=lambda _: iter([Line(name, "µs", [values[name]], "floor", [1.0], most=3.0)]))

    monkeypatch.setattr(program, "MEASURES", {name: of(name) for name in values})
    monkeypatch.setattr(program, "DOCS", tmp_path)
    monkeypatch.setattr(program, "pin", lambda _: None)
    (tmp_path / "performance.md").write_text(
        "before <!-- script/bench --write --> <!-- end --> after", encoding="utf-8"
    )
    monkeypatch.setattr(sys, "argv", ["bench", "--write"])
    program.main()
    values.update(one=5.0, two=6.0)
    monkeypatch.setattr(sys, "argv", ["bench", "two", "--write"])
    program.main()
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "| one | 1 µs | 1 (floor) | 1.00 | ≤ 3 | reached |\n| two | 6 µs | 1 (floor) | 6.00 |" in page
    assert page.startswith("before <!--")
    assert page.endswith("<!-- end --> after")
    numbers = json.loads((tmp_path / "performance.json").read_text(encoding="utf-8"))
    assert [line["value"] for line in numbers["lines"]] == [1.0, 6.0]
    monkeypatch.setattr(program, "described", lambda: "another machine")
    with pytest.raises(SystemExit):
        program.main()
    assert "measure everything" in capsys.readouterr().err


MEASURED = ["latency", "throughput", "connects", "compare", "big_transaction", "triggers", "topics"]


@pytest.mark.parametrize("what", MEASURED)
def test_a_measure_runs_from_end_to_end(what: str, tmp_path: Path) -> None:
    _measure(what, tmp_path)


@pytest.mark.skipif(shutil.which("cc") is None and not os.environ.get("CI"), reason="the floor needs a C compiler")
def test_the_fan_out_runs_beside_its_floor(tmp_path: Path) -> None:
    _measure("fan_out", tmp_path)


def _measure(what: str, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks", what, "--quick", "--json", numbers],
        cwd=ROOT, check=True, timeout=180, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    lines = json.loads(numbers.read_text(encoding="utf-8"))["lines"]
    assert lines
    assert all(line["value"] > 0 for line in lines)

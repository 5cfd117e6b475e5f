"""The doctor's report, and its checks of settings."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest

from momentum_sync.doctor import configuration
from momentum_sync.doctor.configuration import check_settings
from momentum_sync.doctor.finding import Finding, Level, exit_status
from momentum_sync.doctor.report import as_json, lines, summary
from momentum_sync.settings import Settings, read

SECRET = "x" * 32
OK = Finding("database", "version", Level.OK, "PostgreSQL 17")
NOTE = Finding("settings", "origins", Level.NOTE, "none", fix="set MOMENTUM_ALLOWED_ORIGINS")
WARNING = Finding("stream", "our slot", Level.WARNING, "is far behind " * 10, "It matters. " * 10, "first;\nsecond;")
PROBLEM = Finding("database", "WAL level", Level.PROBLEM, "replica", "No rows.", "alter system …")
UNKNOWN = Finding("stream", "log", Level.UNKNOWN, "the check failed")


@pytest.mark.parametrize(
    ("findings", "plain", "strict"),
    [
        ([], 0, 0), ([OK, NOTE], 0, 0), ([OK, WARNING], 0, 1), ([WARNING, PROBLEM], 1, 1), ([OK, UNKNOWN], 1, 1),
    ],
)  # fmt: skip
def test_the_exit_status_is_for_scripts(findings: list[Finding], plain: int, strict: int) -> None:
    assert exit_status(findings, strict=False) == plain
    assert exit_status(findings, strict=True) == strict


def test_a_finding_is_a_line_with_why_and_the_command_below_it() -> None:
    shown = list(lines([OK, WARNING, PROBLEM], width=80, colored=False))
    assert shown[0] == "database"
    assert shown[1] == "  ok       version    PostgreSQL 17"
    assert shown[2] == "  problem  WAL level  replica"
    assert shown[3:5] == [" " * 22 + "why:  No rows.", " " * 22 + "fix:  alter system …"]
    assert shown[5:7] == ["", "stream"]
    assert shown[-2:] == [" " * 22 + "fix:  first;", " " * 22 + "      second;"], "a command stays on its line"
    assert all(len(line) <= 80 for line in shown)


def test_levels_have_colors_on_a_terminal_alone() -> None:
    assert "\x1b[31mproblem" in list(lines([PROBLEM], width=80, colored=True))[1]
    assert "\x1b" not in "".join(lines([PROBLEM], width=80, colored=False))


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ([OK], "1 check: no problems found"),
        ([OK, PROBLEM, WARNING, WARNING, NOTE], "5 checks: 1 problem, 2 warnings, 1 note"),
        ([UNKNOWN, PROBLEM, PROBLEM], "3 checks: 2 problems, 1 check that failed"),
    ],
)
def test_the_summary_counts(findings: list[Finding], said: str) -> None:
    assert summary(findings) == said


def test_the_json_has_all_of_a_finding() -> None:
    assert json.loads(as_json([PROBLEM])) == [
        {
            "area": "database", "check": "WAL level", "level": "problem", "found": "replica", "why": "No rows.",
            "fix": "alter system …",
        }
    ]  # fmt: skip


def found(settings: Settings, *names: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_settings(settings, names)}


def given(**settings: object) -> Settings:
    return read(**{"database_url": "postgresql://h/d", "jwt_secret": SECRET, **settings})


def test_settings_that_are_all_right() -> None:
    right = found(given(allowed_origins="https://app.example", host="0.0.0.0", max_connections=10), "MOMENTUM_PORT")
    assert {finding.level for finding in right.values()} == {Level.OK}
    assert not any(finding.why or finding.fix for finding in right.values())


@pytest.mark.parametrize(
    ("settings", "check", "level", "said"),
    [
        ({"jwt_secret": None}, "tokens", Level.NOTE, "generated on this machine"),
        ({"jwt_secret": "short"}, "tokens", Level.WARNING, "has 5 bytes"),
        ({"jwt_secret": SECRET, "supabase_url": "https://p.example"}, "tokens", Level.OK, "and the keys of https://p"),
        ({"allowed_origins": "*"}, "origins", Level.WARNING, "any origin"),
        ({"allowed_origins": "app.example,https://b.example"}, "origins", Level.PROBLEM, "not an origin: app.example"),
        ({"allowed_origins": "null,capacitor://localhost,https://b.example/"}, "origins", Level.OK, "capacitor"),
        ({"allowed_origins": ""}, "origins", Level.NOTE, "phones"),
        ({"token_in_query": True}, "tokens in URLs", Level.WARNING, "access_token"),
        ({"metrics_open": True}, "metrics", Level.NOTE, "anybody"),
    ],
)
def test_questionable_settings_are_reported(settings: dict[str, object], check: str, level: Level, said: str) -> None:
    finding = found(given(**settings))[check]
    assert finding.level is level
    assert said in finding.found
    assert (level in (Level.OK,)) == (finding.fix == "")


def test_a_misspelt_variable_is_named() -> None:
    finding = found(given(), "MOMENTUM_PROT", "PATH")["variables"]
    assert (finding.level, finding.found) == (Level.WARNING, "not settings: MOMENTUM_PROT")


def test_more_connections_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    finding = found(given())["open files"]
    assert finding.level is Level.WARNING
    assert "LimitNOFILE=20200" in finding.fix
    assert found(given(max_connections=500))["open files"].level is Level.OK


def test_more_connections_than_may_wait_to_be_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "somaxconn"
    monkeypatch.setattr(configuration, "SOMAXCONN", limit)
    assert found(given())["backlog"].level is Level.OK, "another system than Linux"
    limit.write_text("4096\n", encoding="ascii")
    finding = found(given(max_connections=4097))["backlog"]
    assert (finding.level, finding.fix.partition("   #")[0]) == (Level.NOTE, "sysctl -w net.core.somaxconn=4097")
    assert found(given(max_connections=4096))["backlog"].level is Level.OK


def test_whether_one_system_call_writes_to_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def ring(error: OSError | None) -> None:
        def open_ring(entries: int, largest: int) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(configuration, "open_ring", open_ring)

    ring(None)
    assert found(given())["io_uring"].level is Level.OK
    assert found(given(io_uring="off"))["io_uring"].found == "MOMENTUM_IO_URING=off"
    ring(PermissionError(1, "Operation not permitted"))
    finding = found(given())["io_uring"]
    assert (finding.level, finding.found) == (Level.NOTE, "not available here: Operation not permitted")
    assert "seccomp" in finding.fix
    ring(OSError(38, "Function not implemented"))
    assert "seccomp" in found(given())["io_uring"].fix, "a profile may answer so, too"
    ring(OSError(95, "the kernel's io_uring is too old"))
    assert found(given())["io_uring"].fix == "", "nothing can be done"
    monkeypatch.setattr(sys, "platform", "darwin")
    ring(OSError(38, "Function not implemented"))
    assert found(given())["io_uring"].fix == ""
    assert "io_uring" not in found(given(role="capture", nats_url="nats://n:4222", database_url="postgresql://d/d"))


def test_the_disk_matters_where_the_database_is_embedded(tmp_path: Path) -> None:
    settings = read(data_dir=str(tmp_path / "not" / "there"))
    assert "GiB free" in found(settings)["disk"].found
    assert "disk" not in found(given())

"""Locked requirements: by hash, and not below versions with known vulnerabilities."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKED = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
CLIENTS = sorted((ROOT / "tests" / "supabase" / "clients").glob("python-*.txt"))

# The first versions without the named vulnerability; `script/audit` queries for all known ones, where it can.
AT_LEAST = {
    "pyjwt": ((2, 13), "CVE-2026-48523, GHSA-xgmm-8j9v-c9wx: a JWK taken for an HMAC secret, an allow-list passed by"),
}


@pytest.mark.parametrize(
    "path",
    [*(ROOT / "requirements" / f"{name}.txt" for name in ("dev", "server", "build", "release")), *CLIENTS],
    ids=lambda path: path.stem,
)
def test_every_package_is_pinned_by_hash(path: Path) -> None:
    entries = re.split(r"\n(?=[a-z0-9])", path.read_text(encoding="utf-8").strip())
    assert len(entries) > (60 if path.stem == "dev" else 5)
    for entry in entries:
        assert re.match(r"[a-z0-9][a-z0-9._-]*(\[[a-z,]+\])?==\S+", entry), entry[:60]
        assert "--hash=sha256:" in entry, entry[:60]


def test_nothing_is_locked_that_is_known_to_be_broken() -> None:
    for name, (least, why) in AT_LEAST.items():
        versions = re.findall(rf"^{name}(?:\[[a-z,]+\])?==([\d.]+)", LOCKED, re.MULTILINE)
        assert versions, name
        for version in versions:
            assert tuple(map(int, version.split("."))) >= least, f"{name} {version}: {why}"


def test_the_server_runs_with_what_it_is_tested_with() -> None:
    def pinned(path: Path) -> set[str]:
        return set(
            re.findall(r"^([a-z0-9._-]+(?:\[[a-z,]+\])?==[^ ;\\]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        )

    assert len(pinned(ROOT / "requirements" / "server.txt")) > 30
    for name in ("server", "build", "release"):
        assert pinned(ROOT / "requirements" / f"{name}.txt") <= pinned(ROOT / "requirements" / "dev.txt")

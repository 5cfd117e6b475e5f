"""The secret of development mode."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from momentum_sync.token_settings import development_secret, development_secret_path


def test_everybody_reads_the_same_secret_and_only_the_owner_may(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        secrets = set(threads.map(lambda _: development_secret(tmp_path / "data"), range(32)))
    (secret,) = secrets
    assert len(secret) >= 32
    path = development_secret_path(tmp_path / "data")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_an_empty_file_is_replaced(tmp_path: Path) -> None:
    development_secret_path(tmp_path).touch()
    assert len(development_secret(tmp_path)) >= 32


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuses)
    assert len(development_secret(tmp_path)) >= 32
    assert [each.name for each in tmp_path.iterdir()] == [development_secret_path(tmp_path).name]

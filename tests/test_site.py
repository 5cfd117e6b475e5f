"""The documentation site: it builds without a broken link, and the printed pages are complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import momentum_sync
from momentum_sync.database.files import migrations, text
from momentum_sync.settings import Settings, variable
from momentum_sync.wire.close import Close
from reference import pages
from reference.javascript import exported
from reference.links import rewritten

ROOT = Path(__file__).parents[1]


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    written, built = tmp_path / "docs", tmp_path / "site"
    for command in (
        ["-m", "reference", str(written)],
        ["-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(config(tmp_path, written, built))],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert (built / "index.html").is_file()
    for page in (*pages.WRITTEN.values(), *pages.PRINTED):
        assert (built / page.replace(".md", ".html")).is_file(), page


def config(folder: Path, written: Path, built: Path) -> Path:
    given = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    given = given.replace("docs_dir: build/docs", f"docs_dir: {written}").replace(
        "site_dir: build/site", f"site_dir: {built}"
    )
    path = folder / "mkdocs.yml"
    path.write_text(given, encoding="utf-8")
    return path


def test_every_page_by_hand_is_on_the_site() -> None:
    by_hand = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert by_hand <= pages.WRITTEN.keys()


def test_no_paragraph_by_hand_is_wider_than_the_code() -> None:
    for path in (*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")):
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        wide = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "![", "> ", "["))]
        assert not wide, f"{path.name}: {wide[0]}"


def test_the_references_are_complete() -> None:
    settings = pages.settings()
    assert all(f"`{variable(name)}`" in settings for name in Settings.model_fields)
    assert str(Path.home()) not in settings, "no default of this machine"
    functions = pages.sql()
    scripts = "".join([*(migration.sql for migration in migrations()), text("eventlog/receipts.sql")])
    for name in re.findall(r"comment on function ([\w.]+)\(", scripts):
        assert f"## {name}\n" in functions
    assert "select momentum.publish(array['announcements']" in functions, "quotes as one types them"
    sdk = pages.python()
    assert all(
        f"## {name}\n" in sdk for name in momentum_sync.__all__ if isinstance(getattr(momentum_sync, name), type)
    )
    javascript = pages.javascript()
    for name in exported(ROOT / "clients" / "js" / "src"):
        assert f"## {name}\n" in javascript, name
    assert "`Cache.get(key, fetch, options?): Promise<T>`" in javascript
    assert "- `options?`: `{persistent?: boolean, within?: number}`" in javascript
    assert "### Client.#" not in javascript
    paths = pages.http()
    assert "## POST /sync/receipts" in paths
    assert "## GET /sync/health/ready" in paths
    protocol = pages.protocol()
    assert "## initial_state\n\nSent by the server." in protocol
    assert "| `channels` | yes | array of string |" in protocol
    assert "### Momentum\n" in protocol
    for close in Close:
        assert f"| {close.code} | {close.reason} |" in protocol


def test_links_become_those_of_the_site() -> None:
    text = (
        "[a](docs/adopt.md#plain-postgresql) [b](https://example.com) ![c](docs/phone.png) [deploy](deploy/nginx.conf)"
    )
    assert rewritten(text, "README.md", pages.WRITTEN, ROOT) == (
        "[a](adopt.md#plain-postgresql) [b](https://example.com) ![c](phone.png) deploy (`deploy/nginx.conf`)"
    )
    assert rewritten("[up](../README.md)", "docs/adopt.md", pages.WRITTEN, ROOT) == "[up](index.md)"
    with pytest.raises(ValueError, match="not there"):
        rewritten("[gone](docs/gone.md)", "README.md", pages.WRITTEN, ROOT)

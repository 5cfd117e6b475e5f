"""The JavaScript SDK's own tests: the vectors, its types, and the content of its package."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.sdk.drivers import JAVASCRIPT, NODE, missing

pytestmark = pytest.mark.skipif(missing("node") is not None, reason=str(missing("node")))


def run(*command: str, cwd: Path = JAVASCRIPT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests() -> None:
    said = run("npm", "test")
    assert "# fail 0" in said


def test_its_types_are_strict_and_hold_for_a_program_in_typescript() -> None:
    run("npm", "run", "--silent", "types")


def test_its_package_works_where_it_is_installed(tmp_path: Path) -> None:
    (packed,) = json.loads(run("npm", "pack", "--json", "--silent", "--pack-destination", str(tmp_path)))
    names = {file["path"] for file in packed["files"]}
    assert {"src/index.js", "src/node.js", "types/index.d.ts", "types/node.d.ts", "package.json", "README.md"} <= names
    assert not [name for name in names if name.startswith(("test/", "node_modules/"))]
    home = tmp_path / "node_modules" / "momentum-sync"
    home.parent.mkdir()
    shutil.unpack_archive(tmp_path / packed["filename"], tmp_path, filter="data")
    (tmp_path / "package").rename(home)
    text = "import { Client } from 'momentum-sync'; import { FileStore } from 'momentum-sync/node';"
    text += "console.log(typeof new Client('http://x', 't', { store: new FileStore('x') }).events);"
    assert run(str(NODE), "--input-type=module", "--eval", text, cwd=tmp_path) == "function\n"
    assert "dependencies" not in json.loads((JAVASCRIPT / "package.json").read_text(encoding="utf-8"))


def test_the_lock_file_says_nothing_of_where_packages_came_from() -> None:
    lock = (JAVASCRIPT / "package-lock.json").read_text(encoding="utf-8")
    assert "resolved" not in lock
    assert "integrity" in lock

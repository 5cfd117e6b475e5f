"""The README's instructions for an app, as printed: build, install, run the examples."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from uuid import UUID

import pytest

from tests.fixtures.postgres import Sql, add_score
from tests.fixtures.server import Server, sign
from tests.sdk.drivers import NODE, missing

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of `script/build`, in a newcomer's folder."""
    done = subprocess.run([ROOT / "script" / "build"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(ROOT / "dist", folder / "dist")
    return folder


def install_line(program: str) -> list[str]:
    """Return the README's command without its comment."""
    (line,) = re.findall(rf"^{program} install .*?(?=  +#)", README, re.MULTILINE)
    return [word.strip("'") for word in line.split()]


async def done(*command: str, cwd: Path) -> None:
    """Run a command to its end, with exit status 0."""
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, stdout=PIPE, stderr=STDOUT)
    async with asyncio.timeout(300):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def follows(command: list[str], folder: Path, server: Server, db: Sql, user: UUID) -> None:
    """Run a program until it has reported a score that was written while it ran."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "MOMENTUM_URL": server.url, "MOMENTUM_TOKEN": sign(user)}
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=env, stdout=PIPE, stderr=STDOUT)
    assert process.stdout is not None
    said = ""
    try:
        async with asyncio.timeout(60):
            while "as of now" not in said:
                said += (line := (await process.stdout.readline()).decode())
                assert line, said
            add_score(db, user, score=61.5)
            while "momentum_score_created" not in said:
                said += (line := (await process.stdout.readline()).decode())
                assert line, said
    finally:
        process.kill()
        await process.wait()
    assert "61.5" in said


async def test_python_as_it_stands_there(dist: Path, server: Server, db: Sql, user: UUID) -> None:
    (snippet,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "FileStore" in block]
    assert snippet in (ROOT / "examples" / "follow.py").read_text(encoding="utf-8")
    (dist / "app.py").write_text(snippet, encoding="utf-8")
    await done(sys.executable, "-m", "venv", "venv", cwd=dist)
    pip, *rest = install_line("pip")
    await done(str(dist / "venv" / "bin" / pip), *rest, "--quiet", cwd=dist)
    await follows([str(dist / "venv" / "bin" / "python"), "-u", "app.py"], dist, server, db, user)


@pytest.mark.skipif(missing("node") is not None, reason=str(missing("node")))
async def test_javascript_as_it_stands_there(dist: Path, server: Server, db: Sql, user: UUID) -> None:
    assert NODE is not None
    folder = dist / "web"
    folder.mkdir()
    shutil.copytree(dist / "dist", folder / "dist")
    shutil.copy(ROOT / "examples" / "follow.mjs", folder)
    await done(*install_line("npm"), "--silent", cwd=folder)
    await done("npm", "install", "ws", "--silent", cwd=folder)  # as the README says for old versions of Node
    assert (folder / "node_modules" / "momentum-sync" / "types" / "index.d.ts").is_file()
    await follows([NODE, "follow.mjs"], folder, server, db, user)


@pytest.mark.skipif(missing("node") is not None, reason=str(missing("node")))
def test_the_example_is_clean_for_pyright_too() -> None:
    pyright = ROOT / "clients" / "js" / "node_modules" / ".bin" / "pyright"
    done = subprocess.run(
        [pyright, "--pythonpath", sys.executable, "examples/follow.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout

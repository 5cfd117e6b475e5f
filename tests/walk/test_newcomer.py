"""The first steps of a newcomer in a clean checkout and home: the demo, the packages, both examples, all adoptions.

Every command is the one that README.md and docs/adopt.md print.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from momentum_sync.database.embedded import short_folder
from tests.fixtures.adoption import SECTIONS, Reader, supabase_project, the_seed
from tests.fixtures.demo import Demo, pages
from tests.fixtures.postgres import temporary_database
from tests.sdk.drivers import NODE, missing

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LEFT_OUT = (".git", ".venv", "node_modules", "dist", "types", "__pycache__", ".*_cache", ".hypothesis")
ADOPTIONS: dict[str, Callable[[Reader], None]] = {
    "A Supabase project": supabase_project,
    "Plain PostgreSQL": lambda _: None,
    "The seed's own implementation": the_seed,
}


class Newcomer:
    """A user with a clean checkout and a new HOME. `folder` must be short: PostgreSQL's socket path contains it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.checkout = folder / "momentum-sync"
        shutil.copytree(ROOT, self.checkout, ignore=shutil.ignore_patterns(*LEFT_OUT))
        ours = ("MOMENTUM_", "SUPABASE_", "VIRTUAL_ENV", "PYTHONPATH", "DATABASE_URL", "UV_", "XDG_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.env |= {"HOME": str(self.home)}

    async def does(self, *command: str, cwd: Path | None = None) -> str:
        """Run a command to its end, with exit status 0. Return its output."""
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd or self.checkout, env=self.env, stdout=PIPE, stderr=STDOUT
        )
        async with asyncio.timeout(300):
            said, _ = await process.communicate()
        assert process.returncode == 0, f"{command}\n{said.decode()}"
        return said.decode()

    @asynccontextmanager
    async def demo(self) -> AsyncIterator[Demo]:
        """Run the README's demo until the block ends, then stop it with Ctrl-C."""
        assert re.search(r"^script/demo$", README, re.MULTILINE)
        process = subprocess.Popen(
            ["script/demo", "--port", "0", "--data-dir", self.folder / "data", "--pace", "3600"],
            cwd=self.checkout, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            said = ""
            while "Ctrl-C" not in said:
                line = await asyncio.to_thread(process.stdout.readline)
                assert line, process.communicate()
                said += line
            conninfo = re.search(r'psql "([^"]+)"', said)
            assert conninfo is not None
            yield Demo(process, pages(said), conninfo[1], self.folder)
            process.send_signal(signal.SIGINT)
            _, errors = await asyncio.to_thread(process.communicate)
            assert (process.returncode, errors.splitlines()[-1]) == (0, "Stopped.")
        finally:
            process.kill()
            process.communicate()

    async def follows(self, demo: Demo, *command: str, cwd: Path, value: float) -> None:
        """Run a program until it has printed a score, which is written while it runs."""
        link = urlsplit(demo.links[1])
        (token,) = parse_qs(link.fragment)["access_token"]
        env = self.env | {"MOMENTUM_URL": f"http://{link.netloc}", "MOMENTUM_TOKEN": token}
        process = await asyncio.create_subprocess_exec(*command, cwd=cwd, env=env, stdout=PIPE, stderr=STDOUT)
        assert process.stdout is not None
        said = ""
        try:
            async with asyncio.timeout(60):
                while "as of now" not in said:
                    said += (line := (await process.stdout.readline()).decode())
                    assert line, said
                await asyncio.to_thread(score, demo, value)
                while str(value) not in said:
                    said += (line := (await process.stdout.readline()).decode())
                    assert line, said
        finally:
            process.kill()
            await process.wait()
        assert "momentum_score_updated" in said


def score(demo: Demo, value: float) -> None:
    """Write every user's score of today."""
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        connection.execute(
            "update daily_engagement_scores set final_score = %s where score_date = current_date", (value,)
        )


def shown(link: str) -> bytes:
    """Return the page behind a link."""
    page: bytes = urllib.request.urlopen(link.partition("#")[0], timeout=20).read()
    return page


def install_line(program: str) -> list[str]:
    """Return the README's command without its comment."""
    (line,) = re.findall(rf"^{program} install .*?(?=  +#)", README, re.MULTILINE)
    return [word.strip("'") for word in line.split()]


@pytest.mark.skipif(missing("node") is not None, reason=str(missing("node")))
async def test_the_walk_of_a_newcomer(cluster: str) -> None:
    assert NODE is not None
    with short_folder() as folder:
        newcomer = Newcomer(folder)
        app, web, venv = (folder / name for name in ("app", "web", "venv"))
        app.mkdir()
        web.mkdir()
        async with newcomer.demo() as demo:
            *pages, supabase = demo.links
            assert supabase.startswith("http://127.0.0.1:8080/"), "it is there once examples/supabase was started"
            for link in pages:
                assert b"<!doctype html>" in await asyncio.to_thread(shown, link)

            assert "script/build" in README
            await newcomer.does("script/build")
            for place in (app, web):
                shutil.copytree(newcomer.checkout / "dist", place / "dist")

            (snippet,) = [
                block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "FileStore" in block
            ]
            assert snippet in (ROOT / "examples" / "follow.py").read_text(encoding="utf-8")
            (app / "app.py").write_text(snippet, encoding="utf-8")
            await newcomer.does("python3", "-m", "venv", str(venv))
            pip, *rest = install_line("pip")
            await newcomer.does(str(venv / "bin" / pip), *rest, "--quiet", cwd=app)
            await newcomer.follows(demo, str(venv / "bin" / "python"), "-u", "app.py", cwd=app, value=61.5)

            shutil.copy(newcomer.checkout / "examples" / "follow.mjs", web)
            await newcomer.does(*install_line("npm"), "--silent", cwd=web)
            await newcomer.does("npm", "install", "ws", "--silent", cwd=web)  # as the README says for old Node
            assert (web / "node_modules" / "momentum-sync" / "types" / "index.d.ts").is_file()
            await newcomer.follows(demo, NODE, "follow.mjs", cwd=web, value=62.5)

        # "'…whl[server]' adds the server"
        await newcomer.does(str(venv / "bin" / pip), rest[0], f"{rest[1]}[server]", "--quiet", cwd=app)
        for number, (section, before) in enumerate(ADOPTIONS.items()):
            with temporary_database(cluster) as database:
                reader = Reader(folder / f"adoption{number}", database, venv / "bin" / "momentum-sync")
                before(reader)
                await adopts(reader, section)


async def adopts(reader: Reader, section: str) -> None:
    """Follow a section of docs/adopt.md, then uninstall."""
    await reader.follow(section)
    if section == "A Supabase project":
        assert "adopt public.coach_interventions, as it is" in reader.said
        assert reader.said.rstrip().endswith("The database is up to date.")
    if section == "Plain PostgreSQL":
        await reader.follow("Publishing your own events")
        assert re.search(r"^ey[\w-]+\.ey[\w-]+\.[\w-]+$", reader.said, re.MULTILINE)
    if section.startswith("The seed"):
        with psycopg.connect(reader.database) as connection:
            roles = connection.execute("select raw_app_meta_data ->> 'role' from auth.users").fetchall()
        assert roles == [("coach",)]
    await reader.follow("Uninstalling")
    assert "removed triggers, functions" in reader.said
    with psycopg.connect(reader.database) as connection:
        left = connection.execute("select from pg_replication_slots where database = current_database()").fetchall()
    assert left == []


def test_every_block_of_the_adoption_page_belongs_to_a_way_that_is_walked() -> None:
    blocks = {name for name, blocks in SECTIONS.items() if blocks}
    assert blocks == {*ADOPTIONS, "Publishing your own events", "Uninstalling"}

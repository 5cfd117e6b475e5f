"""Every command of docs/adopt.md, run as it is printed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest

from momentum_sync.database.files import text
from tests.fixtures.postgres import new_user

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adopt.md").read_text(encoding="utf-8")
SECTIONS = {
    section.splitlines()[0]: re.findall(r"^ *```(console|sql)\n(.*?)^ *```", section, re.MULTILINE | re.DOTALL)
    for section in PAGE.split("\n## ")[1:]
}
FAKE_CLI = """\
import os, pathlib, sys
import psycopg
assert sys.argv[1:] == ["db", "push", "--include-all"], sys.argv
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
    connection.execute("set client_min_messages = warning")
    connection.execute("create schema if not exists supabase_migrations; create table if not exists"
        " supabase_migrations.schema_migrations (version text primary key, statements text[], name text)")
    done = {v for (v,) in connection.execute("select version from supabase_migrations.schema_migrations")}
    for path in sorted(pathlib.Path("supabase/migrations").glob("*.sql")):
        version, _, name = path.stem.partition("_")
        if version not in done:
            connection.execute(path.read_text().encode())
            connection.execute("insert into supabase_migrations.schema_migrations values (%s, %s, %s)",
                (version, ["one", "two"], name))
"""


class Reader:
    """Somebody who goes through the page in a shell, with this database in place of the one that it names."""

    def __init__(self, folder: Path, database: str) -> None:
        (folder / "bin").mkdir()
        (folder / "app" / "supabase" / "migrations").mkdir(parents=True)
        shutil.copytree(ROOT / "supabase", folder / "supabase")
        for name, program in (
            ("momentum-sync", "from momentum_sync.__main__ import main; main()"),
            ("supabase", FAKE_CLI),
        ):
            script = folder / "bin" / name
            script.write_text(f"#!{sys.executable}\n{program}\n", encoding="utf-8")
            script.chmod(0o755)
        self.folder = folder
        self.database = database
        self.said = ""
        self.exports = ""
        self._env = {
            name: value for name, value in os.environ.items() if not name.startswith(("MOMENTUM_", "SUPABASE_"))
        }
        self._env |= {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "MOMENTUM_PORT": "0", "HOME": str(folder),
            "MOMENTUM_DATA_DIR": str(folder / "data"),
        }  # fmt: skip

    async def follow(self, section: str) -> None:
        """Runs a section's blocks in order; `serve` until it is healthy."""
        assert SECTIONS[section], section
        for kind, block in SECTIONS[section]:
            if kind == "sql":
                with psycopg.connect(self.database, autocommit=True) as connection:
                    connection.execute(block.encode())
                continue
            self.exports += "".join(line + "\n" for line in block.splitlines() if line.startswith("export SUPABASE"))
            lines = [line for line in block.splitlines() if not line.startswith("export")]
            serve = "momentum-sync serve" in lines
            await self._run("\n".join(line for line in lines if line != "momentum-sync serve"))
            if serve:
                await self._serve()

    async def _start(self, script: str) -> asyncio.subprocess.Process:
        whole = f"set -e\n{self.exports}export DATABASE_URL='{self.database}'\n{script}\n"
        return await asyncio.create_subprocess_exec(
            "bash", "-c", whole, cwd=self.folder, env=self._env, stdout=PIPE, stderr=STDOUT, start_new_session=True
        )

    async def _run(self, script: str) -> None:
        process = await self._start(script)
        async with asyncio.timeout(120):
            said, _ = await process.communicate()
        self.said += said.decode()
        assert process.returncode == 0, f"{script}\n{said.decode()}"

    async def _serve(self) -> None:
        process = await self._start("exec momentum-sync serve")
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60), httpx.AsyncClient() as http:
                while (
                    found := re.search(r'"url": "(\S+?)"|url=(\S+)', line := (await process.stdout.readline()).decode())
                ) is None:
                    assert line, "it ended"
                url = found[1] or found[2]
                while (await http.get(f"{url}/sync/health")).json()["capture"]["state"] != "live":
                    await asyncio.sleep(0.05)
        finally:
            process.terminate()
            await process.communicate()


@pytest.fixture
def reader(tmp_path: Path, empty_database: str) -> Reader:
    return Reader(tmp_path, empty_database)


def supabase_project(reader: Reader) -> None:
    """Create what Supabase has, and the app's tables."""
    with psycopg.connect(reader.database, autocommit=True) as connection:
        connection.execute(text("database/bootstrap.sql").encode())
        connection.execute((ROOT / "tests" / "fixtures" / "app.sql").read_text(encoding="utf-8").encode())
        connection.execute("drop schema supabase_migrations cascade")


def the_seed(reader: Reader) -> None:
    with psycopg.connect(reader.database, autocommit=True) as connection:
        for script in (text("database/bootstrap.sql"), *(
            (ROOT / "tests" / "fixtures" / name).read_text(encoding="utf-8") for name in ("app.sql", "seed.sql")
        )):  # fmt: skip
            connection.execute(script.encode())
        user = new_user(connection)
        role = json.dumps({"role": "coach"})
        connection.execute("update auth.users set raw_user_meta_data = %s where id = %s", (role, user))


@pytest.mark.parametrize(
    ("section", "before"),
    [
        ("A Supabase project", supabase_project),
        ("Plain PostgreSQL", lambda _: None),
        ("The seed's own implementation", the_seed),
    ],
    ids=["supabase", "plain", "seed"],
)
async def test_the_page(reader: Reader, section: str, before: Callable[[Reader], None]) -> None:
    before(reader)
    await reader.follow(section)
    if section == "A Supabase project":
        assert "adopt public.coach_interventions, as it is" in reader.said
        assert reader.said.rstrip().endswith("The database is up to date.")
    if section == "Plain PostgreSQL":
        await reader.follow("Publishing your own events")
        assert re.search(r"^ey[\w-]+\.ey[\w-]+\.[\w-]+$", reader.said, re.MULTILINE)
    with psycopg.connect(reader.database) as connection:
        roles = connection.execute("select raw_app_meta_data ->> 'role' from auth.users").fetchall()
    if section.startswith("The seed"):
        assert roles == [("coach",)]
    await reader.follow("Uninstalling")
    assert "removed triggers, functions" in reader.said
    with psycopg.connect(reader.database) as connection:
        left = connection.execute("select from pg_replication_slots where database = current_database()").fetchall()
    assert left == []


def test_every_block_of_the_page_belongs_to_a_way_that_is_tested() -> None:
    assert {name for name, blocks in SECTIONS.items() if blocks} == {
        "A Supabase project", "Plain PostgreSQL", "The seed's own implementation", "Publishing your own events",
        "Uninstalling",
    }  # fmt: skip

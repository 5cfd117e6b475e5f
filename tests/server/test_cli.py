"""The command line: help, tokens, and errors with their remedies."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from uuid import uuid4

import jwt
import pytest
from psycopg.conninfo import make_conninfo

from momentum_sync.settings import Settings, variable
from tests.fixtures.cli import clean, run
from tests.fixtures.server import SECRET, Server


@pytest.mark.parametrize("verb", ["demo", "serve", "migrate", "uninstall", "token", "tail", "bench"])
def test_every_verb_has_help(tmp_path: Path, verb: str) -> None:
    assert verb in run("--help", cwd=tmp_path).stdout
    helped = run(verb, "--help", cwd=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Usage" in helped.stdout


def test_every_setting_has_a_flag_on_serve(tmp_path: Path) -> None:
    helped = run("serve", "--help", cwd=tmp_path).stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in helped, name
        assert f"[env: {variable(name)}" in re.sub(r"\s+", " ", helped), name
        assert Settings.model_fields[name].description, f"{name} says nothing of itself"


def test_version(tmp_path: Path) -> None:
    assert re.fullmatch(r"momentum-sync \d+\.\d+\.\d+\n", run("--version", cwd=tmp_path).stdout)


def test_a_token_signed_with_the_projects_secret(tmp_path: Path) -> None:
    user = str(uuid4())
    made = run("token", "--user", user, "--role", "coach", "--expires", "2h", cwd=tmp_path, SUPABASE_JWT_SECRET=SECRET)
    claims = jwt.decode(made.stdout.strip(), SECRET, algorithms=["HS256"], audience="authenticated")
    assert (claims["sub"], claims["role"], claims["app_metadata"]) == (user, "authenticated", {"role": "coach"})
    assert claims["exp"] - claims["iat"] == 7200


def test_a_token_of_the_service(tmp_path: Path) -> None:
    made = run("token", "--role", "service_role", cwd=tmp_path, SUPABASE_JWT_SECRET=SECRET)
    assert jwt.decode(made.stdout.strip(), SECRET, algorithms=["HS256"])["role"] == "service_role"
    assert "development" not in made.stderr


def test_in_development_the_secret_is_kept_in_a_file_of_the_owners(tmp_path: Path) -> None:
    user = str(uuid4())
    runs = [run("token", "--user", user, cwd=tmp_path) for _ in range(2)]
    tokens = [done.stdout.strip() for done in runs]
    kept = tmp_path / "development.secret"
    assert all(f"Signed with the development secret in {kept}" in done.stderr for done in runs)
    assert kept.stat().st_mode & 0o777 == 0o600
    for token in tokens:
        jwt.decode(token, kept.read_text(), algorithms=["HS256"], audience="authenticated")


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("token",), {}, "--user is required"),
        (("token", "--user", str(uuid4()), "--role", "service_role"), {}, "--user is required"),
        (("token", "--user", str(uuid4()), "--expires", "soon"), {}, "is not a duration"),
        (("token", "--user", str(uuid4())), {"SUPABASE_URL": "https://p.example"}, "it alone has the private key"),
        (("serve", "--port", "99999"), {}, "MOMENTUM_PORT"),
        (("serve", "--host", "0.0.0.0"), {}, "without a JWT secret"),
        (("serve",), {"MOMENTUM_RETENTION": "soon"}, "MOMENTUM_RETENTION"),
        (("serve",), {"SUPABASE_ANON_KEY": "a"}, "an embedded PostgreSQL is not used together with"),
        (("migrate",), {"SUPABASE_URL": "https://p.example"}, "an embedded PostgreSQL is not used together with"),
        (("serve",), {"SUPABASE_SERVICE_ROLE_KEY": ""}, "SUPABASE_SERVICE_ROLE_KEY is empty"),
        (("serve", "--service-role-key", ""), {}, "SUPABASE_SERVICE_ROLE_KEY is empty"),
        (("serve", "--database-url", "postgresql://127.0.0.1:1/x"), {}, 'at "127.0.0.1", port 1'),
        (("serve", "--database-url", "postgresql://127.0.0.1:1/x"), {}, "cannot be reached"),
        (("serve", "--database-url", "nonsense"), {}, "not a PostgreSQL connection string"),
        (("migrate", "--database-url", "postgresql://127.0.0.1:1/x"), {}, "cannot be reached"),
        (("migrate", "--database-url", "nonsense"), {}, "not a PostgreSQL connection string"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_what_mends_it(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    done = run(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == 2, done.stderr
    sentence, hint = done.stderr.strip().splitlines()
    assert sentence.startswith("momentum-sync: ")
    assert said in sentence
    assert hint.startswith("  ")


def test_a_port_in_use(tmp_path: Path, database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--port", port, "--database-url", database, cwd=tmp_path)
    assert done.returncode == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr


def test_migrate_then_serve(tmp_path: Path, empty_database: str) -> None:
    refused = run("serve", "--port", "0", "--database-url", empty_database, cwd=tmp_path)
    assert (refused.returncode, "momentum-sync migrate" in refused.stderr) == (2, True)
    first = run("migrate", cwd=tmp_path, DATABASE_URL=empty_database)
    assert (first.returncode, first.stdout.splitlines()[-1]) == (0, "7 migrations applied.")
    assert run("migrate", cwd=tmp_path, DATABASE_URL=empty_database).stdout == "The database is up to date.\n"
    server = subprocess.Popen(
        [sys.executable, "-m", "momentum_sync", "serve", "--port", "0"],
        stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=clean(tmp_path, {"DATABASE_URL": empty_database}),
    )  # fmt: skip
    assert server.stderr is not None
    said = ""
    while '"listening"' not in said:
        line = server.stderr.readline()
        assert line, said
        said += line
    assert "DEVELOPMENT MODE" in said
    found = re.search(r'"url": "([^"]+)"', said)
    assert found is not None
    answer = urllib.request.urlopen(f"{found[1]}/openapi.json", timeout=20)
    assert answer.status == 200
    server.send_signal(signal.SIGTERM)
    _, rest = server.communicate(timeout=60)
    assert server.returncode == 0, rest
    assert "Traceback" not in rest


async def test_bench_measures_a_running_server(tmp_path: Path, server: Server, database: str) -> None:
    arguments = ("bench", "--url", server.url, "--connections", "20", "--rate", "100", "--seconds", "2s", "--json")
    environment = {"DATABASE_URL": database, "SUPABASE_JWT_SECRET": SECRET}
    done = await asyncio.to_thread(lambda: run(*arguments, cwd=tmp_path, **environment))
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    assert (numbers["sent"], numbers["lost"], numbers["twice"], numbers["gaps"]) == (200, 0, 0, 0)
    assert 0 < numbers["write_to_client_ms"]["p50"] <= numbers["write_to_client_ms"]["highest"]
    table = await asyncio.to_thread(lambda: run(*arguments[:-1], cwd=tmp_path, **environment))
    assert "lost 0, duplicated 0, gaps 0, out of order 0" in table.stdout
    assert "publishing" in table.stderr


async def test_bench_says_what_is_wrong(tmp_path: Path, server: Server, database: str) -> None:
    def bench(*more: str, secret: str = SECRET, db: str = database) -> subprocess.CompletedProcess[str]:
        given = ("bench", "--url", server.url, "--connections", "2", "--seconds", "1s", *more)
        return run(*given, cwd=tmp_path, DATABASE_URL=db, SUPABASE_JWT_SECRET=secret)

    nobody = make_conninfo(database, user="authenticated_nobody")
    for done, words in (
        (await asyncio.to_thread(bench, "--url", "http://127.0.0.1:1"), "No Momentum Sync server answers"),
        (await asyncio.to_thread(bench, "--rate", "0.1"), "no event is due"),
        (await asyncio.to_thread(lambda: bench(secret="another-secret-of-more-than-32-bytes")), "SUPABASE_JWT_SECRET"),
        (await asyncio.to_thread(lambda: bench(db=nobody)), "The database rejected an event"),
    ):
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr

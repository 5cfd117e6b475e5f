"""A real server on a real PostgreSQL, and schemathesis: requests made from the server's own OpenAPI description.

It acts as `service_role`, which has no rate limit; other tests check that users get only their own data.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from uuid import UUID

import jwt
import psycopg

from momentum_sync import observe, server
from momentum_sync.database.embedded import Embedded, short_folder
from momentum_sync.database.migrate import migrate
from momentum_sync.settings import read

_SECRET = "a-secret-for-fuzzing-with-more-than-32-bytes"
_USER = UUID(int=1)
# A body above 64 KiB is refused before it is validated.
_CONFIGURATION = """
[checks]
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "409", "413", "422", "429"]
positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "413", "429"]
"""


def run(seconds: int, rest: list[str]) -> int:
    """Run schemathesis for this long. Return its exit status; `rest` are its further arguments."""
    observe.configure(level="ERROR")
    with short_folder() as folder, Embedded(folder) as postgres:
        migrate(postgres.conninfo, tell=lambda _: None)
        with psycopg.connect(postgres.conninfo, autocommit=True) as connection:
            connection.execute("insert into auth.users (id) values (%s)", (_USER,))
        return asyncio.run(_run(postgres.conninfo, folder, seconds, rest))


async def _run(conninfo: str, folder: Path, seconds: int, rest: list[str]) -> int:
    token = jwt.encode({"role": "service_role", "exp": 4_000_000_000}, _SECRET, algorithm="HS256")
    settings = read(database_url=conninfo, jwt_secret=_SECRET, port=0, data_dir=folder)
    (folder / "schemathesis.toml").write_text(_CONFIGURATION, encoding="utf-8")
    async with server.server(settings, conninfo, stopped=asyncio.Event()) as running:
        await running.live.wait()
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json",
            "--checks", "all", "--header", f"Authorization: Bearer {token}", "--no-color", "--max-time", str(seconds),
            *rest, cwd=folder,
        )  # fmt: skip
        return await process.wait()

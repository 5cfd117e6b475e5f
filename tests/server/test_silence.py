"""No log line and no answer to others has a token, the content of a message or an event, or a name.

The server runs at its most verbose level; clients send a marker wherever they can, and the output of server and
PostgreSQL is searched for it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
import websockets

from faults.clusters import Migrated
from momentum_sync.database.embedded import Embedded, short_folder
from tests.fixtures.cli import clean
from tests.fixtures.postgres import add_intervention, add_notification, add_score, new_user, programs_of
from tests.fixtures.server import ANON_KEY, PATH, SECRET, SERVICE_KEY, TIMEOUT_S, sign

MARK = "xq7secretq7x"  # marks everything that must not be repeated


@asynccontextmanager
async def talkative(postgres: Embedded, folder: Path) -> AsyncIterator[tuple[str, Path]]:
    """Yield a server's address, and the file with its output."""
    said = folder / "said"
    environment = clean(folder, {
        "DATABASE_URL": postgres.conninfo, "SUPABASE_JWT_SECRET": SECRET, "SUPABASE_ANON_KEY": ANON_KEY,
        "SUPABASE_SERVICE_ROLE_KEY": SERVICE_KEY, "MOMENTUM_LOG_LEVEL": "DEBUG", "MOMENTUM_TOKEN_IN_QUERY": "true",
        "MOMENTUM_SLOT": "silence", "PYTHONASYNCIODEBUG": "1",
    })  # fmt: skip
    program = [sys.executable, "-m", "momentum_sync", "serve", "--port", "0"]
    with said.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*program, env=environment, stdout=output, stderr=output)
    try:
        async with asyncio.timeout(60):
            while "capture live" not in said.read_text():
                assert process.returncode is None, said.read_text()
                await asyncio.sleep(0.05)
        (first,) = [json.loads(line) for line in said.read_text().splitlines() if '"listening"' in line]
        yield first["url"], said
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def say_everything(url: str, user: UUID, token: str) -> list[str]:
    """Send the marker wherever a client can. Return the answers that another client received meanwhile."""
    http_url = httpx.URL(url)
    address = f"ws://{http_url.host}:{http_url.port}{PATH}"
    forged = sign(user)[:-4] + "AAAA"
    bearer = {"Authorization": f"Bearer {token}"}
    async with websockets.connect(address, additional_headers={"Authorization": f"Bearer {sign(uuid4())}"}) as other:
        for query, headers in (
            (f"?client_id={MARK}&channels={MARK}", bearer),
            (f"?access_token={token}&client_id={MARK}", {}),
            (f"?last_event_id={MARK}", bearer),
        ):
            async with websockets.connect(address + query, additional_headers=headers) as socket:
                for sent in (
                    json.dumps({"type": MARK}),
                    json.dumps({"type": "ping", "ref": MARK}),
                    MARK,
                    MARK.encode(),
                    json.dumps({"type": "authenticate", "token": MARK}),
                    json.dumps({"type": "subscribe", "channels": [MARK]}),
                    json.dumps({"type": "mark_notification_read", "notification_id": MARK}),
                ):
                    await socket.send(sent)
                async with asyncio.timeout(TIMEOUT_S):
                    for _ in range(4):
                        await socket.recv()
        for query, headers in (
            (f"?user_id={MARK}", bearer),
            (f"?client_id={MARK}%0A", bearer),
            (f"?access_token={MARK}", {}),
            ("", {"Authorization": f"Bearer {forged}"}),
            ("", {"apikey": MARK}),
        ):
            with pytest.raises(websockets.InvalidStatus):
                async with websockets.connect(address + query, additional_headers=headers):
                    raise AssertionError("it was let in")
        async with httpx.AsyncClient(base_url=url, headers=bearer, timeout=TIMEOUT_S) as http:
            for path, body in (
                ("/sync/momentum", {"user_id": MARK}),
                ("/sync/momentum", {MARK: MARK}),
                ("/sync/events", {"last_event_id": MARK, "channels": [MARK]}),
                (f"/{MARK}", {}),
            ):
                await http.post(path, json=body)
            await http.post("/sync/momentum", content=f"{{{MARK}", headers={"Content-Type": "application/json"})
            await http.request(MARK.upper(), "/sync/momentum")
        answers = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    answers.append(str(await other.recv()))
        return answers


async def test_nothing_is_repeated_that_a_client_or_a_row_says(request: pytest.FixtureRequest) -> None:
    with short_folder() as folder, Migrated(folder, programs_of(request.config)) as postgres:
        with psycopg.connect(postgres.conninfo, autocommit=True) as db:
            user = new_user(db)
            token = sign(user, user_metadata={"name": MARK})
            async with talkative(postgres, folder) as (url, said):
                add_notification(db, user, title=MARK)
                add_score(db, user)
                intervention = add_intervention(db, user)
                answers = await say_everything(url, user, token)
                # An unstorable event, a malformed message and a lost connection are all logged.
                db.execute("alter table momentum.event_log add constraint picky check (event::text not like '%quirk%')")
                db.execute(
                    "update coach_interventions set trigger_reason = %s where id = %s", (f"quirk {MARK}", intervention)
                )
                db.execute("select pg_logical_emit_message(true, 'momentum_sync', %s)", (f"no envelope: {MARK}",))
                async with asyncio.timeout(TIMEOUT_S):
                    while "capture failed" not in said.read_text() or "malformed" not in said.read_text():
                        await asyncio.sleep(0.05)
                db.execute("alter table momentum.event_log drop constraint picky")
                written = said.read_text()
        of_postgres = "".join(path.read_text() for path in (folder / "postgres" / "cluster" / "log").iterdir())
    for secret in (MARK, token, str(user), SECRET, SERVICE_KEY, str(intervention)):
        assert secret not in written, secret
        assert not any(secret in answer for answer in answers), secret
    assert token not in of_postgres
    for kept in ("listening", "capture failed", "CheckViolation (23514)", "malformed logical message"):
        assert kept in written

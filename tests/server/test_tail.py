"""`momentum-sync tail`: output for terminals and programs, across runs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import websockets

from faults.proxy import Proxy
from tests.fixtures.cli import clean, run
from tests.fixtures.postgres import Sql, add_intervention, add_notification, add_score
from tests.fixtures.server import SECRET, SERVICE_KEY, Server, Start, sign


@asynccontextmanager
async def tail(folder: Path, *arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a tail, killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "momentum_sync", "tail", *arguments, cwd=folder,
        env=clean(folder, {"SUPABASE_JWT_SECRET": SECRET, **environment}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 20)).decode().rstrip()


async def an_object(process: asyncio.subprocess.Process) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await line(process))
    return found


async def until_joined(server: Server) -> None:
    """Wait until a client has joined a topic."""
    async with server.http(SERVICE_KEY) as http, asyncio.timeout(20):
        while "momentum_topics 1.0" not in (await http.get("/metrics")).text:
            await asyncio.sleep(0.05)


async def test_without_a_url_it_connects_to_the_configured_port(
    tmp_path: Path, server: Server, user: UUID, db: Sql
) -> None:
    port = server.url.rpartition(":")[2]
    arguments = ("--user", str(user), "--json", "--count", "1")
    async with tail(tmp_path, *arguments, MOMENTUM_PORT=port, MOMENTUM_HOST="0.0.0.0") as process:
        assert "resync" in await an_object(process), "it is connected"
        add_notification(db, user)
        assert (await an_object(process))["event_type"] == "push_notification"


async def test_a_topics_messages_and_presence(tmp_path: Path, server: Server, db: Sql) -> None:
    async with tail(tmp_path, "--url", server.url, "--topic", "room", "--json") as process:
        await until_joined(server)
        db.execute("select realtime.send('{\"n\": 1, \"id\": 2}', 'moved', 'room')")
        db.execute("select realtime.send_binary('\\x00ff', 'raw', 'room')")
        found = [await an_object(process), await an_object(process)]
        assert [(each["topic"], each["event"], each["payload"]) for each in found] == [
            ("room", "moved", {"n": 1, "id": 2}), ("room", "raw", {"base64": "AP8="}),
        ]  # fmt: skip
        assert all(each["meta"]["id"] for each in found)
        url = f"{server.ws}/realtime/v1/websocket?apikey={SERVICE_KEY}&vsn=2.0.0"
        async with websockets.connect(url) as member:
            await member.send(json.dumps(["1", "1", "realtime:room", "phx_join", {"config": {"private": True}}]))
            track = {"type": "presence", "event": "track", "payload": {"name": "Alice"}}
            await member.send(json.dumps(["1", "2", "realtime:room", "presence", track]))
            joined = await an_object(process)
            assert (joined["presence"], joined["state"]) == ("joined", {"name": "Alice"})
            for state in (
                {"meta": 1, "notice": "forged", "presence": "x", "key": "y"},
                {"event": "paid", "payload": 7},
            ):
                track["payload"] = state
                await member.send(json.dumps(["1", "3", "realtime:room", "presence", track]))
                found = [await an_object(process), await an_object(process)]
                assert [each["presence"] for each in found] == ["joined", "left"]
                assert found[0]["state"] == state
                assert found[0].keys() == {"topic", "presence", "key", "state"}
            await member.send(json.dumps(["1", "4", "realtime:room", "broadcast", {"meta": 5, "notice": "forged"}]))
            assert await an_object(process) == {"topic": "room", "event": None, "meta": 5}
        assert (await an_object(process))["presence"] == "left"


async def test_a_public_topic_in_lines_and_what_fits(tmp_path: Path, server: Server, db: Sql) -> None:
    arguments = ("--topic", "room", "--public", "--type", "mov*", "--where", "n=2", "--count", "1")
    async with tail(tmp_path, "--url", server.url, *arguments) as process:
        await until_joined(server)
        async with server.http(SERVICE_KEY) as http:
            for event, number in (("other", 2), ("moved", 1), ("moved", 2)):
                path = f"/realtime/v1/api/broadcast/room/events/{event}"
                assert (await http.post(path, json={"n": number})).status_code == 202
        assert 'moved                     {"n": 2}' in await line(process)
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_a_topic_that_is_refused(tmp_path: Path, server: Server, user: UUID) -> None:
    arguments = ("tail", "--url", server.url, "--topic", "room", "--token", sign(user))
    refused = await asyncio.to_thread(run, *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert "permissions to read from this Channel topic: room" in refused.stderr
    for more, said in (
        (("--all",), "--topic goes with neither"), (("--topic", ""), "--topic needs the name"),
        (("--token", "nonsense"), "The server answered 401"),
    ):  # fmt: skip
        wrong = await asyncio.to_thread(run, *arguments, *more, cwd=tmp_path)
        assert wrong.returncode == 2
        assert said in wrong.stderr


async def test_a_reader_of_a_topic_that_has_enough(tmp_path: Path, server: Server) -> None:
    command = f"{sys.executable} -m momentum_sync tail --url {server.url} --topic realtime:room --public | head -1"
    process = await asyncio.create_subprocess_shell(
        command, cwd=tmp_path, env=clean(tmp_path, {"SUPABASE_JWT_SECRET": SECRET}), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    await until_joined(server)
    async with server.http(SERVICE_KEY) as http:
        while process.returncode is None:
            assert (await http.post("/realtime/v1/api/broadcast/room/events/e", json={})).status_code == 202
            await asyncio.sleep(0.05)
    out, error = await process.communicate()
    assert len(out.splitlines()) == 1
    assert b"Traceback" not in error


async def test_a_users_events_across_two_runs(tmp_path: Path, server: Server, db: Sql, user: UUID, other: UUID) -> None:
    arguments = ("--url", server.url, "--user", str(user), "--json", "--state", str(tmp_path / "place"), "--count", "2")
    async with tail(tmp_path, *arguments) as process:
        assert (await an_object(process))["resync"] is None
        add_score(db, other, score=1)
        add_score(db, user, score=2)
        add_score(db, user, score=3, day="current_date - 1")
        assert [(await an_object(process))["final_score"] for _ in range(2)] == [2, 3]
        assert await asyncio.wait_for(process.wait(), 20) == 0
    add_notification(db, user, title="Missed")
    add_notification(db, user, title="Missed, too")
    async with tail(tmp_path, *arguments) as process:
        assert [(await an_object(process))["title"] for _ in range(2)] == ["Missed", "Missed, too"], "and no resync"
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_all_users_in_words_and_filtered(
    tmp_path: Path, server: Server, db: Sql, user: UUID, other: UUID
) -> None:
    async with tail(tmp_path, "--url", server.url, "--all", "--type", "intervention_*", "--count", "1") as process:
        assert await line(process) == "── live ──"
        add_score(db, user)
        add_intervention(db, other)
        said = await line(process)
        assert "intervention_created" in said
        assert str(other)[:8] in said
        assert "status=scheduled" in said
        assert "\x1b" not in said, "no colours where nobody looks"
        assert await asyncio.wait_for(process.wait(), 20) == 0
    where = ("--where", "momentum_state=Rising", "--where", "state_changed=true", "--json", "--count", "1")
    async with tail(tmp_path, "--url", server.url, "--user", str(user), *where) as process:
        await line(process)
        db.execute("update daily_engagement_scores set final_score = 51")
        db.execute("update daily_engagement_scores set final_score = 80, momentum_state = 'Rising'")
        assert (await an_object(process))["final_score"] == 80


async def test_with_a_token_of_its_own_and_a_reader_that_goes(
    tmp_path: Path, server: Server, db: Sql, user: UUID
) -> None:
    async with tail(tmp_path, "--url", server.url, "--json", MOMENTUM_TOKEN=sign(user)) as process:
        await line(process)
        assert process.stdout is not None
        process.stdout._transport.close()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            while process.returncode is None:
                add_notification(db, user)
                await asyncio.sleep(0.05)
        assert process.stderr is not None
        assert (process.returncode, await process.stderr.read()) == (0, b"")


async def test_what_cannot_work_is_said(tmp_path: Path, server: Server, user: UUID) -> None:
    def said(*arguments: str, secret: str = SECRET) -> str:
        done = run("tail", "--url", server.url, *arguments, cwd=tmp_path, SUPABASE_JWT_SECRET=secret)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "Neither a user nor a token was given" in said()
    assert "Neither a user nor a token was given" in said("--user", str(user), "--all")
    assert "is not a condition" in said("--user", str(user), "--where", "x")
    assert "is not the root of a server" in said("--user", str(user), "--url", "nowhere")
    wrong = await asyncio.to_thread(lambda: said("--user", str(user), secret="another-secret-of-more-than-32-bytes"))
    assert "(HTTP 401, invalid_token)" in wrong
    assert "SUPABASE_JWT_SECRET" in wrong


async def test_a_server_that_is_away_is_waited_for_and_said_once(tmp_path: Path, start: Start, user: UUID) -> None:
    network = Proxy()
    await network.start()
    async with tail(tmp_path, "--user", str(user), "--url", f"http://127.0.0.1:{network.port}") as process:
        assert process.stderr is not None
        assert "Reconnecting with increasing delay." in (await process.stderr.readline()).decode()
        async with start() as server:
            network.ports = [int(server.url.rsplit(":", 1)[1])]
            assert (await process.stderr.readline()).decode() == "momentum-sync: connected\n"
    await network.stop()

"""The shutdown of a server: all events are sent, every client gets 1012, the slot is confirmed."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio
import uvloop
import websockets
from websockets.protocol import Protocol, Side

from faults.listening import start_server
from momentum_sync import server as servers
from momentum_sync.gateway.delivery import Delivery
from momentum_sync.gateway.dialects import native
from momentum_sync.gateway.dialects.realtime import RealtimeSession
from momentum_sync.gateway.dialects.realtime_messages import Messages
from momentum_sync.gateway.frames import Frames
from momentum_sync.gateway.websocket import WebSocketProtocol
from momentum_sync.settings import read
from tests.fixtures.cli import clean
from tests.fixtures.cluster import until_logged
from tests.fixtures.postgres import Sql, add_notification
from tests.fixtures.server import SECRET, TIMEOUT_S, Bounds, Server, Start, sign, until_state


@pytest_asyncio.fixture
async def process(database: str, tmp_path: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], Server]]:
    """`momentum-sync serve` as an operator runs it, with a drain of two seconds."""
    environment = {"DATABASE_URL": database, "SUPABASE_JWT_SECRET": SECRET, "MOMENTUM_DRAIN": "2s"}
    running, port = await start_server(
        ["-m", "momentum_sync"], environment=clean(tmp_path, environment), folder=tmp_path,
        log=tmp_path / "server.log", seconds=30,
    )  # fmt: skip
    try:
        server = Server(f"http://127.0.0.1:{port}", read(database_url=database, jwt_secret=SECRET))
        await until_state(server, "live")
        yield running, server
    finally:
        running.kill()
        running.wait()


async def test_sigterm(process: tuple[subprocess.Popen[bytes], Server], db: Sql, user: UUID) -> None:
    running, server = process
    async with server.live(user) as client:
        for number in range(300):
            add_notification(db, user, title=f"{number}:{'x' * 2000}")
        async with server.http() as http, asyncio.timeout(20):
            while (await http.get("/sync/health")).json()["capture"]["last_event_id"].split("-")[1] != "300":
                await asyncio.sleep(0.01)  # until the server has read them
        running.send_signal(signal.SIGTERM)
        code, why = await client.closed()
        assert (code, "reconnect with your last_event_id" in why) == (1012, True)
        events = [message["event"] for message in client.seen if message["type"] == "realtime_event"]
        assert [event["title"].split(":")[0] for event in events] == [str(number) for number in range(300)]
    assert await asyncio.to_thread(running.wait, 20) == 0
    # Everything is in the log, the slot is free, and confirmed behind the last event.
    assert len(await until_logged(db, 300)) == 300
    row = db.execute(
        "select not active, confirmed_flush_lsn > (select max(commit_lsn) from momentum.event_log)"
        " from pg_replication_slots where slot_name = 'momentum_sync'"
    ).fetchone()
    assert row == (True, True)


async def test_a_second_sigterm_ends_at_once(process: tuple[subprocess.Popen[bytes], Server], user: UUID) -> None:
    running, server = process
    async with server.live(user) as client, server.live(user, client_id="other") as other:
        client.socket.transport.pause_reading()  # so that the shutdown waits for this client
        running.send_signal(signal.SIGTERM)
        assert (await other.closed())[0] == 1012
        running.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.wait, 20) == -signal.SIGTERM
        client.socket.transport.abort()


async def test_sigusr1_logs_what_the_tasks_wait_for(
    process: tuple[subprocess.Popen[bytes], Server], tmp_path: Path
) -> None:
    running, _ = process
    running.send_signal(signal.SIGUSR1)
    async with asyncio.timeout(20):
        while "Capture._capture:" not in (log := (tmp_path / "server.log").read_text()):
            await asyncio.sleep(0.02)
    assert "LogConnections.until_ended:" in log
    assert "most recent call first" in log, "where the threads are, also if the event loop does not run"


async def test_many_are_sent_away_in_batches_while_health_is_red_and_no_socket_is_taken(
    start: Start, db: Sql, user: UUID, database: str, tmp_path: Path, bounds: Bounds
) -> None:
    bounds("lifecycle", drain_batch=1)
    settings = read(
        database_url=database, jwt_secret=SECRET, port=0, data_dir=tmp_path, drain="2s", max_connections_per_user=100
    )
    async with AsyncExitStack() as clients:
        ending = AsyncExitStack()
        running = await ending.enter_async_context(
            servers.server(settings, database, stopped=asyncio.Event(), limits=bounds.limits)
        )
        server = Server(running.url, settings)
        await until_state(server, "live")
        connected = [await clients.enter_async_context(server.live(user, client_id=str(n))) for n in range(40)]
        closing = asyncio.ensure_future(ending.aclose())
        closed: list[float] = []

        async def ended(number: int) -> None:
            code, _ = await connected[number].closed()
            assert code == 1012
            closed.append(time.monotonic())

        waiting = [asyncio.ensure_future(ended(number)) for number in range(40)]
        async with server.http() as http:
            while not closed:
                await asyncio.sleep(0.01)
            health = await http.get("/sync/health")
            assert (health.status_code, health.json()["status"], health.json()["draining"]) == (503, "unhealthy", True)
            assert 0 < health.json()["connected_clients"] < 40
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with server.connect(sign(user)):
                    raise AssertionError("it was let in")
            assert refused.value.response.status_code == 503
            assert (await http.post("/sync/events", json={"last_event_id": "x"})).status_code in (401, 503)
        add_notification(db, user, title="meanwhile")
        await asyncio.gather(*waiting)
        await closing
    assert len({round(at, 1) for at in closed}) > 5, "spread"
    told = [
        [message["event"]["title"] for message in client.seen if message["type"] == "realtime_event"]
        for client in connected
    ]
    assert ["meanwhile"] in told, "whoever was still there was served to the last"


@pytest.mark.parametrize("drain", ["0.001s", "1s"])
async def test_a_client_that_has_half_closed_does_not_keep_it(start: Start, db: Sql, user: UUID, drain: str) -> None:
    async with asyncio.timeout(40):
        async with start(drain=drain) as server:
            client = await websockets.connect(
                server.ws + "/ws", additional_headers={"Authorization": f"Bearer {sign(user)}"}
            )
            await client.recv()
            client.transport.pause_reading()
            for _ in range(40):
                add_notification(db, user, title="x" * 100_000)
            client.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        client.transport.abort()


def test_closed_connections_leave_nothing_for_the_garbage_collector(start: Start, user: UUID) -> None:
    # With uvloop, as served: a transport of asyncio's own refers to itself.
    uvloop.run(_come_and_go(start, user))


async def _come_and_go(start: Start, user: UUID) -> None:
    ours = (WebSocketProtocol, Delivery, Frames, native.Session, RealtimeSession, Messages, Protocol)
    joins = [
        json.dumps(["1", str(ref), "realtime:room", "phx_join", {"config": {}, "access_token": token}])
        for ref, token in enumerate((sign(user), sign(user), "none"))
    ]

    def left() -> list[str]:
        # The type, not isinstance: that one asks a weak proxy for what may be gone.
        found = [each for each in gc.get_objects() if issubclass(type(each), ours)]
        return [type(each).__name__ for each in found if not isinstance(each, Protocol) or each.side is Side.SERVER]

    async def ends(how: str) -> None:
        """Have a connection end without a close frame."""
        client = await websockets.connect(
            server.ws + "/ws", additional_headers={"Authorization": f"Bearer {sign(user)}"}
        )
        await client.recv()
        match how:
            case "aborted":
                client.transport.abort()
            case "half closed":
                client.transport.write_eof()
            case "broken":
                client.transport.write(b"\xff" * 20)
        await client.wait_closed()

    async with start() as server:
        gc.collect()
        gc.freeze()  # each look goes through all that is not frozen
        gc.disable()
        try:
            for _ in range(3):
                async with server.live(user) as client:
                    await client.ask({"type": "ping"})
                async with server.connect(
                    None, path="/realtime/v1/websocket", vsn="2.0.0", apikey=sign(user), client_id="page"
                ) as client:
                    for join in joins:
                        await client.send(join)
                        await client.socket.recv()
                with pytest.raises(websockets.InvalidStatus):
                    async with server.connect("nobody's token"):
                        pass
                for how in ("aborted", "half closed", "broken"):
                    await ends(how)
            async with asyncio.timeout(TIMEOUT_S):
                while left():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(left()) from None
        finally:
            gc.enable()

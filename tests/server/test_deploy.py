"""The examples in `deploy/` with real proxies: realtime comes here, everything else goes to Supabase."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import websockets

from tests.fixtures.postgres import Sql
from tests.fixtures.server import ANON_KEY, TIMEOUT_S, Server, sign
from tests.fixtures.todos import TODOS, add_todo

DEPLOY = Path(__file__).parents[2] / "deploy"


class _Elsewhere(BaseHTTPRequestHandler):
    """A stand-in for the rest of a project at Supabase."""

    def do_GET(self) -> None:
        body = f"supabase {self.path}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[int]:
    """Yield the port of a server in place of Supabase's."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


async def started(command: list[str], path: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a proxy, and wait until it listens on its Unix socket."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(path) == 0:
                    return process
            assert process.poll() is None, await asyncio.to_thread(log.read_text)
            await asyncio.sleep(0.05)


def configured(name: str, server: Server, elsewhere: int, path: str, folder: Path) -> list[str]:
    """Write an example with other addresses only. Return the command that runs it."""
    ours = server.url.removeprefix("http://")
    text = (DEPLOY / name).read_text(encoding="utf-8").replace("127.0.0.1:8787", ours)
    text = text.replace("https://project.supabase.co", f"http://127.0.0.1:{elsewhere}")
    target = folder / name
    if name == "nginx.conf":
        target.write_text(text.replace("listen 8080;", f"listen unix:{path};"), encoding="utf-8")
        more = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;"
        return ["nginx", "-p", str(folder), "-c", str(target), "-g", more]
    # Without a name of its own there is no certificate to ask for.
    text = text.replace("app.example.com {", f"http:// {{\n\tbind unix/{path}")
    target.write_text("{\n\tadmin off\n}\n" + text, encoding="utf-8")
    return ["caddy", "run", "--config", str(target), "--adapter", "caddyfile"]


@pytest.mark.parametrize(("program", "name"), [("nginx", "nginx.conf"), ("caddy", "Caddyfile")])
async def test_realtime_comes_here_and_the_rest_goes_to_supabase(
    program: str, name: str, server: Server, elsewhere: int, todos: Sql, tmp_path: Path
) -> None:
    if shutil.which(program) is None and "CI" not in os.environ:
        pytest.skip(f"no {program} on this machine")
    path = str(tmp_path / "proxy.sock")
    process = await started(configured(name, server, elsewhere, path, tmp_path), path, tmp_path / "output.log")
    user = uuid4()
    try:
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with httpx.AsyncClient(transport=transport, base_url="http://app.example.com") as http:
            assert (await http.get("/rest/v1/todos")).text == "supabase /rest/v1/todos"
        async with websockets.unix_connect(
            path, f"ws://app.example.com/realtime/v1/websocket?apikey={ANON_KEY}&vsn=2.0.0&client_id=c"
        ) as client:
            join = {"config": {"postgres_changes": [TODOS]}, "access_token": sign(user)}
            await client.send(json.dumps(["1", "1", "realtime:a", "phx_join", join]))
            assert json.loads(await client.recv())[4]["status"] == "ok"
            add_todo(todos, 1, user)
            async with asyncio.timeout(TIMEOUT_S):
                while json.loads(await client.recv())[3] != "postgres_changes":
                    pass
                # The client's pong passes the proxy: the server knows what it has.
                while (
                    todos.execute(
                        "select from momentum.realtime_sessions where cursors::text not like '%-0-%'"
                    ).fetchall()
                    == []
                ):
                    await asyncio.sleep(0.1)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)

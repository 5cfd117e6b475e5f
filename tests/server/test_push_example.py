"""examples/push: a notification is pushed only if no device has received it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import UUID

import pytest

from tests.fixtures.postgres import Sql, add_notification
from tests.fixtures.server import TIMEOUT_S, Start

EXAMPLE = Path(__file__).parents[2] / "examples" / "push"


class PushFunction(HTTPServer):
    """Stand-in for the app's edge function and FCM: records the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, str]] = []
        self.status = 200


class _Handler(BaseHTTPRequestHandler):
    server: PushFunction

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] == "Bearer key":
            self.server.asked.append(json.loads(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def function() -> Iterator[PushFunction]:
    server = PushFunction()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def outbox(db: Sql) -> Sql:
    db.execute((EXAMPLE / "push.sql").read_bytes())
    return db


def run(database: str, function: PushFunction) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "worker.py"), "--once"], capture_output=True, text=True, timeout=60, check=True,
        env={
            **os.environ, "DATABASE_URL": database, "PUSH_KEY": "key",
            "PUSH_URL": f"http://127.0.0.1:{function.server_address[1]}/send-push",
        },
    )  # fmt: skip
    return done.stderr


def make_due(outbox: Sql) -> None:
    outbox.execute("update push_outbox set due_at = now() - interval '1 second'")


def settled(outbox: Sql) -> list[object]:
    return [row[0] for row in outbox.execute("select settled_as from push_outbox order by due_at").fetchall()]


async def test_a_user_whose_phone_has_it_gets_no_push(
    start: Start, outbox: Sql, database: str, user: UUID, function: PushFunction
) -> None:
    async with start(receipts="0.1s") as server, server.live(user, client_id="phone") as phone:
        add_notification(outbox, user)
        await phone.until("realtime_event")
        query = (
            "select r.has_event from momentum.event_ids('notifications:' || %(user)s::text, '{}') e"
            " cross join lateral momentum.receipts(%(user)s, e.event_id) r"
        )
        async with asyncio.timeout(TIMEOUT_S):
            while outbox.execute(query, {"user": user}).fetchall() != [(True,)]:
                await asyncio.sleep(0.05)
        await asyncio.to_thread(run, database, function)
        assert settled(outbox) == [None], "not due yet"
        make_due(outbox)
        await asyncio.to_thread(run, database, function)
    assert settled(outbox) == ["received"]
    assert function.asked == []


async def test_a_user_who_is_away_gets_one_push(
    start: Start, outbox: Sql, database: str, user: UUID, function: PushFunction
) -> None:
    async with start():
        notification = add_notification(outbox, user)
        make_due(outbox)
        await asyncio.gather(*[asyncio.to_thread(run, database, function) for _ in range(3)])
    assert function.asked == [{"notification_id": str(notification), "user_id": str(user)}]
    assert settled(outbox) == ["pushed"]


def test_without_any_server_notifications_are_pushed(
    outbox: Sql, database: str, user: UUID, function: PushFunction
) -> None:
    add_notification(outbox, user)
    make_due(outbox)
    run(database, function)
    assert len(function.asked) == 1


def test_a_function_that_fails_is_called_again_later_and_given_up_in_the_end(
    outbox: Sql, database: str, user: UUID, function: PushFunction
) -> None:
    add_notification(outbox, user)
    function.status = 503
    for attempt in range(1, 9):
        make_due(outbox)
        assert f"attempt {attempt}: " in run(database, function)
        assert outbox.execute("select due_at > now() from push_outbox").fetchone() == (True,)
    assert settled(outbox) == ["given up"]
    assert len(function.asked) == 8


def test_a_notification_that_is_deleted_is_not_pushed(
    outbox: Sql, database: str, user: UUID, function: PushFunction
) -> None:
    add_notification(outbox, user)
    outbox.execute("delete from momentum_notifications")
    run(database, function)
    assert function.asked == []

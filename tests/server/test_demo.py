"""The README's demo command as a subprocess, with clients that share no code with the project."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.request
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import psycopg
from websockets.sync.client import ClientConnection, connect

from tests.fixtures.demo import Demo, command, start


def reads(address: str | urllib.request.Request) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def receive(socket: ClientConnection, kind: str) -> dict[str, Any]:
    while True:
        message: dict[str, Any] = json.loads(socket.recv(timeout=20))
        if message["type"] == kind:
            return message


def test_a_row_written_in_plain_sql_is_on_a_screen(demo: Demo) -> None:
    coach, user, *_ = demo.links
    for link in (coach, user):
        page = urlsplit(link)
        body = urllib.request.urlopen(f"{page.scheme}://{page.netloc}{page.path}", timeout=20).read().decode()
        assert "<!doctype html>" in body
        assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", body), "no asset from another host"
    page = urlsplit(user)
    given = {name: values[0] for name, values in parse_qs(page.fragment).items()}
    token = given["access_token"]
    user_id = jwt.decode(token, options={"verify_signature": False})["sub"]
    with connect(
        f"ws://{page.netloc}/functions/v1/realtime-momentum-sync?user_id={user_id}&client_id=foreign",
        additional_headers={"Authorization": f"Bearer {token}"},
    ) as socket:
        assert receive(socket, "subscription_confirmed")["user_id"] == user_id
        assert receive(socket, "initial_state")["momentum"]["has_data"] is True
        with psycopg.connect(demo.conninfo, autocommit=True) as connection:
            changed = connection.execute(
                "update daily_engagement_scores set final_score = 91, momentum_state = 'Rising'"
                " where score_date = current_date and user_id = %s",
                (user_id,),
            )
            assert changed.rowcount == 1
        keys = receive(socket, "cache_invalidation")["cache_keys"]
        event = receive(socket, "realtime_event")["event"]
        assert (event["event_type"], event["final_score"]) == ("momentum_score_updated", 91)
        socket.send(json.dumps({"type": "cache_invalidation_ack", "cache_key": keys[0]}))
        assert receive(socket, "cache_invalidation_confirmed")["cache_key"] == keys[0]


def test_ctrl_c_ends_everything_cleanly_and_the_data_stay(demo: Demo) -> None:
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        connection.execute("create table kept ()")
    demo.process.send_signal(signal.SIGINT)
    _, errors = demo.process.communicate(timeout=60)
    assert demo.process.returncode == 0, errors
    assert "Traceback" not in errors
    assert errors.strip().endswith("Stopped.")
    assert not list(demo.folder.rglob("postmaster.pid"))
    again = start(demo.folder)
    try:
        with psycopg.connect(again.conninfo, autocommit=True) as connection:
            assert connection.execute("select to_regclass('kept') is not null").fetchone() == (True,)
        again.process.send_signal(signal.SIGTERM)
        again.process.communicate(timeout=60)
        assert again.process.returncode == 0
    finally:
        again.process.kill()


def test_after_kill_9_the_next_start_takes_over(demo: Demo) -> None:
    demo.process.kill()
    demo.process.communicate()
    again = start(demo.folder)
    again.process.send_signal(signal.SIGINT)
    _, errors = again.process.communicate(timeout=60)
    assert again.process.returncode == 0, errors
    assert not list(demo.folder.rglob("postmaster.pid"))


def test_a_second_demo_says_that_one_runs(demo: Demo) -> None:
    done = subprocess.run(
        [*command(), "--port", "0", "--data-dir", str(demo.folder)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "already running" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reset_begins_with_a_new_world(demo: Demo) -> None:
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        connection.execute("create table kept ()")
    demo.process.send_signal(signal.SIGINT)
    _, errors = demo.process.communicate(timeout=60)
    assert "demo --reset" in errors
    again = start(demo.folder, reset=True)
    try:
        with psycopg.connect(again.conninfo, autocommit=True) as connection:
            assert connection.execute("select to_regclass('kept')").fetchone() == (None,)
    finally:
        again.process.send_signal(signal.SIGTERM)
        again.process.communicate(timeout=60)


def test_the_root_says_where_everything_is(demo: Demo) -> None:
    root = f"http://{urlsplit(demo.links[0]).netloc}"
    assert "devices that have it" in reads(f"{root}/demo/receipts")
    places = json.loads(reads(root))["places"]
    page = urllib.request.Request(root, headers={"Accept": "text/html"})
    html = reads(page)
    for path in places:
        assert f'href="{path}"' in html
        if path.startswith(("/pages", "/sync", "/docs", "/openapi")):
            assert reads(root + path)
    docs = reads(f"{root}/docs")
    assert "POST /sync/momentum" in docs
    assert "<code>user_id</code>: uuid" in docs

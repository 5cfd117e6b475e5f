"""Changes of rows with each of Supabase's clients, unmodified."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from tests.fixtures.postgres import Sql
from tests.fixtures.server import ANON_KEY, Server, sign
from tests.fixtures.todos import TODOS, add_todo
from tests.sdk.drivers import Driver
from tests.supabase.programs import NAMES, missing, program


class App:
    """An app with one of the clients, for a user."""

    def __init__(self, name: str, driver: Driver, server: Server, user: UUID) -> None:
        self.name = name
        self.driver = driver
        self.server = server
        self.user = user

    async def open(self, **more: Any) -> None:
        """Create the client, signed in."""
        given = {"key": ANON_KEY, "token": sign(self.user), "params": {}, **more}
        await self.driver.do("open", url=self.server.url, **given)

    async def subscribe(self, *bindings: dict[str, str], topic: str = "room", wanted: str = "SUBSCRIBED") -> None:
        """Subscribe to a topic, and wait for its status."""
        await self.driver.do("subscribe", topic=topic, bindings=list(bindings), config={})
        await self.driver.until(lambda one: one.get("status") == wanted and one["topic"] == topic)

    async def change(self) -> dict[str, Any]:
        """Return the next change."""
        change: dict[str, Any] = (await self.driver.until(lambda one: "change" in one))["change"]
        return change


@pytest_asyncio.fixture(params=NAMES)
async def app(request: pytest.FixtureRequest, todos: Sql, server: Server) -> AsyncIterator[App]:
    """Yield an app with each client in turn."""
    if reason := missing(request.param):
        pytest.skip(reason)
    async with program(request.param) as client, client.start() as driver:
        yield App(request.param, driver, server, uuid4())


async def test_changes_come_in_order_from_the_moment_of_subscribed_on(app: App, todos: Sql) -> None:
    todos.execute("alter table public.todos replica identity full")
    await app.open()
    mine = {**TODOS, "filter": f"owner=eq.{app.user}"}
    await app.subscribe({**mine, "event": "INSERT"}, {**mine, "event": "UPDATE"}, {**TODOS, "event": "DELETE"})
    for number in range(20):
        add_todo(todos, number, app.user)
        add_todo(todos, 100 + number, uuid4())
    todos.execute("update public.todos set title = 'new', secret = 's' where id = 7")
    todos.execute("delete from public.todos where id in (7, 107)")
    changes = [await app.change() for _ in range(22)]
    assert [change["new"]["id"] for change in changes[:20]] == list(range(20))
    assert {change["eventType"] for change in changes[:20]} == {"INSERT"}
    assert changes[0]["new"] == {
        "id": 0, "owner": str(app.user), "title": "t", "tags": ["a", "b"], "secret": None,
    }  # fmt: skip
    assert (changes[0]["schema"], changes[0]["table"], changes[0]["errors"]) == ("public", "todos", None)
    update, delete = changes[20:]
    assert (update["eventType"], update["new"]["title"], update["old"]["title"]) == ("UPDATE", "new", "t")
    assert (delete["eventType"], delete["old"]["id"], delete["new"]) == ("DELETE", 7, {})
    assert "Resume" not in json.dumps(app.driver.seen), "a new client has missed nothing"


async def test_several_channels_on_one_socket_are_left_one_by_one(app: App, todos: Sql) -> None:
    await app.open()
    await app.subscribe(TODOS, topic="one")
    await app.subscribe({**TODOS, "event": "INSERT"}, topic="two")
    add_todo(todos, 1, app.user)
    assert {(await app.change())["topic"], (await app.change())["topic"]} == {"one", "two"}
    await app.driver.do("unsubscribe", topic="one")
    await app.driver.until(lambda one: one.get("unsubscribed") == "ok")
    add_todo(todos, 2, app.user)
    change = await app.change()
    assert (change["topic"], change["new"]["id"]) == ("two", 2)


async def test_a_fresh_token_loses_nothing(app: App, todos: Sql) -> None:
    await app.open()
    await app.subscribe(TODOS)
    for number in range(10):
        add_todo(todos, number, app.user)
        if number % 3 == 0:
            await app.driver.do("token", token=sign(app.user, session_id=str(number)))
    assert [(await app.change())["new"]["id"] for _ in range(10)] == list(range(10))


async def test_a_wrong_filter_is_told(app: App) -> None:
    await app.open()
    await app.driver.do("subscribe", topic="room", bindings=[{**TODOS, "filter": "nothing=eq.1"}], config={})

    def told(one: dict[str, Any]) -> bool:
        # Python has it as an error of the channel, supabase-js as a system message.
        return one.get("status") == "CHANNEL_ERROR" or one.get("system", {}).get("status") == "error"

    if app.name == "python-2025":  # it has no way to tell the app, and joins again
        for _ in range(2):
            await app.driver.until(lambda one: one.get("status") == "SUBSCRIBED")
        return
    assert "column nothing cannot be filtered" in json.dumps(await app.driver.until(told))


async def test_a_refused_token_is_told(app: App) -> None:
    await app.open(token=sign(app.user, exp=1))
    await app.driver.do("subscribe", topic="room", bindings=[TODOS], config={})
    error = (await app.driver.until(lambda one: one.get("status") == "CHANNEL_ERROR"))["error"]
    assert "Token has expired" in error

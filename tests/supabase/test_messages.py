"""Broadcasts and presence between Supabase's clients, unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from tests.fixtures.postgres import Sql
from tests.fixtures.server import ANON_KEY, TIMEOUT_S, Server, sign
from tests.sdk.drivers import Driver
from tests.supabase.programs import missing, program

# supabase-js of 2025 speaks version 1.0.0 by default, Python always.
ROOMS = [["node-2026", "node-2025", "python-2026"], ["chromium-2026", "chromium-2025", "python-2025"]]
COUNT = 20


@pytest.fixture(params=ROOMS, ids=["node", "chromium"])
def names(request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.param
    for name in found:
        if reason := missing(name):
            pytest.skip(reason)
    return found


@asynccontextmanager
async def room(server: Server, names: list[str], **config: Any) -> AsyncIterator[dict[str, Driver]]:
    """Yield clients that have subscribed to one topic, by name."""
    async with AsyncExitStack() as stack:
        drivers: dict[str, Driver] = {}
        for name in names:
            client = await stack.enter_async_context(program(name))
            drivers[name] = driver = await stack.enter_async_context(client.start())
            await driver.do("open", url=server.url, key=ANON_KEY, token=sign(uuid4()), params={})
            presence = {"key": name}
            await driver.do(
                "subscribe", topic="room", bindings=[], config={"presence": presence, **config},
                events=["moved", "raw", "by-http"], presence=True,
            )  # fmt: skip
            await driver.until(lambda one: one.get("status") == "SUBSCRIBED")
        yield drivers


async def broadcasts(driver: Driver, count: int) -> list[dict[str, Any]]:
    """Return the next broadcasts."""
    return [(await driver.until(lambda one: "broadcast" in one))["broadcast"] for _ in range(count)]


async def test_messages_come_to_all_others_in_order(server: Server, names: list[str]) -> None:
    async with room(server, names) as drivers:
        for sender, driver in drivers.items():
            for number in range(COUNT):
                await driver.do("send", topic="room", event="moved", payload={"n": number, "by": sender})
            for receiver in drivers.keys() - {sender}:
                got = await broadcasts(drivers[receiver], COUNT)
                assert [each["payload"] for each in got] == [{"n": n, "by": sender} for n in range(COUNT)], receiver
                assert {each["event"] for each in got} == {"moved"}


async def test_bytes_come_to_those_whose_version_has_them(server: Server, names: list[str]) -> None:
    new, old, python = names
    async with room(server, names) as drivers:
        await drivers[new].do("send", topic="room", event="raw", bytes=[0, 255, 10])
        await drivers[new].do("send", topic="room", event="moved", payload={"n": 1})
        for name in (old, python):  # of version 1.0.0
            assert [each["event"] for each in await broadcasts(drivers[name], 1)] == ["moved"]
        async with room(server, [new]) as other:
            await drivers[new].do("send", topic="room", event="raw", bytes=[0, 255, 10])
            (got,) = await broadcasts(other[new], 1)
            assert (got["event"], got["bytes"]) == ("raw", [0, 255, 10])


async def test_self_and_ack(server: Server, names: list[str]) -> None:
    for name in names[:2]:
        async with room(server, [name], broadcast={"self": True, "ack": True}) as drivers:
            driver = drivers[name]
            await driver.do("send", topic="room", event="moved", payload={"n": 1})
            assert [each["payload"] for each in await broadcasts(driver, 1)] == [{"n": 1}]
            assert (await driver.until(lambda one: one.get("sent") == "moved"))["answer"] == "ok"


async def test_messages_by_http_come_to_all(server: Server, names: list[str]) -> None:
    async with room(server, names) as drivers:
        senders = [name for name in names if not name.endswith("python-2025")]  # it has no such method
        for sender in senders:
            await drivers[sender].do("http_send", topic="room", event="by-http", payload={"by": sender})
            for name, driver in drivers.items():
                (got,) = await broadcasts(driver, 1)
                assert (got["event"], got["payload"]) == ("by-http", {"by": sender}), name


async def test_messages_from_the_database_come_to_all(server: Server, db: Sql, names: list[str]) -> None:
    new = names[0]
    db.execute(
        "create policy members on realtime.messages for select to authenticated using (realtime.topic() = 'room')"
    )
    async with room(server, names, private=True) as drivers:
        db.execute("select realtime.send(jsonb_build_object('n', n), 'moved', 'room') from generate_series(1, 5) n")
        db.execute("select realtime.send_binary('\\x00ff0a', 'raw', 'room')")
        db.execute("select realtime.send('{\"n\": 6}', 'moved', 'room')")
        for name, driver in drivers.items():
            got = await broadcasts(driver, 7 if name == new else 6)
            assert [each["payload"]["n"] for each in got if each["event"] == "moved"] == [1, 2, 3, 4, 5, 6], name
            assert all(each["meta"]["id"] for each in got if each["event"] == "moved"), name
            assert [each["bytes"] for each in got if each["event"] == "raw"] == [[0, 255, 10]] * (name == new)


async def test_a_new_client_asks_for_messages_from_before(server: Server, db: Sql, names: list[str]) -> None:
    new, old, _ = names  # the client in Python cannot ask
    db.execute(
        "create policy members on realtime.messages for select to authenticated using (realtime.topic() = 'room')"
    )
    db.execute("select realtime.send(jsonb_build_object('n', n), 'moved', 'room') from generate_series(1, 30) n")
    for name in (new, old):
        async with room(server, [name], private=True, broadcast={"replay": {"since": 0, "limit": 20}}) as drivers:
            got = await broadcasts(drivers[name], 20)
            assert [each["payload"]["n"] for each in got] == list(range(11, 31)), name
            assert all(each["meta"]["replayed"] for each in got), name


async def test_a_topic_without_a_policy_is_refused(server: Server, names: list[str]) -> None:
    for name in names:
        client_of = program(name)
        async with client_of as client, client.start() as driver:
            await driver.do("open", url=server.url, key=ANON_KEY, token=sign(uuid4()), params={})
            await driver.do("subscribe", topic="room", bindings=[], config={"private": True})
            failed = await driver.until(lambda one: one.get("status") == "CHANNEL_ERROR")
            assert "Unauthorized: You do not have permissions to read from this Channel topic: room" in failed["error"]


async def until_present(driver: Driver, wanted: dict[str, list[str]]) -> None:
    """Wait until a client has merged this presence."""
    async with asyncio.timeout(TIMEOUT_S):
        await driver.until(lambda one: one.get("presence", {}).get("state") == wanted)


async def test_presence_is_the_same_for_all(server: Server, names: list[str]) -> None:
    new, old, python = names
    async with room(server, [old, python]) as drivers:
        everybody: dict[str, list[str]] = {}
        for name, driver in drivers.items():
            await driver.do("track", topic="room", payload={"name": f"first {name}"})
            everybody[name] = [f"first {name}"]
            for other in drivers.values():
                await until_present(other, everybody)
        async with room(server, [new]) as late:
            await until_present(late[new], everybody)
            await late[new].do("track", topic="room", payload={"name": "late"})
            for each in (late[new], *drivers.values()):
                await until_present(each, {**everybody, new: ["late"]})
            await drivers[old].do("track", topic="room", payload={"name": "again"})
            everybody[old] = ["again"]
            for each in (late[new], *drivers.values()):
                await until_present(each, {**everybody, new: ["late"]})
        # Its process has ended.
        for each in drivers.values():
            await until_present(each, everybody)
        await drivers[python].do("untrack", topic="room")
        for each in drivers.values():
            await until_present(each, {old: ["again"]})

"""Properties that keep the server fast on any machine: bounded work per event, bounded memory per connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import momentum_sync
from momentum_sync.database.pool import CallerPool
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.log import EventLog
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.delivery import Delivery
from momentum_sync.gateway.dialects.native import NativeDialect, Session
from momentum_sync.gateway.websocket import WebSocketProtocol
from momentum_sync.token_bucket import TokenBucket
from tests.fixtures.postgres import Sql, add_notification, add_score
from tests.fixtures.server import Server

PACKAGE = str(Path(momentum_sync.__file__).parent)


def tasks_of_the_server() -> list[str]:
    """Return the names of the server's own tasks."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks()]
    codes = [code for each in coroutines if (code := getattr(each, "cr_code", None)) is not None]
    return sorted(code.co_qualname for code in codes if code.co_filename.startswith(PACKAGE))


async def test_a_connection_that_waits_has_no_task(server: Server, user: UUID) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server.live(user, client_id="0"))
        alone = tasks_of_the_server()
        clients = [await stack.enter_async_context(server.live(user, client_id=str(n))) for n in range(1, 20)]
        for client in clients:
            assert (await client.ask({"type": "ping"}))["type"] == "pong"
        assert tasks_of_the_server() == alone


def test_a_connection_is_as_small_as_its_slots() -> None:
    for each in (type("Protocol", (WebSocketProtocol,), {"__slots__": ()}), Session, Delivery, Cursor, TokenBucket):
        assert each.__dictoffset__ == 0, f"{each.__name__} has a dict for each connection"


async def test_an_event_is_encoded_once_and_asks_the_database_nothing(
    server: Server, db: Sql, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    encoded: list[Event] = []

    def ask(_: CallerPool, *question: object) -> None:
        asked.append(question)
        raise AssertionError("an event asks the database")

    def encode(dialect: NativeDialect, event: Event, *rest: Any) -> bytes:
        encoded.append(event)
        return original(dialect, event, *rest)

    original = NativeDialect.encode

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.live(user, client_id=str(n))) for n in range(10)]
        for title in ("the snapshots are passed", "all stand at the same place"):
            add_notification(db, user, title=title)
            for client in clients:
                await client.until("realtime_event")
        monkeypatch.setattr(CallerPool, "ask", ask)
        monkeypatch.setattr(CallerPool, "as_caller", ask)
        monkeypatch.setattr(NativeDialect, "encode", encode)
        for number in range(20):
            add_notification(db, user, title=str(number))
        for client in clients:
            titles = [(await client.until("realtime_event"))["event"]["title"] for _ in range(20)]
            assert titles == [str(number) for number in range(20)]
    assert asked == []
    assert len(encoded) == 20


async def test_what_comes_while_the_log_writes_is_its_next_batch(
    server: Server, db: Sql, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    free = asyncio.Event()
    into_the_log = EventLog.append

    async def append(log: EventLog, events: Sequence[Event], **rest: Any) -> None:
        batches.append(len(events))
        await free.wait()
        await into_the_log(log, events, **rest)

    add_score(db, user)
    async with server.live(user) as client:
        monkeypatch.setattr(EventLog, "append", append)
        add_notification(db, user)
        async with asyncio.timeout(20):
            while not batches:
                await asyncio.sleep(0.01)
        for _ in range(100):
            db.execute("update daily_engagement_scores set final_score = 100 - final_score")
        add_notification(db, user, title="the last")
        while (await client.until("realtime_event"))["event"].get("title") != "the last":
            pass
    assert len(batches) == 1, "the others were delivered while the first was being written"
    free.set()
    async with asyncio.timeout(20):
        while sum(batches) < 202:
            await asyncio.sleep(0.02)
    assert len(batches) == 2

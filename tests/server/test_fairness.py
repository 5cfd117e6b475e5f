"""Limits on the cost of one client, one caller or one event for everybody else."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import LiteralString
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from momentum_sync.database.pool import CallerPool
from momentum_sync.errors import Unavailable
from momentum_sync.gateway import websocket
from momentum_sync.identity.tokens import Identity
from momentum_sync.limits import QueryLimits, Rate
from tests.fixtures.postgres import SERVER_ROLE, Sql, add_intervention, add_notification, add_score, new_user
from tests.fixtures.server import PATH, TIMEOUT_S, Bounds, Server, Start, sign

LOCK = 4711


def make_policies_of_one_slow(db: Sql, slow: UUID) -> None:
    """Create a policy that blocks one caller for as long as the test holds an advisory lock."""
    db.execute(
        "create function waits() returns boolean language plpgsql stable as $$ begin"
        f" if auth.uid() = '{slow}' then perform pg_advisory_lock_shared({LOCK});"
        f" perform pg_advisory_unlock_shared({LOCK}); end if; return true; end $$;"
        'drop policy "Coaches can view all interventions" on coach_interventions;'
        "create policy slow on coach_interventions for select to authenticated"
        " using ((select public.momentum_caller_role()) = 'coach' and (select waits()))"
    )


@contextmanager
def held(database: str) -> Iterator[None]:
    """Block the slow caller's policy until the block ends."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", (LOCK,))
        yield


@asynccontextmanager
async def coaching(server: Server, coach: UUID) -> AsyncIterator[object]:
    async with server.connect(sign(coach, app_role="coach"), channels="interventions:coaches") as client:
        await client.until("initial_state")
        yield client


async def test_a_caller_with_slow_policies_delays_no_other_caller(
    server: Server, db: Sql, database: str, user: UUID
) -> None:
    slow, quick = new_user(db), new_user(db)
    make_policies_of_one_slow(db, slow)
    add_intervention(db, slow)  # a row of the slow caller's snapshot, for which the policy is evaluated
    async with AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context(coaching(server, slow)) for _ in range(4)]
        other = await stack.enter_async_context(coaching(server, quick))
        own = await stack.enter_async_context(server.live(user))
        with held(database):
            for number in range(3):
                add_intervention(db, user)
                for client in (other, own):
                    event = (await client.until("realtime_event"))["event"]  # type: ignore[attr-defined]
                    assert event["event_type"] == "intervention_created", number
            more = [asyncio.ensure_future(stack.enter_async_context(coaching(server, slow))) for _ in range(40)]
            for _ in range(10):
                async with server.live(new_user(db)), coaching(server, new_user(db)):
                    pass
            async with server.http(sign(quick, app_role="coach")) as http:
                answer = await http.post("/sync/interventions", json={"user_id": str(user)})
                assert answer.status_code == 200
            assert not any(connecting.done() for connecting in more), "what they wait for is still held"
        for client in waiting:
            events = [await client.until("realtime_event") for _ in range(3)]  # type: ignore[attr-defined]
            assert len(events) == 3
        await asyncio.gather(*more)


async def test_slow_requests_over_http_leave_connections_to_others(
    start: Start, db: Sql, database: str, user: UUID
) -> None:
    slow = new_user(db)
    make_policies_of_one_slow(db, slow)
    add_intervention(db, user)
    async with start(pool_size=4) as server, server.http(sign(slow, app_role="coach")) as http:
        with held(database):
            asked = [
                asyncio.ensure_future(http.post("/sync/interventions", json={"user_id": str(user)})) for _ in range(30)
            ]
            async with server.http(sign(user)) as others:
                for _ in range(5):
                    answer = await others.post("/sync/momentum", json={"user_id": str(user)})
                    assert answer.status_code == 200
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} <= {200, 429, 503}


class Raw:
    """A socket with handmade frames, which reads only on request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True, times: int = 1) -> None:
        assert len(payload) < 126
        frame = bytes([opcode | (0x80 if fin else 0), 0x80 | len(payload)]) + bytes(4) + payload
        self.writer.write(frame * times)

    async def closed(self) -> int | None:
        """Read to the end. Return the code of the server's close frame, or None."""
        data = b""
        async with asyncio.timeout(TIMEOUT_S * 2):
            try:
                while more := await self.reader.read(65_536):
                    data += more
            except ConnectionError:
                pass
        frames, code = data, None
        while len(frames) >= 2:
            length, head = frames[1] & 127, 2
            if length >= 126:
                head = 4 if length == 126 else 10
                length = int.from_bytes(frames[2:head], "big")
            if frames[0] & 15 == 8 and len(frames) >= head + 2:
                code = int.from_bytes(frames[head : head + 2], "big")
            frames = frames[head + length :]
        return code


@asynccontextmanager
async def raw(server: Server, user: UUID) -> AsyncIterator[Raw]:
    """Connect, and read only the answer to the handshake."""
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=4096)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET {PATH} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {sign(user)}\r\n\r\n".encode()
    )
    async with asyncio.timeout(TIMEOUT_S):
        assert b" 101 " in await reader.readuntil(b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


FLOODS = {
    "pings": (0x9, b"x" * 125, True), "empty pings": (0x9, b"", True), "pongs": (0xA, b"", True),
    "empty messages": (0x1, b"", True), "binary": (0x2, b"", True), "messages": (0x1, b'{"type": "ping"}', True),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*FLOODS, "empty fragments"])
async def test_frames_of_every_kind_count_and_a_flood_is_cut_off(
    server: Server, user: UUID, other: UUID, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    looked_at = 0
    real = websocket.WebSocketProtocol._counts

    def counted(protocol: websocket.WebSocketProtocol) -> bool:
        nonlocal looked_at
        looked_at += 1
        return real(protocol)

    monkeypatch.setattr(websocket.WebSocketProtocol, "_counts", counted)
    async with server.live(other) as somebody, raw(server, user) as flood:
        before = looked_at
        if kind == "empty fragments":
            flood.send(0x1, b"", fin=False)
            flood.send(0x0, b"", fin=False, times=200_000)
        else:
            opcode, payload, fin = FLOODS[kind]
            flood.send(opcode, payload, fin=fin, times=200_000)
        for _ in range(20):
            assert (await somebody.ask({"type": "ping"}))["type"] == "pong"
        assert await flood.closed() == 4429
        assert looked_at - before < 5_000, "of 200,000"


async def test_a_socket_that_pings_and_reads_nothing_is_kept_nothing_for(
    start: Start, user: UUID, monkeypatch: pytest.MonkeyPatch, bounds: Bounds
) -> None:
    bounds("sockets", frames=Rate(1e9, 1e9))
    bounds("users", frames=Rate(10**9, 1e9))
    async with start() as server:
        kept = 0
        real = websocket.WebSocketProtocol.data_received

        def noted(protocol: websocket.WebSocketProtocol, data: bytes) -> None:
            nonlocal kept
            real(protocol, data)
            kept = max(kept, protocol._transport.get_write_buffer_size())

        monkeypatch.setattr(websocket.WebSocketProtocol, "data_received", noted)
        async with raw(server, user) as flood:
            for _ in range(50):
                flood.send(0x9, b"x" * 125, times=2_000)
                await asyncio.sleep(0)
            await asyncio.wait([asyncio.ensure_future(flood.writer.drain())], timeout=5)
            assert kept < 256 * 1024, "of 12 MiB of pongs"


async def test_an_event_on_many_channels_is_delivered_once_per_connection(server: Server, db: Sql, user: UUID) -> None:
    async with server.connect(sign(user, role="service_role", sub=None), user_id=user) as wide:
        await wide.until("subscription_confirmed")
        channels = [f"room:{number}" for number in range(1_000)]
        for start in range(0, 1_000, 500):
            await wide.ask({"type": "subscribe", "channels": channels[start : start + 500]})
        db.execute("select momentum.publish(%s, %s)", (channels, json.dumps({"event_type": "x"})))
        event = (await wide.until("realtime_event"))["event"]
        assert event["channel"] == "room:0"
        add_notification(db, user)
        assert (await wide.until("realtime_event"))["event"]["event_type"] == "push_notification"


@pytest.mark.parametrize(
    "extreme",
    [
        "max_event_bytes = 131072, max_event_depth = 8, max_channels = 2",
        "max_event_bytes = 16777216, max_event_depth = 256, max_channels = 10000",
    ],
)
async def test_no_setting_of_the_limits_makes_a_writer_fail(
    server: Server, db: Sql, user: UUID, extreme: LiteralString
) -> None:
    deep = '{"a":' * 300 + "1" + "}" * 300
    async with server.live(user) as client:
        db.execute("update momentum.settings set " + extreme)
        add_score(db, user)
        intervention = add_intervention(db, user)
        for data in (deep, json.dumps({"a": "\u0001" * 9_000}), json.dumps({"a": [[]] * 5_000})):
            db.execute(
                "insert into momentum_notifications (user_id, notification_type, trigger_date, title, message,"
                " action_data) values (%s, 'celebration', current_date, %s, 'x', %s)",
                (user, "\x01" * 9_000, data),
            )
        db.execute(
            "update coach_interventions set trigger_reason = repeat('x', 20000000) where id = %s", (intervention,)
        )
        db.execute("select momentum.publish(array['a', 'b'], '{}')")
        for table in ("daily_engagement_scores", "coach_interventions", "momentum_notifications"):
            db.execute(f"delete from {table}")
        for _ in range(9):
            await client.until("realtime_event")
        db.execute("truncate coach_interventions")
        assert (await client.closed())[0] == 1012


@pytest.mark.parametrize("standard", ["on", "off"])
def test_the_depth_of_json_is_the_same_under_every_setting_and_quickly_found(db: Sql, standard: LiteralString) -> None:
    db.execute("set standard_conforming_strings = " + standard)
    cases = [
        ("[" * 5 + "]" * 5, 5, False), ("[" * 6 + "]" * 6, 5, True), ('{"a": [' * 4 + "]}" * 4, 7, True),
        ('["[[[[[[[[[[", {}]', 2, False), ('["\\"[[[[[[", "\\\\", [[]]]', 2, True), ("[" + "[]," * 100_000 + "[]]", 2,
        False),
    ]  # fmt: skip
    for text, levels, deeper in cases:
        row = db.execute("select momentum.is_deeper(%s, %s)", (text, levels)).fetchone()
        assert row == (deeper,), text[:40]


@pytest.mark.parametrize(("arguments", "said"), [
    (("select momentum.publish(array(select 'c' || n from generate_series(1, 1001) n), '{}')",), "1001 channels"),
    (("select momentum.publish(array['c'], jsonb_build_object('a', repeat('x', 1048577)))",), "bytes; the limit is"),
    (("select momentum.publish(array['c'], (repeat('[', 64) || repeat(']', 64))::jsonb)",), "JSON object"),
    (("select momentum.publish(array['c'], ('{\"a\":' || repeat('[', 64) || repeat(']', 64) || '}')::jsonb)",),
     "more than 64 levels deep"),
], ids=["channels", "bytes", "no object", "levels"])  # fmt: skip
def test_publish_says_which_limit_was_passed(db: Sql, arguments: tuple[str], said: str) -> None:
    with pytest.raises(psycopg.Error, match=said):
        db.execute(arguments[0].encode())
    db.execute("select momentum.publish(array['c'], ('{\"a\":' || repeat('[', 63) || repeat(']', 63) || '}')::jsonb)")


async def test_fields_too_large_for_an_event_are_omitted_and_never_fail_the_writer(
    server: Server, db: Sql, user: UUID
) -> None:
    large = "x" * 1_100_000
    async with server.live(user) as client:
        db.execute(
            "insert into momentum_notifications (user_id, notification_type, trigger_date, title, message, action_data)"
            " values (%s, 'celebration', current_date, 'short', %s, %s)",
            (user, large, json.dumps({"a": large})),
        )
        event = (await client.until("realtime_event"))["event"]
        assert (event["title"], sorted(event["omitted"])) == ("short", ["action_data", "message"])
        db.execute("update momentum_notifications set message = 'short', action_data = '{}'")
        event = (await client.until("realtime_event"))["event"]
        assert (event["message"], "omitted" in event) == ("short", False)
        db.execute(
            "insert into coach_interventions (user_id, intervention_type, trigger_date, trigger_reason)"
            " values (%s, 'check_in', current_date, %s)",
            (user, large),
        )
        event = (await client.until("realtime_event"))["event"]
        assert (event["omitted"], event["status"]) == (["trigger_reason"], "scheduled")
        db.execute("alter table daily_engagement_scores drop constraint daily_engagement_scores_momentum_state_check")
        add_score(db, user, state=large)
        event = (await client.until("realtime_event"))["event"]
        assert (event["omitted"], event["final_score"]) == (["momentum_state"], 50)
        # Under changed policies events carry whole rows; a row too large for that is selected from the table.
        db.execute("create policy more on momentum_notifications for select to authenticated using (true)")
        db.execute(
            "update momentum_notifications set trigger_metadata = jsonb_build_object('a', repeat('y', 6000000)),"
            " title = 'with a large column'"
        )
        while (event := (await client.until("realtime_event"))["event"]).get("title") != "with a large column":
            assert event["event_type"] == "notification_removed"


async def test_many_quick_queries_of_one_caller_delay_no_other_caller(database: str, db: Sql) -> None:
    """Each question is quick, but together they would hold up a shared round trip."""
    callers = CallerPool(make_conninfo(database, user=SERVER_ROLE), QueryLimits(), size=2)
    await callers.open()
    try:
        many, other = (
            Identity("authenticated", UUID(int=n), json.dumps({"sub": str(UUID(int=n))}), None) for n in (1, 2)
        )
        answered: list[str] = []

        async def ask(name: str, caller: Identity, query: LiteralString) -> None:
            await callers.ask(caller, (query, {}))
            answered.append(name)

        asked = [asyncio.ensure_future(ask("many", many, "select pg_sleep(0.15)")) for _ in range(60)]
        await asyncio.sleep(0)
        await ask("other", other, "select 1")
        assert answered.count("many") <= 8, "of 60"
        await asyncio.gather(*asked)
        assert len(answered) == 61
    finally:
        await callers.close()


async def test_a_caller_who_asks_alone_is_known_as_slow(database: str, db: Sql) -> None:
    callers = CallerPool(make_conninfo(database, user=SERVER_ROLE), QueryLimits(), size=2)
    await callers.open()
    try:
        caller = Identity("authenticated", UUID(int=1), json.dumps({"sub": str(UUID(int=1))}), None)
        await callers.ask(caller, ("select pg_sleep(0.3)", {}))  # within the timeout of its lane
        assert callers._slow.knows(caller)
        callers._slow._until.clear()
        callers._slow.note(caller, 1.0)
        known = callers._slow._until[caller.claims]
        await callers.ask(caller, ("select pg_sleep(0.3)", {}))
        assert callers._slow._until[caller.claims] > known, "it still is"
    finally:
        await callers.close()


async def test_an_unreachable_database_marks_no_caller_as_slow() -> None:
    with socket.socket() as nobody:  # the port is bound, but does not listen
        nobody.bind(("127.0.0.1", 0))
        callers = CallerPool(f"host=127.0.0.1 port={nobody.getsockname()[1]} user=nobody", QueryLimits(), size=2)
        await callers.open()
        try:
            asked = [
                asyncio.ensure_future(
                    callers.ask(Identity("authenticated", UUID(int=n), json.dumps({"sub": n}), None), ("select 1", {}))
                )
                for n in range(20)
            ]
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(each) for each in found} == {Unavailable}
            assert not callers._slow._waiting
            assert all(lane._each == 0 for lane in callers._lanes.values())
        finally:
            await callers.close()


async def test_queries_of_cancelled_callers_are_not_run(database: str, db: Sql) -> None:
    callers = CallerPool(make_conninfo(database, user=SERVER_ROLE), QueryLimits(), size=2)
    await callers.open()
    try:
        caller = Identity("authenticated", UUID(int=1), json.dumps({"sub": str(UUID(int=1))}), None)
        db.execute("create sequence asked; grant usage on sequence asked to authenticated")
        query: LiteralString = "select nextval('public.asked'), pg_sleep(1)"
        with pytest.raises(Unavailable):
            await callers.ask(caller, ("select pg_sleep(30)", {}))  # marks the caller as slow
        asked = [asyncio.ensure_future(callers.ask(caller, (query, {}))) for _ in range(5)]
        async with asyncio.timeout(10):
            while db.execute("select is_called from asked").fetchone() == (False,):
                await asyncio.sleep(0.01)
        for one in asked[1:]:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await callers.ask(caller, ("select 1", {}))
        assert db.execute("select last_value from asked").fetchone() == (1,)
    finally:
        await callers.close()


async def test_a_request_that_was_ended_for_its_slowness_is_remembered(database: str, db: Sql) -> None:
    callers = CallerPool(make_conninfo(database, user=SERVER_ROLE), QueryLimits(), size=2)
    await callers.open()
    try:
        caller = Identity("authenticated", UUID(int=1), json.dumps({"sub": str(UUID(int=1))}), None)
        with pytest.raises(Unavailable):
            async with callers.as_caller(caller) as connection:
                await connection.execute("select pg_sleep(1.2)")
                await connection.execute("set local statement_timeout = 50; select pg_sleep(30)")
        assert callers._slow.knows(caller)
    finally:
        await callers.close()


async def test_a_pong_that_waits_for_its_client_to_read_comes_when_it_does(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user) as client:
        client.socket.transport.pause_reading()
        for _ in range(40):
            add_notification(db, user, title="x" * 9_000)
        await asyncio.to_thread(db.execute, "select pg_sleep(0.3)")
        pong = await client.socket.ping()
        client.socket.transport.resume_reading()
        for _ in range(40):
            await client.until("realtime_event")
        async with asyncio.timeout(TIMEOUT_S):
            await pong

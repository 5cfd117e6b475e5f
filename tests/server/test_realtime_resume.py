"""Resume of clients of Supabase's protocol: missed events come after the next join, or a notice of a gap."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import pytest
import websockets

from tests.fixtures.cluster import until_logged
from tests.fixtures.postgres import Sql
from tests.fixtures.realtime import RESUMED, Page, page, until_acknowledged
from tests.fixtures.server import TIMEOUT_S, Bounds, Server, Start, sign
from tests.fixtures.todos import TODOS, add_todo


@pytest.fixture
def user() -> UUID:
    return uuid4()


@pytest.fixture
def quick(bounds: Bounds) -> None:
    """Have positions pinged and saved at once."""
    bounds("resume", ping_s=0.05, save_s=0.05)


@pytest.mark.parametrize("by", ["client_id", "session_id", "sub"])
async def test_what_was_missed_follows_the_next_join(
    start: Start, todos: Sql, user: UUID, quick: None, by: str
) -> None:
    query = {"client_id": "device-1"} if by == "client_id" else {}
    config: dict[str, Any] = {"presence": {"key": "me", "enabled": False}}
    async with start() as server:
        client = page(server, user, **query)
        client.claims = {"session_id": str(uuid4())} if by == "session_id" else {}
        async with client.connected():
            assert await client.join(**config) is None
            for number in (1, 2):
                add_todo(todos, number, user)
            assert await client.ids(2) == [1, 2]
            await until_acknowledged(todos, 2)
        for number in (3, 4):
            add_todo(todos, number, user)
        async with client.connected():
            assert await client.join(**config) == RESUMED
            add_todo(todos, 5, user)
            assert await client.ids(3) == [3, 4, 5]


async def test_a_new_page_gets_nothing_from_before(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    async with start() as server:
        old = page(server, user, client_id="tab")
        async with old.connected():
            await old.join()
            await old.join("realtime:b")
        add_todo(todos, 1, user)
        await until_logged(todos, 1)  # a change that the server has not read is after the join
        new = page(server, user, client_id="tab")
        async with new.connected():
            assert await new.join() is None
            add_todo(todos, 2, user)
            assert await new.ids(1) == [2]


@pytest.mark.parametrize("by", ["client_id", "session_id"])
async def test_a_client_may_be_back_before_the_server_notices_that_it_was_away(
    start: Start, bounds: Bounds, todos: Sql, user: UUID, quick: None, by: str
) -> None:
    """The old connection is half-open: the network has changed, and nothing more comes from it."""
    bounds("resume", ping_s=0.05, save_s=0.05, probe_s=0.2)
    async with start() as server:
        old = page(server, user, **({"client_id": "phone"} if by == "client_id" else {}))
        old.claims = {"session_id": "one"}
        async with old.connected():
            await old.join()
            add_todo(todos, 1, user)
            assert await old.ids(1) == [1]
            await until_acknowledged(todos, 1)
            old.socket.transport.pause_reading()  # it answers no ping from now on
            add_todo(todos, 2, user)
            await until_logged(todos, 2)
            again = page(server, user, **{name: old.query[name] for name in old.query.keys() & {"client_id"}})
            again.claims, again.ref = old.claims, old.ref
            async with again.connected():
                assert await again.join() == RESUMED
                assert await again.ids(1) == [2]


async def join_and_confirm(client: Page, todos: Sql, user: UUID) -> None:
    """Join, and confirm the first change."""
    await client.join()
    add_todo(todos, 1, user)
    assert await client.ids(1) == [1]
    await until_acknowledged(todos, 1)


async def test_a_join_with_an_empty_ref_resumes(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    """supabase-js of 2025 sends one if the connection breaks again while a join is pending."""
    async with start() as server:
        client = page(server, user)
        async with client.connected():
            await join_and_confirm(client, todos, user)
        add_todo(todos, 2, user)
        await until_logged(todos, 2)
        async with client.connected():
            assert await client.join(numbered=False) == RESUMED
            assert await client.ids(1) == [2]


async def test_a_client_that_first_repeats_an_old_frame_is_no_new_page(
    start: Start, todos: Sql, user: UUID, quick: None
) -> None:
    """The one in Python keeps its buffer where a connection is cut while it sends that, and sends it again."""
    async with start() as server:
        client = page(server, user, client_id="tab")
        async with client.connected():
            await client.join()
            ref = client.ref
            await client.join("realtime:b")
        add_todo(todos, 1, user)
        await until_logged(todos, 1)
        async with client.connected():
            client.ref = ref  # the next one has been seen
            assert await client.join() == RESUMED
            assert await client.ids(1) == [1]


async def test_each_topic_goes_on_from_its_own_position(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            await client.join("realtime:a")
            add_todo(todos, 1, user)
            assert await client.ids(1) == [1]
            await until_acknowledged(todos, 1)
            await client.join("realtime:b")
        add_todo(todos, 2, user)
        async with client.connected():
            assert await client.join("realtime:b") == RESUMED
            assert await client.ids(1, "realtime:b") == [2]
            assert await client.join("realtime:a") == RESUMED
            assert await client.ids(1, "realtime:a") == [2]  # and realtime:b does not get it again
            add_todo(todos, 3, user)
            assert {(await client.next())[2] for _ in range(2)} == {"realtime:a", "realtime:b"}


async def test_a_restarted_server_goes_on(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            await join_and_confirm(client, todos, user)
            add_todo(todos, 2, user)
            assert await client.ids(1) == [2]
    add_todo(todos, 3, user)
    async with start() as server:
        client.server = server
        async with client.connected():
            assert await client.join() == RESUMED
            found = await client.ids(1)
            if found == [2]:  # not acknowledged when the server stopped
                found = await client.ids(1)
            assert found == [3]


async def test_other_devices_of_the_user_keep_their_own_positions(
    start: Start, todos: Sql, user: UUID, quick: None
) -> None:
    async with start() as server:
        one, other = page(server, user, client_id="one"), page(server, user, client_id="other")
        async with other.connected():
            async with one.connected():
                await one.join()
                await other.join()
                add_todo(todos, 1, user)
                assert (await one.ids(1), await other.ids(1)) == ([1], [1])
                await until_acknowledged(todos, 1, 2)
            add_todo(todos, 2, user)
            assert await other.ids(1) == [2]
            await until_acknowledged(todos, 2)
            async with one.connected():
                assert await one.join() == RESUMED
                assert await one.ids(1) == [2]
            add_todo(todos, 3, user)
            assert await other.ids(1) == [3]  # its socket has stayed open


async def test_two_tabs_of_one_session_lose_nothing(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    async with start() as server:
        one, other = page(server, user), page(server, user)
        for tab in (one, other):
            tab.claims = {"session_id": "shared"}
        async with one.connected():
            await one.join()
            async with other.connected():
                await other.join()
                add_todo(todos, 1, user)
                assert (await one.ids(1), await other.ids(1)) == ([1], [1])
                await until_acknowledged(todos, 1, 2)
            add_todo(todos, 2, user)
            assert await one.ids(1) == [2]
            async with other.connected():  # the socket of the other tab answers a ping, and stays open
                assert await other.join() == RESUMED
                assert await other.ids(1) == [2]
            add_todo(todos, 3, user)
            assert await one.ids(1) == [3]


async def test_a_socket_that_answers_no_ping_is_replaced(start: Start, todos: Sql, user: UUID, bounds: Bounds) -> None:
    bounds("resume", ping_s=0.05, save_s=0.05, probe_s=0.3)
    async with start() as server:
        client = page(server, user)
        async with client.connected():
            await join_and_confirm(client, todos, user)
            stalled = client.socket
            stalled.transport.pause_reading()  # its network has failed, and the server has not noticed
            add_todo(todos, 2, user)
            async with client.connected():
                assert await client.join() == RESUMED
                assert await client.ids(1) == [2]
                stalled.transport.resume_reading()
                with pytest.raises(websockets.exceptions.ConnectionClosed):
                    while True:
                        await asyncio.wait_for(stalled.recv(), TIMEOUT_S)


async def test_a_newer_socket_of_the_client_stays(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            first = client.socket
            async with client.connected():
                await client.join()
                # The join of a socket that was accepted before arrives late.
                client.socket, second = first, client.socket
                await client.send("realtime:a", "phx_join", {"access_token": sign(user), "config": {}})
                with pytest.raises(websockets.exceptions.ConnectionClosed):
                    await client.next()
                client.socket = second
                add_todo(todos, 1, user)
                assert await client.ids(1) == [1]


async def test_a_gap_is_told_until_the_client_has_heard_of_it(
    start: Start, todos: Sql, user: UUID, quick: None
) -> None:
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            await client.join()
    todos.execute("select pg_drop_replication_slot('momentum_sync')")
    async with start() as server:
        client.server = server
        before = todos.execute("select max(session) from momentum.realtime_sessions").fetchone()
        async with client.connected():
            client.socket.transport.pause_reading()  # the answer is on its way when the connection is lost
            client.ref += 1
            payload = {"config": {"postgres_changes": [TODOS]}, "access_token": sign(user)}
            await client.socket.send(json.dumps([str(client.ref), str(client.ref), "realtime:a", "phx_join", payload]))
            async with asyncio.timeout(TIMEOUT_S):
                while todos.execute("select max(session) from momentum.realtime_sessions").fetchone() == before:
                    await asyncio.sleep(0.02)
        for told in (True, False):
            async with client.connected():
                said = await client.join()
                assert said is not None
                assert said.startswith("ResumeGap: ") is told
                add_todo(todos, int(told), user)
                assert await client.ids(1) == [int(told)]
                await until_acknowledged(todos, 1)


async def test_a_client_whose_record_has_expired_is_told_of_a_gap(
    start: Start, todos: Sql, user: UUID, quick: None
) -> None:
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            await client.join()
        async with asyncio.timeout(TIMEOUT_S):  # the socket's end is saved, too
            while todos.execute("delete from momentum.realtime_sessions").rowcount:
                await asyncio.sleep(0.2)
        async with client.connected():
            said = await client.join()
            assert said is not None
            assert said.startswith("ResumeGap: ")


async def test_a_gap_is_told(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            await client.join()
            add_todo(todos, 1, user)
            assert await client.ids(1) == [1]
    todos.execute("select pg_drop_replication_slot('momentum_sync')")  # another epoch begins
    async with start() as server:
        client.server = server
        async with client.connected():
            said = await client.join()
            assert said is not None
            assert said.startswith("ResumeGap: ")
            add_todo(todos, 2, user)
            assert await client.ids(1) == [2]


async def test_a_client_without_an_id_is_told_after_a_long_time(
    start: Start, todos: Sql, user: UUID, bounds: Bounds
) -> None:
    bounds("resume", ping_s=0.05, save_s=0.05, shared_s=0.0)
    async with start() as server:
        client = page(server, user)
        async with client.connected():
            await client.join()
    async with start() as server:  # its memory is empty
        client.server = server
        async with client.connected():
            said = await client.join()
            assert said is not None
            assert said.startswith("ResumeGap: ")


async def test_signing_in_takes_the_position_along(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    async with start() as server:
        client = page(server, uuid4(), client_id="device")
        async with client.connected():
            await client.join()
            client.user = user
            await client.send("realtime:a", "access_token", {"access_token": sign(user)})
            ref = await client.send("phoenix", "heartbeat")
            assert (await client.next())[1] == ref
        add_todo(todos, 1, user)
        async with client.connected():
            assert await client.join() == RESUMED
            assert await client.ids(1) == [1]


async def test_other_bindings_get_what_they_match_of_the_missed(
    start: Start, todos: Sql, user: UUID, quick: None
) -> None:
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            await client.join("realtime:a", {**TODOS, "event": "UPDATE"})
        for number, title in ((1, "x"), (2, "y")):
            add_todo(todos, number, user, title)
        async with client.connected():
            assert await client.join("realtime:a", {**TODOS, "filter": "title=eq.y"}) == RESUMED
            assert await client.ids(1) == [2]


async def test_a_topic_that_was_left_does_not_go_on(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            await client.join("realtime:a")
            await client.join("realtime:b")
            add_todo(todos, 1, user)
            assert {(await client.next())[2] for _ in range(2)} == {"realtime:a", "realtime:b"}
            await until_acknowledged(todos, 1, 2)
            await client.send("realtime:b", "phx_leave")
            assert [(await client.next())[3] for _ in range(2)] == ["phx_reply", "phx_close"]
            add_todo(todos, 2, user)
            assert await client.ids(1) == [2]
            await until_acknowledged(todos, 2)
        add_todo(todos, 3, user)
        async with client.connected():
            assert await client.join("realtime:a") == RESUMED
            assert await client.ids(1) == [3]
            assert await client.join("realtime:b") is None


async def test_one_write_saves_many_sessions_and_no_event_is_a_write(
    start: Start, todos: Sql, user: UUID, bounds: Bounds
) -> None:
    bounds("resume", ping_s=0.05, save_s=0.3)
    async with start() as server, AsyncExitStack() as stack:
        clients = [page(server, user, client_id=f"device-{number}") for number in range(10)]
        for client in clients:
            await stack.enter_async_context(client.connected())
            await client.join()

        def writes() -> int:
            todos.execute("select pg_stat_force_next_flush()")
            return int(
                todos.execute(
                    "select n_tup_upd from pg_stat_user_tables where relname = 'realtime_sessions'"
                ).fetchall()[0][0]
            )

        before = writes()
        for number in range(200):
            add_todo(todos, number, user)
        for client in clients:
            assert len(await client.ids(200)) == 200
        await until_acknowledged(todos, 200, 10)
        assert writes() - before < 400  # of 2,000 events that were delivered


@pytest.mark.parametrize("between", ["nothing", "left"])
async def test_signing_in_by_a_join_takes_the_position_along(
    start: Start, todos: Sql, user: UUID, quick: None, between: str
) -> None:
    """supabase-py puts a token that comes during the first join into the next join, and sends no `access_token`."""
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            client.ref += 1
            join = {"config": {"postgres_changes": [TODOS]}}
            await client.socket.send(json.dumps([str(client.ref), str(client.ref), "realtime:a", "phx_join", join]))
            if between == "left":
                await client.send("realtime:a", "phx_leave")
            ref = await client.send("phoenix", "heartbeat")
            while (await client.next())[1] != ref:
                pass
            await client.join()
        add_todo(todos, 1, user)
        async with client.connected():
            assert await client.join() == RESUMED
            assert await client.ids(1) == [1]


async def test_a_join_that_the_client_gave_up_keeps_the_position(
    start: Start, todos: Sql, user: UUID, bounds: Bounds
) -> None:
    bounds("resume", ping_s=60.0, save_s=0.05)
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            await client.join()
        add_todo(todos, 1, user)
        async with client.connected():
            # As supabase-js does when the reply does not come in time: it leaves, and joins again.
            client.socket.transport.pause_reading()
            join = {"config": {"postgres_changes": [TODOS]}, "access_token": sign(user)}
            await client.send("realtime:a", "phx_join", join)
            await client.send("realtime:a", "phx_leave")
            last = await client.send("realtime:a", "phx_join", join)
            client.socket.transport.resume_reading()
            while (await client.next())[1] != last:
                pass
            assert [(await client.next())[4]["message"] for _ in range(2)] == ["Subscribed to PostgreSQL", RESUMED]
            assert await client.ids(1) == [1]


async def test_signing_in_without_an_id_makes_the_session_known(
    start: Start, todos: Sql, user: UUID, quick: None
) -> None:
    async with start() as server:
        client = page(server, user)
        async with client.connected():
            client.ref += 1
            await client.socket.send(
                json.dumps([str(client.ref), str(client.ref), "realtime:a", "phx_join",
                            {"config": {"postgres_changes": [TODOS]}}])
            )  # fmt: skip
            await client.send("realtime:a", "access_token", {"access_token": sign(user)})
            ref = await client.send("phoenix", "heartbeat")
            while (await client.next())[1] != ref:
                pass
        add_todo(todos, 1, user)
        async with client.connected():
            assert await client.join() == RESUMED
            assert await client.ids(1) == [1]


async def test_a_refreshed_token_keeps_the_session(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    async with start() as server:
        client = page(server, user)
        async with client.connected():
            await client.join(presence={"key": "me", "enabled": False})
            await client.join("realtime:b")
            await client.send("realtime:a", "access_token", {"access_token": sign(user, jti="again")})
            ref = await client.send("phoenix", "heartbeat")
            assert (await client.next())[1] == ref
        add_todo(todos, 1, user)
        async with client.connected():
            assert await client.join("realtime:b") == RESUMED
            assert await client.ids(1, "realtime:b") == [1]
            assert await client.join(presence={"key": "me", "enabled": False}) == RESUMED
            assert await client.ids(1) == [1]


async def test_a_topic_whose_token_expired_goes_on_with_a_fresh_one(
    start: Start, todos: Sql, user: UUID, quick: None
) -> None:
    async with start(heartbeat="0.2s") as server:
        client = page(server, user, client_id="device")
        client.claims = {"exp": int(time.time()) - 3}  # 5 s of tolerance
        async with client.connected():
            await client.join()
            while (await client.next())[3] != "phx_close":
                pass
            add_todo(todos, 1, user)
            client.claims = {}
            assert await client.join() == RESUMED
            assert await client.ids(1) == [1]


async def test_joins_that_the_client_gave_up_lose_nothing(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    """While the database is silent, a client's joins time out and come again, and all are answered together in the end.

    The second comes when only the first page of the missed events has been written.
    """
    async with start(window_bytes=64 * 1024) as server:
        one = page(server, user, client_id="phone")
        async with one.connected():
            await one.join()
            add_todo(todos, 0, user)
            assert await one.ids(1) == [0]
            await until_acknowledged(todos, 1)
        missed = list(range(1, 61))
        for number in missed:
            add_todo(todos, number, user, title="x" * 3_000)
        async with one.connected():
            for _ in range(3):
                one.ref += 1
                payload = {"config": {"postgres_changes": [TODOS]}, "access_token": sign(user)}
                await one.socket.send(json.dumps([str(one.ref), str(one.ref), "realtime:a", "phx_join", payload]))
            got: dict[int, None] = {}
            while len(got) < len(missed):
                frame = await one.next()
                if frame[3] == "postgres_changes":
                    got[frame[4]["data"]["record"]["id"]] = None
            assert list(got) == missed


async def test_joining_again_on_the_same_socket_repeats_nothing(
    start: Start, todos: Sql, user: UUID, quick: None
) -> None:
    async with start() as server:
        client = page(server, user, client_id="device")
        async with client.connected():
            await client.join("realtime:b")
        async with client.connected():
            await client.join("realtime:a")
            for number in range(50):
                add_todo(todos, number, user)
            assert await client.ids(50) == list(range(50))
            await until_acknowledged(todos, 50)  # unconfirmed events may come again
            await client.join("realtime:b")  # it goes back for the first topic
            await client.join("realtime:a")
            add_todo(todos, 50, user)
            by_topic: dict[str, list[int]] = {"realtime:a": [], "realtime:b": []}
            while not all(50 in rows for rows in by_topic.values()):
                frame = client.early.pop(0) if client.early else await client.next()
                by_topic[frame[2]].append(frame[4]["data"]["record"]["id"])
            assert by_topic == {"realtime:a": [50], "realtime:b": list(range(51))}


async def test_one_bad_row_stops_nobody_elses_positions(start: Start, todos: Sql, user: UUID, quick: None) -> None:
    async with start() as server:
        clients = [page(server, user, client_id=f"device-{number}") for number in range(3)]
        async with AsyncExitStack() as stack:
            for client in clients:
                await stack.enter_async_context(client.connected())
            await asyncio.gather(*[client.join() for client in clients])
            todos.execute(
                "alter table momentum.realtime_sessions add check (cursors::text not like '%-2-%' or ref < 100)"
            )
            clients[0].ref = 1_000
            await clients[0].send("phoenix", "heartbeat")
            await clients[0].next()
            add_todo(todos, 1, user)
            add_todo(todos, 2, user)
            for client in clients:
                assert await client.ids(2) == [1, 2]
            await until_acknowledged(todos, 2, 2)


async def test_an_anonymous_client_without_an_id_is_told_that_it_cannot_resume(
    server: Server, todos: Sql, user: UUID
) -> None:
    client = page(server, user)
    async with client.connected():
        await client.socket.send(json.dumps(["1", "1", "realtime:a", "phx_join", {"config": {}}]))
        await client.next()
        assert (await client.next())[4]["message"].startswith("NotResumable: ")

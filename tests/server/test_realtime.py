"""Supabase's protocol on the wire: topics, tokens, changes of rows and their recipients."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from momentum_sync.database.pool import CallerPool
from momentum_sync.gateway.dialects import realtime_topic
from momentum_sync.identity.decider import Decider
from momentum_sync.wire.phoenix import encode_frame
from tests.fixtures.postgres import Sql
from tests.fixtures.server import ANON_KEY, SERVICE_KEY, TIMEOUT_S, Bounds, Server, Start, sign
from tests.fixtures.todos import TODOS, add_todo

SOCKET = "/realtime/v1/websocket"


class Socket:
    """A client of Supabase's protocol, version 2.0.0. Frames are `[join_ref, ref, topic, event, payload]`."""

    def __init__(self, connection: ClientConnection) -> None:
        self.socket = connection
        self.refs = 0
        self.notices: list[str] = []

    async def send(self, topic: str, event: str, payload: dict[str, Any], join_ref: str | None = None) -> str:
        self.refs += 1
        await self.socket.send(json.dumps([join_ref, str(self.refs), topic, event, payload]))
        return str(self.refs)

    async def next(self) -> list[Any]:
        """Return the next frame that is no notice about rights."""
        while True:
            frame: list[Any] = json.loads(await asyncio.wait_for(self.socket.recv(), TIMEOUT_S))
            is_notice = frame[3] == "system" and frame[4]["extension"] in ("rights", "resume")
            if not is_notice:
                return frame
            assert frame[4]["status"] == "ok"
            self.notices.append(frame[4]["message"])

    async def join(
        self, *bindings: dict[str, Any], topic: str = "realtime:a", token: str | None = None, **config: Any
    ) -> dict[str, Any]:
        """Join a topic. Return the payload of the reply."""
        payload: dict[str, Any] = {"config": {"postgres_changes": list(bindings), **config}}
        if token is not None:
            payload["access_token"] = token
        ref = await self.send(topic, "phx_join", payload, str(self.refs + 1))
        frame = await self.next()
        assert frame[:4] == [ref, ref, topic, "phx_reply"]
        reply: dict[str, Any] = frame[4]
        return reply

    async def live(self, *bindings: dict[str, Any], topic: str = "realtime:a", token: str | None = None) -> list[int]:
        """Join a topic. Return the ids of its bindings once it is live."""
        reply = await self.join(*bindings, topic=topic, token=token)
        assert reply["status"] == "ok", reply
        system = await self.next()
        assert system[2:] == [
            topic, "system",
            {"message": "Subscribed to PostgreSQL", "status": "ok", "extension": "postgres_changes",
             "channel": topic.removeprefix("realtime:")},
        ]  # fmt: skip
        return [binding["id"] for binding in reply["response"]["postgres_changes"]]

    async def change(self, topic: str = "realtime:a") -> dict[str, Any]:
        """Return the next change of a topic."""
        frame = await self.next()
        assert frame[:4] == [None, None, topic, "postgres_changes"], frame
        payload: dict[str, Any] = frame[4]
        return payload


@asynccontextmanager
async def connected(
    server: Server, key: str = ANON_KEY, *, sock: socket.socket | None = None, **query: str
) -> AsyncIterator[Socket]:
    parts = {"apikey": key, "vsn": "2.0.0", **query}
    url = f"{server.ws}{SOCKET}?" + "&".join(f"{name}={value}" for name, value in parts.items())
    async with websockets.connect(url, open_timeout=TIMEOUT_S, max_queue=None, sock=sock) as connection:
        yield Socket(connection)


async def test_a_change_comes_to_the_owner_alone(server: Server, todos: Sql) -> None:
    one, other = uuid4(), uuid4()
    async with connected(server) as first, connected(server) as second:
        (number,) = await first.live(TODOS, token=sign(one))
        await second.live(TODOS, token=sign(other))
        add_todo(todos, 1, one)
        add_todo(todos, 2, other)
        change = await first.change()
        assert change["ids"] == [number]
        data = change["data"]
        assert data["record"] == {"id": 1, "owner": str(one), "title": "t", "tags": ["a", "b"], "secret": None}
        assert (data["schema"], data["table"], data["type"], data["errors"]) == ("public", "todos", "INSERT", None)
        assert (await second.change())["data"]["record"]["id"] == 2


async def test_a_row_that_leaves_sight_is_reported_as_deleted(server: Server, todos: Sql) -> None:
    todos.execute("alter table public.todos replica identity full")
    one, other = uuid4(), uuid4()
    async with connected(server) as first, connected(server) as second, connected(server, SERVICE_KEY) as service:
        await first.live(TODOS, token=sign(one))
        await second.live({**TODOS, "filter": f"owner=eq.{other}"}, token=sign(other))
        await service.live(TODOS)
        add_todo(todos, 1, one)
        todos.execute("update public.todos set owner = %s, title = 'moved' where id = 1", (other,))
        todos.execute("delete from public.todos where id = 1")
        assert (await first.change())["data"]["type"] == "INSERT"
        gone = (await first.change())["data"]
        assert (gone["type"], gone["old_record"]) == ("DELETE", {"id": 1})
        assert "record" not in gone
        came = (await second.change())["data"]
        # The row's old values are not for the new owner.
        assert (came["type"], came["record"]["title"], came["old_record"]) == ("UPDATE", "moved", {"id": 1})
        deleted = (await second.change())["data"]
        assert (deleted["type"], deleted["old_record"]["title"]) == ("DELETE", "moved")
        assert [(await service.change())["data"]["type"] for _ in range(3)] == ["INSERT", "UPDATE", "DELETE"]
        add_todo(todos, 2, one)  # nothing came in between
        assert (await first.change())["data"]["record"]["id"] == 2


async def test_a_delete_that_cannot_be_checked_is_withheld_as_the_client_is_told(server: Server, todos: Sql) -> None:
    one = uuid4()
    async with connected(server) as client, connected(server, SERVICE_KEY) as service:
        await client.live(TODOS, token=sign(one))
        await client.live({**TODOS, "event": "INSERT"}, topic="realtime:b", token=sign(one))
        await service.live(TODOS)
        add_todo(todos, 1, one)
        todos.execute("delete from public.todos")
        todos.execute("alter table public.todos replica identity full")
        add_todo(todos, 2, one)
        todos.execute("delete from public.todos")
        changes = [frame for frame in [await client.next() for _ in range(5)] if frame[2] == "realtime:a"]
        assert [frame[4]["data"]["type"] for frame in changes] == ["INSERT", "INSERT", "DELETE"]
        assert changes[2][4]["data"]["old_record"]["id"] == 2
        (notice,) = client.notices
        assert notice.startswith("DeletesWithheld: ")
        assert 'alter table "public"."todos" replica identity full' in notice
        deleted = [(await service.change())["data"] for _ in range(4)]
        assert [change["old_record"]["id"] for change in deleted if change["type"] == "DELETE"] == [1, 2]
        assert [notice[:14] for notice in service.notices] == ["NotResumable: "]


async def test_an_operator_may_send_the_keys_of_deleted_rows_to_all(start: Start, todos: Sql) -> None:
    async with start(deletes="key") as server, connected(server) as client:
        await client.live(TODOS, token=sign(uuid4()))
        add_todo(todos, 1, uuid4())
        todos.execute("delete from public.todos")
        change = (await client.change())["data"]
        assert (change["type"], change["old_record"]) == ("DELETE", {"id": 1})


async def test_columns_are_those_that_the_role_may_select_and_the_client_asked_for(server: Server, todos: Sql) -> None:
    todos.execute(
        "revoke select on public.todos from authenticated;"
        " grant select (id, owner, title) on public.todos to authenticated"
    )
    one = uuid4()
    async with connected(server) as client:
        await client.live(TODOS, token=sign(one))
        await client.live({**TODOS, "select": ["title"]}, topic="realtime:b", token=sign(one))
        refused = await client.join({**TODOS, "select": ["secret"]}, topic="realtime:c", token=sign(one))
        assert refused["status"] == "ok"
        system = (await client.next())[4]
        assert (system["status"], system["extension"]) == ("error", "postgres_changes")
        assert "column secret cannot be selected" in system["message"]
        add_todo(todos, 1, one)
        whole = (await client.change())["data"]
        assert whole["record"] == {"id": 1, "owner": str(one), "title": "t"}
        assert [column["name"] for column in whole["columns"]] == ["id", "owner", "title"]
        assert (await client.change("realtime:b"))["data"]["record"] == {"id": 1, "title": "t"}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("title=eq.b", ["b"]),
        ("title=not.eq.b", ["a", "c c"]),
        ("title=in.(a,\"c c\")", ["a", "c c"]),
        ("title=like.c%", ["c c"]),
        ("title=not.ilike.A", ["b", "c c"]),
        ("title=match.^[ab]$", ["a", "b"]),
        ("title=gt.a,id=lt.3", ["b"]),
        ('tags=eq."{a,b}"', ["a", "b", "c c"]),
        ("secret=is.null", ["a", "b", "c c"]),
        ("secret=isdistinct.x", ["a", "b", "c c"]),
    ],
)  # fmt: skip
async def test_filters(server: Server, todos: Sql, text: str, matches: list[str]) -> None:
    one = uuid4()
    async with connected(server) as client:
        ids = await client.live({**TODOS, "filter": text}, {**TODOS, "filter": "id=eq.9"}, token=sign(one))
        for number, title in enumerate(["a", "b", "c c"], 1):
            add_todo(todos, number, one, title)
        add_todo(todos, 9, one, "end")
        found = []
        while (change := await client.change())["data"]["record"]["id"] != 9:
            assert change["ids"] == ids[:1]
            found.append(change["data"]["record"]["title"])
        assert found == matches
        assert ids[1] in change["ids"]


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        ({**TODOS, "filter": "foo"}, 'Error parsing `filter` params: ["foo"]'),
        ({**TODOS, "filter": "id=eq.x"}, "invalid input syntax for type bigint"),
        ({**TODOS, "filter": "title=match.("}, "invalid regular expression"),
        ({**TODOS, "filter": "nothing=eq.1"}, "column nothing cannot be filtered"),
        ({**TODOS, "table": "nowhere"}, "Unable to subscribe to changes with given parameters. Please check Realtime"),
        ({"event": "*", "schema": "public", "table": "*", "filter": "id=eq.1"}, "Unable to subscribe"),
        ({**TODOS, "event": "SELECT"}, "Unable to subscribe"),
    ],
)
async def test_what_cannot_be_subscribed_to_is_told(
    server: Server, todos: Sql, binding: dict[str, Any], said: str
) -> None:
    async with connected(server) as client:
        reply = await client.join(binding, token=sign(uuid4()))
        assert reply["status"] == "ok"
        system = await client.next()
        assert (system[3], system[4]["status"], system[4]["extension"]) == ("system", "error", "postgres_changes")
        assert said in system[4]["message"]
        await client.live(TODOS, token=sign(uuid4()))


async def test_wildcards_and_bindings_of_one_topic_share_a_frame(server: Server, todos: Sql) -> None:
    one = uuid4()
    async with connected(server) as client:
        every, inserts, _ = await client.live(
            {"event": "*", "schema": "*"}, {**TODOS, "event": "INSERT"}, {**TODOS, "event": "DELETE"}, token=sign(one)
        )
        add_todo(todos, 1, one)
        todos.execute("update public.todos set title = 'new'")
        assert (await client.change())["ids"] == [every, inserts]
        assert (await client.change())["ids"] == [every]


async def test_topics_are_joined_twice_and_left(server: Server, todos: Sql) -> None:
    one = uuid4()
    async with connected(server) as client:
        await client.live(TODOS, token=sign(one))
        await client.live({**TODOS, "event": "UPDATE"}, token=sign(one))  # in place of the first join
        await client.live(TODOS, topic="realtime:b", token=sign(one))
        add_todo(todos, 1, one)
        await client.change("realtime:b")
        ref = await client.send("realtime:b", "phx_leave", {}, "3")
        assert await client.next() == ["3", ref, "realtime:b", "phx_reply", {"status": "ok", "response": {}}]
        assert (await client.next())[2:4] == ["realtime:b", "phx_close"]
        todos.execute("update public.todos set title = 'new'")
        assert (await client.change())["data"]["type"] == "UPDATE"
        ref = await client.send("phoenix", "heartbeat", {})
        assert await client.next() == [None, ref, "phoenix", "phx_reply", {"status": "ok", "response": {}}]


@pytest.mark.parametrize(
    ("topic", "config", "reason"),
    [
        ("realtime:", {}, "TopicNameRequired: You must provide a topic name"),
        ("room", {}, "unmatched topic"),
        (
            "realtime:a",
            {"private": True},
            "Unauthorized: You do not have permissions to read from this Channel topic: a",
        ),
    ],
)
async def test_joins_that_are_refused(server: Server, topic: str, config: dict[str, Any], reason: str) -> None:
    async with connected(server) as client:
        reply = await client.join(topic=topic, **config)
        assert reply == {"status": "error", "response": {"reason": reason}}


async def test_tokens_are_refused_in_supabases_words(server: Server, todos: Sql) -> None:
    async with connected(server) as client:
        for token, reason in (
            ("nonsense", "MalformedJWT: The token provided is not a valid JWT"),
            (sign(uuid4())[:-4] + "AAAA", "JwtSignatureError: Failed to validate JWT signature"),
            (sign(uuid4(), exp=1), "InvalidJWTToken: Token has expired "),
            (sign(uuid4(), role=None), "InvalidJWTToken: Fields `role` and `exp` are required in JWT"),
            (sign(uuid4(), role="postgres"), "InvalidJWTToken: Fields `role` and `exp` are required in JWT"),
        ):
            reply = await client.join(TODOS, token=token)
            assert reply["status"] == "error"
            assert reply["response"]["reason"].startswith(reason)


async def test_a_fresh_token_loses_nothing_and_counts_at_once(server: Server, todos: Sql) -> None:
    one, other = uuid4(), uuid4()
    async with connected(server) as client:
        await client.live(TODOS, token=sign(one))
        add_todo(todos, 1, one)
        await client.change()
        await client.send("realtime:a", "access_token", {"access_token": sign(one, session_id="again")}, "1")
        add_todo(todos, 2, one)
        assert (await client.change())["data"]["record"]["id"] == 2
        await client.send("realtime:a", "access_token", {"access_token": sign(other)}, "1")
        await client.send("phoenix", "heartbeat", {})
        assert (await client.next())[3] == "phx_reply"
        add_todo(todos, 3, one)
        add_todo(todos, 4, other)
        assert (await client.change())["data"]["record"]["id"] == 4
        await client.send("realtime:a", "access_token", {"access_token": "sb_publishable_x"}, "1")
        await client.send("realtime:a", "access_token", {"access_token": None}, "1")
        await client.send("realtime:a", "access_token", {"access_token": sign(other, exp=1)}, "1")
        system = await client.next()
        assert system[4]["message"].startswith("Token has expired ")
        assert (system[4]["extension"], system[4]["status"]) == ("system", "error")
        assert await client.next() == ["1", "1", "realtime:a", "phx_close", {}]


async def test_an_expired_token_ends_the_topic_and_not_the_socket(start: Start, todos: Sql) -> None:
    async with start(heartbeat="0.2s") as server, connected(server) as client:
        await client.live(TODOS, token=sign(uuid4(), exp=int(time.time()) - 3))  # 5 s of tolerance
        system = await client.next()
        assert system[4]["message"].startswith("Token has expired ")
        assert (await client.next())[2:4] == ["realtime:a", "phx_close"]
        await client.send("phoenix", "heartbeat", {})
        assert (await client.next())[3] == "phx_reply"


@pytest.mark.parametrize(
    ("query", "status", "error"),
    [
        ("", 401, "API key is missing"),
        ("apikey=nonsense", 401, "The token provided is not a valid JWT"),
        (f"apikey={sign(uuid4(), exp=1)}", 401, "Token has expired"),
        (f"apikey={ANON_KEY}&vsn=3.0.0", 400, "`vsn` is not 1.0.0 or 2.0.0."),
    ],
)
async def test_handshakes_are_refused_as_at_supabase(server: Server, query: str, status: int, error: str) -> None:
    for path in ("/realtime/v1/websocket", "/socket/websocket"):
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            async with websockets.connect(f"{server.ws}{path}?{query}"):
                pass
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body or b"") == {"error": error}


async def test_version_1_has_objects_and_always_a_ref(server: Server, todos: Sql) -> None:
    one = uuid4()
    async with websockets.connect(f"{server.ws}/socket/websocket?apikey={sign(one)}") as socket:
        join = {"config": {"postgres_changes": [{**TODOS, "event": "INSERT"}]}}
        await socket.send(json.dumps({"topic": "realtime:a", "event": "phx_join", "payload": join, "ref": "1"}))
        reply = json.loads(await socket.recv())
        assert set(reply) == {"topic", "event", "payload", "ref"}
        assert (reply["ref"], reply["payload"]["status"]) == ("1", "ok")
        assert json.loads(await socket.recv())["ref"] is None
        add_todo(todos, 1, one)
        change = json.loads(await socket.recv())
        assert (change["event"], change["ref"], change["topic"]) == ("postgres_changes", None, "realtime:a")


async def test_malformed_frames_are_ignored(server: Server) -> None:
    async with connected(server) as client:
        for frame in ("nonsense", "[]", "[1,2,3,4,5,{}]", '{"topic":"phoenix"}', b"\x03", b"\x00\x01\x02", "[[[[", "1"):
            await client.socket.send(frame)
        await client.send("realtime:a", "anything", {})
        assert (await client.next())[4] == {"status": "error", "response": {"reason": "unmatched topic"}}
        await client.send("phoenix", "heartbeat", {})
        assert (await client.next())[3] == "phx_reply"


async def test_policies_that_changed_before_a_change_count_for_it(server: Server, todos: Sql) -> None:
    todos.execute(
        "create table public.marks (id int primary key); grant select on public.marks to authenticated;"
        " alter publication supabase_realtime add table public.marks"
    )
    one = uuid4()
    async with connected(server) as client:
        await client.live(TODOS, token=sign(one))
        await client.live({**TODOS, "table": "marks"}, topic="realtime:marks", token=sign(one))

        async def seen(number: int, title: str) -> bool:
            """Return whether a new row is delivered before a mark that everybody may see."""
            add_todo(todos, number, one, title)
            todos.execute("insert into public.marks values (%s)", (number,))
            is_seen: bool = (await client.next())[2] == "realtime:a"
            if is_seen:
                await client.change("realtime:marks")
            return is_seen

        assert await seen(1, "private")
        todos.execute("alter policy mine on public.todos using (auth.uid() = owner and title <> 'private')")
        assert not await seen(2, "private")
        assert await seen(3, "public")
        todos.execute("create policy none on public.todos as restrictive using (id <> 4)")
        assert not await seen(4, "public")
        todos.execute("revoke select on public.todos from authenticated")
        assert not await seen(5, "public")
        todos.execute("grant select on public.todos to authenticated; drop policy mine on public.todos")
        assert not await seen(6, "public")
        todos.execute("alter table public.todos disable row level security")
        assert await seen(7, "private")


async def test_who_shares_frames_of_a_table_that_all_may_see_gets_own_ones_once_that_changes(
    server: Server, todos: Sql
) -> None:
    todos.execute("alter table public.todos disable row level security")
    one, other = uuid4(), uuid4()
    async with connected(server) as first, connected(server) as second:
        await first.live(TODOS, token=sign(one))
        await second.live(TODOS, token=sign(other))
        number = 0
        for statement, sees_other in [
            ("select 1", True),
            ("alter table public.todos enable row level security", False),
            ("alter policy mine on public.todos using (true)", True),
            ("alter policy mine on public.todos using (auth.uid() = owner)", False),
            ("create policy more on public.todos for select to authenticated using (true)", True),
            ("revoke select on public.todos from authenticated;"
             " grant select (id, owner) on public.todos to authenticated", True),
        ]:  # fmt: skip
            todos.execute(statement.encode())
            number += 2
            add_todo(todos, number, other)
            add_todo(todos, number + 1, one)
            for client, is_owner in ((first, False), (second, True)):
                record = (await client.change())["data"]["record"]
                wanted = number if is_owner or sees_other else number + 1
                assert record["id"] == wanted, statement
                assert ("title" in record) == ("revoke" not in statement)
                if sees_other:
                    assert (await client.change())["data"]["record"]["id"] == number + 1


async def test_a_policy_that_raises_an_error_withholds_that_row_alone(server: Server, todos: Sql) -> None:
    todos.execute("alter policy mine on public.todos using (auth.uid() = owner and 1 / (id - 2) <> 7)")
    one = uuid4()
    async with connected(server) as client:
        await client.live(TODOS, token=sign(one))
        with todos.transaction():
            for number in (1, 2, 3):
                add_todo(todos, number, one)
        assert [(await client.change())["data"]["record"]["id"] for _ in range(2)] == [1, 3]


async def test_a_policy_that_fails_for_one_caller_serves_the_others(server: Server, todos: Sql) -> None:
    todos.execute("alter policy mine on public.todos using ((auth.jwt() ->> 'team')::int = id)")
    async with connected(server) as fine, connected(server) as failing:
        await failing.live(TODOS, token=sign(uuid4(), team="x"))
        await fine.live(TODOS, token=sign(uuid4(), team="1"))
        add_todo(todos, 1, uuid4())
        assert (await fine.change())["data"]["record"]["id"] == 1
        await failing.send("phoenix", "heartbeat", {})
        assert (await failing.next())[3] == "phx_reply"


async def test_a_truncate_comes_to_bindings_of_all_events(server: Server, todos: Sql) -> None:
    async with connected(server) as client:
        await client.live(TODOS, token=sign(uuid4()))
        todos.execute("truncate public.todos")
        data = (await client.change())["data"]
        assert (data["type"], data["record"], data["old_record"]) == ("TRUNCATE", {}, {})


async def test_tables_change_while_they_are_watched(server: Server, todos: Sql) -> None:
    one = uuid4()
    async with connected(server) as client:
        await client.live(TODOS, token=sign(one))
        await client.live({**TODOS, "filter": "title=eq.t"}, topic="realtime:b", token=sign(one))
        add_todo(todos, 1, one)
        assert (await client.change("realtime:a"))["data"]["record"]["title"] == "t"
        assert (await client.change("realtime:b"))["data"]["record"]["title"] == "t"
        todos.execute("alter table public.todos rename column title to headline")
        system = await client.next()
        assert (system[2], system[4]["status"]) == ("realtime:b", "error")
        assert "column title cannot be filtered" in system[4]["message"]
        add_todo(todos, 2, one)
        todos.execute("alter table public.todos drop column secret, add column size int generated always as (7) stored")
        todos.execute("insert into public.todos (id, owner, headline) values (3, %s, 'h')", (one,))
        todos.execute("alter table public.todos rename to tasks")
        todos.execute("insert into public.tasks (id, owner) values (4, %s)", (one,))
        second, third, fourth = [(await client.change())["data"] for _ in range(3)]
        assert second["record"]["headline"] == "t"
        assert "secret" not in third["record"]
        assert (fourth["table"], fourth["record"]["id"]) == ("tasks", 4)


async def test_partitions_are_watched_as_they_are_published(server: Server, todos: Sql) -> None:
    todos.execute(
        """
        create table public.parts (id bigint primary key, name text) partition by range (id);
        create table public.parts_low partition of public.parts for values from (0) to (10);
        create table public.parts_high partition of public.parts for values from (10) to (20);
        grant select on public.parts, public.parts_low, public.parts_high to authenticated;
        alter publication supabase_realtime add table public.parts;
        """
    )
    async with connected(server) as client:
        await client.live({**TODOS, "table": "*"}, token=sign(uuid4()))
        todos.execute("insert into public.parts values (1, 'low'), (11, 'high')")
        todos.execute("update public.parts set id = 12 where id = 1")  # moves to the other partition
        found = [(await client.change())["data"] for _ in range(4)]
        assert [(each["type"], each["table"]) for each in found] == [
            ("INSERT", "parts_low"), ("INSERT", "parts_high"), ("DELETE", "parts_low"), ("INSERT", "parts_high"),
        ]  # fmt: skip


async def test_a_value_that_an_update_does_not_change_is_whole_with_a_full_identity(server: Server, todos: Sql) -> None:
    one, long = uuid4(), "".join(str(uuid4()) for _ in range(400))
    async with connected(server) as client:
        await client.live(TODOS, token=sign(one))
        todos.execute("alter table public.todos alter column secret set storage external")
        todos.execute("insert into public.todos (id, owner, secret) values (1, %s, %s)", (one, long))
        todos.execute("update public.todos set title = 'a'")
        todos.execute("alter table public.todos replica identity full")
        todos.execute("update public.todos set title = 'b'")
        assert (await client.change())["data"]["record"]["secret"] == long
        assert "secret" not in (await client.change())["data"]["record"]
        assert (await client.change())["data"]["record"]["secret"] == long


async def test_a_client_that_does_not_read_catches_up(start: Start, todos: Sql) -> None:
    one, count = uuid4(), 3_000
    async with start(send_buffer_bytes=16_384) as server, connected(server) as client:
        await client.live(TODOS, token=sign(one))
        client.socket.transport.pause_reading()
        todos.execute(
            "insert into public.todos select n, %s, repeat('x', 500) from generate_series(1, %s) n", (one, count)
        )
        async with connected(server, SERVICE_KEY) as other:  # by now the first one is far behind
            await other.live(TODOS)
            add_todo(todos, count + 1, one)
            await other.change()
        client.socket.transport.resume_reading()
        found = [(await client.change())["data"]["record"]["id"] for _ in range(count + 1)]
        assert found == list(range(1, count + 2))


@pytest.mark.parametrize("io_uring", ["auto", "off"])
async def test_of_many_with_equal_frames_one_that_does_not_read_catches_up(
    start: Start, todos: Sql, io_uring: str
) -> None:
    todos.execute("alter table public.todos disable row level security")
    one, count = uuid4(), 100
    async with start(send_buffer_bytes=16_384, io_uring=io_uring) as server, AsyncExitStack() as stack:
        small = stack.enter_context(socket.socket())
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.connect((urlsplit(server.ws).hostname, urlsplit(server.ws).port))
        clients = [await stack.enter_async_context(connected(server)) for _ in range(20)]
        slow = await stack.enter_async_context(connected(server, sock=small))
        for client in (slow, *clients):
            await client.live(TODOS, token=sign(one))
        slow.socket.transport.pause_reading()
        for number in range(count):
            todos.execute("insert into public.todos values (%s, %s, repeat('x', 10000))", (number, one))
        wanted = list(range(count))
        for client in clients:
            assert [(await client.change())["data"]["record"]["id"] for _ in wanted] == wanted
        slow.socket.transport.resume_reading()
        assert [(await slow.change())["data"]["record"]["id"] for _ in wanted] == wanted


async def test_one_user_may_use_several_tokens_on_one_socket(server: Server, todos: Sql) -> None:
    one, other = uuid4(), uuid4()
    async with connected(server) as client:
        await client.live(TODOS, topic="realtime:one", token=sign(one))
        await client.live(TODOS, topic="realtime:other", token=sign(other))
        add_todo(todos, 1, one)
        add_todo(todos, 2, other)
        assert (await client.change("realtime:one"))["data"]["record"]["id"] == 1
        assert (await client.change("realtime:other"))["data"]["record"]["id"] == 2


async def test_a_revoked_token_ends_the_socket_and_joins_no_topic(server: Server, todos: Sql) -> None:
    one = uuid4()
    async with connected(server) as client:
        token = sign(one, iat=int(time.time()) - 10)
        await client.live(TODOS, token=token)
        todos.execute("select momentum.revoke(%s)", (one,))
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            await client.next()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
    async with connected(server) as client:
        reply = await client.join(TODOS, token=token)
        assert reply["response"]["reason"] == "InvalidJWTToken: The token was revoked."


async def test_too_many_topics_are_refused(start: Start, bounds: Bounds, todos: Sql) -> None:
    bounds("sockets", topics=2)
    async with start() as server, connected(server) as client:
        for topic in ("realtime:a", "realtime:b"):
            assert (await client.join(topic=topic))["status"] == "ok"
        assert (await client.join(topic="realtime:c"))["response"] == {
            "reason": "ChannelRateLimitReached: Too many channels"
        }
        assert (await client.join(topic="realtime:b"))["status"] == "ok"


@pytest.mark.parametrize(
    ("policy", "claims", "seen"),
    [
        ("auth.uid() = owner", {}, [1]),
        ("(select auth.uid()) = owner", {}, [1]),
        ("auth.uid()::text = owner::text", {}, [1]),
        ("auth.uid() = owner or title = 'public'", {}, [1, 3]),
        ("auth.jwt() ->> 'team' = title", {"team": "public"}, [3]),
        ("auth.jwt() -> 'app_metadata' ->> 'role' = 'admin'", {"app_metadata": {"role": "admin"}}, [1, 2, 3]),
        ("title in ('t', 'x') and owner is not null", {}, [1, 2]),
        ("title is null or owner is null", {}, []),
        ("not (owner = auth.uid())", {}, [2, 3]),
        ("auth.role() = 'authenticated' and title <> 't'", {}, [3]),
        ("id = (auth.jwt() ->> 'team')::bigint", {"team": "2"}, [2]),
        ("exists (select from auth.users u where u.id = owner)", {}, []),
        ("lower(title) = 'public'", {}, [3]),
    ],
)
async def test_compiled_policies_decide_as_the_database_does(
    server: Server, todos: Sql, policy: str, claims: dict[str, Any], seen: list[int]
) -> None:
    todos.execute(f"alter policy mine on public.todos using ({policy})")
    todos.execute(
        "create table public.marks (id int primary key); grant select on public.marks to authenticated;"
        " alter publication supabase_realtime add table public.marks"
    )
    one = uuid4()
    async with connected(server) as client:
        await client.live(TODOS, token=sign(one, **claims))
        await client.live({**TODOS, "table": "marks"}, topic="realtime:marks", token=sign(one))
        add_todo(todos, 1, one)
        add_todo(todos, 2, uuid4())
        add_todo(todos, 3, uuid4(), "public")
        todos.execute("insert into public.marks values (1)")
        found = []
        while (frame := await client.next())[2] != "realtime:marks":
            found.append(frame[4]["data"]["record"]["id"])
        assert found == seen


async def test_a_change_to_one_user_asks_the_database_nothing(
    server: Server, todos: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [uuid4() for _ in range(5)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server)) for _ in users]
        for client, user in zip(clients, users, strict=True):
            await client.live({**TODOS, "event": "INSERT"}, token=sign(user))
        asked: list[tuple[object, ...]] = []
        ask = CallerPool.ask

        async def counted(pool: CallerPool, caller: Any, *queries: Any, **more: Any) -> Any:
            if "momentum" not in str(caller.claims):
                asked.append(queries)
            return await ask(pool, caller, *queries, **more)

        monkeypatch.setattr(CallerPool, "ask", counted)
        decided: list[object] = []
        decide = Decider.seen

        def counting(decider: Decider, change: Any) -> Any:
            decided.append(change)
            return decide(decider, change)

        monkeypatch.setattr(Decider, "seen", counting)
        for number in range(100):
            add_todo(todos, number, users[number % 5])
        for place, client in enumerate(clients):
            found = [(await client.change())["data"]["record"]["id"] for _ in range(20)]
            assert found == list(range(place, 100, 5))
        by_clients = [queries for queries in asked if len(list(queries)) != 2]  # the catalog is read at intervals
        assert by_clients == []
        assert len(decided) <= 2 * 100  # and not 500: others are not even looked at


async def test_one_change_is_encoded_once_for_all_who_see_the_same(
    server: Server, todos: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    todos.execute("alter policy mine on public.todos using (true)")
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server)) for _ in range(5)]
        for client in clients:
            await client.live({**TODOS, "event": "INSERT"}, token=sign(uuid4()))
        encoded: list[str] = []

        def counted(version: Any, name: str, event: str, *rest: Any, **more: Any) -> bytes:
            if event == "postgres_changes":
                encoded.append(name)
            return encode_frame(version, name, event, *rest, **more)

        monkeypatch.setattr(realtime_topic, "encode_frame", counted)
        add_todo(todos, 1, uuid4())
        for client in clients:
            await client.change()
        assert len(encoded) == 1


async def test_tables_that_are_published_later_come_by_wildcards(server: Server, todos: Sql) -> None:
    todos.execute("create table public.later (id int primary key); grant select on public.later to authenticated")
    async with connected(server) as client:
        await client.live({**TODOS, "table": "*"}, token=sign(uuid4()))
        todos.execute("alter publication supabase_realtime add table public.later")
        async with asyncio.timeout(TIMEOUT_S):
            number = 0
            while True:  # it is noticed within about a second
                number += 1
                todos.execute("insert into public.later values (%s)", (number,))
                try:
                    frame = json.loads(await asyncio.wait_for(client.socket.recv(), 0.3))
                except TimeoutError:
                    continue
                if frame[3] == "postgres_changes":
                    break
        assert frame[4]["data"]["table"] == "later"
        number = int(frame[4]["data"]["record"]["id"])
        todos.execute("insert into public.later values (10000)")
        while (found := (await client.change())["data"]["record"]["id"]) != 10_000:
            number += 1
            assert found == number  # none is left out from there on


async def test_changes_are_routed_by_filters_where_each_is_checked(server: Server, todos: Sql) -> None:
    todos.execute("alter policy mine on public.todos using (lower(title) = 'public')")
    users = [uuid4() for _ in range(5)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server)) for _ in users]
        for client, user in zip(clients, users, strict=True):
            await client.live({**TODOS, "event": "INSERT", "filter": f"owner=eq.{user}"}, token=sign(user))
        with todos.transaction():
            for number in range(50):
                add_todo(todos, number, users[number % 5], "public" if number < 45 else "private")
        for place, client in enumerate(clients):
            found = [(await client.change())["data"]["record"]["id"] for _ in range(9)]
            assert found == list(range(place, 45, 5))


async def test_columns_are_not_shown_after_they_were_dropped(server: Server, todos: Sql) -> None:
    todos.execute(
        "alter policy mine on public.todos using (lower(title) = 't');"
        " revoke select on public.todos from authenticated;"
        " grant select (id, owner, title, tags) on public.todos to authenticated"
    )
    async with connected(server) as client:
        await client.live({**TODOS, "event": "INSERT"}, token=sign(uuid4()))
        with todos.transaction():
            todos.execute("insert into public.todos (id, title, secret) values (1, 't', 'hidden')")
            todos.execute("alter table public.todos drop column secret")
        assert "secret" not in (await client.change())["data"]["record"]


async def test_a_filter_on_a_column_that_was_revoked_ends(server: Server, todos: Sql) -> None:
    one = uuid4()
    async with connected(server) as client:
        await client.live({**TODOS, "event": "INSERT", "filter": "secret=eq.x"}, token=sign(one))
        todos.execute(
            "revoke select on public.todos from authenticated;"
            " grant select (id, owner, title, tags) on public.todos to authenticated"
        )
        todos.execute("insert into public.todos (id, owner, secret) values (1, %s, 'x')", (one,))
        system = await client.next()
        assert (system[3], system[4]["status"]) == ("system", "error")
        assert "column secret cannot be filtered" in system[4]["message"]
        await client.send("phoenix", "heartbeat", {})
        assert (await client.next())[3] == "phx_reply"


@pytest.mark.parametrize(
    "body", ["select null::uuid", "select '{one}'::uuid where not exists (select from public.bans)"]
)
async def test_another_auth_uid_counts_at_once(server: Server, todos: Sql, body: str) -> None:
    todos.execute("create table public.bans (user_id uuid); grant select on public.bans to authenticated")
    one = uuid4()
    async with connected(server) as client:
        await client.live({**TODOS, "event": "INSERT"}, token=sign(one))
        add_todo(todos, 1, one)
        assert (await client.change())["data"]["record"]["id"] == 1
        before = todos.execute("select prosrc from pg_proc where oid = 'auth.uid()'::regprocedure").fetchone()
        assert before is not None
        todos.execute("insert into public.bans values (null)")
        todos.execute(
            f"create or replace function auth.uid() returns uuid language sql stable as $$ {body.format(one=one)} $$"
        )
        add_todo(todos, 2, one)
        todos.execute(f"create or replace function auth.uid() returns uuid language sql stable as $$ {before[0]} $$")
        add_todo(todos, 3, one)
        found = [(await client.change())["data"]["record"]["id"]]
        if found == [2]:  # decided after the function was restored, as the database would now
            found = [(await client.change())["data"]["record"]["id"]]
        assert found == [3]


async def test_a_policy_may_use_what_its_callers_may_not_name(server: Server, todos: Sql) -> None:
    todos.execute(
        "create schema private; revoke all on schema private from public;"
        " create function private.mine(owner uuid) returns boolean language sql stable security definer"
        " as 'select owner = auth.uid()';"
        " alter policy mine on public.todos using (private.mine(owner))"
    )
    one = uuid4()
    async with connected(server) as client:
        await client.live({**TODOS, "event": "INSERT"}, token=sign(one))
        add_todo(todos, 1, uuid4())
        add_todo(todos, 2, one)
        assert (await client.change())["data"]["record"]["id"] == 2


async def test_a_policy_may_read_generated_and_system_columns(server: Server, todos: Sql) -> None:
    todos.execute(
        "alter table public.todos add column size int generated always as (length(title)) stored;"
        " alter policy mine on public.todos using (size = 3 and tableoid = 'public.todos'::regclass)"
    )
    async with connected(server) as client:
        await client.live({**TODOS, "event": "INSERT"}, token=sign(uuid4()))
        for number, title in ((1, "ab"), (2, "abc")):
            todos.execute("insert into public.todos (id, title) values (%s, %s)", (number, title))
        assert (await client.change())["data"]["record"]["id"] == 2


async def test_names_may_have_a_percent_sign(server: Server, todos: Sql) -> None:
    todos.execute(
        """
        create table public."to%dos" (id int primary key, "pct%" text);
        alter table public."to%dos" enable row level security;
        create policy mine on public."to%dos" using (lower("pct%") = 'a%');
        grant select on public."to%dos" to authenticated;
        alter publication supabase_realtime add table public."to%dos";
        """
    )
    async with connected(server) as client:
        await client.live(
            {**TODOS, "event": "INSERT", "table": "to%dos", "filter": "pct%=like.A%"}, token=sign(uuid4())
        )  # fmt: skip
        todos.execute("""insert into public."to%dos" values (1, 'b%'), (2, 'a%'), (3, 'A%')""")
        assert (await client.change())["data"]["record"]["id"] == 3


async def test_a_filter_is_not_cut_to_the_length_of_its_column(server: Server, todos: Sql) -> None:
    todos.execute("alter table public.todos alter column title type varchar(5)")
    one = uuid4()
    async with connected(server) as client:
        first, second = await client.live(
            {**TODOS, "event": "INSERT", "filter": "title=eq.abcdefgh"},
            {**TODOS, "event": "INSERT", "filter": "title=neq.abcdefgh"}, token=sign(one),
        )  # fmt: skip
        add_todo(todos, 1, one, "abcde")
        assert (await client.change())["ids"] == [second]
        assert first != second


async def test_a_column_that_becomes_an_array_stops_nothing(server: Server, todos: Sql) -> None:
    one, other = uuid4(), uuid4()
    async with connected(server) as filtering, connected(server) as client:
        await filtering.live({**TODOS, "event": "INSERT", "filter": "title=eq.7"}, token=sign(one))
        await client.live({**TODOS, "event": "INSERT"}, token=sign(other))
        todos.execute("alter table public.todos alter title type jsonb using to_jsonb(array[title])")
        for number in (1, 2):
            todos.execute("insert into public.todos (id, owner, title) values (%s, %s, '[7]')", (number, other))
        assert [(await client.change())["data"]["record"]["id"] for _ in range(2)] == [1, 2]


async def test_who_signs_in_gets_the_tables_of_users(server: Server, todos: Sql) -> None:
    one = uuid4()
    async with connected(server) as client:
        await client.join({**TODOS, "event": "INSERT"})  # anon may not select
        assert (await client.next())[4]["status"] == "error"
        await client.live({"event": "INSERT", "schema": "public"}, topic="realtime:b")
        for topic in ("realtime:a", "realtime:b"):
            await client.send(topic, "access_token", {"access_token": sign(one)}, "1")
        await client.send("phoenix", "heartbeat", {})
        assert (await client.next())[3] == "phx_reply"
        add_todo(todos, 1, one)
        assert {(await client.next())[2], (await client.next())[2]} == {"realtime:a", "realtime:b"}


@pytest.mark.parametrize("topic", ["realtime:\0", "realtime:" + "x" * 300, "realtime:a\nb"])
async def test_topics_that_could_not_be_kept_are_refused(server: Server, topic: str) -> None:
    async with connected(server) as client:
        assert (await client.join(topic=topic))["response"]["reason"].startswith("TopicNameInvalid: ")
        bindings = [{**TODOS, "filter": f"id=neq.{number}"} for number in range(101)]
        assert (await client.join(*bindings))["response"]["reason"].startswith("TooManyBindings: ")

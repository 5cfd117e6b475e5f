"""Private topics, broadcasts from the database and their replay, on a running server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from momentum_sync.errors import Unavailable
from momentum_sync.identity.tokens import Identity
from momentum_sync.identity.topic_access import TopicAccess
from momentum_sync.identity.topic_rights import TopicRights
from tests.fixtures.postgres import As, Sql
from tests.fixtures.server import ANON_KEY, SERVICE_KEY, TIMEOUT_S, Bounds, Server, Start, sign, until_state

BATCH = "/realtime/v1/api/broadcast"
MEMBERS = """
create table public.members (user_id uuid, room text);
grant select on public.members to authenticated;
create policy "members get messages" on realtime.messages for select to authenticated using (
    exists (
        select from public.members m
        where m.user_id = (select auth.uid()) and m.room = (select realtime.topic())
            and realtime.messages.extension in ('broadcast', 'presence')));
"""


class Member:
    """A client of one topic."""

    def __init__(self, socket: ClientConnection, topic: str) -> None:
        self.socket = socket
        self.topic = f"realtime:{topic}"
        self.frames: list[Any] = []
        self.ref = 0

    async def join(self, config: dict[str, Any], token: str | None = None) -> dict[str, Any]:
        """Join. Return the payload of the reply."""
        payload = {"config": config} | ({} if token is None else {"access_token": token})
        return await self.ask("phx_join", payload)

    async def ask(self, event: str, payload: Any) -> dict[str, Any]:
        """Send a frame. Return the payload of its reply."""
        self.ref += 1
        await self.socket.send(json.dumps(["1", str(self.ref), self.topic, event, payload]))
        found: dict[str, Any] = (await self.until(lambda frame: frame[1] == str(self.ref)))[4]
        return found

    async def send(self, event: str, payload: Any) -> None:
        await self.socket.send(json.dumps(["1", None, self.topic, event, payload]))

    async def until(self, wanted: Callable[[Any], bool]) -> Any:
        """Return the next text frame that is wanted; keep the others."""
        while True:
            data = await asyncio.wait_for(self.socket.recv(), TIMEOUT_S)
            frame = data if isinstance(data, bytes) else json.loads(data)
            if not isinstance(frame, bytes) and wanted(frame):
                return frame
            self.frames.append(frame)

    async def message(self) -> Any:
        """Return the payload of the next broadcast."""
        return (await self.until(lambda frame: frame[3] == "broadcast"))[4]

    def said(self, extension: str) -> list[str]:
        """Return the messages to the app so far."""
        texts = [frame for frame in self.frames if not isinstance(frame, bytes)]
        return [frame[4]["message"] for frame in texts if frame[3] == "system" and frame[4]["extension"] == extension]


@asynccontextmanager
async def connected(server: Server, topic: str, key: str = ANON_KEY, version: str = "2.0.0") -> AsyncIterator[Member]:
    url = f"{server.ws}/realtime/v1/websocket?apikey={key}&vsn={version}"
    async with websockets.connect(url, open_timeout=TIMEOUT_S, max_queue=None, max_size=None) as socket:
        yield Member(socket, topic)


async def test_a_private_topic_needs_a_select_policy(server: Server, db: Sql, user: UUID) -> None:
    db.execute(MEMBERS)
    db.execute("insert into public.members values (%s, 'room')", (user,))
    async with connected(server, "room", sign(user)) as ours, connected(server, "room", sign(uuid4())) as theirs:
        refused = await theirs.join({"private": True})
        assert refused["status"] == "error"
        assert refused["response"]["reason"] == (
            "Unauthorized: You do not have permissions to read from this Channel topic: room"
        )
        assert (await ours.join({"private": True}))["status"] == "ok"
        assert (await theirs.join({}))["status"] == "ok", "the public topic of this name is another one"
        db.execute("select realtime.send('{\"n\": 1}', 'moved', 'room')")
        found = await ours.message()
        assert found["event"] == "moved"
        assert found["payload"]["n"] == 1
        assert found["meta"] == {"id": found["payload"]["id"]}
        db.execute("select realtime.send('{\"n\": 2}', 'moved', 'room', false)")
        assert (await theirs.message())["payload"]["n"] == 2
    async with connected(server, "room") as anonymous:
        assert (await anonymous.join({"private": True}))["status"] == "error"


async def test_messages_come_in_the_order_of_commits_and_none_that_was_rolled_back(server: Server, db: Sql) -> None:
    async with connected(server, "room", SERVICE_KEY) as member:
        assert (await member.join({"private": True}))["status"] == "ok"
        with pytest.raises(ZeroDivisionError), db.transaction():
            db.execute("select realtime.send('{\"n\": 0}', 'e', 'room')")
            raise ZeroDivisionError
        with db.transaction():
            for number in range(1, 4):
                db.execute("select realtime.send(jsonb_build_object('n', %s::int), 'e', 'room')", (number,))
        db.execute("select realtime.send_binary('\\x00ff', 'raw', 'room')")
        db.execute(
            "insert into realtime.messages (topic, extension, payload, event, private) values"
            " ('room', 'broadcast', '[1]', 'list', true), ('room', 'broadcast', null, 'none', true)"
        )
        assert [(await member.message())["payload"]["n"] for _ in range(3)] == [1, 2, 3]
        assert (await member.message())["payload"] == [1]
        assert (await member.message())["payload"] == {}
        (binary,) = [frame for frame in member.frames if isinstance(frame, bytes)]
        assert binary[:5] == bytes([4, len("realtime:room"), 3, binary[3], 0])
        assert binary.endswith(b"\x00\xff")
        assert b"realtime:roomraw" in binary


async def test_a_trigger_broadcasts_the_changes_of_a_table(server: Server, db: Sql) -> None:
    db.execute(
        "create table public.notes (id int primary key, body text);"
        "create function public.tell() returns trigger language plpgsql security definer set search_path = '' as $$"
        " begin perform realtime.broadcast_changes('notes:' || coalesce(new.id, old.id), tg_op, tg_op, tg_table_name,"
        " tg_table_schema, new, old); return null; end $$;"
        "create trigger tell after insert or update or delete on public.notes for each row execute function tell()"
    )
    async with connected(server, "notes:1", SERVICE_KEY, "1.0.0") as member:
        await member.socket.send(
            json.dumps({"topic": member.topic, "event": "phx_join", "ref": "1", "join_ref": "1",
                        "payload": {"config": {"private": True}}})
        )  # fmt: skip
        assert json.loads(await member.socket.recv())["payload"]["status"] == "ok"
        db.execute("insert into public.notes values (1, 'a')")
        db.execute("update public.notes set body = 'b'")
        db.execute("delete from public.notes")
        found: list[dict[str, Any]] = []
        while len(found) < 3:
            frame = json.loads(await asyncio.wait_for(member.socket.recv(), TIMEOUT_S))
            if frame["event"] == "broadcast":
                found.append(frame["payload"])
        assert [each["event"] for each in found] == ["INSERT", "UPDATE", "DELETE"]
        assert [(each["payload"]["old_record"], each["payload"]["record"]) for each in found] == [
            (None, {"id": 1, "body": "a"}), ({"id": 1, "body": "a"}, {"id": 1, "body": "b"}),
            ({"id": 1, "body": "b"}, None),
        ]  # fmt: skip
        assert {(each["payload"]["schema"], each["payload"]["table"]) for each in found} == {("public", "notes")}


async def test_sending_needs_an_insert_policy(server: Server, db: Sql, user: UUID, other: UUID) -> None:
    db.execute(MEMBERS)
    db.execute("insert into public.members select u, 'room' from unnest(%s) u", ([user, other],))
    db.execute(
        "create policy writers on realtime.messages for insert to authenticated"
        f" with check (auth.uid() = '{user}' and extension = 'broadcast' and realtime.topic() = topic)"
    )
    config = {"private": True, "broadcast": {"ack": True, "self": True}, "presence": {"enabled": True, "key": "k"}}
    text = {"type": "broadcast", "event": "moved", "payload": {"x": 1}}
    track = {"type": "presence", "event": "track", "payload": {"a": 1}}
    async with connected(server, "room", sign(user)) as sender, connected(server, "room", sign(other)) as reader:
        assert (await sender.join(config))["status"] == "ok"
        assert (await reader.join(config))["status"] == "ok"
        refused = await reader.ask("broadcast", text)
        assert refused == {
            "status": "error",
            "response": {"reason": "Unauthorized: You do not have permissions to write to this Channel topic: room"},
        }
        assert (await reader.ask("presence", track))["status"] == "error"
        assert (await sender.ask("presence", track))["status"] == "error"
        assert (await sender.ask("broadcast", text))["status"] == "ok"
        assert await reader.message() == text
        messages = [{"topic": "room", "event": "by http", "payload": {}, "private": True}]
        async with server.http(sign(other)) as http:
            answer = await http.post(BATCH, json={"messages": messages})
            assert answer.status_code == 403
            assert "permissions to write" in answer.json()["message"]
        async with server.http(sign(user)) as http:
            assert (await http.post(f"{BATCH}/room/events/single?private=true", json={"n": 1})).status_code == 202
        async with server.http(SERVICE_KEY) as http:
            assert (await http.post(BATCH, json={"messages": messages})).status_code == 202
        single, batch = await binaries(reader, 2)
        assert single.endswith(b'single{"n":1}')
        assert batch.endswith(b"by http{}")


async def binaries(member: Member, count: int) -> list[bytes]:
    """Return the binary frames, once there are as many."""
    while True:
        found = [frame for frame in member.frames if isinstance(frame, bytes)]
        if len(found) >= count:
            return found
        data = await asyncio.wait_for(member.socket.recv(), TIMEOUT_S)
        member.frames.append(data if isinstance(data, bytes) else json.loads(data))


async def test_a_changed_policy_and_a_fresh_token_are_looked_at(
    server: Server, db: Sql, user: UUID, other: UUID
) -> None:  # fmt: skip
    db.execute(MEMBERS)
    db.execute("insert into public.members select u, 'room' from unnest(%s) u", ([user, other],))
    async with connected(server, "room", sign(user)) as first, connected(server, "room", sign(other)) as second:
        assert (await first.join({"private": True}))["status"] == "ok"
        assert (await second.join({"private": True}))["status"] == "ok"
        await second.send("access_token", {"access_token": sign(uuid4())})
        closed = await second.until(lambda frame: frame[3] == "phx_close")
        assert closed[2] == "realtime:room"
        lost = "You no longer have permission to read from this Channel topic: room"
        assert second.said("system") == [lost]
        with db.transaction():
            db.execute("select realtime.send('{\"n\": 1}', 'e', 'room')")
            db.execute('drop policy "members get messages" on realtime.messages')
            db.execute("select realtime.send('{\"n\": 2}', 'e', 'room')")
        db.execute("select realtime.send('{\"n\": 3}', 'e', 'room')")
        await first.until(lambda frame: frame[3] == "phx_close")
        assert first.said("system") == [lost]
        numbers = [frame[4]["payload"]["n"] for frame in first.frames if frame[3] == "broadcast"]
        assert numbers == [1], "in the order of commits, and of statements"


async def test_a_policy_may_call_a_function_that_its_callers_cannot_name(server: Server, db: Sql, user: UUID) -> None:
    db.execute(
        "create schema private; create table private.rooms (user_id uuid, room text);"
        "create function private.may_enter(room text) returns boolean language sql stable security definer"
        " set search_path = '' as $$ select exists (select from private.rooms r"
        " where r.user_id = (select auth.uid()) and r.room = may_enter.room) $$;"
        "create policy p on realtime.messages for select to authenticated using (private.may_enter(realtime.topic()));"
        "create policy q on realtime.messages for insert to authenticated"
        " with check (private.may_enter(topic) and extension = 'broadcast')"
    )
    db.execute("insert into private.rooms values (%s, 'room')", (user,))
    text = {"type": "broadcast", "event": "moved", "payload": {}}
    config = {"private": True, "broadcast": {"ack": True}}
    async with connected(server, "room", sign(user)) as member, connected(server, "hall", sign(user)) as stranger:
        assert (await member.join(config))["status"] == "ok"
        assert (await member.ask("broadcast", text))["status"] == "ok"
        track = {"type": "presence", "event": "track", "payload": {}}
        assert (await member.ask("presence", track))["status"] == "error"
        assert (await stranger.join(config))["status"] == "error"
    assert db.execute("select count(*) from realtime.messages").fetchone() == (0,), "what was tried is rolled back"


async def test_messages_from_before_are_replayed_in_the_order_of_commits(server: Server, db: Sql) -> None:
    for number in range(30):
        db.execute("select realtime.send(jsonb_build_object('n', %s::int), 'e', 'room')", (number,))
    db.execute("select pg_sleep(0.005)")  # a time has milliseconds
    since: Any = db.execute("select (extract(epoch from now()) * 1000)::bigint").fetchone()
    db.execute("select pg_sleep(0.005)")
    for number in range(30, 70):
        db.execute("select realtime.send(jsonb_build_object('n', %s::int), 'e', 'room')", (number,))
    db.execute("select realtime.send('{}', 'e', 'another')")
    for replay, numbers, gaps in (
        ({"since": since[0]}, list(range(30, 70)), 0),
        ({"since": since[0], "limit": 25}, list(range(45, 70)), 0),
        ({"since": 0, "limit": 1_000}, list(range(70)), 0),
        ({"since": 10**19}, [], 0),
    ):
        async with connected(server, "room", SERVICE_KEY) as member:
            config = {"private": True, "broadcast": {"replay": replay}}
            assert (await member.join(config))["status"] == "ok"
            found = [await member.message() for _ in numbers]
            assert [each["payload"]["n"] for each in found] == numbers
            assert all(each["meta"]["replayed"] is True and each["meta"]["id"] for each in found)
            assert len(member.said("replay")) == gaps
            db.execute("select realtime.send('{\"n\": -1}', 'e', 'public', false)")
            assert not [frame for frame in member.frames if frame[3] == "broadcast"]
    async with connected(server, "room", SERVICE_KEY) as member:
        refused = await member.join({"broadcast": {"replay": {"since": 0}}})
        assert refused["response"]["reason"] == "UnableToReplayMessages: Replay is not allowed for public channels"


async def test_what_was_missed_while_away_follows_the_reply(server: Server, db: Sql, user: UUID) -> None:
    db.execute("create policy everybody on realtime.messages for select to authenticated using (true)")
    url = f"{server.ws}/realtime/v1/websocket?apikey={sign(user)}&vsn=2.0.0&client_id=phone"
    async with websockets.connect(url, max_queue=None) as socket:
        member = Member(socket, "room")
        assert (await member.join({"private": True}))["status"] == "ok"
        db.execute("select realtime.send('{\"n\": 1}', 'e', 'room')")
        assert (await member.message())["payload"]["n"] == 1
    for number in range(2, 6):
        db.execute("select realtime.send(jsonb_build_object('n', %s::int), 'e', 'room')", (number,))
    async with websockets.connect(url, max_queue=None) as socket:
        member = Member(socket, "room")
        member.ref = 300  # the refs of one client object go on
        assert (await member.join({"private": True}))["status"] == "ok"
        found = [(await member.message())["payload"]["n"] for _ in range(4)]
        assert found in ([2, 3, 4, 5], [1, 2, 3, 4])  # the first may not be acknowledged yet
        assert member.said("resume") == ["Resumed: the changes since this client was last connected follow."]


async def test_publish_reaches_topics_too(server: Server, db: Sql, user: UUID) -> None:
    async with connected(server, "room", SERVICE_KEY) as ours, connected(server, "room") as theirs:
        assert (await ours.join({"private": True}))["status"] == "ok"
        assert (await theirs.join({}))["status"] == "ok"
        event = '{"event_type": "moved", "x": 1}'
        db.execute("select momentum.publish(array['topic:room', 'coaches'], %s::jsonb)", (event,))
        db.execute("select momentum.publish(array['public_topic:room'], %s::jsonb)", (event,))
        wanted = {"type": "broadcast", "event": "moved", "payload": json.loads(event), "meta": {}}
        for member in (ours, theirs):
            assert await member.message() == wanted


async def test_a_message_that_cannot_be_sent_warns_the_writer_and_is_counted(
    server: Server, db: Sql, user: UUID, acting: As
) -> None:
    said: list[str] = []

    async def counted(http: httpx.AsyncClient) -> float:
        found = re.search(r"momentum_send_failures_total ([\d.]+)", (await http.get("/metrics")).text)
        assert found is not None
        return float(found[1])

    async with server.http(SERVICE_KEY) as http:
        before = await counted(http)
        with acting(user) as sql:
            sql.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
            sql.execute("select realtime.send('{}', 'e', 'room')")
        assert said == ['WarnSendingBroadcastMessage: new row violates row-level security policy for table "messages"']
        async with asyncio.timeout(TIMEOUT_S):
            while await counted(http) != before + 1:
                await asyncio.sleep(0.05)


async def test_rows_that_no_client_could_get_are_reported_and_stop_nothing(server: Server, db: Sql) -> None:
    async with connected(server, "room", SERVICE_KEY) as member:
        assert (await member.join({"private": True}))["status"] == "ok"
        db.execute(
            "insert into realtime.messages (topic, extension, event, payload, private) values"
            " ('', 'broadcast', 'e', '{}', true), ('room', 'broadcast', null, '{}', true),"
            " (repeat('x', 300), 'broadcast', 'e', '{}', true),"
            " ('room', 'broadcast', 'e', to_jsonb(repeat('x', 4000000)), true)"
        )
        db.execute("update realtime.messages set event = 'later'; delete from realtime.messages")
        db.execute("select realtime.send('{\"n\": 1}', 'e', 'room')")
        assert (await member.message())["payload"]["n"] == 1


@asynccontextmanager
async def held(database: str, statement: str) -> AsyncIterator[psycopg.Connection[Any]]:
    """Hold a transaction open."""
    with psycopg.connect(database) as connection:
        connection.execute(statement.encode())
        yield connection


async def test_a_policy_that_goes_during_a_join_refuses_it(server: Server, db: Sql, database: str, user: UUID) -> None:
    db.execute("create policy everybody on realtime.messages for select to authenticated using (true)")
    async with connected(server, "room", sign(user)) as member:
        async with held(database, "lock table momentum.realtime_sessions in access exclusive mode") as connection:
            joining = asyncio.ensure_future(member.join({"private": True}))
            waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            async with asyncio.timeout(TIMEOUT_S):
                while db.execute(waiting.encode()).fetchone() == (0,):
                    await asyncio.sleep(0.02)
            db.execute("drop policy everybody on realtime.messages")
            await until_logged(db, "row_rights_changed", 2)
            connection.rollback()
        assert (await joining)["status"] == "error"


async def until_logged(db: Sql, event_type: str, count: int) -> None:
    """Wait until the log has a number of events of a type."""
    query = "select count(*) >= %s from momentum.event_log where event ->> 'event_type' = %s"
    async with asyncio.timeout(TIMEOUT_S):
        while db.execute(query, (count, event_type)).fetchone() != (True,):
            await asyncio.sleep(0.02)


async def test_a_client_that_reads_nothing_cannot_send_with_rights_that_it_has_lost(
    start: Start, bounds: Bounds, db: Sql, user: UUID, other: UUID
) -> None:
    bounds("delivery", stall_s=60.0)
    db.execute("create policy reading on realtime.messages for select to authenticated using (true)")
    db.execute("create policy writing on realtime.messages for insert to authenticated with check (true)")
    async with start() as server, connected(server, "room", SERVICE_KEY) as witness:
        assert (await witness.join({"private": True}))["status"] == "ok"
        url = f"{server.ws}/realtime/v1/websocket?apikey={sign(user)}&vsn=2.0.0"
        async with websockets.connect(url, max_queue=1, max_size=None) as socket:
            member = Member(socket, "room")
            assert (await member.join({"private": True}))["status"] == "ok"
            for _ in range(4):  # more than the buffers of the sockets
                db.execute("select realtime.send(jsonb_build_object('x', repeat('x', 2900000)), 'large', 'room')")
            for _ in range(4):
                await witness.message()
            db.execute("drop policy writing on realtime.messages; drop policy reading on realtime.messages")
            async with server.http(sign(user)) as http, asyncio.timeout(TIMEOUT_S):
                path = f"{BATCH}/room/events/allowed?private=true"
                while (await http.post(path, json={})).status_code != 403:
                    await asyncio.sleep(0.05)
            # Its own connection is told in the same moment; then this frame finds no topic.
            await until_logged(db, "row_rights_changed", 2)
            await asyncio.sleep(0.3)
            await member.send("broadcast", {"type": "broadcast", "event": "stolen", "payload": {}})
            await asyncio.sleep(0.3)
            db.execute("select realtime.send('{}', 'done', 'room')")
            names = []
            while "done" not in names:
                names.append((await witness.message())["event"])
            assert "stolen" not in names


async def test_a_topic_is_joined_while_its_messages_cannot_be_followed_yet(
    start: Start, bounds: Bounds, db: Sql, database: str
) -> None:
    """An earlier version has captured the database, and a transaction is open since before."""
    bounds("capture", messages_wait_s=0.2)
    publication = "supabase_realtime_messages_publication"
    db.execute(f"alter publication {publication} rename to hidden".encode())
    async with start():
        pass
    assert db.execute("select from momentum.followed_tables").fetchall() == []
    async with held(database, "select pg_current_xact_id()") as connection, start() as server:
        db.execute(f"alter publication hidden rename to {publication}".encode())
        async with connected(server, "room", SERVICE_KEY) as member:
            assert (await member.join({"private": True}))["status"] == "ok"
            pending = await member.until(lambda frame: frame[3] == "system" and frame[4]["extension"] == "rights")
            assert pending[4]["message"].startswith("BroadcastsPending: ")
            connection.rollback()
            async with asyncio.timeout(TIMEOUT_S):
                while db.execute("select from momentum.followed_tables").fetchall() == []:
                    await asyncio.sleep(0.05)
            db.execute("select realtime.send('{\"n\": 1}', 'e', 'room')")
            assert (await member.message())["payload"]["n"] == 1
        await until_state(server, "live")  # the stream has begun again
        async with connected(server, "room", SERVICE_KEY) as member:
            config = {"private": True, "broadcast": {"replay": {"since": 0}}}
            assert (await member.join(config))["status"] == "ok"
            assert (await member.message())["payload"]["n"] == 1
            assert member.said("replay") == [
                "ReplayGap: the newest 1 messages were replayed; there may be older ones."
            ], "what was sent before they were followed is missing"


async def test_a_join_waits_while_the_database_is_away_for_a_moment(
    server: Server, db: Sql, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.execute("create policy everybody on realtime.messages for select to authenticated using (true)")
    real = TopicRights.of
    failures = iter([Unavailable("No."), Unavailable("No.")])

    async def of(rights: TopicRights, identity: Identity, topic: str) -> TopicAccess:
        if (failure := next(failures, None)) is not None:
            raise failure
        return await real(rights, identity, topic)

    monkeypatch.setattr(TopicRights, "of", of)
    async with connected(server, "room", sign(user)) as member:
        assert (await member.join({"private": True}))["status"] == "ok"


async def test_a_publication_that_was_dropped_ends_the_history_and_shows(
    start: Start, bounds: Bounds, db: Sql, user: UUID
) -> None:
    bounds("capture", slot_check_interval_s=0.1, slot_checks_per_trigger_check=1)
    publication = "supabase_realtime_messages_publication"
    async with start() as server, server.http() as http:
        async with connected(server, "room", SERVICE_KEY) as member:
            assert (await member.join({"private": True}))["status"] == "ok"
            db.execute(f"drop publication {publication}".encode())
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    await asyncio.wait_for(member.socket.recv(), TIMEOUT_S)
        problem = f"publication {publication} is missing"
        async with asyncio.timeout(TIMEOUT_S):
            while problem not in (await http.get("/sync/health")).text:
                await asyncio.sleep(0.05)
        db.execute(f"create publication {publication} for table realtime.messages".encode())
        await until_state(server, "live")
        async with connected(server, "room", SERVICE_KEY) as member:
            assert (await member.join({"private": True}))["status"] == "ok"
            db.execute("select realtime.send('{\"n\": 1}', 'e', 'room')")
            assert (await member.message())["payload"]["n"] == 1

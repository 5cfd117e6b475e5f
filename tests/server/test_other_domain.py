"""Another application on the same engine, declared in this one file: rooms, and readings that their sensors send."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from fastapi import APIRouter, Response

from momentum_sync.database.connection import fetch_one
from momentum_sync.gateway.application import Application, SnapshotQuery
from momentum_sync.gateway.caller_reads import CallerReads
from momentum_sync.gateway.conversation import Services
from momentum_sync.gateway.dialects.native import Command, Session
from momentum_sync.gateway.http.requests import Answer, Caller, answer
from momentum_sync.schema import Column, Schema, TableSpec
from momentum_sync.wire.messages import ClientMessage
from tests.fixtures.postgres import Sql, new_user, until_read
from tests.fixtures.server import Start, sign

TABLES = """
create table public.rooms (id uuid primary key default gen_random_uuid(), user_id uuid not null, name text not null);
create table public.readings (
    id bigint primary key generated always as identity,
    user_id uuid not null,
    room_id uuid not null references public.rooms,
    celsius numeric not null
);
alter table public.rooms enable row level security;
alter table public.readings enable row level security;
create policy own on public.rooms for select to authenticated using (user_id = auth.uid());
create policy warm on public.readings for select to authenticated using (user_id = auth.uid() or celsius > 30);
grant select on public.rooms, public.readings to authenticated, service_role;

create function public.house_acts_for(who uuid) returns boolean language sql stable
    set search_path = pg_catalog, pg_temp as $$ select who = auth.uid() $$;
create function public.house_grant(channel text) returns text language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select case channel when 'house:' || auth.uid() then 'granted' when 'alarms' then 'checked' end $$;

create function public.publish_room() returns trigger language plpgsql security definer
    set search_path = pg_catalog, pg_temp as $$ begin
    perform momentum.publish(array['house:' || new.user_id], jsonb_build_object(
        'event_type', 'room_changed', 'user_id', new.user_id, 'room_id', new.id, 'name', new.name));
    return null; end $$;
create function public.publish_reading() returns trigger language plpgsql security definer
    set search_path = pg_catalog, pg_temp as $$ begin
    perform momentum.publish(array['house:' || new.user_id, 'alarms'], jsonb_build_object(
        'event_type', 'reading_taken', 'user_id', new.user_id, 'reading_id', new.id, 'celsius', new.celsius));
    return null; end $$;
create trigger publish after insert or update on public.rooms for each row execute function public.publish_room();
create trigger publish after insert on public.readings for each row execute function public.publish_reading();
"""


class CountRooms(ClientMessage, tag="count_rooms"):
    """Asks how many rooms there are."""

    ANSWERS = ("rooms_counted", "error")


def commands(reads: CallerReads) -> list[Command]:
    async def count_rooms(session: Session, message: CountRooms, services: Services) -> None:
        async with reads.consistent(session.identity, session.user_id) as connection:
            (count,) = await fetch_one(connection, "select count(*) from public.rooms")
        session.send("rooms_counted", {"count": count}, services.now(), message.ref)

    return [Command(CountRooms, count_rooms)]


def add_routes(sync: APIRouter, reads: CallerReads) -> None:
    @sync.post("/rooms", response_model=Answer)
    async def rooms(caller: Caller) -> Response:
        async with reads.consistent(caller, caller.subject) as connection:
            query = "select coalesce(json_agg(r.name order by r.name), '[]')::text from public.rooms r"
            (text,) = await fetch_one(connection, query)
        return answer(msgspec.Raw(text.encode()))


HOUSE = Application(
    schema=Schema(
        tables=(
            TableSpec(
                name="rooms",
                event_types=("room_changed",),
                key=(Column("user_id", "uuid"), Column("id", "uuid", "room_id")),
                version=(Column("name"),),
            ),
            TableSpec(
                name="readings",
                event_types=("reading_taken",),
                key=(Column("id", "bigint", "reading_id"),),
                version=(Column("celsius", "numeric"),),
            ),
        ),
        own_channels=("house:{user_id}",),
        shared_channels=frozenset({"alarms"}),
        per_user_channels=frozenset(),
        grant="house_grant",
        may_act_for="house_acts_for",
    ),
    snapshot=SnapshotQuery(
        of_user="select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, coalesce((select"
        " json_agg(json_build_object('id', r.id, 'name', r.name)) from public.rooms r), '[]')::text",
        without_user="select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text",
        fields={"rooms": "[]"},
    ),
    commands=commands,
    add_routes=add_routes,
)


def take_reading(db: Sql, user: UUID, room: UUID, celsius: int) -> None:
    db.execute("insert into readings (user_id, room_id, celsius) values (%s, %s, %s)", (user, room, celsius))


@pytest.fixture
def house(db: Sql) -> Sql:
    db.execute(TABLES)
    return db


async def test_another_application_has_its_own_snapshot_channels_messages_and_routes(start: Start, house: Sql) -> None:
    mine, theirs = new_user(house), new_user(house)
    house.execute("insert into rooms (user_id, name) values (%s, 'kitchen'), (%s, 'cellar')", (mine, theirs))
    async with start(application=HOUSE) as server:
        async with server.connect(sign(mine), channels="alarms") as client:
            confirmed, state = [msgspec.json.decode(await client.socket.recv()) for _ in range(2)]
            assert confirmed["channels"] == [f"house:{mine}", "alarms"]
            assert [room["name"] for room in state["rooms"]] == ["kitchen"]
            rooms: dict[str, UUID] = dict(house.execute("select name, id from rooms").fetchall())
            house.execute("update rooms set name = 'hall' where name = 'cellar'")
            house.execute("update rooms set name = 'bath' where name = 'kitchen'")
            house.execute(
                "insert into readings (user_id, room_id, celsius) values (%s, %s, 20)", (theirs, rooms["cellar"])
            )
            house.execute(
                "insert into readings (user_id, room_id, celsius) values (%s, %s, 35)", (theirs, rooms["cellar"])
            )
            house.execute(
                "insert into readings (user_id, room_id, celsius) values (%s, %s, 21)", (mine, rooms["kitchen"])
            )
            events = [msgspec.json.decode(await client.socket.recv())["event"] for _ in range(3)]
            assert [(event["channel"], event.get("name", event.get("celsius"))) for event in events] == [
                (f"house:{mine}", "bath"), ("alarms", 35), (f"house:{mine}", 21)
            ]  # fmt: skip
            await client.send({"type": "count_rooms", "ref": 1})
            counted = msgspec.json.decode(await client.socket.recv())
            assert (counted["type"], counted["count"], counted["ref"]) == ("rooms_counted", 1, 1)
            await client.send({"type": "request_momentum_update"})
            assert msgspec.json.decode(await client.socket.recv())["code"] == "unknown_type"
        async with server.http(sign(mine)) as http:
            assert (await http.post("/sync/rooms", json={})).json()["data"] == ["bath"]
            assert (await http.post("/sync/momentum", json={"user_id": str(mine)})).status_code == 404


async def test_another_application_resumes_and_missed_events_are_checked(start: Start, house: Sql) -> None:
    mine, theirs = new_user(house), new_user(house)
    house.execute("insert into rooms (user_id, name) values (%s, 'cellar')", (theirs,))
    room = house.execute("select id from rooms").fetchone()
    assert room is not None
    async with start(application=HOUSE) as server:
        async with server.connect(sign(mine), channels="alarms") as client:
            await client.socket.recv()
            last = msgspec.json.decode(await client.socket.recv())["last_event_id"]
        for celsius in (20, 31, 10, 32):
            house.execute(
                "insert into readings (user_id, room_id, celsius) values (%s, %s, %s)", (theirs, *room, celsius)
            )
        await until_read(house)
        async with server.connect(sign(mine), channels="alarms", last_event_id=last) as client:
            confirmed, *events = [msgspec.json.decode(await client.socket.recv()) for _ in range(3)]
            assert confirmed["resumed"] is True
            assert [event["event"]["celsius"] for event in events] == [31, 32]
        async with server.http(sign(mine)) as http:
            body = {"last_event_id": last, "channels": ["alarms"]}
            missed = (await http.post("/sync/events", json=body)).json()
            assert [event["celsius"] for event in missed["events"]] == [31, 32]

"""Which devices have an event: in SQL and by HTTP, of both protocols, across restarts."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import websockets

from momentum_sync.demo.receipts import receipts_page
from tests.fixtures.postgres import As, Sql, add_notification, add_score
from tests.fixtures.realtime import page
from tests.fixtures.server import SERVICE_KEY, TIMEOUT_S, Bounds, Client, Start, sign
from tests.fixtures.todos import add_todo


async def delivered(client: Client, db: Sql, user: UUID) -> str:
    """Return the id of a new event that a client has received."""
    add_notification(db, user)
    return str((await client.until("realtime_event"))["event"]["id"])


def receipts(db: Sql, user: UUID, event_id: str) -> dict[str, bool]:
    """Return which devices have an event; none as long as the log does not have it."""
    return asked(db, user, event_id) if in_log(db, event_id) else {}


def in_log(db: Sql, event_id: str) -> bool:
    (last,) = db.execute("select last_number from momentum.stream").fetchone() or (0,)
    return bool(last >= int(event_id.split("-")[1]))


def asked(db: Sql, user: UUID, event_id: str) -> dict[str, bool]:
    rows = db.execute("select device, has_event from momentum.receipts(%s, %s)", (user, event_id)).fetchall()
    return dict(rows)


async def until_receipts(db: Sql, user: UUID, event_id: str, wanted: dict[str, bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while receipts(db, user, event_id) != wanted:
            await asyncio.sleep(0.05)


async def test_each_device_confirms_what_it_received(start: Start, db: Sql, user: UUID) -> None:
    async with start(receipts="0.1s") as server:
        async with server.live(user, client_id="phone") as phone, server.live(user, client_id="tablet") as tablet:
            first = await delivered(phone, db, user)
            await until_receipts(db, user, first, {"phone": True, "tablet": True})
            await tablet.socket.close()
            second = await delivered(phone, db, user)
            await until_receipts(db, user, second, {"phone": True, "tablet": False})
            async with server.live(user, client_id="tablet"):  # its snapshot has what the event says
                await until_receipts(db, user, second, {"phone": True, "tablet": True})


async def test_a_client_that_does_not_answer_has_nothing(start: Start, db: Sql, user: UUID) -> None:
    async with start(receipts="0.1s") as server:
        async with server.live(user, client_id="phone") as phone, server.live(user, client_id="stuck") as stuck:
            first = await delivered(phone, db, user)
            await until_receipts(db, user, first, {"phone": True, "stuck": True})
            stuck.socket.transport.pause_reading()
            second = await delivered(phone, db, user)
            await until_receipts(db, user, second, {"phone": True, "stuck": False})
            stuck.socket.transport.resume_reading()
            await until_receipts(db, user, second, {"phone": True, "stuck": True})


async def test_without_the_setting_the_pings_of_the_heartbeat_ask(start: Start, db: Sql, user: UUID) -> None:
    async with start(heartbeat="0.3s") as server, server.live(user, client_id="phone") as phone:
        await until_receipts(db, user, await delivered(phone, db, user), {"phone": True})


async def test_a_resume_is_a_receipt_and_the_last_ones_are_saved_at_the_end(start: Start, db: Sql, user: UUID) -> None:
    async with start() as server:
        async with server.live(user, client_id="phone") as phone:
            event_id = await delivered(phone, db, user)
        async with server.connect(sign(user), client_id="phone", last_event_id=event_id) as again:
            assert (await again.until("subscription_confirmed"))["resumed"]
    assert receipts(db, user, event_id) == {"phone": True}


async def test_a_device_has_no_event_of_a_channel_that_it_has_left(start: Start, db: Sql, user: UUID) -> None:
    async with start(receipts="0.1s") as server, server.live(user, client_id="phone") as phone:
        await phone.send({"type": "unsubscribe", "channels": [f"notifications:{user}"], "ref": "1"})
        await phone.until("subscription_confirmed")
        add_notification(db, user)
        add_score(db, user)
        later = (await phone.until("realtime_event"))["event"]["id"]
        await until_receipts(db, user, later, {"phone": True})
        find = "select event_id from momentum.event_ids(%s, '{}')"
        ((missed,),) = db.execute(find, (f"notifications:{user}",)).fetchall()
        assert receipts(db, user, missed) == {"phone": False}


async def test_the_ids_of_another_history_are_not_answered(start: Start, db: Sql, user: UUID) -> None:
    async with start(receipts="0.1s") as server, server.live(user, client_id="phone") as phone:
        event_id = await delivered(phone, db, user)
        await until_receipts(db, user, event_id, {"phone": True})
    epoch, number, mark = event_id.split(".")[0].split("-")
    for other in (f"00000000-{number}-{mark}", f"{epoch}-{number}-1", f"{epoch}-{int(number) + 1000}-{mark}"):
        with pytest.raises(psycopg.errors.NoDataFound):
            asked(db, user, other)


async def test_a_user_has_a_bounded_number_of_devices(start: Start, bounds: Bounds, db: Sql, user: UUID) -> None:
    bounds("receipts", of_user=3, save_s=0.1)
    async with start(receipts="0.1s") as server:
        for number in range(6):
            async with server.live(user, client_id=f"phone-{number}") as phone:
                event_id = await delivered(phone, db, user)
                async with asyncio.timeout(TIMEOUT_S):
                    while not receipts(db, user, event_id).get(f"phone-{number}"):
                        await asyncio.sleep(0.05)
        async with asyncio.timeout(TIMEOUT_S):  # a statement of its own takes away the oldest
            while set(receipts(db, user, event_id)) != {"phone-3", "phone-4", "phone-5"}:
                await asyncio.sleep(0.05)


async def test_clients_without_a_name_and_those_of_others_are_no_devices(
    start: Start, db: Sql, user: UUID, other: UUID
) -> None:
    async with start(receipts="0.1s") as server:
        coach = sign(other, app_role="admin")
        async with (
            server.live(user) as nameless, server.live(user, client_id="phone") as phone,
            server.connect(coach, client_id="coach", user_id=user) as acting,
        ):  # fmt: skip
            await acting.until("initial_state")
            event_id = await delivered(phone, db, user)
            await nameless.until("realtime_event")
            await acting.until("realtime_event")
            await until_receipts(db, user, event_id, {"phone": True})
    assert receipts(db, user, event_id) == {"phone": True}


async def test_by_http_for_the_service_alone(start: Start, db: Sql, user: UUID) -> None:
    async with start(receipts="0.1s") as server, server.live(user, client_id="phone") as phone:
        event_id = await delivered(phone, db, user)
        await until_receipts(db, user, event_id, {"phone": True})
        body = {"user_id": str(user), "event_id": event_id}
        async with server.http(apikey=SERVICE_KEY) as http:
            (found,) = (await http.post("/sync/receipts", json=body)).json()["devices"]
            assert {"device": "phone", "protocol": "native", "topic": None, "has_event": True}.items() <= found.items()
            nobody = await http.post("/sync/receipts", json={**body, "user_id": str(uuid4())})
            assert nobody.json() == {"devices": []}
            for wrong in ("x", f"{event_id}\0", f"{event_id}; drop"):
                refused = await http.post("/sync/receipts", json={**body, "event_id": wrong})
                assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_field")
            gone = await http.post("/sync/receipts", json={**body, "event_id": "00000000-1-1"})
            assert gone.status_code == 404
        async with server.http(sign(user)) as http:
            assert (await http.post("/sync/receipts", json=body)).status_code == 403


async def test_topics_of_supabases_protocol_have_receipts_too(start: Start, todos: Sql, user: UUID) -> None:
    async with start() as server:
        async with page(server, user, client_id="phone").connected() as client:
            await client.join()
            add_todo(todos, 1, user)
            await client.ids(1)
            query = "select event_id from momentum.event_ids('momentum:rows:' || 'todos'::regclass::oid, '{}')"
            async with asyncio.timeout(TIMEOUT_S):
                while not (found := todos.execute(query).fetchall()):
                    await asyncio.sleep(0.05)
            ((event_id,),) = found
            query = "select protocol, topic, has_event from momentum.receipts(%s, %s)"
            async with asyncio.timeout(TIMEOUT_S):  # false until it is confirmed; then whether it watches is not known
                while todos.execute(query, (user, event_id)).fetchall() != [("supabase", "realtime:a", None)]:
                    await asyncio.sleep(0.05)
            add_notification(todos, user)
            todos.execute('select momentum.publish(array[\'public_topic:a\'], \'{"event": "x", "payload": {}}\')')
            find = "select event_id from momentum.event_ids(%s, '{}')"
            async with asyncio.timeout(TIMEOUT_S):
                while not (sent := todos.execute(find, ("public_topic:a",)).fetchall()):
                    await asyncio.sleep(0.05)
            async with asyncio.timeout(TIMEOUT_S):
                while todos.execute(query, (user, *sent[0])).fetchall() != [("supabase", "realtime:a", True)]:
                    await asyncio.sleep(0.05)
            (other,) = todos.execute(find, (f"notifications:{user}",)).fetchall()
            assert todos.execute(query, (user, *other)).fetchall() == [("supabase", "realtime:a", False)]


async def test_events_are_found_by_what_they_say(start: Start, db: Sql, user: UUID) -> None:
    async with start() as server, server.live(user, client_id="phone") as phone:
        wanted = add_notification(db, user)
        event: dict[str, Any] = (await phone.until("realtime_event"))["event"]
        await delivered(phone, db, user)
        query = "select event_id, event from momentum.event_ids(%s, jsonb_build_object('notification_id', %s::text))"
        async with asyncio.timeout(TIMEOUT_S):
            while not (found := db.execute(query, (f"notifications:{user}", str(wanted))).fetchall()):
                await asyncio.sleep(0.05)
    ((event_id, said),) = found
    assert event["id"].startswith(event_id), "without a snapshot boundary, which is the connection's"
    assert said["notification_id"] == str(wanted)
    late = db.execute(
        "select from momentum.event_ids(%s, '{}', now() + interval '1 hour')", (f"notifications:{user}",)
    ).fetchall()
    assert late == []


def test_only_the_service_may_ask(acting: As, user: UUID) -> None:
    for call in ("momentum.receipts(auth.uid(), 'abcdef01-1-1')", "momentum.event_ids('x', '{}')"):
        with acting(user) as sql, pytest.raises(psycopg.errors.InsufficientPrivilege):
            sql.execute(f"select * from {call}".encode())


@pytest.mark.parametrize(
    "event_id", ["", "x", "abcdef01", "abcdef01--1", "abcdef01-99999999999999999999-1", "abcdef01-1-1; x", None]
)
def test_what_is_no_id_of_an_event_is_refused(db: Sql, user: UUID, event_id: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as raised:
        asked(db, user, event_id)
    assert raised.value.diag.message_hint


async def test_restored_positions_of_another_history_are_not_saved(start: Start, db: Sql, user: UUID) -> None:
    async with start(receipts="0.1s") as server, server.live(user, client_id="phone") as phone:
        event_id = await delivered(phone, db, user)
        await until_receipts(db, user, event_id, {"phone": True})
        db.execute("truncate momentum_notifications")  # ends the history
        assert (await phone.closed())[0] == 1012
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    async with server.live(user, client_id="phone") as again:
                        await until_receipts(db, user, await delivered(again, db, user), {"phone": True})
                    break
                except (OSError, websockets.InvalidStatus):
                    await asyncio.sleep(0.1)


async def test_the_demos_page_shows_notifications_without_an_event(
    start: Start, database: str, db: Sql, user: UUID
) -> None:
    add_notification(db, user, title="not in the log")  # there is no slot yet
    async with start(receipts="0.1s") as server, server.live(user, client_id="phone") as phone:
        event_id = await delivered(phone, db, user)
        await until_receipts(db, user, event_id, {"phone": True})
    html = await asyncio.to_thread(receipts_page, database, [user])
    assert "not in the log" in html
    assert re.findall(r"<td>(\d of \d)</td>", html) == ["1 of 1", "0 of 0"]

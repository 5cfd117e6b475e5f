"""Each endpoint of the contract, section 3."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from momentum_sync.domain.reads import MomentumReads
from tests.fixtures.postgres import Sql, add_intervention, add_notification, add_score, new_user
from tests.fixtures.server import ANON_KEY, PATH, SECRET, SERVICE_KEY, Common, Server, Start, sign


@pytest.fixture
def database(shared_database: str) -> str:
    return shared_database


@pytest.fixture
def server(common: Common) -> Server:
    return common.server


ENDPOINTS = ["/sync/momentum", "/sync/interventions", "/sync/notifications"]


def error(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["message"].endswith(".")
    return response.status_code, body["error"]["code"]


@pytest.mark.parametrize("prefix", ["", PATH])
async def test_momentum(server: Server, db: Sql, user: UUID, prefix: str) -> None:
    add_score(db, user, "Rising", 71.5)
    async with server.http(sign(user)) as http:
        body = (await http.post(f"{prefix}/sync/momentum", json={"user_id": str(user)})).json()
    assert set(body) == {"success", "data", "timestamp"}
    assert body["success"] is True
    assert (body["data"]["momentum_state"], body["data"]["final_score"]) == ("Rising", 71.5)


@pytest.mark.parametrize("prefix", ["", PATH])
async def test_interventions(server: Server, db: Sql, user: UUID, prefix: str) -> None:
    intervention = add_intervention(db, user)
    async with server.http(sign(user)) as http:
        body = (await http.post(f"{prefix}/sync/interventions", json={"user_id": str(user)})).json()
    assert [row["id"] for row in body["data"]["interventions"]] == [str(intervention)]


@pytest.mark.parametrize("prefix", ["", PATH])
async def test_notifications_newest_first(server: Server, db: Sql, user: UUID, prefix: str) -> None:
    made = [add_notification(db, user) for _ in range(60)]
    for age, notification in enumerate(reversed(made)):
        db.execute(
            "update momentum_notifications set created_at = now() - %s * interval '1 minute' where id = %s",
            (age, notification),
        )
    async with server.http(sign(user)) as http:

        async def ask(**more: object) -> list[str]:
            answer = await http.post(f"{prefix}/sync/notifications", json={"user_id": str(user), **more})
            return [row["id"] for row in answer.json()["data"]]

        newest = [str(notification) for notification in reversed(made)]
        assert await ask() == newest[:50]
        assert await ask(limit=1) == newest[:1]
        assert await ask(limit=200) == newest


@pytest.mark.parametrize("prefix", ["", PATH])
async def test_history_day_by_day(server: Server, db: Sql, user: UUID, prefix: str) -> None:
    for ago, score in ((0, 50), (2, 70), (40, 90)):
        add_score(db, user, "Steady", score, day=f"current_date - {ago}")
    async with server.http(sign(user)) as http:

        async def ask(whose: UUID = user, **more: object) -> Any:
            return (await http.post(f"{prefix}/sync/history", json={"user_id": str(whose), **more})).json()

        days = (await ask())["data"]
        assert [day["final_score"] for day in days] == [70, 50]
        assert set(days[0]) == {"score_date", "momentum_state", "final_score", "events_count"}
        assert [day["final_score"] for day in (await ask(days=1))["data"]] == [50]
        assert [day["final_score"] for day in (await ask(days=366))["data"]] == [90, 70, 50]
        assert (await ask(days=0))["error"]["code"] == "invalid_field"
        assert (await ask(new_user(db)))["error"]["code"] == "forbidden"


async def test_an_overview_is_of_whom_the_caller_may_see(server: Server, db: Sql, user: UUID, other: UUID) -> None:
    coach = new_user(db)
    add_score(db, user, "NeedsCare", 20)
    add_score(db, user, "Rising", 80, day="current_date - 1")
    add_score(db, other, "Rising", 90)
    mine, others = add_intervention(db, user, coach=coach), add_intervention(db, other)
    done = add_intervention(db, user, status="completed", coach=coach)

    async def ask(token: str) -> Any:
        async with server.http(token) as http:
            return (await http.post("/sync/overview", json={})).json()["data"]

    seen = await ask(sign(coach, app_role="coach"))
    assert [(one["user_id"], one["final_score"]) for one in seen["people"]] == [(str(user), 20)], "who is assigned"
    assert [(day["Rising"], day["Steady"], day["NeedsCare"]) for day in seen["days"]] == [(1, 0, 0), (0, 0, 1)]
    assert {one["id"] for one in seen["interventions"]} >= {str(mine), str(others)}, "coaches see all that are open"
    assert str(done) not in str(seen)
    everybody = await ask(sign(coach, app_role="admin"))
    ours = [one["user_id"] for one in everybody["people"] if one["user_id"] in (str(user), str(other))]
    assert ours == [str(user), str(other)], "who needs care comes first"
    own = await ask(sign(other))
    assert [one["user_id"] for one in own["people"]] == [str(other)]
    assert [one["id"] for one in own["interventions"]] == [str(others)]
    nobody = await ask(sign(new_user(db)))
    assert nobody == {"people": [], "days": [], "interventions": []}


@pytest.mark.parametrize("prefix", ["", PATH])
async def test_health(server: Server, user: UUID, prefix: str) -> None:
    async with server.live(user), server.http() as http:
        response = await http.get(f"{prefix}/sync/health")
    body = response.json()
    assert response.status_code == 200
    assert (body["status"], body["connected_clients"], body["active_subscriptions"]) == ("healthy", 1, 4)
    assert body["uptime"] > 0
    assert body["memory_usage"]["peak_rss"] > 0
    assert body["timestamp"].endswith("Z")
    assert body["capture"]["state"] == "live"
    assert body["capture"]["lag_ms"] < 5000


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_without_a_token(server: Server, user: UUID, path: str) -> None:
    async with server.http() as http:
        response = await http.post(path, json={"user_id": str(user)})
    assert error(response) == (401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_another_users_data_is_refused_alike_for_existing_and_unknown_users(
    server: Server, db: Sql, user: UUID, other: UUID, path: str
) -> None:
    add_score(db, other)
    add_intervention(db, other)
    add_notification(db, other)
    async with server.http(sign(user)) as http:
        answers = [await http.post(path, json={"user_id": str(target)}) for target in (other, uuid4())]
    assert answers[0].content == answers[1].content
    assert error(answers[0]) == (403, "forbidden")


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_admin_and_service_may_ask_for_anybody(server: Server, db: Sql, user: UUID, path: str) -> None:
    async with server.http(sign(new_user(db), app_role="admin")) as http:
        assert (await http.post(path, json={"user_id": str(user)})).status_code == 200
    async with server.http(apikey=SERVICE_KEY) as http:
        assert (await http.post(path, json={"user_id": str(user)})).status_code == 200
    async with server.http(SERVICE_KEY) as http:
        assert (await http.post(path, json={"user_id": str(user)})).status_code == 200


async def test_a_coach_reads_what_the_policies_let_a_coach_read(
    server: Server, db: Sql, user: UUID, other: UUID
) -> None:
    coach = new_user(db)
    add_score(db, user)
    add_score(db, other)
    add_intervention(db, user, coach=coach)
    async with server.http(sign(coach, app_role="coach")) as http:
        assert (await http.post("/sync/momentum", json={"user_id": str(user)})).status_code == 200
        assert error(await http.post("/sync/momentum", json={"user_id": str(other)})) == (403, "forbidden")
        assert (await http.post("/sync/interventions", json={"user_id": str(user)})).status_code == 200
        assert error(await http.post("/sync/notifications", json={"user_id": str(user)})) == (403, "forbidden")


async def test_api_keys(server: Server, user: UUID) -> None:
    body = {"user_id": str(user)}
    async with server.http() as http:

        async def ask(**headers: str) -> httpx.Response:
            return await http.post("/sync/momentum", json=body, headers=headers)

        assert error(await ask(apikey=ANON_KEY)) == (401, "unauthenticated")
        assert error(await ask(apikey=ANON_KEY, Authorization=f"Bearer {ANON_KEY}")) == (401, "unauthenticated")
        assert error(await ask(apikey="wrong")) == (401, "invalid_api_key")
        assert (await ask(apikey="of another project", Authorization=f"Bearer {sign(user)}")).status_code == 200
        assert (await ask(apikey=ANON_KEY, Authorization=f"Bearer {sign(user)}")).status_code == 200
        assert (await ask(apikey=SERVICE_KEY, Authorization=f"Bearer {SERVICE_KEY}")).status_code == 200


@pytest.mark.parametrize(
    "token",
    [
        {"exp": 1}, {"exp": None}, {"aud": "x"}, {"role": "postgres"}, {"sub": "' or true --"}, {"sub": None},
        {"nbf": 2**34},
    ],
)  # fmt: skip
async def test_each_wrong_token_is_a_401(server: Server, user: UUID, token: dict[str, Any]) -> None:
    async with server.http(sign(user, **token)) as http:
        response = await http.post("/sync/momentum", json={"user_id": str(user)})
    assert error(response)[0] == 401


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/sync/momentum", b"{", 400, "invalid_json"),
        ("/sync/momentum", b"\xff", 400, "invalid_json"),
        ("/sync/momentum", b"", 422, "invalid_field"),
        ("/sync/momentum", b"[]", 422, "invalid_field"),
        ("/sync/momentum", b"{}", 422, "invalid_field"),
        ("/sync/momentum", b'{"user_id": 7}', 422, "invalid_field"),
        ("/sync/momentum", b'{"user_id": "\' or true --"}', 422, "invalid_field"),
        ("/sync/momentum", b'{"user_id": null}', 422, "invalid_field"),
        ("/sync/notifications", b'{"user_id": "USER", "limit": 0}', 422, "invalid_field"),
        ("/sync/notifications", b'{"user_id": "USER", "limit": 201}', 422, "invalid_field"),
        ("/sync/notifications", b'{"user_id": "USER", "limit": "5"}', 422, "invalid_field"),
        ("/sync/notifications", b'{"user_id": "USER", "limt": 5}', 422, "invalid_field"),
        ("/sync/momentum", b" " * 100_000, 413, "too_large"),
        ("/sync/nothing", b"{}", 404, "not_found"),
        ("/sync/health", b"{}", 405, "method_not_allowed"),
    ],
)
async def test_each_mistake_gets_the_contracts_error(
    server: Server, user: UUID, path: str, body: bytes, status: int, code: str
) -> None:
    async with server.http(sign(user)) as http:
        content = body.replace(b"USER", str(user).encode())
        response = await http.post(path, content=content, headers={"content-type": "application/json"})
    assert error(response) == (status, code)


async def test_a_body_without_a_length_is_refused(server: Server, user: UUID) -> None:
    async def parts() -> Any:
        yield b'{"user_id": "x"}'

    async with server.http(sign(user)) as http:
        assert error(await http.post("/sync/momentum", content=parts())) == (413, "too_large")


async def test_the_socket_addresses_say_what_they_are(server: Server) -> None:
    async with server.http() as http:
        for path in (PATH, "/ws"):
            assert error(await http.get(path)) == (400, "upgrade_required")


async def test_openapi_describes_every_endpoint_and_its_errors(server: Server) -> None:
    async with server.http() as http:
        described = (await http.get("/openapi.json")).json()
        assert (await http.get(f"{PATH}/openapi.json")).json() == described
    assert set(described["paths"]) == {
        *ENDPOINTS,
        "/sync/history",
        "/sync/overview",
        "/sync/names",
        "/sync/events",
        "/sync/receipts",
        "/sync/health",
        "/sync/health/live",
        "/sync/health/ready",
        "/metrics",
    }
    assert "409" in described["paths"]["/sync/events"]["post"]["responses"]
    for path in (*ENDPOINTS, "/sync/history", "/sync/overview", "/sync/names", "/sync/events"):
        assert {"200", "401", "403", "422", "503"} <= set(described["paths"][path]["post"]["responses"])


async def test_pages_of_listed_origins_may_ask(start: Start, user: UUID) -> None:
    """HTTP allows the origins that sockets allow, in every spelling of the setting."""
    for listed in ("https://app.example", "https://App.example:443/"):
        async with start(allowed_origins=listed) as server, server.http(sign(user)) as http:
            for origin, allowed in (("https://app.example", "https://app.example"), ("https://evil.example", None)):
                response = await http.post("/sync/momentum", json={"user_id": str(user)}, headers={"Origin": origin})
                assert response.headers.get("access-control-allow-origin") == allowed


async def test_a_page_can_read_the_answer_to_a_request_that_failed_here(
    start: Start, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(MomentumReads, "momentum", fails)
    async with start(allowed_origins="https://app.example") as server, server.http(sign(user)) as http:
        headers = {"Origin": "https://app.example"}
        response = await http.post("/sync/momentum", json={"user_id": str(user)}, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert response.headers["access-control-allow-origin"] == "https://app.example"


async def test_no_answer_tells_what_it_should_not(server: Server, user: UUID) -> None:
    async with server.http(sign(user)) as http:
        for response in (
            await http.post("/sync/momentum", json={"user_id": str(uuid4())}),
            await http.get("/sync/health"),
            await http.get("/nothing"),
        ):
            text = response.text + str(response.headers)
            assert "Traceback" not in text
            assert SECRET not in text
            assert "uvicorn" not in text


async def test_headers_that_are_there_twice_are_a_bad_request(server: Server, user: UUID) -> None:
    token = f"Bearer {sign(user)}"
    async with server.http() as http:
        for name, value in (("Authorization", token), ("apikey", SERVICE_KEY)):
            headers = [("Authorization", token), (name, value)] if name == "Authorization" else [(name, value)] * 2
            answer = await http.post("/sync/momentum", json={"user_id": str(user)}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "repeated_header")
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
        for name, value in (("Origin", server.url), ("Authorization", token)):
            given = [*upgrade.items(), ("Authorization", token), *[(name, value)] * (1 + (name == "Origin"))]
            answer = await http.get("/ws", headers=given)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "repeated_header")


@pytest.mark.parametrize("host", ["app.example", "APP.example:443", "app.example, inner:8787"])
async def test_a_page_behind_a_proxy_that_does_not_pass_host_may_connect(server: Server, user: UUID, host: str) -> None:
    headers = {"Origin": "https://app.example", "X-Forwarded-Host": host}
    async with server.connect(sign(user), headers=headers) as client:
        assert (await client.next())["type"] == "subscription_confirmed"


async def test_json_without_a_content_type_is_json_and_another_type_is_told(server: Server, user: UUID) -> None:
    body = json.dumps({"user_id": str(user)})
    async with server.http(sign(user)) as http:
        answer = await http.post("/sync/momentum", content=body)
        assert answer.status_code == 200
        answer = await http.post("/sync/momentum", content=body, headers={"Content-Type": "text/plain"})
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == "Send the body as JSON, with `Content-Type: application/json`."


async def test_names_are_the_databases_asked_as_the_caller(server: Server, db: Sql, user: UUID) -> None:
    other = new_user(db)
    db.execute(
        "create table profiles (id uuid primary key, name text); alter table profiles enable row level security;"
        "grant select on profiles to authenticated;"
        "create policy own on profiles for select to authenticated using (id = (select auth.uid()));"
        "create or replace function momentum_display_name(target uuid) returns text language sql stable"
        " set search_path = pg_catalog, pg_temp as 'select p.name from public.profiles p where p.id = target'"
    )
    db.execute("insert into profiles values (%s, 'Ada'), (%s, 'Bo')", (user, other))
    async with server.http(sign(user)) as http:
        asked = {"user_ids": [str(user), str(other)]}
        assert (await http.post("/sync/names", json=asked)).json()["data"] == {str(user): "Ada"}
        assert (await http.post("/sync/names", json={"user_ids": [str(user)] * 501})).status_code == 422

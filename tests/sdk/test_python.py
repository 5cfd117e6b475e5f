"""The Python SDK's own features: stores, errors of the program, closing, and that nothing is printed."""

from __future__ import annotations

import asyncio
import json
import math
import re
import stat
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from momentum_sync import (
    Client,
    ClientError,
    Event,
    FetchFailed,
    FileStore,
    MessageTooLarge,
    Offline,
    Resync,
    StoreFailed,
    TokenUnavailable,
    errors,
)
from momentum_sync.sdk import connection
from momentum_sync.sdk.replica import Replica
from tests.fixtures.postgres import Sql, add_score
from tests.fixtures.server import Server, sign
from tests.sdk.drivers import JAVASCRIPT

TIMEOUT_S = 15


async def test_the_ten_lines_of_the_readme(
    server: Server, db: Sql, user: UUID, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    add_score(db, user, score=50)
    capfd.readouterr()
    store = FileStore(tmp_path / "deep" / "momentum.json")
    async with asyncio.timeout(TIMEOUT_S), Client(server.url, token=lambda: sign(user), store=store) as client:
        events = client.events()
        assert (await client.wait_until_live()).momentum is not None
        assert client.user_id == str(user)
        db.execute("update daily_engagement_scores set final_score = 51")
        async for event in events:
            if isinstance(event, Event):
                assert (event.type, event["final_score"]) == ("momentum_score_updated", 51)
                client.ack(event)
                break
    assert stat.S_IMODE((tmp_path / "deep" / "momentum.json").stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == [".momentum.json.lock", "momentum.json"]
    told = capfd.readouterr()
    assert "momentum_sync.sdk" not in told.out + told.err


class Broken:
    """A store on a disk that is full."""

    def load(self) -> bytes | None:
        return b"{"

    def save(self, document: bytes) -> None:
        raise OSError("No space left on device")


async def test_a_failing_store_is_reported_and_the_client_works_without_it(server: Server, user: UUID) -> None:
    told: list[ClientError] = []
    async with (
        asyncio.timeout(TIMEOUT_S),
        Client(server.url, sign(user), store=Broken(), on_error=told.append) as client,
    ):
        await client.wait_until_live()
    assert told
    assert {type(error) for error in told} == {StoreFailed}
    assert "No space left on device" in str(told[-1])


async def test_a_program_whose_callbacks_raise_is_served_all_the_same(server: Server, db: Sql, user: UUID) -> None:
    asked = 0

    def token() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise RuntimeError("the session is being renewed")
        return sign(user)

    told: list[ClientError] = []

    def on_error(error: ClientError) -> None:
        told.append(error)
        raise ValueError("a bug of the program's")

    async with asyncio.timeout(TIMEOUT_S), Client(server.url, token, on_error=on_error) as client:
        await client.wait_until_live()
        assert [type(error) for error in told] == [TokenUnavailable]
        add_score(db, user)
        async for state in client.changes():
            if state.momentum is not None and state.momentum.has_data:
                break


async def test_closing_ends_all_that_waits(server: Server, user: UUID) -> None:
    client = Client(server.url, sign(user))
    events = client.events()
    await client.start()

    async def follow() -> list[object]:
        return [one async for one in events]

    async with asyncio.timeout(TIMEOUT_S):
        following = asyncio.ensure_future(follow())
        await client.wait_until_live()
        await client.close()
        assert len(await following) == 1, "the first snapshot, and then the end"
        with pytest.raises(Offline):
            await client.wait_until_live()
        with pytest.raises(Offline):
            await client.request_momentum_update()
        assert client.state.status == "offline"


async def test_an_address_that_is_none_is_said_at_once() -> None:
    for url in ("example.com", "ftp://example.com", ""):
        with pytest.raises(ValueError, match="is not the root of a server"):
            Client(url, "t")


async def cancelled_provider() -> str:
    raise asyncio.CancelledError


def blocking_provider_for(user: UUID, entered: threading.Event, released: threading.Event) -> Callable[[], str]:
    def provider() -> str:
        entered.set()
        assert released.wait(TIMEOUT_S)
        return sign(user)

    return provider


async def test_a_provider_that_is_cancelled_is_asked_again(server: Server, user: UUID) -> None:
    told: list[ClientError] = []
    asked = 0

    async def provider() -> str:
        nonlocal asked
        asked += 1
        return await cancelled_provider() if asked == 1 else sign(user)

    async with asyncio.timeout(TIMEOUT_S), Client(server.url, provider, on_error=told.append) as client:
        await client.wait_until_live()
    assert [type(error) for error in told] == [TokenUnavailable]


async def test_a_plain_provider_may_block(server: Server, user: UUID) -> None:
    entered, released = threading.Event(), threading.Event()
    async with (
        asyncio.timeout(TIMEOUT_S),
        Client(server.url, blocking_provider_for(user, entered, released)) as client,
    ):
        while not entered.is_set():  # the event loop continues meanwhile
            await asyncio.sleep(0)
        assert client.state.status == "offline"
        released.set()
        await client.wait_until_live()


async def test_a_listener_that_raises_what_ends_tasks_ends_nothing(server: Server, db: Sql, user: UUID) -> None:
    def raises(_: object) -> None:
        raise asyncio.CancelledError

    tokens = iter(["no token at all", sign(user)])
    async with asyncio.timeout(TIMEOUT_S), Client(server.url, lambda: next(tokens), on_error=raises) as client:
        client.cache.listen(raises)
        await client.wait_until_live()
        add_score(db, user)
        async for state in client.changes():
            if state.momentum is not None and state.momentum.has_data:
                break


async def test_a_fetch_that_is_cancelled_is_an_error_of_its_own(server: Server, user: UUID) -> None:
    client = Client(server.url, sign(user))
    with pytest.raises(FetchFailed):
        await client.cache.get("key", cancelled_provider)
    with pytest.raises(FetchFailed):
        await client.cache.get("key", asyncio.get_running_loop().create_future, within=0.01)


@pytest.mark.parametrize(
    "value", [float("nan"), (1, 2), {1: "a"}, {"at": datetime(2026, 1, 1, tzinfo=UTC)}, {1, 2}, b"x"]
)
async def test_what_does_not_come_back_from_json_is_not_kept(server: Server, user: UUID, value: object) -> None:
    client = Client(server.url, sign(user))

    async def fetch() -> object:
        return value

    with pytest.raises(TypeError, match="does not survive a JSON round trip"):
        await client.cache.get("key", fetch, persistent=True)
    found = await client.cache.get("key", fetch)
    assert found == value or (isinstance(value, float) and math.isnan(found))


async def test_a_message_that_is_too_large_is_told_and_the_stream_goes_on(
    server: Server, db: Sql, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MOST_BYTES", 20_000)
    told: list[ClientError] = []
    async with asyncio.timeout(60), Client(server.url, sign(user), on_error=told.append) as client:
        events = client.events()
        await client.wait_until_live()
        large = {"event_type": "large", "user_id": str(user), "text": "x" * 100_000}
        db.execute("select momentum.publish(array[%s], %s)", (f"notifications:{user}", json.dumps(large)))
        reasons = [one.reason async for one in first(events, 2) if isinstance(one, Resync)]
        assert reasons == [None, "too_large"]
        assert MessageTooLarge in {type(error) for error in told}
        add_score(db, user, score=12)
        async for one in events:
            if isinstance(one, Event):
                assert one["final_score"] == 12
                break


async def first(events: AsyncIterator[Event | Resync], count: int) -> AsyncIterator[Event | Resync]:
    for _ in range(count):
        yield await anext(events)


async def test_two_programs_on_one_file(server: Server, user: UUID, tmp_path: Path) -> None:
    told: list[ClientError] = []
    path = tmp_path / "momentum.json"
    async with asyncio.timeout(TIMEOUT_S), Client(server.url, sign(user), store=FileStore(path)) as first_client:
        await first_client.wait_until_live()
        async with Client(server.url, sign(user), store=FileStore(path), on_error=told.append) as second:
            await second.wait_until_live()
            assert "another program uses" in str(told[0])
            assert {type(error) for error in told} == {StoreFailed}
        await first_client.mark_notification_read(str(user))
    told.clear()
    async with (
        asyncio.timeout(TIMEOUT_S),
        Client(server.url, sign(user), store=FileStore(path), on_error=told.append) as third,
    ):
        await third.wait_until_live()
        await third.flush()
    assert StoreFailed not in {type(error) for error in told}


def test_a_file_that_was_left_over_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "momentum.json"
    for name in ("momentum.json.new", ".momentum.json.new"):
        (tmp_path / name).touch(mode=0o666)
    store = FileStore(path)
    store.save(b"{}")
    store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_not_allowed_any_longer_keeps_what_the_user_has_done() -> None:
    known = Replica(None, None, lambda: 0.0, lambda error: None)
    known.is_for("a")
    known.outbox.add("b")
    known.forget()
    assert known.outbox.waiting == ("b",)
    known.is_for("c")
    assert not known.outbox.waiting


@pytest.mark.parametrize(("url", "warned"), [
    ("http://10.0.0.7:8787", True), ("ws://example.com", True), ("https://example.com", False),
    ("http://127.0.0.1:1", False), ("ws://localhost:1", False), ("http://[::1]:1", False),
])  # fmt: skip
def test_what_is_not_encrypted_is_warned_of(url: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    Client(url, "t")
    assert ("is not encrypted" in caplog.text) is warned


def test_the_codes_that_end_a_client_are_the_servers() -> None:
    source = "".join(
        path.read_text(encoding="utf-8") for path in (Path(errors.__file__).parent / "gateway").glob("*.py")
    )
    used = set(re.findall(r'(?:BadRequest|Unprocessable)\(\s*"(\w+)"', source))
    about_messages = {"no_user", "bad_binding", "bad_filter", "bad_version"}  # the last three: of another protocol
    assert used - about_messages <= connection.OWN_CODES
    javascript = (JAVASCRIPT / "src" / "connection.js").read_text(encoding="utf-8")
    listed = re.search(r"OWN_CODES = new Set\(\[(.*?)\]\)", javascript, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r'"(\w+)"', listed[1])) == connection.OWN_CODES


async def test_one_string_in_place_of_a_list_of_channels_is_refused() -> None:
    client = Client("http://127.0.0.1:1", "token")
    for call in (client.subscribe, client.unsubscribe):
        with pytest.raises(TypeError, match="list of names"):
            await call("interventions:coaches")

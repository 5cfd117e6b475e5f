"""What is the Python SDK's own: stores, errors of the program, closing, and that nothing is printed."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from uuid import UUID

import pytest

from momentum_sync import Client, ClientError, Event, FileStore, Offline, StoreFailed, TokenUnavailable
from tests.fixtures.postgres import Sql, add_score
from tests.fixtures.server import Server, sign

TIMEOUT_S = 15


async def test_the_ten_lines_of_the_readme(
    server: Server, db: Sql, user: UUID, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    add_score(db, user, score=50)
    capfd.readouterr()
    store = FileStore(tmp_path / "deep" / "momentum.json")
    async with asyncio.timeout(TIMEOUT_S), Client(server.url, token=lambda: sign(user), store=store) as client:
        events = client.events()
        assert (await client.until_live()).momentum is not None
        assert client.user_id == str(user)
        db.execute("update daily_engagement_scores set final_score = 51")
        async for event in events:
            if isinstance(event, Event):
                assert (event.type, event["final_score"]) == ("momentum_score_updated", 51)
                client.had(event)
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


async def test_a_store_that_fails_is_told_of_and_gone_without(server: Server, user: UUID) -> None:
    told: list[ClientError] = []
    async with (
        asyncio.timeout(TIMEOUT_S),
        Client(server.url, sign(user), store=Broken(), on_error=told.append) as client,
    ):
        await client.until_live()
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
        await client.until_live()
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
        await client.until_live()
        await client.close()
        assert len(await following) == 1, "the first snapshot, and then the end"
        with pytest.raises(Offline):
            await client.until_live()
        with pytest.raises(Offline):
            await client.request_momentum_update()
        assert client.state.status == "offline"


async def test_an_address_that_is_none_is_said_at_once() -> None:
    for url in ("example.com", "ftp://example.com", ""):
        with pytest.raises(ValueError, match="is not the root of a server"):
            Client(url, "t")

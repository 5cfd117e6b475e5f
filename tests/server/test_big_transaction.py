"""One UPDATE of many rows: memory stays bounded, no client that reads is disconnected, and later events arrive."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from momentum_sync.eventlog.window import Window
from tests.fixtures.postgres import Sql, add_notification, new_user
from tests.fixtures.server import Bounds, Start, sign

ROWS = 20_000


async def test_many_rows_in_one_update(
    start: Start, db: Sql, user: UUID, other: UUID, monkeypatch: pytest.MonkeyPatch, bounds: Bounds
) -> None:
    admin = new_user(db)
    limit, pending = 1024 * 1024, 512 * 1024
    bounds("capture", pending_bytes=pending)
    most = 0
    real = Window.add

    def watched(window: Window, *arguments: object) -> None:
        nonlocal most
        real(window, *arguments)  # type: ignore[arg-type]
        most = max(most, window.size)

    monkeypatch.setattr(Window, "add", watched)
    db.execute(
        "insert into auth.users (id) select md5(n::text)::uuid from generate_series(1, %s) n", (ROWS,)
    )  # fmt: skip
    db.execute(
        "insert into daily_engagement_scores (user_id, score_date, momentum_state, final_score)"
        " select md5(n::text)::uuid, current_date, 'Steady', 50 from generate_series(1, %s) n",
        (ROWS,),
    )
    async with (
        start(window_bytes=limit, send_buffer_bytes=64 * 1024) as server,
        server.connect(sign(admin, app_role="admin"), channels="momentum_updates:all") as all_of_it,
        server.live(user) as one,
    ):
        last = (await all_of_it.until("initial_state"))["last_event_id"]
        most = 0
        update = asyncio.ensure_future(
            asyncio.to_thread(db.execute, "update daily_engagement_scores set momentum_state = 'Rising'")
        )
        users = set()
        for _ in range(ROWS):
            event = (await all_of_it.until("realtime_event"))["event"]
            assert event["previous_id"] == last
            last = event["id"]
            users.add(event["user_id"])
        assert len(users) == ROWS
        await update
        add_notification(db, user, title="after")
        assert (await one.until("realtime_event"))["event"]["title"] == "after"
        assert (await all_of_it.ask({"type": "ping"}))["type"] == "pong"
    # Events that are not logged yet stay in the window, beyond its limit; reading pauses until they are logged.
    assert most <= limit + pending + 1024 * 1024

"""A server on the seed's app: its clients get their events, and its policies decide about each caller."""

from __future__ import annotations

from pathlib import Path

import psycopg

from momentum_sync.database.files import text
from momentum_sync.database.migrate import migrate
from tests.fixtures.postgres import SERVER_ROLE, add_intervention, add_notification, add_score, new_user
from tests.fixtures.server import Start, sign

FIXTURES = Path(__file__).parents[1] / "fixtures"


async def test_an_adopted_app_is_served(start: Start, empty_database: str) -> None:
    told: list[str] = []
    with psycopg.connect(empty_database, autocommit=True) as db:
        for script in ("app.sql", "seed.sql"):
            if script == "app.sql":
                db.execute(text("database/bootstrap.sql").encode())
            db.execute((FIXTURES / script).read_text(encoding="utf-8").encode())
        user, helper = new_user(db), new_user(db)
        migrate(empty_database, tell=told.append, server_role=SERVER_ROLE)
        assert [line for line in told if line.startswith("service_role, and therefore momentum_server")] != []
        async with (
            start(conninfo=empty_database) as server,
            server.live(user) as client,
            server.connect(sign(helper), channels=f"interventions:{user}") as other,
        ):
            add_score(db, user)
            add_notification(db, user)
            # A helper without the role of a coach has no right to this user's interventions until one is assigned.
            assert (await other.until("subscription_confirmed"))["refused"] == [f"interventions:{user}"]
            add_intervention(db, user, coach=helper)
            await other.send({"type": "subscribe", "channels": [f"interventions:{user}"]})
            assert f"interventions:{user}" in (await other.until("subscription_confirmed"))["channels"]
            db.execute("update coach_interventions set status = 'in_progress'")
            event = (await other.until("realtime_event"))["event"]
            assert (event["event_type"], event["status"]) == ("intervention_updated", "in_progress")
            db.execute("update coach_interventions set assigned_coach_id = null, status = 'completed'")
            gone = (await other.until("realtime_event"))["event"]
            assert (gone["event_type"], gone["status"]) == ("intervention_deleted", "in_progress")
            kinds = [(await client.until("realtime_event"))["event"]["event_type"] for _ in range(5)]
            assert kinds == [
                "momentum_score_created", "push_notification", "intervention_created", "intervention_updated",
                "intervention_updated",
            ]  # fmt: skip

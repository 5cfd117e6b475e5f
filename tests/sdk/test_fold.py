"""A snapshot folded with the events after it equals the tables, for random histories of every operation.

Both SDKs fold the same events; the results are compared with the database.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any
from uuid import UUID

import msgspec
import pytest

from momentum_sync.database import queries
from momentum_sync.domain.messages import InitialState, Momentum
from momentum_sync.sdk.state import UserState
from tests.fixtures.postgres import Sql, new_user
from tests.sdk.drivers import JAVASCRIPT, NODE, missing

HISTORIES = 200
_SNAPSHOT = queries.load("momentum_sync.domain")["snapshot"]
_KINDS = ("celebration", "momentum_drop", "consistency_reminder", "custom", "coach_intervention")
_FOLD = """
import { readFileSync } from "node:fs";
import { UserState } from "./src/state.js";
const histories = JSON.parse(readFileSync(0, "utf8"));
const states = histories.map(({ user, snapshot, events, momentum }) => {
  const state = new UserState(user);
  state.begin(snapshot);
  for (const event of events) state.fold(event);
  for (let turn = 0; turn < 2 && state.unsure; turn += 1) state.readAgain(momentum);
  return state.saved();
});
console.log(JSON.stringify(states));
"""


class History:
    """Random changes to rows of one user and, less often, of another user."""

    def __init__(self, db: Sql, chance: random.Random) -> None:
        self._db = db
        self._chance = chance
        self.user = new_user(db)
        self._other = new_user(db)

    def _whose(self) -> UUID:
        return self._user_mostly(0.85)

    def _user_mostly(self, share: float) -> UUID:
        return self.user if self._chance.random() < share else self._other

    def step(self) -> None:
        """Apply one operation to one of the tables."""
        self._chance.choice([self._score, self._notification, self._intervention])()

    def _run(self, *choices: tuple[str, tuple[object, ...]]) -> None:
        statement, parameters = self._chance.choice(choices)
        self._db.execute(statement.encode(), parameters)

    def _score(self) -> None:
        day, score = self._chance.randrange(4), round(self._chance.uniform(0, 100), 2)
        state = self._chance.choice(["Rising", "Steady", "NeedsCare"])
        mine = "user_id = any(%s) and score_date = current_date - %s::int"
        both = [self.user, self._other]
        self._run(
            (
                "insert into daily_engagement_scores (user_id, score_date, momentum_state, final_score)"
                " values (%s, current_date - %s::int, %s, %s) on conflict (user_id, score_date) do update"
                " set final_score = excluded.final_score, momentum_state = excluded.momentum_state",
                (self._whose(), day, state, score),
            ),
            (f"update daily_engagement_scores set final_score = %s where {mine}", (score, both, day)),
            (f"delete from daily_engagement_scores where {mine}", (both, day)),
            (
                "update daily_engagement_scores s set score_date = current_date - %s::int where user_id = %s"
                " and score_date = current_date - %s::int and not exists (select from daily_engagement_scores o"
                " where o.user_id = s.user_id and o.score_date = current_date - %s::int)",
                (10 + day, self.user, day, 10 + day),
            ),
            (
                "update daily_engagement_scores s set user_id = %s where user_id = %s"
                " and score_date = current_date - %s::int"
                " and not exists (select from daily_engagement_scores o where o.user_id = %s"
                " and o.score_date = s.score_date)",
                (self._other, self.user, day, self._other),
            ),
        )

    def _one(self, table: str) -> str:
        return f"id = (select id from {table} where user_id = any(%s) order by md5(id::text || %s) limit 1)"

    def _notification(self) -> None:
        one, salt = self._one("momentum_notifications"), str(self._chance.random())
        both = [self.user, self._other]
        status = self._chance.choice(["pending", "sent", "delivered", "opened", "clicked", "failed"])
        change = "update momentum_notifications set"
        self._run(
            *[
                (
                    "insert into momentum_notifications (user_id, notification_type, trigger_date, title, message,"
                    " status, created_at)"
                    " values (%s, %s, current_date, %s, 'm', %s, now() - %s::int * interval '1 hour')",
                    (self._whose(), self._chance.choice(_KINDS), salt, status, self._chance.randrange(50)),
                )
            ]
            * 3,
            (f"{change} status = %s where {one}", (status, both, salt)),
            (f"{change} notification_type = %s where {one}", (self._chance.choice(_KINDS), both, salt)),
            (f"{change} user_id = %s where {one}", (self._user_mostly(0.5), both, salt)),
            (f"{change} title = title || '!', action_data = '{{\"n\": [1, null]}}' where {one}", (both, salt)),
            (f"delete from momentum_notifications where {one}", (both, salt)),
        )

    def _intervention(self) -> None:
        one, salt = self._one("coach_interventions"), str(self._chance.random())
        both = [self.user, self._other]
        status = self._chance.choice(["scheduled", "in_progress", "completed", "cancelled", "no_response"])
        day = self._chance.choice([None, *range(5)])
        change = "update coach_interventions set"
        self._run(
            *[
                (
                    "insert into coach_interventions (user_id, intervention_type, trigger_date, trigger_reason, status,"
                    " scheduled_date, created_at) values (%s, 'check_in', current_date, %s, %s, current_date + %s::int,"
                    " now() - %s::int * interval '1 hour')",
                    (self._whose(), salt, status, day, self._chance.randrange(50)),
                )
            ]
            * 3,
            (f"{change} status = %s where {one}", (status, both, salt)),
            (f"{change} user_id = %s where {one}", (self._user_mostly(0.5), both, salt)),
            (f"{change} scheduled_date = current_date + %s::int where {one}", (day, both, salt)),
            (f"delete from coach_interventions where {one}", (both, salt)),
        )

    def snapshot(self) -> dict[str, Any]:
        """Return the snapshot in the form of `initial_state`."""
        row = self._db.execute(_SNAPSHOT, {"user_id": self.user}).fetchone()
        assert row is not None
        momentum, interventions, notifications = (json.loads(text) for text in row[2:5])
        return {"momentum": momentum, "interventions": interventions, "notifications": notifications}


def shown(state: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a state that is compared: everything but times of reads and writes."""
    momentum, interventions = state["momentum"], state["interventions"]
    rows = interventions if isinstance(interventions, list) else interventions["interventions"]
    has = momentum is not None and momentum.get("has_data")
    return {
        "momentum": [momentum[name] for name in ("score_date", "momentum_state", "final_score")] if has else None,
        "interventions": [dict(sorted(row.items())) for row in rows],
        "notifications": [
            {name: value for name, value in sorted(row.items()) if name != "opened_at"}
            for row in state["notifications"]
        ],
    }


@pytest.fixture(scope="module")
def seed() -> int:
    return 20261128


async def test_the_fold_equals_the_tables(db: Sql, seed: int) -> None:
    chance = random.Random(seed)
    db.execute("select pg_create_logical_replication_slot('fold', 'test_decoding')")
    histories: list[dict[str, Any]] = []
    tables: list[dict[str, Any]] = []
    for _ in range(HISTORIES):
        history = History(db, chance)
        for _ in range(chance.randrange(8)):
            history.step()
        db.execute("select count(*) from pg_logical_slot_get_changes('fold', null, null)")
        snapshot = history.snapshot()
        for _ in range(chance.randrange(1, 25)):
            history.step()
        rows = db.execute("select data from pg_logical_slot_get_changes('fold', null, null)").fetchall()
        messages = [json.loads(data.split("content:", 1)[1]) for (data,) in rows if "prefix: momentum_sync," in data]
        ours = [one["event"] for one in messages if any(str(history.user) in channel for channel in one["channels"])]
        after = history.snapshot()
        tables.append(after)
        histories.append(
            {"user": str(history.user), "snapshot": snapshot, "events": ours, "momentum": after["momentum"]}
        )
    assert sum(len(one["events"]) for one in histories) > 5 * HISTORIES
    folded = {"python": [python(one) for one in histories]}
    if missing("node") is None:
        folded["javascript"] = await javascript(histories)
    for name, states in folded.items():
        differing = [
            (number, shown(state), shown(table))
            for number, (state, table) in enumerate(zip(states, tables, strict=True))
            if shown(state) != shown(table)
        ]
        assert differing == [], f"{name}: {len(differing)} of {HISTORIES}"


def python(history: dict[str, Any]) -> dict[str, Any]:
    """Fold with the Python SDK. If the events do not determine the momentum, read it, twice at most."""
    state = UserState(history["user"])
    state.begin(
        msgspec.convert(
            {"last_event_id": "", "timestamp": "", "type": "initial_state", **history["snapshot"]}, InitialState
        )
    )
    for event in history["events"]:
        state.fold(event)
    for _ in range(2):
        if state.unsure:
            state.read_again(msgspec.convert(history["momentum"], Momentum))
    return dict(msgspec.to_builtins(state.saved()))


async def javascript(histories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fold with the JavaScript SDK."""
    assert NODE is not None
    process = await asyncio.create_subprocess_exec(
        NODE, "--input-type=module", "-e", _FOLD, cwd=JAVASCRIPT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate(json.dumps(histories).encode())
    assert process.returncode == 0
    states: list[dict[str, Any]] = json.loads(said)
    return states

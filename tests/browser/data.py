"""The demo's database, as tests of the pages read and change it."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.fixtures.demo import Demo

AMARA = "(select id from auth.users where email = 'amara@demo.invalid')"
TODAYS = "update daily_engagement_scores set final_score = %s, momentum_state = %s where score_date = current_date"


def sql(demo: Demo, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        cursor = connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


def notify(demo: Demo, title: str) -> None:
    sql(
        demo,
        "insert into momentum_notifications"
        " (user_id, notification_type, trigger_date, title, message, action_type, status)"
        f" values ({AMARA}, 'celebration', current_date, %s, 'Keep it up', 'none', 'sent')",
        title,
    )

"""Row level security, and the grants of channels that follow it."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg
import pytest

from tests.fixtures.postgres import As, Sql, add_intervention, add_notification, add_score, new_user

TABLES = ["daily_engagement_scores", "momentum_notifications", "coach_interventions"]


@pytest.fixture(autouse=True)
def rows(db: Sql, user: UUID, other: UUID) -> None:
    for somebody in (user, other):
        add_score(db, somebody)
        add_notification(db, somebody)
        add_intervention(db, somebody)


def seen(connection: Sql, table: str) -> set[UUID]:
    return {user for (user,) in connection.execute(f"select user_id from {table}").fetchall()}


@pytest.mark.parametrize("table", TABLES)
def test_a_user_sees_own_rows(user: UUID, acting: As, table: str) -> None:
    with acting(user) as connection:
        assert seen(connection, table) == {user}


@pytest.mark.parametrize("table", TABLES)
def test_the_service_and_admins_see_all(user: UUID, other: UUID, acting: As, table: str) -> None:
    with acting(None, role="service_role") as connection:
        assert seen(connection, table) == {user, other}
    with acting(uuid4(), app_role="admin") as connection:
        assert seen(connection, table) == {user, other}


@pytest.mark.parametrize("table", TABLES)
def test_anon_sees_nothing(acting: As, table: str) -> None:
    with acting(None, role="anon") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        seen(connection, table)


def test_a_coach_sees_all_interventions_and_assigned_scores(db: Sql, user: UUID, other: UUID, acting: As) -> None:
    coach = new_user(db)
    with acting(coach, app_role="coach") as connection:
        assert seen(connection, "coach_interventions") == {user, other}
        assert seen(connection, "daily_engagement_scores") == set()
        assert seen(connection, "momentum_notifications") == set()
    db.execute("update coach_interventions set assigned_coach_id = %s where user_id = %s", (coach, user))
    with acting(coach, app_role="coach") as connection:
        assert seen(connection, "daily_engagement_scores") == {user}


def test_user_metadata_makes_nobody_a_coach(database: str, user: UUID) -> None:
    claims = f'{{"role": "authenticated", "sub": "{user}", "user_metadata": {{"role": "coach"}}}}'
    with psycopg.connect(database) as connection:
        connection.execute(
            "select set_config('role', 'authenticated', true), set_config('request.jwt.claims', %s, true)", (claims,)
        )
        assert seen(connection, "coach_interventions") == {user}


def test_a_user_marks_own_notifications_only_and_only_their_status(user: UUID, acting: As) -> None:
    with acting(user) as connection:
        assert connection.execute("update momentum_notifications set status = 'opened'").rowcount == 1
    with acting(user) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("update momentum_notifications set title = 'mine'")


@pytest.mark.parametrize("table", ["daily_engagement_scores", "coach_interventions"])
def test_a_user_changes_neither_scores_nor_interventions(db: Sql, user: UUID, acting: As, table: str) -> None:
    for statement in (f"update {table} set updated_at = now()", f"delete from {table}", f"truncate {table}"):
        with acting(user) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)
    with acting(user) as connection:
        assert connection.execute("update coach_interventions set status = 'completed'").rowcount == 0


def test_a_coach_updates_assigned_interventions_and_cannot_hand_them_to_another_user(
    db: Sql, user: UUID, acting: As
) -> None:
    coach = new_user(db)
    db.execute("update coach_interventions set assigned_coach_id = %s where user_id = %s", (coach, user))
    with acting(coach, app_role="coach") as connection:
        assert connection.execute("update coach_interventions set status = 'completed'").rowcount == 1
    with acting(coach, app_role="coach") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("update coach_interventions set user_id = %s", (coach,))


def test_updated_at_is_kept(db: Sql) -> None:
    for table in TABLES:
        db.execute(f"update {table} set updated_at = '2020-01-01'")
        assert db.execute(f"select bool_and(updated_at > '2026-01-01') from {table}").fetchone() == (True,)


def may(connection: Sql, channel: str) -> bool:
    row = connection.execute("select public.momentum_grant(%s)", (channel,)).fetchone()
    assert row is not None
    assert row[0] in ("granted", "checked", None)
    return row[0] is not None


def test_a_user_has_four_channels(user: UUID, other: UUID, acting: As) -> None:
    with acting(user) as connection:
        for kind in ("momentum_updates", "interventions", "notifications"):
            assert may(connection, f"{kind}:{user}")
            assert not may(connection, f"{kind}:{other}")
        assert may(connection, "cache_invalidation")
        assert not may(connection, "momentum_updates:all")
        assert not may(connection, "interventions:coaches")


def test_a_coach_has_the_queue_and_those_whose_rows_may_be_read(db: Sql, user: UUID, other: UUID, acting: As) -> None:
    coach = new_user(db)
    db.execute("update coach_interventions set assigned_coach_id = %s where user_id = %s", (coach, user))
    with acting(coach, app_role="coach") as connection:
        assert may(connection, "interventions:coaches")
        assert may(connection, f"interventions:{user}")
        assert may(connection, f"interventions:{other}")
        assert may(connection, f"momentum_updates:{user}")
        assert not may(connection, f"momentum_updates:{other}")
        assert not may(connection, f"notifications:{user}")
        assert not may(connection, "momentum_updates:all")
        assert not may(connection, f"interventions:{uuid4()}")


@pytest.mark.parametrize(("role", "app_role"), [("authenticated", "admin"), ("service_role", None)])
def test_admin_and_service_have_every_channel(
    user: UUID, other: UUID, acting: As, role: str, app_role: str | None
) -> None:
    with acting(user if app_role else None, role=role, app_role=app_role) as connection:
        for channel in (
            "momentum_updates:all", "interventions:coaches", f"notifications:{other}", f"momentum_updates:{other}"
        ):  # fmt: skip
            assert may(connection, channel)


@pytest.mark.parametrize(
    "channel",
    [
        "", ":", "momentum_updates", "momentum_updates:", "momentum_updates:all ", "MOMENTUM_UPDATES:all", "other:{}",
        "momentum_updates:{}:", "momentum_updates:{}\n", "momentum_updates:' or true --", "interventions:coaches:x",
    ],
)  # fmt: skip
def test_what_is_no_channel_is_granted_to_no_user(user: UUID, acting: As, channel: str) -> None:
    with acting(user) as connection:
        assert not may(connection, channel.format(user))


def test_without_claims_nothing_is_granted(acting: As, user: UUID) -> None:
    with acting(None) as connection:
        assert not may(connection, f"momentum_updates:{user}")
        assert not may(connection, "interventions:coaches")

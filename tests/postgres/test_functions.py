"""The database functions that serve clients, and their checks of the caller."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.fixtures.postgres import As, Sql, add_intervention, add_score

FUNCTIONS = ["get_realtime_momentum_state", "get_realtime_interventions", "subscribe_to_momentum_channels"]


def call(connection: Sql, function: str, user: UUID | None) -> dict[str, Any]:
    row = connection.execute(f"select public.{function}(%s)", (user,)).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def test_momentum_state_is_that_of_the_latest_day(db: Sql, user: UUID, acting: As) -> None:
    add_score(db, user, "NeedsCare", 20, day="'2026-01-01'")
    add_score(db, user, "Rising", 71.5, day="'2026-01-02'")
    db.execute("update daily_engagement_scores set events_count = 4, breakdown = '{\"lessons\": 3}'")
    with acting(user) as connection:
        state = call(connection, "get_realtime_momentum_state", user)
    assert state.pop("timestamp").endswith("Z")
    assert state.pop("last_updated").endswith("Z")
    assert state == {
        "user_id": str(user),
        "has_data": True,
        "score_date": "2026-01-02",
        "momentum_state": "Rising",
        "final_score": 71.5,
        "events_count": 4,
        "breakdown": {"lessons": 3},
    }


def test_momentum_state_without_data(user: UUID, acting: As) -> None:
    with acting(user) as connection:
        state = call(connection, "get_realtime_momentum_state", user)
    assert set(state) == {"user_id", "has_data", "message", "timestamp"}
    assert state["has_data"] is False


def test_interventions_are_the_open_ones_by_scheduled_date(db: Sql, user: UUID, acting: As) -> None:
    late, soon = add_intervention(db, user), add_intervention(db, user, status="in_progress")
    db.execute("update coach_interventions set scheduled_date = current_date + 9 where id = %s", (late,))
    for status in ("completed", "cancelled", "no_response"):
        add_intervention(db, user, status=status)
    with acting(user) as connection:
        answer = call(connection, "get_realtime_interventions", user)
    assert set(answer) == {"user_id", "interventions", "timestamp"}
    assert [intervention["id"] for intervention in answer["interventions"]] == [str(soon), str(late)]
    assert set(answer["interventions"][0]) == {
        "id", "intervention_type", "status", "scheduled_date", "trigger_reason", "created_at"
    }  # fmt: skip


def test_no_interventions_is_an_empty_list(user: UUID, acting: As) -> None:
    with acting(user) as connection:
        assert call(connection, "get_realtime_interventions", user)["interventions"] == []


def test_the_channels_of_a_user(user: UUID, acting: As) -> None:
    with acting(user) as connection:
        answer = call(connection, "subscribe_to_momentum_channels", user)
    assert answer.pop("timestamp").endswith("Z")
    assert answer == {
        "user_id": str(user),
        "channels": [
            f"momentum_updates:{user}", f"interventions:{user}", f"notifications:{user}", "cache_invalidation"
        ],
    }  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_user_is_refused_and_does_not_learn_who_exists(
    db: Sql, user: UUID, other: UUID, acting: As, function: str
) -> None:
    add_score(db, other)
    add_intervention(db, other)
    said = []
    for target in (other, uuid4()):
        with acting(user) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
            call(connection, function, target)
        said.append(str(refused.value).replace(str(target), "…"))
    assert said[0] == said[1]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nobody_is_refused(acting: As, function: str) -> None:
    with acting(None) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        call(connection, function, None)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_anon_may_not_even_call(user: UUID, acting: As, function: str) -> None:
    with acting(user, role="anon") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        call(connection, function, user)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("role", "app_role"), [("authenticated", "admin"), ("service_role", None)])
def test_admin_and_service_are_answered_for_anybody(
    user: UUID, other: UUID, acting: As, function: str, role: str, app_role: str | None
) -> None:
    with acting(user if app_role else None, role=role, app_role=app_role) as connection:
        assert call(connection, function, other)["user_id"] == str(other)


def test_a_coach_reads_the_scores_of_assigned_users_only(db: Sql, user: UUID, other: UUID, acting: As) -> None:
    coach = uuid4()
    db.execute("insert into auth.users (id) values (%s)", (coach,))
    add_score(db, user, "Rising", 80)
    add_score(db, other, "Rising", 80)
    add_intervention(db, user, coach=coach)
    with acting(coach, app_role="coach") as connection:
        assert call(connection, "get_realtime_momentum_state", user)["has_data"]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            call(connection, "get_realtime_momentum_state", other)


def test_a_coach_reads_the_interventions_of_anybody(db: Sql, user: UUID, other: UUID, acting: As) -> None:
    add_intervention(db, other, status="completed")
    with acting(user, app_role="coach") as connection:
        assert call(connection, "get_realtime_interventions", other)["interventions"] == []


def test_every_function_pins_its_search_path_and_none_is_open_to_the_public(db: Sql) -> None:
    rows = db.execute(
        # A function with a parsed body looks up no names when it runs.
        "select p.oid::regprocedure::text,"
        " p.prosqlbody is not null or 'search_path=pg_catalog, pg_temp' = any (coalesce(p.proconfig, '{}')),"
        " has_function_privilege('anon', p.oid, 'execute')"
        " from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " left join pg_depend d on d.objid = p.oid and d.deptype = 'e'"
        " where n.nspname in ('public', 'momentum') and d.objid is null"
    ).fetchall()
    assert len(rows) >= 15
    assert [name for name, pinned, _ in rows if not pinned] == []
    assert [name for name, _, anon in rows if anon] == []


def test_metrics_are_logged_and_cleaned_up(db: Sql, user: UUID) -> None:
    db.execute("select log_realtime_event('momentum_score_updated', 'momentum_updates:all', %s, 120, 3)", (user,))
    db.execute("select log_realtime_event('x', 'y', p_success => false, p_error_message => 'no')")
    rows = db.execute(
        "select event_type, channel_name, user_id, payload_size, processing_time_ms, success, error_message"
        " from realtime_event_metrics order by created_at"
    ).fetchall()
    assert rows == [
        ("momentum_score_updated", "momentum_updates:all", user, 120, 3, True, None),
        ("x", "y", None, None, None, False, "no"),
    ]
    db.execute("update realtime_event_metrics set created_at = now() - interval '8 days' where event_type = 'x'")
    assert db.execute("select cleanup_realtime_metrics()").fetchone() == (1,)
    assert db.execute("select count(*) from realtime_event_metrics").fetchone() == (1,)
    db.execute("update momentum.settings set metrics_retention = '0 seconds'")
    assert db.execute("select cleanup_realtime_metrics()").fetchone() == (1,)


def test_metrics_are_the_services_alone(user: UUID, acting: As) -> None:
    for statement in (
        "select log_realtime_event('x', 'y')",
        "select cleanup_realtime_metrics()",
        "select * from realtime_event_metrics",
    ):
        with acting(user, app_role="admin") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)
        with acting(None, role="service_role") as connection:
            connection.execute(statement)

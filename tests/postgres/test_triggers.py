"""Each trigger with each operation: published events, and their channels."""

from __future__ import annotations

import re
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest

from tests.fixtures.postgres import Published, Sql, add_intervention, add_notification, add_score, new_user

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def of_type(found: list[tuple[list[str], dict[str, object]]], prefix: str) -> list[tuple[list[str], dict[str, object]]]:
    return [(channels, event) for channels, event in found if str(event["event_type"]).startswith(prefix)]


def made_at(db: Sql, table: str) -> str:
    """Return the creation time of the only row of a table, in the format of events."""
    row = db.execute(f"select momentum_rfc3339(created_at) from {table}".encode()).fetchone()
    assert row is not None
    return str(row[0])


def today(db: Sql, more: str = "") -> str:
    row = db.execute(f"select (current_date {more})::text").fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize(
    ("table", "trigger", "function", "operations"),
    [
        ("daily_engagement_scores", "momentum_score_realtime_trigger", "publish_momentum_update", 3),
        ("daily_engagement_scores", "momentum_cache_invalidation_trigger", "invalidate_momentum_cache", 3),
        ("coach_interventions", "intervention_realtime_trigger", "publish_intervention_notification", 3),
        ("momentum_notifications", "notification_realtime_trigger", "publish_push_notification", 3),
    ],
)
def test_the_named_triggers_exist(db: Sql, table: str, trigger: str, function: str, operations: int) -> None:
    row = db.execute(
        "select proname, prosecdef, proconfig, tgtype from pg_trigger join pg_proc p on p.oid = tgfoid"
        " where tgrelid = %s::regclass and tgname = %s and tgenabled = 'A'",
        (table, trigger),
    ).fetchone()
    assert row is not None
    assert row[0] == function
    assert row[1], "runs as its owner, since writers may not publish"
    assert row[2] == ["search_path=pg_catalog, pg_temp"]
    assert bin(row[3] & 0b11100).count("1") == operations


def test_score_inserted(db: Sql, user: UUID, published: Published) -> None:
    add_score(db, user, "Rising", 71.5)
    ((channels, event),) = of_type(published(), "momentum_score")
    assert channels == [f"momentum_updates:{user}", "momentum_updates:all"]
    assert TIME.fullmatch(str(event.pop("timestamp")))
    assert event == {
        "event_type": "momentum_score_created",
        "user_id": str(user),
        "score_date": today(db),
        "momentum_state": "Rising",
        "final_score": 71.5,
        "previous_state": None,
        "state_changed": True,
    }


@pytest.mark.parametrize(("new_state", "changed"), [("NeedsCare", True), ("Steady", False)])
def test_score_updated(db: Sql, user: UUID, published: Published, new_state: str, changed: bool) -> None:
    add_score(db, user, "Steady", 50)
    published()
    db.execute("update daily_engagement_scores set momentum_state = %s, final_score = 49", (new_state,))
    ((channels, event),) = of_type(published(), "momentum_score")
    assert channels == [f"momentum_updates:{user}", "momentum_updates:all"]
    assert event["event_type"] == "momentum_score_updated"
    assert event["momentum_state"] == new_state
    assert event["previous_state"] == "Steady"
    assert event["state_changed"] is changed


def test_score_deleted(db: Sql, user: UUID, published: Published) -> None:
    add_score(db, user, "Steady", 50)
    published()
    db.execute("delete from daily_engagement_scores")
    ((channels, event),) = of_type(published(), "momentum_score")
    assert channels == [f"momentum_updates:{user}", "momentum_updates:all"]
    assert (event["event_type"], event["momentum_state"]) == ("momentum_score_deleted", "Steady")
    assert event["state_changed"] is False


def test_score_moved_to_another_user_is_gone_here_and_new_there(
    db: Sql, user: UUID, other: UUID, published: Published
) -> None:
    add_score(db, user)
    published()
    db.execute("update daily_engagement_scores set user_id = %s", (other,))
    found = published()
    gone, new = of_type(found, "momentum_score")
    assert (gone[0][0], gone[1]["event_type"]) == (f"momentum_updates:{user}", "momentum_score_deleted")
    assert (new[0][0], new[1]["event_type"]) == (f"momentum_updates:{other}", "momentum_score_created")
    assert {event["user_id"] for _, event in of_type(found, "cache")} == {str(user), str(other)}


@pytest.mark.parametrize(
    "change",
    [
        "insert into daily_engagement_scores (user_id, score_date, momentum_state) values (%s, '2026-01-02', 'Steady')",
        "update daily_engagement_scores set final_score = 12 where user_id = %s",
        "delete from daily_engagement_scores where user_id = %s",
    ],
    ids=["insert", "update", "delete"],
)
def test_any_score_change_invalidates_the_four_keys(db: Sql, user: UUID, published: Published, change: str) -> None:
    add_score(db, user, day="'2026-01-02'")
    if change.startswith("insert"):
        db.execute("delete from daily_engagement_scores")
    published()
    db.execute(change, (user,))
    ((channels, event),) = of_type(published(), "cache_invalidation")
    assert channels == ["cache_invalidation"]
    assert event["user_id"] == str(user)
    assert event["cache_keys"] == [
        f"momentum:current:{user}",
        f"momentum:history:{user}",
        f"momentum:trend:{user}",
        f"momentum:breakdown:{user}:2026-01-02",
    ]


def test_moving_a_score_to_another_day_invalidates_both(db: Sql, user: UUID, published: Published) -> None:
    add_score(db, user, day="'2026-01-02'")
    published()
    db.execute("update daily_engagement_scores set score_date = '2026-01-05'")
    ((_, event),) = of_type(published(), "cache_invalidation")
    assert sorted(event["cache_keys"])[:2] == [  # type: ignore[call-overload]
        f"momentum:breakdown:{user}:2026-01-02",
        f"momentum:breakdown:{user}:2026-01-05",
    ]


TEXT = '"quoted" \\ and %s\n'


def test_keys_are_the_same_whatever_the_writer_makes_of_dates(db: Sql, user: UUID, published: Published) -> None:
    add_score(db, user, day="'2026-01-02'")
    published()
    db.execute("set datestyle = 'German'")
    db.execute("update daily_engagement_scores set final_score = 7")
    db.execute("update daily_engagement_scores set score_date = '2026-01-05'")
    keys = [event["cache_keys"] for _, event in of_type(published(), "cache_invalidation")]
    assert [sorted(each)[:1] for each in keys] == [[f"momentum:breakdown:{user}:2026-01-02"]] * 2  # type: ignore[call-overload]
    assert f"momentum:breakdown:{user}:2026-01-05" in keys[1]  # type: ignore[operator]


@pytest.mark.parametrize(
    "how",
    [
        "select 1",
        "update momentum.settings set notify = true",
        'alter policy "Users can view own momentum scores" on daily_engagement_scores using (true)',
    ],
)
def test_a_score_is_json_whatever_an_operator_allows_in_it(
    db: Sql, user: UUID, published: Published, how: LiteralString
) -> None:
    add_score(db, user, day="'2026-01-02'")
    db.execute("alter table daily_engagement_scores drop constraint daily_engagement_scores_momentum_state_check")
    db.execute("alter table daily_engagement_scores drop constraint daily_engagement_scores_final_score_check")
    for column in ("momentum_state", "score_date", "final_score"):
        db.execute(f"alter table daily_engagement_scores alter {column} drop not null")
    db.execute(how)
    published()
    for state, score, day in ((TEXT, "NaN", "2026-01-02"), (None, "1.50", None), ("é", None, "-infinity")):
        update = "update daily_engagement_scores set momentum_state = %s, final_score = %s, score_date = %s"
        db.execute(update, (state, score, day))
    news = published()
    scores = [event for _, event in of_type(news, "momentum_score_updated")]
    assert [event["momentum_state"] for event in scores] == [TEXT, None, "é"]
    assert [event["previous_state"] for event in scores] == ["Steady", TEXT, None]
    assert [event["state_changed"] for event in scores] == [True, True, True]
    assert [event["final_score"] for event in scores] == ["NaN", 1.5, None]
    assert [event["score_date"] for event in scores] == ["2026-01-02", None, "-infinity"]
    assert len(of_type(news, "cache_invalidation")) == 3


def test_intervention_inserted(db: Sql, user: UUID, published: Published) -> None:
    intervention = add_intervention(db, user)
    ((channels, event),) = published()
    assert channels == [f"interventions:{user}", "interventions:coaches"]
    assert TIME.fullmatch(str(event.pop("timestamp")))
    assert event == {
        "event_type": "intervention_created",
        "user_id": str(user),
        "intervention_id": str(intervention),
        "intervention_type": "check_in",
        "trigger_reason": "fell",
        "status": "scheduled",
        "previous_status": None,
        "status_changed": True,
        "scheduled_date": today(db, "+ 1"),
        "created_at": made_at(db, "coach_interventions"),
    }


@pytest.mark.parametrize(("status", "changed"), [("completed", True), ("scheduled", False)])
def test_intervention_updated(db: Sql, user: UUID, published: Published, status: str, changed: bool) -> None:
    add_intervention(db, user)
    published()
    db.execute("update coach_interventions set status = %s", (status,))
    ((channels, event),) = published()
    assert channels == [f"interventions:{user}", "interventions:coaches"]
    assert event["event_type"] == "intervention_updated"
    assert (event["status"], event["previous_status"], event["status_changed"]) == (status, "scheduled", changed)


def test_intervention_deleted(db: Sql, user: UUID, published: Published) -> None:
    intervention = add_intervention(db, user)
    published()
    db.execute("delete from coach_interventions")
    ((channels, event),) = published()
    assert channels == [f"interventions:{user}", "interventions:coaches"]
    assert (event["event_type"], event["intervention_id"]) == ("intervention_deleted", str(intervention))


def test_intervention_moved_to_another_user_leaves_the_first(
    db: Sql, user: UUID, other: UUID, published: Published
) -> None:
    add_intervention(db, user)
    published()
    db.execute("update coach_interventions set user_id = %s", (other,))
    gone, moved = published()
    assert (gone[0], gone[1]["event_type"]) == ([f"interventions:{user}"], "intervention_deleted")
    assert moved[0] == [f"interventions:{other}", "interventions:coaches"]


@pytest.mark.parametrize("kind", ["momentum_drop", "needs_care_consecutive", "celebration", "consistency_reminder"])
def test_user_facing_notification_inserted(db: Sql, user: UUID, published: Published, kind: str) -> None:
    notification = add_notification(db, user, kind)
    ((channels, event),) = published()
    assert channels == [f"notifications:{user}"]
    assert TIME.fullmatch(str(event.pop("timestamp")))
    assert event == {
        "event_type": "push_notification",
        "user_id": str(user),
        "notification_id": str(notification),
        "notification_type": kind,
        "title": "Well",
        "message": "done",
        "action_type": None,
        "action_data": {},
        "status": "sent",
        "created_at": made_at(db, "momentum_notifications"),
    }


def test_user_facing_notification_updated(db: Sql, user: UUID, published: Published) -> None:
    add_notification(db, user)
    published()
    db.execute("update momentum_notifications set status = 'opened'")
    ((channels, event),) = published()
    assert channels == [f"notifications:{user}"]
    assert (event["event_type"], event["status"]) == ("push_notification", "opened")


@pytest.mark.parametrize("kind", ["coach_intervention", "custom"])
def test_other_notifications_are_not_pushed(db: Sql, user: UUID, published: Published, kind: str) -> None:
    add_notification(db, user, kind)
    db.execute("update momentum_notifications set status = 'opened'")
    assert published() == []


@pytest.mark.parametrize("change", [
    "delete from momentum_notifications",
    "update momentum_notifications set user_id = %(other)s",
    "update momentum_notifications set notification_type = 'custom'",
], ids=["deleted", "moved", "no longer shown"])  # fmt: skip
def test_a_notification_that_its_user_has_no_longer_is_removed(
    db: Sql, user: UUID, other: UUID, published: Published, change: LiteralString
) -> None:
    notification = add_notification(db, user)
    published()
    db.execute(change, {"other": other})
    (channels, event), *rest = published()
    assert channels == [f"notifications:{user}"]
    assert TIME.fullmatch(str(event.pop("timestamp")))
    assert event == {
        "event_type": "notification_removed", "user_id": str(user), "notification_id": str(notification),
    }  # fmt: skip
    assert [(channels, event["event_type"]) for channels, event in rest] == (
        [([f"notifications:{other}"], "push_notification")] if "user_id" in change else []
    )


def test_a_notification_that_was_not_shown_is_not_removed(db: Sql, user: UUID, published: Published) -> None:
    add_notification(db, user, "custom")
    db.execute("delete from momentum_notifications")
    assert published() == []


def test_nothing_is_published_by_a_transaction_that_rolls_back(db: Sql, user: UUID, published: Published) -> None:
    with pytest.raises(psycopg.errors.CheckViolation), db.transaction():
        add_score(db, user)
        db.execute("update daily_engagement_scores set final_score = 101")
    assert published() == []


def test_one_transaction_publishes_in_the_order_of_its_writes(db: Sql, user: UUID, published: Published) -> None:
    with db.transaction():
        add_intervention(db, user)
        add_notification(db, user)
        add_score(db, user)
    kinds = [event["event_type"] for _, event in published()]
    assert kinds == ["intervention_created", "push_notification", "cache_invalidation", "momentum_score_created"]


def test_deleting_a_user_says_so_of_all_that_was_theirs(db: Sql, user: UUID, published: Published) -> None:
    stays = new_user(db)
    for somebody in (user, stays):
        add_score(db, somebody)
        add_intervention(db, somebody)
    published()
    db.execute("delete from auth.users where id = %s", (user,))
    found = published()
    assert {event["user_id"] for _, event in found} == {str(user)}
    assert {event["event_type"] for _, event in found} == {
        "momentum_score_deleted", "intervention_deleted", "cache_invalidation"
    }  # fmt: skip


def test_a_writer_who_may_not_publish_still_fires_the_trigger(db: Sql, user: UUID, acting, published) -> None:  # type: ignore[no-untyped-def]
    notification = add_notification(db, user)
    published()
    with acting(user) as connection:
        connection.execute("update momentum_notifications set status = 'opened' where id = %s", (notification,))
    ((_, event),) = published()
    assert event["status"] == "opened"
    with acting(user) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("select momentum.publish(array['momentum_updates:all'], '{}')")

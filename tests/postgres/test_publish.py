"""`momentum.publish`: its guarantees, and the two switches beside it."""

from __future__ import annotations

import json
from uuid import UUID

import psycopg
import pytest

from tests.fixtures.postgres import As, Published, Sql, add_score


def test_any_trigger_of_the_operators_may_publish(db: Sql, published: Published) -> None:
    db.execute("""
        create table lessons (id int);
        create function lesson_learnt() returns trigger language plpgsql security definer
        set search_path = pg_catalog, pg_temp as $$
        begin
            perform momentum.publish(array['notifications:x'], jsonb_build_object('event_type', 'lesson', 'n', new.id));
            return null;
        end $$;
        create trigger lesson after insert on lessons for each row execute function lesson_learnt();
        insert into lessons values (7);
    """)
    assert published() == [(["notifications:x"], {"event_type": "lesson", "n": 7})]


def test_an_event_may_be_larger_than_notify_takes(db: Sql, published: Published) -> None:
    text = "ü" * 100_000
    db.execute("select momentum.publish(array['c'], jsonb_build_object('text', %s::text))", (text,))
    assert published() == [(["c"], {"text": text})]


def test_what_the_server_fills_in_cannot_be_forged(db: Sql, published: Published) -> None:
    event = {"event_type": "x", "id": "1", "previous_id": "0", "channel": "c"}
    db.execute("select momentum.publish(array['c'], %s)", (json.dumps(event),))
    assert published() == [(["c"], {"event_type": "x"})]


@pytest.mark.parametrize(
    ("channels", "event"),
    [([], "{}"), (None, "{}"), (["a", None], "{}"), (["a"], "[]"), (["a"], "1"), (["a"], None)],
)
def test_nonsense_is_refused(db: Sql, channels: list[str] | None, event: str | None) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"momentum\.publish needs"):
        db.execute("select momentum.publish(%s::text[], %s::jsonb)", (channels, event))


def test_only_the_service_publishes_by_hand(user: UUID, acting: As) -> None:
    with acting(user, app_role="admin") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("select momentum.publish(array['a'], '{}')")
    with acting(None, role="service_role") as connection:
        connection.execute("select momentum.publish(array['a'], '{}')")


def notified(database: str, db: Sql, statement: str, *parameters: object, listen: str) -> list[dict[str, object]]:
    with psycopg.connect(database, autocommit=True) as listener:
        listener.execute(f'listen "{listen}"')
        db.execute(statement, parameters)
        db.execute(f"notify \"{listen}\", 'end'")
        found: list[dict[str, object]] = []
        for notification in listener.notifies(timeout=10):
            if notification.payload == "end":
                return found
            found.append(json.loads(notification.payload))
    raise AssertionError("the end was never notified")


def test_notify_is_off_unless_switched_on(database: str, db: Sql, user: UUID) -> None:
    insert = "select momentum.publish(array['c'], '{\"n\": 1}')"
    assert notified(database, db, insert, listen="c") == []
    db.execute("update momentum.settings set notify = true")
    assert notified(database, db, insert, listen="c") == [{"n": 1}]


@pytest.mark.parametrize("channel", ["momentum_updates:{}", "momentum_updates:all", "cache_invalidation"])
def test_notify_uses_the_names_of_the_channels(database: str, db: Sql, user: UUID, channel: str) -> None:
    db.execute("update momentum.settings set notify = true")
    add_score(db, user)
    (event,) = notified(
        database, db, "update daily_engagement_scores set final_score = 1 where user_id = %s", user,
        listen=channel.format(user),
    )  # fmt: skip
    assert event["user_id"] == str(user)


@pytest.mark.parametrize(("size", "truncated"), [(7_900, False), (7_999, True), (50_000, True)])
def test_an_oversize_payload_becomes_a_short_one(database: str, db: Sql, size: int, truncated: bool) -> None:
    db.execute("update momentum.settings set notify = true")
    (event,) = notified(
        database, db,
        "select momentum.publish(array['c'], jsonb_build_object('event_type', 'x', 'user_id', 'u', 'text',"
        " repeat('a', %s)))",
        size, listen="c",
    )  # fmt: skip
    assert event["event_type"] == "x"
    assert event.get("truncated", False) is truncated
    assert ("text" in event) is not truncated


def test_notify_never_fails_the_writer(db: Sql, published: Published) -> None:
    db.execute("update momentum.settings set notify = true")
    db.execute("select momentum.publish(array[repeat('n', 64), ''], '{\"n\": 1}')")
    assert published() == [(["n" * 64, ""], {"n": 1})]


def test_the_switch_can_be_turned_off_again_and_is_part_of_its_transaction(database: str, db: Sql) -> None:
    insert = "select momentum.publish(array['c'], '{\"n\": 1}')"
    db.execute("update momentum.settings set notify = true")
    db.execute("update momentum.settings set notify = false")
    assert notified(database, db, insert, listen="c") == []
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute("update momentum.settings set notify = true")
        raise ZeroDivisionError
    assert notified(database, db, insert, listen="c") == []


def test_a_switch_is_seen_by_a_session_that_has_written_before(database: str, db: Sql, user: UUID) -> None:
    add_score(db, user)
    update = "update daily_engagement_scores set final_score = final_score + 1"
    with psycopg.connect(database, autocommit=True) as writer:
        for _ in range(10):
            writer.execute(update)
        db.execute("update momentum.settings set notify = true")
        assert len(notified(database, writer, update, listen="cache_invalidation")) == 1


def test_without_settings_nothing_is_notified_and_nothing_fails(database: str, db: Sql) -> None:
    db.execute("delete from momentum.settings")
    assert notified(database, db, "select momentum.publish(array['c'], '{\"n\": 1}')", listen="c") == []


def test_what_a_trigger_calls_is_put_in_place_of_the_calls(db: Sql) -> None:
    (plan,) = db.execute(
        "explain (verbose, costs off) select momentum.notifies(), momentum.has_changed_policies('coach_interventions'),"
        " public.momentum_rfc3339(now()),"
        " momentum.emit('[\"c\"]', momentum.score_json('e', s.user_id, s.score_date, 'a', 1, 'b', false)),"
        " momentum.emit('[\"c\"]', momentum.invalidation_json("
        "s.user_id, momentum.cache_keys_json(s.user_id, s.score_date)))"
        " from public.daily_engagement_scores s"
    ).fetchall()[1]
    assert plan.strip().startswith("Output: ")
    assert "momentum." not in plan
    assert "momentum_rfc3339" not in plan
    assert plan.count("pg_logical_emit_message") == 2


def test_policies_changed_under_an_old_snapshot_are_not_taken_for_all_that_changed(database: str, db: Sql) -> None:
    changed = "select t, momentum.has_changed_policies(t) from unnest(array['coach_interventions',"
    changed += " 'daily_engagement_scores']) t order by t"
    with psycopg.connect(database) as other:
        other.execute("set transaction isolation level repeatable read")
        other.execute("select 1 from auth.users")
        db.execute('alter policy "Users can view own interventions" on coach_interventions using (false)')
        other.execute('alter policy "Users can view own momentum scores" on daily_engagement_scores using (false)')
        other.commit()
    db.execute("select momentum.check_policies()")
    assert db.execute(changed).fetchall() == [("coach_interventions", True), ("daily_engagement_scores", True)]


def test_constants_that_no_trigger_kept_are_mended_by_the_next_look(db: Sql) -> None:
    db.execute("alter table momentum.policies disable trigger user")
    db.execute("update momentum.policies set current = 'restored from elsewhere'")
    db.execute("alter table momentum.policies enable trigger user")
    assert db.execute("select momentum.has_changed_policies('coach_interventions')").fetchone() == (False,)
    db.execute("alter table momentum.policies disable trigger user")
    db.execute("update momentum.policies set current = momentum.describe_policies(table_name), shipped = 'other'")
    db.execute("alter table momentum.policies enable trigger user")
    db.execute("select momentum.check_policies()")
    assert db.execute("select momentum.has_changed_policies('coach_interventions')").fetchone() == (True,)

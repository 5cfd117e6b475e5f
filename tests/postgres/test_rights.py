"""Granted and checked channels, changed policies, revoked tokens: the database's part."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.fixtures.postgres import SERVER_ROLE, Published, Sql, add_intervention, add_score, new_user

Answer = dict[str, str | None]
CHANGED = {
    "daily_engagement_scores": "create policy more on daily_engagement_scores for select using (false)",
    "coach_interventions": 'drop policy "Coaches can view all interventions" on coach_interventions',
    "momentum_notifications": "alter table momentum_notifications disable row level security",
}


def grants(database: str, subject: UUID | None, *channels: str, app_role: str | None = None, **more: Any) -> Answer:
    """Return the grants that the server reads as a caller, under its own role."""
    claims = {"sub": str(subject), "iat": 2_000_000_000, "app_metadata": {"role": app_role}, **more}
    with psycopg.connect(make_conninfo(database, user=SERVER_ROLE)) as connection:
        connection.execute("select momentum.become('authenticated', %s)", (json.dumps(claims),))
        answers = {}
        for channel in channels:
            row = connection.execute("select public.momentum_grant(%s)", (channel,)).fetchone()
            assert row is not None
            answers[channel] = row[0]
        return answers


def test_as_shipped_the_token_gives_all_but_the_scores_of_assigned_users(db: Sql, database: str, user: UUID) -> None:
    coach = new_user(db)
    add_score(db, user)
    add_intervention(db, user, coach=coach)
    own = [f"{kind}:{user}" for kind in ("momentum_updates", "interventions", "notifications")]
    assert set(grants(database, user, *own, "cache_invalidation").values()) == {"granted"}
    assert grants(database, coach, *own, "interventions:coaches", app_role="coach") == {
        own[0]: "checked", own[1]: "granted", own[2]: None, "interventions:coaches": "granted",
    }  # fmt: skip
    assert grants(database, uuid4(), *own, "momentum_updates:all", app_role="admin") == {
        own[0]: "granted", own[1]: "granted", own[2]: "granted", "momentum_updates:all": "granted",
    }  # fmt: skip


@pytest.mark.parametrize("table", sorted(CHANGED))
def test_changed_policies_have_each_event_asked_about(db: Sql, database: str, user: UUID, table: str) -> None:
    channels = {
        "daily_engagement_scores": f"momentum_updates:{user}",
        "coach_interventions": f"interventions:{user}",
        "momentum_notifications": f"notifications:{user}",
    }
    db.execute(CHANGED[table].encode())
    assert grants(database, user, *channels.values()) == {
        channel: "checked" if of == table else "granted" for of, channel in channels.items()
    }
    assert set(grants(database, uuid4(), *channels.values()).values()) == {None}


def test_a_caller_that_asks_without_the_server_gets_checked_instead_of_granted(db: Sql, user: UUID) -> None:
    with db.transaction():
        db.execute(
            "select set_config('role', 'authenticated', true), set_config('request.jwt.claims', %s, true)",
            (json.dumps({"sub": str(user)}),),
        )
        assert db.execute("select public.momentum_grant(%s)", (f"notifications:{user}",)).fetchone() == ("checked",)


def test_a_change_is_told_in_its_own_transaction_and_once(db: Sql, published: Published) -> None:
    published()
    with db.transaction():
        db.execute(CHANGED["coach_interventions"].encode())
        db.execute("create table public.of_no_interest (a int)")
    told = [(["momentum:control"], {"event_type": "policies_changed"})]
    assert published() == told
    db.execute("select momentum.check_policies()")
    db.execute("grant select on public.of_no_interest to authenticated")
    assert published() == []
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute('drop policy "Users can view own notifications" on momentum_notifications')
        raise ZeroDivisionError
    assert published() == []


def test_without_the_event_trigger_a_look_finds_the_change(db: Sql, published: Published) -> None:
    db.execute("drop event trigger momentum_policies")
    db.execute(CHANGED["coach_interventions"].encode())
    assert published() == []
    db.execute("select momentum.check_policies()")
    assert published() == [(["momentum:control"], {"event_type": "policies_changed"})]


@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ("revoke select on coach_interventions from authenticated", ["coach_interventions", "daily_engagement_scores"]),
        (
            'alter policy "Users can view own interventions" on coach_interventions using (true)',
            ["coach_interventions"],
        ),
        ("create policy elsewhere on coach_interventions for update to authenticated using (true)", []),
        (
            "create or replace function public.momentum_caller_role() returns text language sql stable"
            " set search_path = pg_catalog, pg_temp as 'select ''coach'''",
            ["coach_interventions", "daily_engagement_scores", "momentum_notifications"],
        ),
        ("grant insert on coach_interventions to authenticated", []),
    ],
)
def test_what_counts_as_a_change(db: Sql, statement: str, changed: list[str]) -> None:
    db.execute(statement.encode())
    rows = db.execute("select table_name from momentum.policies where changed order by 1").fetchall()
    assert [name for (name,) in rows] == changed


def test_what_has_changed_meanwhile_is_not_accepted(db: Sql, published: Published) -> None:
    db.execute('alter policy "Users can view own notifications" on momentum_notifications using (true)')
    published()
    for asked in ("shipped, 'another description'", "'another text', current"):
        db.execute(
            f"select momentum.accept_policies(table_name, {asked}) from momentum.policies where changed".encode()
        )
    assert db.execute("select changed from momentum.policies where changed").fetchall() == [(True,)]
    assert published() == []
    db.execute("select momentum.accept_policies(table_name, shipped, current) from momentum.policies where changed")
    assert db.execute("select changed from momentum.policies where changed").fetchall() == []
    assert published() == [(["momentum:control"], {"event_type": "policies_changed"})]


@pytest.mark.parametrize(
    "statement",
    [
        "create policy p on public.others using (true)",
        "alter table public.others enable row level security",
        "grant select (id) on public.others to authenticated",
        "revoke select on public.others from authenticated",
        "create or replace function auth.uid() returns uuid language sql stable as 'select null::uuid'",
        "drop table public.others",
    ],
)
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_rights_on_rows_of_any_table_are_told_in_the_transaction_that_changes_them(
    db: Sql, statement: str, role: str
) -> None:
    db.execute("create table public.others (id int primary key)")
    db.execute("select pg_create_logical_replication_slot('raw', 'test_decoding')")
    with db.transaction():
        db.execute(f"set local session_replication_role = {role}")
        db.execute(statement.encode())
    rows = db.execute("select data from pg_logical_slot_get_changes('raw', null, null)").fetchall()
    told = [data for (data,) in rows if "momentum:control" in data]
    assert len(told) == 1
    assert '"row_rights_changed"' in told[0]
    db.execute("select pg_drop_replication_slot('raw')")


def test_a_broken_look_does_not_fail_the_operators_statement(db: Sql) -> None:
    db.execute("alter table momentum.policies rename to elsewhere")
    db.execute(CHANGED["coach_interventions"].encode())


def test_versions_of_a_row_go_with_its_events_as_far_as_policies_may_ask(db: Sql, user: UUID) -> None:
    """Under the shipped policies only the last version of a deleted row is carried: it cannot be selected any more."""
    coach = new_user(db)
    db.execute("select pg_create_logical_replication_slot('raw', 'test_decoding')")
    change = "update coach_interventions set assigned_coach_id = %s"
    for policies in (None, CHANGED["coach_interventions"]):
        if policies is not None:
            db.execute(policies.encode())
        add_intervention(db, user)
        db.execute(change.encode(), (coach,))
        db.execute("delete from coach_interventions")
    rows = db.execute("select data from pg_logical_slot_get_changes('raw', null, null)").fetchall()
    messages = [json.loads(data.split("content:", 1)[1]) for (data,) in rows if "prefix: momentum_sync," in data]
    told = [
        (message["event"]["event_type"], message.get("rows"))
        for message in messages
        if message["event"]["event_type"] != "row_rights_changed"
    ]
    kinds = [(kind, sorted(versions or {})) for kind, versions in told]
    assert kinds == [
        ("intervention_created", []), ("intervention_updated", []), ("intervention_deleted", ["was"]),
        ("policies_changed", []), ("intervention_created", ["is"]), ("intervention_deleted", ["is", "was"]),
        ("intervention_updated", ["is"]), ("intervention_deleted", ["was"]),
    ]  # fmt: skip
    assert told[2][1]["was"]["user_id"] == str(user)
    assert told[5][1]["was"]["assigned_coach_id"] is None
    assert told[5][1]["is"]["assigned_coach_id"] == str(coach)
    assert told[7][1]["was"]["trigger_reason"] == "fell"


def test_revoking_is_the_services(db: Sql, database: str, user: UUID, published: Published) -> None:
    published()
    for role in ("anon", "authenticated"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), db.transaction():
            db.execute(f"set local role {role}".encode())
            db.execute("select momentum.revoke(%s)", (user,))
    with db.transaction():
        db.execute("set local role service_role")
        db.execute("select momentum.revoke(%s)", (user,))
    assert published() == [(["momentum:control"], {"event_type": "revoked", "user_id": str(user)})]
    with pytest.raises(psycopg.errors.NullValueNotAllowed):
        db.execute("select momentum.revoke(null)")


def test_no_token_from_before_the_revocation_opens_anything(db: Sql, database: str, user: UUID, other: UUID) -> None:
    db.execute("select momentum.revoke(%s)", (user,))
    (revoked_at,) = db.execute(
        "select floor(extract(epoch from revoked_at))::bigint from momentum.revocations"
    ).fetchone() or (0,)
    channel = f"notifications:{user}"
    for iat in (0, revoked_at - 60, revoked_at, None):
        with pytest.raises(psycopg.errors.InvalidAuthorizationSpecification):
            grants(database, user, channel, iat=iat)
    assert grants(database, user, channel, iat=revoked_at + 1) == {channel: "granted"}
    assert grants(database, other, f"notifications:{other}", iat=0) == {f"notifications:{other}": "granted"}
    db.execute("update momentum.revocations set revoked_at = now() + interval '1 year'")
    db.execute("select momentum.revoke(%s)", (user,))
    assert db.execute("select revoked_at > now() + interval '1 day' from momentum.revocations").fetchone() == (True,)


def test_the_server_becomes_callers_and_nobody_else(database: str) -> None:
    with psycopg.connect(make_conninfo(database, user=SERVER_ROLE), autocommit=True) as connection:
        for role in ("postgres", "momentum_capture", "no_such_role"):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue)):
                connection.execute("select momentum.become(%s, '{}')", (role,))
        for statement in (
            "select * from daily_engagement_scores", "select * from momentum.revocations", "select * from auth.users",
            "update momentum.policies set current = shipped", "select momentum.revoke(gen_random_uuid())",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())

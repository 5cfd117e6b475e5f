"""SQL attacks by roles with few privileges. Each tries to gain more, and must fail.

A role that owns nothing may still create objects in its temporary schema. PostgreSQL searches that schema first for
types and relations unless `search_path` names it last, so a function that runs with another's rights and pins
anything else would use the attacker's types, and run the code in their constraints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from momentum_sync.database.migrate import migrate
from momentum_sync.errors import Unsuitable
from tests.fixtures.postgres import CAPTURE_ROLE, SERVER_ROLE, Sql, add_intervention, add_notification, add_score

TYPES = ("text", "jsonb", "uuid", "bool", "int4", "int8", "timestamptz", "regclass", "name", "date", "numeric")
ATTACKER = "attacker_without_grants"
APP_OWNER = "owner_of_the_app"


@pytest.fixture
def attacker(db: Sql) -> Iterator[str]:
    """Return a role that may only log in."""
    db.execute(sql.SQL("create role {} login").format(sql.Identifier(ATTACKER)))
    try:
        yield ATTACKER
    finally:
        db.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(ATTACKER)))


@contextmanager
def armed(database: str, role: str) -> Iterator[Sql]:
    """Yield a session of the role, with domains in pg_temp that have names of types and run code in constraints."""
    with psycopg.connect(make_conninfo(database, user=role), autocommit=True) as session:
        session.execute(
            sql.SQL(
                "create table pg_temp.ran_as (who pg_catalog.name);"
                "grant insert on pg_temp.ran_as to public;"
                "create function pg_temp.take(anyelement) returns pg_catalog.bool language plpgsql as $$"
                " begin"
                "  insert into pg_temp.ran_as values (current_user);"
                "  begin execute pg_catalog.format('alter role %I superuser', {role}::pg_catalog.text);"
                "  exception when others then null; end;"
                "  return true;"
                " end $$"
            ).format(role=sql.Literal(role))
        )
        for name in TYPES:
            session.execute(
                sql.SQL("create domain pg_temp.{0} as pg_catalog.{0} check (pg_temp.take(value))").format(
                    sql.Identifier(name)
                )
            )
        yield session


def is_no_superuser(db: Sql, role: str) -> bool:
    return db.execute("select rolsuper from pg_roles where rolname = %s", (role,)).fetchone() == (False,)


def test_a_login_without_grants_gains_nothing_by_the_event_trigger(db: Sql, database: str, attacker: str) -> None:
    with armed(database, attacker) as session:
        session.execute("create function pg_temp.own() returns int language sql as 'select 1'")
        session.execute("grant execute on function pg_temp.own() to public")
        session.execute("revoke execute on function pg_temp.own() from public")
        session.execute("drop function pg_temp.own()")
    assert is_no_superuser(db, attacker)


@pytest.mark.parametrize("notify", [False, True])
@pytest.mark.parametrize("changed", [False, True])
def test_a_writer_gains_nothing_by_the_triggers(
    db: Sql, database: str, attacker: str, user: UUID, changed: bool, notify: bool
) -> None:
    tables = ("daily_engagement_scores", "coach_interventions", "momentum_notifications")
    for table in tables:
        db.execute(f"grant all on {table} to {attacker}")
        db.execute(f"create policy attacker on {table} to {attacker} using (true) with check (true)")
        if changed:
            db.execute(f"create policy changed on {table} for select using (false)")
    if notify:
        db.execute("update momentum.settings set notify = true")
    db.execute(f"grant references, select on auth.users to {attacker}; grant usage on schema auth to {attacker}")
    with armed(database, attacker) as session:
        session.execute("set search_path = public, pg_catalog, pg_temp")  # keeps pg_temp's types out of this connection
        add_score(session, user)
        add_intervention(session, user)
        add_notification(session, user)
        session.execute("update daily_engagement_scores set final_score = 1")
        session.execute("update coach_interventions set status = 'completed'")
        session.execute("update momentum_notifications set status = 'opened'")
        for table in tables:
            session.execute(f"delete from {table}")
        session.execute("truncate daily_engagement_scores, coach_interventions, momentum_notifications")
        ran_as = session.execute("select distinct who from pg_temp.ran_as where who <> current_user").fetchall()
    assert ran_as == []
    assert is_no_superuser(db, attacker)


@pytest.mark.parametrize("role", [SERVER_ROLE, CAPTURE_ROLE])
def test_the_servers_roles_gain_nothing_by_the_functions_made_for_them(db: Sql, database: str, role: str) -> None:
    with armed(database, role) as session:
        session.execute("create function pg_temp.own() returns int language sql as 'select 1'")
        session.execute("grant execute on function pg_temp.own() to public")
        if role == SERVER_ROLE:
            session.execute("select momentum.check_policies(), momentum.check_publishing()")
            session.execute("select momentum.keep_partitions('7 days'::pg_catalog.interval)")
            session.execute("select momentum.admit('{}'::pg_catalog.jsonb)")
        ran_as = session.execute("select distinct who from pg_temp.ran_as where who <> current_user").fetchall()
    assert ran_as == []
    assert is_no_superuser(db, role)


@pytest.mark.parametrize("statement", [
    "create trigger t before update on momentum.stream for each row execute function pg_temp.code()",
    "create trigger t before insert on momentum.event_log for each row execute function pg_temp.code()",
    "create rule r as on update to momentum.stream do also select 1",
    "alter table momentum.stream alter column slot set default pg_temp.value()",
    "alter table momentum.event_log disable row level security",
    "create function momentum.code() returns int language sql as 'select 1'",
    "create table momentum_log.mine ()",
    "create table momentum.mine ()",
    "create policy p on momentum.stream using (pg_temp.value() = '')",
    "drop table momentum.event_log",
    "truncate momentum.event_log",
    "delete from momentum.event_log",
    "create function public.code() returns int language sql as 'select 1'",
], ids=lambda statement: " ".join(statement.split()[:5]))  # fmt: skip
def test_the_servers_role_can_leave_nothing_where_an_owner_would_run_it(database: str, statement: str) -> None:
    with psycopg.connect(make_conninfo(database, user=SERVER_ROLE), autocommit=True) as session:
        session.execute("create function pg_temp.code() returns trigger language plpgsql as 'begin return new; end'")
        session.execute("create function pg_temp.value() returns text language sql as $$ select ''::text $$")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(statement.encode())


def test_migrate_does_not_run_triggers_that_an_earlier_server_role_left_on_the_log(db: Sql, database: str) -> None:
    """An earlier version gave the log to the server's role, which could add a trigger."""
    db.execute(f"grant create on schema momentum to {SERVER_ROLE}")
    db.execute(f"alter table momentum.stream owner to {SERVER_ROLE}")
    db.execute(
        "insert into momentum.stream values (true, 's', 'e', '1', 1, 1, 0, 0, '0/0', 0, 0, '0/0', gen_random_uuid())"
    )
    with psycopg.connect(make_conninfo(database, user=SERVER_ROLE), autocommit=True) as session:
        session.execute(
            "create function momentum.code() returns trigger language plpgsql as $$ begin"
            f" reset role; execute 'alter role {SERVER_ROLE} superuser'; return new; end $$"
        )
        for event in ("insert or update or delete", "truncate"):
            each = "statement" if event == "truncate" else "row"
            session.execute(
                f"create trigger t_{each} before {event} on momentum.stream for each {each}"
                " execute function momentum.code()"
            )
    migrate(database, tell=lambda _: None, server_role=SERVER_ROLE)
    assert is_no_superuser(db, SERVER_ROLE)
    assert db.execute(
        "select count(*) from pg_trigger where tgrelid = 'momentum.stream'::regclass and not tgisinternal"
    ).fetchone() == (0,)
    assert db.execute("select count(*) from momentum.stream").fetchone() == (0,)


def test_everything_belongs_to_the_owner_of_the_tables_whoever_migrates(db: Sql, database: str) -> None:
    """Otherwise SECURITY DEFINER functions would run as superuser on tables that another role can change."""
    db.execute(f"create role {APP_OWNER} superuser")
    try:
        for table in ("daily_engagement_scores", "coach_interventions", "momentum_notifications"):
            db.execute(f"alter table public.{table} owner to {APP_OWNER}")
        migrate(database, tell=lambda _: None, again=True, server_role=SERVER_ROLE)
        foreign = db.execute(
            "select p.oid::regprocedure::text from pg_proc p where p.prosecdef"
            " and p.pronamespace in ('public'::regnamespace, 'momentum'::regnamespace)"
            " and pg_get_userbyid(p.proowner) <> %(owner)s"
            " union all select c.oid::regclass::text from pg_class c where c.relkind in ('r', 'p')"
            " and c.relnamespace in ('momentum'::regnamespace, 'momentum_log'::regnamespace)"
            " and pg_get_userbyid(c.relowner) <> %(owner)s",
            {"owner": APP_OWNER},
        ).fetchall()
        assert foreign == []
    finally:
        db.execute(
            f"grant {APP_OWNER} to postgres; reassign owned by {APP_OWNER} to postgres; drop owned by {APP_OWNER}"
        )
        db.execute(f"drop role {APP_OWNER}")


def test_a_superuser_does_not_migrate_the_tables_of_a_lesser_role(db: Sql, database: str) -> None:
    """The tables' owner also owns schema momentum and could leave code there that the next `migrate` runs."""
    db.execute(f"create role {APP_OWNER} login")
    try:
        db.execute(f"alter table public.momentum_notifications owner to {APP_OWNER}")
        with pytest.raises(Unsuitable, match=f"belong to {APP_OWNER}") as unsuitable:
            migrate(database, tell=lambda _: None, again=True)
        assert f'Connect as "{APP_OWNER}" and run: momentum-sync migrate --again' in unsuitable.value.hint
        told: list[str] = []
        migrate(make_conninfo(database, user=APP_OWNER), tell=told.append, again=True)  # as the hint says
        assert [line for line in told if "not published" in line] == []
        assert is_no_superuser(db, APP_OWNER)
    finally:
        db.execute(f"reassign owned by {APP_OWNER} to postgres; drop owned by {APP_OWNER}; drop role {APP_OWNER}")


@pytest.mark.parametrize("table", [
    "daily_engagement_scores", "coach_interventions", "momentum_notifications", "realtime_event_metrics", "auth.users",
])  # fmt: skip
def test_the_servers_role_puts_no_trigger_where_others_write(database: str, table: str) -> None:
    """Neither as itself nor as one of its callers, because every writer of the row would run the trigger."""
    with psycopg.connect(make_conninfo(database, user=SERVER_ROLE), autocommit=True) as session:
        session.execute("create function pg_temp.code() returns trigger language plpgsql as 'begin return new; end'")
        session.execute("grant execute on function pg_temp.code() to public")
        for role in ("none", "service_role", "authenticated"):
            session.execute(f"set role {role}")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(
                    f"create trigger a before insert on {table} for each row execute function pg_temp.code()".encode()
                )


def test_locks_that_anybody_may_hold_keep_nothing_from_working(db: Sql, database: str, attacker: str) -> None:
    """Advisory locks need no privilege, so neither policy changes nor partitions may depend on one."""
    with psycopg.connect(make_conninfo(database, user=attacker), autocommit=True) as session:
        for name in ("momentum.keep_constants", "momentum.event_log partitions", "momentum.policies"):
            session.execute("select pg_advisory_lock(hashtext(%s))", (name,))
        db.execute('drop policy "Users can view own notifications" on momentum_notifications')
        assert db.execute(
            "select changed from momentum.policies where table_name = 'momentum_notifications'"
        ).fetchone() == (True,)
        assert db.execute("select momentum.has_changed_policies('momentum_notifications')").fetchone() == (True,)
        db.execute("select momentum.keep_partitions('1 day')")


def test_the_servers_role_drops_no_partition_of_today(database: str) -> None:
    with psycopg.connect(make_conninfo(database, user=SERVER_ROLE), autocommit=True) as session:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="must not be negative"):
            session.execute("select momentum.keep_partitions('-1000 days')")

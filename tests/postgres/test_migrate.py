"""The migration runner, its bookkeeping shared with the Supabase CLI, and a database with Supabase's layout."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from faults.clusters import Installed
from momentum_sync.capture import preflight
from momentum_sync.database import migrate as runner
from momentum_sync.database.adoption import server_roles
from momentum_sync.database.embedded import short_folder
from momentum_sync.database.files import Migration, migrations, text
from momentum_sync.database.migrate import migrate
from momentum_sync.errors import Unsuitable
from tests.fixtures.postgres import (
    SERVER_ROLE,
    add_intervention,
    add_score,
    new_user,
    programs_of,
    temporary_database,
)

VERSIONS = [
    "20241215000000", "20241217000001", "20261128000001", "20261128000002", "20261128000003", "20261128000004",
    "20261129000001",
]  # fmt: skip


def test_the_migrations_are_those_of_the_contract() -> None:
    assert [migration.title for migration in migrations()] == [
        "20241215000000_momentum_meter", "20241217000001_realtime_momentum_triggers", "20261128000001_momentum_publish",
        "20261128000002_momentum_triggers", "20261128000003_momentum_authorization",
        "20261128000004_momentum_policy_changes", "20261129000001_realtime_messages",
    ]  # fmt: skip


@pytest.mark.parametrize("migration", migrations(), ids=lambda migration: migration.name)
def test_each_file_begins_with_what_it_does(migration: Migration) -> None:
    assert list(migration.header) == ["Creates", "Changes in your tables", "Locks", "Needs", "Undo"]
    assert migration.sql.index("-- Undo") < migration.sql.index("set search_path = pg_catalog, pg_temp;")


def test_a_second_run_does_nothing(empty_database: str) -> None:
    told: list[str] = []
    assert migrate(empty_database, tell=told.append) == VERSIONS
    assert len(told) == len(VERSIONS)
    with psycopg.connect(empty_database) as connection:
        before = connection.execute("select oid, xmin::text from pg_class order by oid").fetchall()
    assert migrate(empty_database, tell=told.append) == []
    assert len(told) == len(VERSIONS)
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("select oid, xmin::text from pg_class order by oid").fetchall() == before


def test_the_bookkeeping_is_the_supabase_clis(empty_database: str) -> None:
    migrate(empty_database, tell=lambda _: None)
    with psycopg.connect(empty_database) as connection:
        rows = connection.execute(
            "select version, name, statements from supabase_migrations.schema_migrations order by version"
        ).fetchall()
    assert [(version, name) for version, name, _ in rows] == [
        (migration.version, migration.name) for migration in migrations()
    ]
    assert [statements for _, _, statements in rows] == [[migration.sql] for migration in migrations()]


def test_what_the_supabase_cli_applied_is_not_applied_again(empty_database: str) -> None:
    first, *others = migrations()
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(_bootstrap().encode())
        connection.execute("create schema supabase_migrations")
        connection.execute(
            "create table supabase_migrations.schema_migrations"
            " (version text not null primary key, statements text[], name text)"
        )
        connection.execute(first.sql.encode())
        connection.execute(
            "insert into supabase_migrations.schema_migrations (version, name) values (%s, %s)",
            (first.version, first.name),
        )
    assert migrate(empty_database, tell=lambda _: None) == [other.version for other in others]


def _bootstrap() -> str:
    return text("database/bootstrap.sql")


def test_a_failing_migration_leaves_no_trace_and_those_before_it_stay(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Migration("20990101000000", "broken", "create table public.half (id int); select 1 / 0;")
    whole = migrations()
    monkeypatch.setattr(runner, "migrations", lambda: [*whole, broken])
    with pytest.raises(
        Unsuitable, match="20990101000000_broken failed and was rolled back: division by zero"
    ) as failed:
        migrate(empty_database, tell=lambda _: None)
    assert "momentum-sync migrate" in failed.value.hint
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("select to_regclass('half')").fetchone() == (None,)
        applied = connection.execute("select version from supabase_migrations.schema_migrations order by 1").fetchall()
    assert applied == [(version,) for version in VERSIONS]


def test_two_runs_at_once_apply_everything_once(empty_database: str) -> None:
    applied: list[str] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            applied.extend(migrate(empty_database, tell=lambda _: None))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert applied == VERSIONS


def test_a_lock_held_too_long_is_an_error_that_says_so(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", (runner._LOCK,))
        with pytest.raises(Unsuitable, match="Another migration"):
            migrate(empty_database, tell=lambda _: None, patience_s=0.05)


def test_a_table_held_too_long_is_an_error_and_a_writer_goes_before_us(database: str) -> None:
    """A writer has locked one table and waits for the next, which the migration holds while it waits for the first."""
    again = "update supabase_migrations.schema_migrations set statements = array['another text']"
    with psycopg.connect(database, autocommit=True) as writer, ThreadPoolExecutor() as elsewhere:
        user = new_user(writer)
        writer.execute(again)
        writer.execute("begin")
        add_intervention(writer, user)
        migrating = elsewhere.submit(migrate, database, tell=lambda _: None, again=True)
        for number in range(20):  # until the migration has waited for the writer more than once
            while not writer.execute("select 1 from pg_locks where not granted").fetchone():
                assert not migrating.done()
            add_score(writer, user, day=f"date '2026-01-01' + {number}")
        writer.execute("commit")
        assert migrating.result(60) == VERSIONS[2:]  # the seed's versions may have any text
        writer.execute(again)
        writer.execute("begin")
        add_intervention(writer, user)
        with pytest.raises(Unsuitable, match=r"waited 0\.5 s for a lock on a table"):
            migrate(database, tell=lambda _: None, again=True, patience_s=0.5)


def test_bootstrap_leaves_what_is_there_alone(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("create schema auth")
        connection.execute("create table auth.users (id uuid primary key, phone text)")
        connection.execute("create function auth.uid() returns uuid language sql as 'select null::uuid'")
    migrate(empty_database, tell=lambda _: None)
    with psycopg.connect(empty_database) as connection:
        columns = connection.execute(
            "select attname from pg_attribute where attrelid = 'auth.users'::regclass and attnum > 0 order by attnum"
        ).fetchall()
        assert columns == [("id",), ("phone",)]
        assert connection.execute("select auth.uid()").fetchone() == (None,)


def test_tables_that_the_app_has_already_are_kept(empty_database: str) -> None:
    first, *_ = migrations()
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(_bootstrap().encode())
        connection.execute(first.sql.encode())
        user = new_user(connection)
        add_score(connection, user)
    assert migrate(empty_database, tell=lambda _: None) == VERSIONS
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("select count(*) from daily_engagement_scores").fetchone() == (1,)


@pytest.fixture
def supabase(cluster: str) -> Iterator[tuple[str, str]]:
    """Yield a database with Supabase's layout: `auth` has another owner, `postgres` is no superuser.

    Yields the connection strings of its owner and of a superuser.
    """
    with temporary_database(cluster) as conninfo, psycopg.connect(conninfo, autocommit=True) as admin:
        for role, attributes in {
            "supabase_auth_admin": "noinherit createrole",
            "project_owner": "login createrole createdb replication bypassrls",
        }.items():
            if not admin.execute("select 1 from pg_roles where rolname = %s", (role,)).fetchone():
                admin.execute(f"create role {role} {attributes}")
        for role in ("anon", "authenticated", "service_role"):
            if not admin.execute("select 1 from pg_roles where rolname = %s", (role,)).fetchone():
                bypass = "bypassrls" if role == "service_role" else ""
                admin.execute(f"create role {role} nologin noinherit {bypass}")
        admin.execute(f"""
            grant anon, authenticated, service_role to project_owner with admin option;
            alter database {psycopg.conninfo.conninfo_to_dict(conninfo)["dbname"]} owner to project_owner;
            alter schema public owner to project_owner;
            grant usage on schema public to anon, authenticated, service_role;
            create schema auth authorization supabase_auth_admin;
            set role supabase_auth_admin;
            create table auth.users (id uuid primary key, email text, raw_app_meta_data jsonb,
                raw_user_meta_data jsonb, created_at timestamptz);
            create function auth.jwt() returns jsonb language sql stable as
                'select nullif(current_setting(''request.jwt.claims'', true), '''')::jsonb';
            create function auth.uid() returns uuid language sql stable as
                'select nullif(auth.jwt() ->> ''sub'', '''')::uuid';
            create function auth.role() returns text language sql stable as 'select auth.jwt() ->> ''role''';
            grant usage on schema auth to anon, authenticated, service_role, project_owner;
            grant all on auth.users to project_owner;
            reset role;
            set role project_owner;
            create publication supabase_realtime;
            alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
            alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
            reset role;
        """)
        yield make_conninfo(conninfo, user="project_owner"), conninfo


def test_supabases_layout(supabase: tuple[str, str]) -> None:
    owner, superuser = supabase
    with psycopg.connect(superuser) as admin:
        before = _auth(admin)
    assert migrate(owner, tell=lambda _: None) == VERSIONS
    assert migrate(owner, tell=lambda _: None) == []
    with psycopg.connect(superuser, autocommit=True) as admin:
        assert _auth(admin) == before
        published = admin.execute(
            "select tablename from pg_publication_tables where pubname = 'supabase_realtime' order by 1"
        ).fetchall()
        assert published == [("coach_interventions",), ("daily_engagement_scores",), ("momentum_notifications",)]
        identities = admin.execute(
            "select distinct relreplident from pg_class where relname = any(%s)", ([name for (name,) in published],)
        ).fetchall()
        assert identities == [("f",)]
        user = new_user(admin)
        add_score(admin, user)
        for role, sees in {"anon": None, "authenticated": 0, "service_role": 1}.items():
            with admin.transaction(force_rollback=True):
                admin.execute(f"set local role {role}")
                if sees is None:
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        admin.execute("select * from daily_engagement_scores")
                else:
                    assert len(admin.execute("select * from daily_engagement_scores").fetchall()) == sees


def _auth(admin: psycopg.Connection[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Return everything in `auth`, the publication and the roles, as in the catalog."""
    return [
        *admin.execute(
            "select oid, relowner, relacl::text, relrowsecurity, relnatts from pg_class"
            " where relnamespace = 'auth'::regnamespace order by 1"
        ),
        *admin.execute("select oid, xmin::text from pg_proc where pronamespace = 'auth'::regnamespace order by 1"),
        *admin.execute("select oid, xmin::text from pg_publication where pubname = 'supabase_realtime'"),
        *admin.execute("select oid, xmin::text from pg_authid order by 1"),
    ]


def test_an_owner_who_is_no_superuser_equips_the_servers_roles(supabase: tuple[str, str]) -> None:
    owner, superuser = supabase
    server, capture = (make_conninfo(superuser, user=name) for name in ("their_server", "their_capture"))

    def equip() -> list[str]:
        return migrate(owner, tell=told.append, server_role="their_server")

    told: list[str] = []
    try:
        with pytest.raises(Unsuitable) as unsuitable:
            equip()
        create, grant, _ = unsuitable.value.hint.replace("…", "x").split("; ")
        with psycopg.connect(owner, autocommit=True) as connection:
            connection.execute(create.encode())
            with psycopg.connect(superuser, autocommit=True) as admin:  # before PostgreSQL 16 only a superuser may
                admin.execute("create role their_capture login replication")
            with pytest.raises(Unsuitable, match="is not a member of their_server"):
                equip()
            connection.execute(grant.encode())
            assert [equip(), equip(), migrate(owner, tell=told.append)] == [[], [], []]
            preflight.check(server, "momentum_sync", capture=capture)
            assert any("changed policies are noticed within about a second" in line for line in told)
            assert connection.execute("select count(*) from momentum.policies where changed").fetchone() == (0,)
            # The log belongs to the owner, so migrating needs no membership in the server's role.
            connection.execute("revoke their_server from project_owner")
            assert migrate(owner, tell=told.append) == []
            connection.execute(grant.encode())
            open_to_anon = connection.execute(
                "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'public'::regnamespace"
                " and has_function_privilege('anon', p.oid, 'execute')"
            ).fetchall()
            assert open_to_anon == []
            for role in ("project_owner", "postgres"):
                with pytest.raises(Unsuitable, match="must apply to the server"):
                    migrate(owner, tell=told.append, server_role=role)
        with psycopg.connect(superuser, autocommit=True) as admin:
            rights = admin.execute(
                "select pg_has_role('their_server', 'service_role', 'usage'),"
                " pg_has_role('their_server', 'service_role', case"  # before PostgreSQL 16, any member may
                " when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end),"
                " has_table_privilege('their_server', 'public.daily_engagement_scores', 'select')"
            ).fetchone()
            assert rights == (False, True, False)
    finally:
        with psycopg.connect(superuser, autocommit=True) as admin:
            for role in ("their_server", "their_capture"):
                if admin.execute("select 1 from pg_roles where rolname = %s", (role,)).fetchone():
                    admin.execute(f"reassign owned by {role} to postgres; drop owned by {role}; drop role {role}")


def test_what_was_damaged_is_applied_anew_by_the_owner_alone(supabase: tuple[str, str]) -> None:
    owner, superuser = supabase
    migrate(owner, tell=lambda _: None)
    with psycopg.connect(superuser, autocommit=True) as admin:
        admin.execute("drop function momentum.emit(text, text), momentum.notifies()")
        with pytest.raises(Unsuitable, match="belong to project_owner"):
            migrate(superuser, tell=lambda _: None, again=True)
        assert migrate(owner, tell=lambda _: None, again=True) == VERSIONS
        user = new_user(admin)
    with psycopg.connect(owner, autocommit=True) as connection:
        add_score(connection, user)
        connection.execute("update daily_engagement_scores set final_score = 1")
        connection.execute("update momentum.settings set notify = true")
        connection.execute("select momentum.check_policies()")
        owners = "select count(distinct proowner) from pg_proc where pronamespace = 'momentum'::regnamespace"
        assert connection.execute(owners).fetchone() == (1,)


def test_a_membership_that_inherits_is_made_one_that_does_not(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("create role trap login inherit; grant service_role to trap; alter role trap noinherit")
        try:
            migrate(database, tell=lambda _: None, server_role="trap")
            assert admin.execute("select pg_has_role('trap', 'service_role', 'usage')").fetchone() == (False,)
        finally:
            admin.execute(f"reassign owned by trap to {SERVER_ROLE}; drop owned by trap; drop role trap")


def test_a_role_that_may_not_is_told_which_may(supabase: tuple[str, str]) -> None:
    _, superuser = supabase
    with psycopg.connect(superuser, autocommit=True) as admin:
        if not admin.execute("select 1 from pg_roles where rolname = 'nobody_much'").fetchone():
            admin.execute("create role nobody_much login")
    with pytest.raises(Unsuitable, match="The database refused") as refused:
        migrate(make_conninfo(superuser, user="nobody_much"), tell=lambda _: None)
    assert "role that owns the tables" in refused.value.hint


def test_a_migration_applied_with_another_text_is_applied_again_only_on_request(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "update supabase_migrations.schema_migrations set statements = array['another text'] where version = %s",
            (VERSIONS[3],),
        )
        ours = "select oid::regprocedure::text from pg_proc where pronamespace = 'momentum'::regnamespace"
        made = set(connection.execute(ours).fetchall())
        connection.execute("drop function momentum.publish(text[], jsonb, jsonb)")
        connection.execute("alter table momentum.event_log drop column rows")
        user = new_user(connection)
        with pytest.raises(Unsuitable) as unsuitable:
            migrate(database, tell=lambda _: None)
        assert str(unsuitable.value).startswith("20261128000002_momentum_triggers was applied with different content")
        assert "momentum-sync migrate --again" in unsuitable.value.hint
        assert migrate(database, tell=lambda _: None, again=True) == VERSIONS
        assert migrate(database, tell=lambda _: None) == []
        add_score(connection, user)
        assert set(connection.execute(ours).fetchall()) == made
        assert connection.execute("select count(rows) from momentum.event_log").fetchone() == (0,)


def test_an_owner_who_is_no_superuser_migrates_as_the_page_says(request: pytest.FixtureRequest) -> None:
    page = (Path(__file__).parents[2] / "docs" / "adopt.md").read_text(encoding="utf-8")
    block = re.search(r"```postgresql\n(.*?)```", page, re.DOTALL)
    assert block is not None
    with short_folder() as folder, Installed(folder, programs_of(request.config)) as embedded:
        with psycopg.connect(embedded.conninfo, autocommit=True) as admin:
            admin.execute(
                "create role app_owner login createrole; create role momentum_server login noinherit;"
                " grant momentum_server to app_owner with admin option"
            )
            admin.execute("create database app owner app_owner")
            conninfo = make_conninfo(embedded.conninfo, user="app_owner", dbname="app")
            with pytest.raises(Unsuitable) as refused:
                migrate(conninfo, tell=lambda _: None)
            assert "docs/adopt.md, Plain PostgreSQL" in refused.value.hint
            admin.execute(block[1].encode())
        migrate(conninfo, tell=lambda _: None, server_role="momentum_server")
        with psycopg.connect(conninfo, autocommit=True) as owner:
            # A member of the server's role is no server; `uninstall` and `migrate --again` must not treat it as one.
            owner.execute("create role colleague; grant momentum_server to colleague")
            assert server_roles(owner) == ["momentum_server"]

"""Migration of databases that have the app's tables, the seed's own implementation, or an earlier version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from momentum_sync.database import adoption
from momentum_sync.database.adoption import plan, status
from momentum_sync.database.files import SEED_VERSIONS, migrations, text
from momentum_sync.database.migrate import migrate
from momentum_sync.database.uninstall import uninstall
from momentum_sync.errors import Unsuitable
from tests.fixtures.postgres import (
    Sql,
    add_intervention,
    add_notification,
    add_score,
    new_user,
    temporary_database,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
APP = (FIXTURES / "app.sql").read_text(encoding="utf-8")
SEED = (FIXTURES / "seed.sql").read_text(encoding="utf-8")
EARLIER = {
    path.stem.partition("_")[0]: path.read_text(encoding="utf-8")
    for path in sorted((FIXTURES / "earlier").glob("*.sql"))
}
TABLES = ("daily_engagement_scores", "momentum_notifications", "coach_interventions")
ENDS = """
select 'function ' || p.oid::regprocedure, pg_get_functiondef(p.oid) || ' ' || coalesce(p.proacl::text, '')
from pg_proc p
where p.pronamespace = 'momentum'::regnamespace
    or p.pronamespace = 'public'::regnamespace and p.proname <> 'touch'
union all
select 'trigger ' || t.tgname, pg_get_triggerdef(t.oid) || t.tgenabled::text
from pg_trigger t
where not t.tgisinternal and t.tgname not like '%updated_at' and t.tgrelid::regclass::text !~ 'event_log_'
union all
select 'column ' || a.attrelid::regclass || '.' || a.attname,
    concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attnum,
        pg_get_expr(d.adbin, d.adrelid), c.relacl)
from pg_attribute a
join pg_class c on c.oid = a.attrelid and c.relnamespace = 'momentum'::regnamespace and c.relkind in ('r', 'p')
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attnum > 0
union all
select 'constraint ' || c.conname, pg_get_constraintdef(c.oid)
from pg_constraint c where c.connamespace = 'momentum'::regnamespace
union all
select 'index ' || indexname, indexdef from pg_indexes where schemaname = 'momentum'
union all
select 'policy ' || tablename || ' ' || policyname, concat_ws(' ', cmd, roles, qual, with_check)
from pg_policies where schemaname = 'momentum'
union all
select 'event trigger ' || evtname, evttags::text from pg_event_trigger
union all
select 'publication ' || pubname, '' from pg_publication
union all
select 'installed ' || i.name, i.definition from momentum.installed i
union all
select 'shipped ' || p.table_name, p.shipped from momentum.policies p
"""
APPS = """
select 'relation ' || c.oid::regclass, concat_ws(' ', c.relacl, c.relrowsecurity, c.relreplident, c.relkind)
from pg_class c where c.relnamespace in ('public'::regnamespace, to_regnamespace('auth'))
union all
select 'column ' || a.attrelid::regclass || '.' || a.attname,
    concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attacl)
from pg_attribute a
join pg_class c on c.oid = a.attrelid and c.relnamespace = 'public'::regnamespace
where a.attnum > 0
union all
select 'policy ' || tablename || ': ' || policyname, concat_ws(' ', cmd, roles, permissive, qual, with_check)
from pg_policies where schemaname = 'public'
union all
select 'trigger ' || tgrelid::regclass || ': ' || tgname, pg_get_triggerdef(oid) from pg_trigger where not tgisinternal
union all
select 'function ' || oid::regprocedure, prosrc || coalesce(proacl::text, '')
from pg_proc where pronamespace in ('public'::regnamespace, to_regnamespace('auth'))
union all
select 'schema ' || nspname, coalesce(nspacl::text, '') from pg_namespace where nspname !~ '^pg_(temp|toast)'
union all
select 'event trigger ' || evtname, '' from pg_event_trigger
union all
select 'publication ' || p.pubname || ' ' || coalesce(t.tablename, ''), ''
from pg_publication p left join pg_publication_tables t using (pubname)
"""


def facts(conninfo: str, query: str) -> dict[str, str]:
    with psycopg.connect(conninfo) as connection:
        return dict(connection.execute(query.encode()).fetchall())


def rows(conninfo: str) -> list[object]:
    """Insert the app's data."""
    with psycopg.connect(conninfo) as connection:
        return [connection.execute(f"select * from public.{table} order by id".encode()).fetchall() for table in TABLES]


def run(conninfo: str, *scripts: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for script in scripts:
            connection.execute(script.encode())


def fill(conninfo: str) -> UUID:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        user = new_user(connection)
        add_score(connection, user)
        add_notification(connection, user)
        add_intervention(connection, user)
    return user


@pytest.fixture
def app(empty_database: str) -> str:
    """Return the seed's app, with rows and the seed's implementation, before it is adopted."""
    run(empty_database, text("database/bootstrap.sql"), APP)
    fill(empty_database)
    run(empty_database, SEED)
    return empty_database


def quiet(conninfo: str, *, again: bool = False) -> list[str]:
    """Migrate. Return the reported lines."""
    told: list[str] = []
    migrate(conninfo, tell=told.append, again=again)
    return told


def test_all_ways_end_in_the_same_objects(cluster: str) -> None:
    def earlier(conninfo: str) -> None:
        """Apply the files of the previous version."""
        run(conninfo, text("database/bootstrap.sql"), *EARLIER.values())
        run(
            conninfo,
            "create schema supabase_migrations; create table supabase_migrations.schema_migrations"
            " (version text primary key, statements text[], name text)",
            *(
                f"insert into supabase_migrations.schema_migrations values ('{version}', array['…'], '')"
                for version in EARLIER
            ),
        )
        run(conninfo, text("eventlog/schema.sql"))
        fill(conninfo)

    def tables_with_data(conninfo: str) -> None:
        run(conninfo, text("database/bootstrap.sql"), migrations()[0].sql)
        fill(conninfo)

    def applied_twice(conninfo: str) -> None:
        quiet(conninfo)
        quiet(conninfo, again=True)

    def by_the_supabase_cli(conninfo: str) -> None:
        run(conninfo, text("database/bootstrap.sql"), *(migration.sql for migration in migrations()))

    ends: dict[str, dict[str, str]] = {}
    ways: dict[str, Callable[[str], object]] = {
        "fresh": lambda _: None,
        "the app": lambda conninfo: run(conninfo, text("database/bootstrap.sql"), APP),
        "the seed": lambda conninfo: run(conninfo, text("database/bootstrap.sql"), APP, SEED),
        "tables with data": tables_with_data,
        "applied twice": applied_twice,
        "an earlier version": earlier,
        "the Supabase CLI": by_the_supabase_cli,
    }
    for name, before in ways.items():
        with temporary_database(cluster) as conninfo:
            before(conninfo)
            quiet(conninfo)
            ends[name] = facts(conninfo, ENDS)
            ends[name].pop("function momentum_set_updated_at()", None)  # belongs to tables that the migrations create
            ends[name].pop("function momentum.has_changed_policies(text)")  # a constant that says which policies differ
    fresh = ends.pop("fresh")
    assert len(fresh) > 100
    for name, end in ends.items():
        differing = {key: (fresh.get(key), end.get(key)) for key in fresh | end if fresh.get(key) != end.get(key)}
        assert differing == {}, name


def test_adoption_takes_nothing_away(app: str) -> None:
    before, data = facts(app, APPS), rows(app)
    quiet(app)
    after = facts(app, APPS)
    assert rows(app) == data
    changed = {name for name, fact in before.items() if after.get(name) != fact}
    assert changed == {
        # The seed's two holes, a function without a check and a policy on user_metadata, and its triggers.
        "policy coach_interventions: Coaches can view all interventions",
        *(
            name
            for name in before
            if name.startswith("function ") and name != "function touch()" and "auth." not in name
        ),
        "trigger coach_interventions: intervention_realtime_trigger",
        "trigger daily_engagement_scores: momentum_score_realtime_trigger",
        "trigger momentum_notifications: notification_realtime_trigger",
    }
    assert not any("user_meta" in fact for fact in after.values())
    new = sorted(name for name in after if name not in before and name.startswith("policy "))
    assert new == [
        "policy coach_interventions: Admins can view all interventions",
        "policy daily_engagement_scores: Admins can view all scores",
        "policy daily_engagement_scores: Coaches can view scores of assigned users",
        "policy momentum_notifications: Admins can view all notifications",
    ]


def test_the_app_writes_and_reads_as_before(app: str) -> None:
    quiet(app)
    with psycopg.connect(app) as connection:
        (user,) = connection.execute("select user_id from daily_engagement_scores").fetchone() or (None,)
        connection.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{user}"}}',))
        for role in ("authenticated", "anon"):
            connection.execute(f"set local role {role}".encode())
            connection.execute(
                "insert into daily_engagement_scores (user_id, score_date, momentum_state, final_score, updated_at)"
                " values (%s, date '2026-01-01', 'Rising', 1, now()) on conflict (user_id, score_date) do update"
                " set final_score = excluded.final_score, updated_at = excluded.updated_at",
                (user,),
            )
            for table in TABLES:
                assert connection.execute(f"select count(*) from {table}".encode()).fetchone() != (0,)
            assert connection.execute("update momentum_notifications set opened_at = now()").rowcount == 1


def test_equivalent_policies_under_other_names_cost_nothing(app: str) -> None:
    """One of the three tables has a policy that grants more than the shipped ones."""
    told = quiet(app)
    with psycopg.connect(app) as connection:
        changed = connection.execute("select table_name from momentum.policies where changed").fetchall()
    assert changed == [("coach_interventions",)]
    assert [line for line in told if "is not a shipped policy" in line] == [
        'public.coach_interventions: the policy "Coaches can view assigned interventions" is not a shipped policy:'
        " permissive (auth.uid() = assigned_coach_id)"
    ]
    assert any("two events instead of one" in line for line in told)
    assert quiet(app) == []  # reported when something was applied; later by `--status`
    assert set(told) & set(status(app))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('alter policy "Users can view own scores" on daily_engagement_scores using (true)', "permissive true"),
        ("create policy strict on momentum_notifications as restrictive using (status <> 'failed')", '"strict"'),
        ("alter table daily_engagement_scores disable row level security", "row level security is off"),
        ("revoke select on momentum_notifications from authenticated", "may not SELECT it"),
        ('drop policy "Admins can view all scores" on daily_engagement_scores', "lacks a shipped policy"),
        ("alter table momentum_notifications replica identity default", "lacks replica identity full"),
        (
            "create policy p on daily_engagement_scores for select"
            " using (auth.jwt() -> 'user_metadata' ->> 'role' = 'coach')",
            "users can edit themselves",
        ),
        (
            "create or replace function momentum_caller_role() returns text language sql return 'admin'",
            "differs from the shipped version",
        ),
    ],
)
def test_what_differs_is_told(app: str, change: str, says: str) -> None:
    quiet(app)
    assert not any(says in line for line in status(app))
    run(app, change, "select momentum.check_policies()")
    assert any(says in line for line in status(app))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("alter table daily_engagement_scores drop column momentum_state", "scores.momentum_state (text)"),
        ("alter table coach_interventions alter user_id type text", "coach_interventions.user_id (uuid not null)"),
        ("alter table momentum_notifications alter user_id drop not null", "notifications.user_id (uuid not null)"),
        ("alter table realtime_event_metrics drop column success", "realtime_event_metrics.success (boolean)"),
        (
            "drop table momentum_notifications; create table momentum_notifications (id serial primary key, text text)",
            "momentum_notifications.title (text)",
        ),
        (
            "alter table coach_interventions rename to other; create view coach_interventions as select * from other",
            "coach_interventions.id (uuid not null)",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("recorded", [True, False])
def test_a_table_of_another_shape_is_refused_and_nothing_changes(
    empty_database: str, change: str, named: str, recorded: bool
) -> None:
    """`migrate` refuses the table, and so does each file that the Supabase CLI may apply first."""
    app = empty_database
    policies = (
        'drop policy "Users can view own interventions" on coach_interventions;' if "user_id type" in change else ""
    )
    constraint = "alter table coach_interventions drop constraint coach_interventions_user_id_fkey;" if policies else ""
    run(app, text("database/bootstrap.sql"), APP, policies + constraint + change)
    if not recorded:
        run(app, "drop schema supabase_migrations cascade")
    before = facts(app, APPS)
    for attempt in (quiet, plan):
        with pytest.raises(Unsuitable) as refused:
            attempt(app)
        assert named in str(refused.value)
        assert "rename the table if it has another purpose" in refused.value.hint
    first = migrations()[2 if recorded else 0]
    with pytest.raises(psycopg.errors.UndefinedColumn) as error:
        run(app, first.sql)
    assert named in str(error.value.diag.message_primary)
    assert facts(app, APPS) == before


def test_the_check_of_the_shape_is_the_same_wherever_it_stands() -> None:
    shape = text("database/shape.sql").strip()
    assert [migration.name for migration in migrations() if shape in migration.sql] == [
        "momentum_meter",
        "momentum_publish",
    ]


def test_missing_tables_that_are_recorded_are_named(empty_database: str) -> None:
    run(empty_database, text("database/bootstrap.sql"), APP, "drop table coach_interventions")
    with pytest.raises(Unsuitable, match=r"the table public\.coach_interventions is missing") as refused:
        quiet(empty_database)
    assert "20241215000000_momentum_meter.sql" in refused.value.hint


def test_a_plan_and_a_status_change_nothing(empty_database: str) -> None:
    before = facts(empty_database, APPS)
    fresh = plan(empty_database)
    assert "create public.coach_interventions" in fresh
    assert "create auth.users, which Supabase would provide" in fresh
    assert any(line.startswith("    Locks: ") for line in fresh)
    assert status(empty_database) == [f"{migration.title}: not applied" for migration in migrations()]
    assert facts(empty_database, APPS) == before
    run(empty_database, text("database/bootstrap.sql"), APP)
    adopted = plan(empty_database)
    assert "adopt public.coach_interventions, as it is" in adopted
    assert [line for line in adopted if line.startswith("apply ")] == [
        f"apply {migration.title}" for migration in migrations() if migration.version not in SEED_VERSIONS
    ]
    before = facts(empty_database, APPS)
    plan(empty_database)
    assert "20241215000000_momentum_meter: applied by another tool" in status(empty_database)
    assert facts(empty_database, APPS) == before
    quiet(empty_database)
    assert plan(empty_database) == ["nothing: the database is up to date"]


def test_no_file_prints_a_notice(empty_database: str) -> None:
    notices: list[str | None] = []
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(text("database/bootstrap.sql").encode())
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        for _ in range(2):
            for migration in migrations():
                connection.execute(migration.sql.encode())
    assert notices == []


def test_applied_by_hand_each_file_leaves_the_session_as_it_was(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(text("database/bootstrap.sql").encode())
        settings = "select current_setting('search_path'), current_setting('client_min_messages')"
        before = connection.execute(settings).fetchone()
        for migration in migrations():
            connection.execute(migration.sql.encode())
            assert connection.execute(settings).fetchone() == before


def test_uninstall_leaves_an_app_as_it_was(empty_database: str) -> None:
    """Only the policies of admins and coaches are the product's, and are dropped."""
    run(empty_database, text("database/bootstrap.sql"), APP)
    fill(empty_database)
    before, data = facts(empty_database, APPS), rows(empty_database)
    versions = "select version, statements[1] from supabase_migrations.schema_migrations"
    recorded = facts(empty_database, versions)
    quiet(empty_database)
    run(empty_database, "select pg_create_logical_replication_slot('momentum_test_slot', 'pgoutput')")
    told: list[str] = []
    uninstall(empty_database, slot="momentum_test_slot", tell=told.append)
    after = facts(empty_database, APPS)
    role = "policy coach_interventions: Coaches can view all interventions"  # the corrected policy stays
    assert "app_metadata" in after.pop(role)
    assert "user_meta_data" in before.pop(role)
    assert after == before
    assert rows(empty_database) == data
    assert facts(empty_database, versions) == recorded
    assert "removed the replication slot momentum_test_slot" in told
    with psycopg.connect(empty_database) as connection:
        assert (
            connection.execute("select from pg_replication_slots where database = current_database()").fetchall() == []
        )
    uninstall(empty_database, slot="momentum_test_slot", tell=told.append)  # a second run removes nothing
    quiet(empty_database)
    assert adoption.plan(empty_database) == ["nothing: the database is up to date"]


@pytest.mark.parametrize("earlier", [True, False])
def test_uninstall_leaves_the_tables_that_we_made(empty_database: str, earlier: bool) -> None:
    if earlier:
        run(empty_database, text("database/bootstrap.sql"), *EARLIER.values())
    quiet(empty_database)
    fill(empty_database)
    data = rows(empty_database)
    told: list[str] = []
    uninstall(empty_database, slot="momentum_sync", tell=told.append)
    (said,) = [line for line in told if "schema auth" in line]
    assert "function public.momentum_set_updated_at()" in said
    assert rows(empty_database) == data
    left = facts(empty_database, APPS)
    assert sorted(name for name in left if name.startswith(("trigger", "function")) and "auth." not in name) == [
        "function momentum_set_updated_at()",
        "trigger coach_interventions: coach_interventions_updated_at",
        "trigger daily_engagement_scores: daily_engagement_scores_updated_at",
        "trigger momentum_notifications: momentum_notifications_updated_at",
    ]
    assert not any(
        name in left for name in ("schema momentum", "schema momentum_log", "relation realtime_event_metrics")
    )
    assert not any("momentum_caller_role" in fact for fact in left.values())
    run(empty_database, "update daily_engagement_scores set final_score = 2")


def test_uninstall_waits_for_no_server_that_is_still_connected(database: str) -> None:
    """A server that does not hold the slot would create it again."""
    before = facts(database, APPS)
    with psycopg.connect(database, application_name="momentum-sync log"):
        with pytest.raises(Unsuitable, match="A server is connected"):
            uninstall(database, slot="momentum_sync", tell=lambda _: None)
    assert facts(database, APPS) == before


def test_uninstall_stops_at_what_others_have_built_on_it(database: str) -> None:
    run(database, "create view public.settings_of_sync as select notify from momentum.settings")
    before = facts(database, APPS)
    with pytest.raises(Unsuitable, match=r"view public\.settings_of_sync depends on table momentum\.settings"):
        uninstall(database, slot="momentum_sync", tell=lambda _: None)
    assert facts(database, APPS) == before


def test_a_superuser_asks_nothing_of_a_lesser_roles_functions(database: str, db: Sql) -> None:
    role = f"lesser_{uuid4().hex[:8]}"
    db.execute(f"create role {role} login")
    try:
        for table in TABLES:
            db.execute(f"alter table public.{table} owner to {role}".encode())
        for ask in (plan, status, lambda conninfo: uninstall(conninfo, slot="momentum_sync", tell=lambda _: None)):
            with pytest.raises(Unsuitable, match=f"belong to {role}"):
                ask(database)
    finally:
        db.execute(f"reassign owned by {role} to postgres; drop owned by {role}; drop role {role}".encode())


@pytest.mark.parametrize(
    "theirs",
    [
        "create schema momentum; create table momentum.lessons (id int)",
        "create schema momentum; create function momentum.mine() returns int language sql return 1",
        "create function public.momentum_caller_role() returns text language sql return 'admin'",
        "create function public.momentum_grant(int) returns int language sql return 1",
    ],
)
def test_what_has_our_names_and_is_not_ours_is_refused(empty_database: str, theirs: str) -> None:
    run(empty_database, text("database/bootstrap.sql"), APP, theirs)
    before = facts(empty_database, APPS)
    for attempt in (quiet, plan):
        with pytest.raises(Unsuitable, match="exist and were not created by it"):
            attempt(empty_database)
    assert facts(empty_database, APPS) == before


def test_uninstall_leaves_what_others_put_beside_ours(database: str) -> None:
    """It fails and names the foreign objects in the schema."""
    run(database, "create function momentum.mine() returns int language sql return 1")
    before = facts(database, APPS)
    with pytest.raises(Unsuitable, match=r"momentum\.mine"):
        uninstall(database, slot="momentum_sync", tell=lambda _: None)
    assert facts(database, APPS) == before


@pytest.mark.parametrize(
    "trap",
    [
        "create schema momentum; create table momentum.settings (single boolean)",
        "create schema supabase_migrations; create view supabase_migrations.schema_migrations as select 1 as version",
        "create table public.realtime_event_metrics (id uuid, event_type text, channel_name text, user_id uuid,"
        " payload_size int, processing_time_ms int, success boolean, error_message text, created_at timestamptz)",
        "create function public.momentum_set_updated_at() returns trigger language plpgsql as 'begin return new; end'",
        "create function public.momentum_display_name(uuid) returns text language sql return 'x'",
    ],
)
def test_a_superuser_runs_nothing_that_a_lesser_role_has_left(empty_database: str, trap: str) -> None:
    role = f"lesser_{uuid4().hex[:8]}"
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(text("database/bootstrap.sql").encode())
        admin.execute(f"create role {role} login; grant create on schema public to {role}".encode())
        admin.execute(
            f"do $$ begin execute format('grant create on database %I to {role}', current_database()); end $$".encode()
        )
        try:
            admin.execute(f"set role {role}".encode())
            admin.execute(trap.encode())
            admin.execute("reset role")
            before = facts(empty_database, APPS)
            for attempt in (quiet, plan, status, lambda conninfo: uninstall(conninfo, slot="s", tell=lambda _: None)):
                with pytest.raises(Unsuitable, match=f"belongs to {role}"):
                    attempt(empty_database)
            assert facts(empty_database, APPS) == before
        finally:
            admin.execute(f"reset role; drop owned by {role} cascade; drop role {role}".encode())


def test_policies_that_the_app_made_its_own_are_left(app: str) -> None:
    own = {
        "Coaches can view all interventions": "auth.jwt() -> 'app_metadata' ->> 'role' = 'coach'"
        " and auth.jwt() -> 'user_metadata' ->> 'locale' is not null",
        "Coaches can update assigned interventions": "auth.uid() = assigned_coach_id and status <> 'completed'",
    }
    for name, condition in own.items():
        run(app, f'alter policy "{name}" on coach_interventions using ({condition})')
    before = facts(app, APPS)
    told = quiet(app)
    quiet(app, again=True)
    after = facts(app, APPS)
    for name in own:
        assert after[f"policy coach_interventions: {name}"] == before[f"policy coach_interventions: {name}"]
    assert any("users can edit themselves" in line for line in told)


def test_tables_of_several_owners_are_handed_to_nobody(app: str) -> None:
    role = f"lesser_{uuid4().hex[:8]}"
    with psycopg.connect(app, autocommit=True) as admin:
        admin.execute(f"create role {role} login; create role {role}_b login".encode())
        try:
            admin.execute(f"alter table daily_engagement_scores owner to {role}".encode())
            admin.execute(f"alter table coach_interventions owner to {role}_b".encode())
            with pytest.raises(Unsuitable, match=f"belong to {role}"):
                migrate(app, tell=lambda _: None)
            owner = "select relowner::regrole::text from pg_class where oid = 'coach_interventions'::regclass"
            assert admin.execute(owner).fetchone() == (f"{role}_b",)
        finally:
            for name in (role, f"{role}_b"):
                admin.execute(f"reassign owned by {name} to postgres; drop owned by {name}; drop role {name}".encode())


def test_a_partitioned_table_is_adopted_again_and_again(empty_database: str) -> None:
    parts = (
        "alter publication supabase_realtime drop table daily_engagement_scores;"
        "alter table daily_engagement_scores rename to before_it;"
        "create table daily_engagement_scores (like before_it including defaults) partition by range (score_date);"
        "create table scores_now partition of daily_engagement_scores default;"
        "alter publication supabase_realtime add table daily_engagement_scores"
    )
    run(empty_database, text("database/bootstrap.sql"), APP, parts)
    quiet(empty_database)
    assert quiet(empty_database, again=True)[0].startswith("applied")


def test_an_unlogged_table_is_refused(empty_database: str) -> None:
    """The WAL has no rows of unlogged tables."""
    unlogged = (
        "alter publication supabase_realtime drop table momentum_notifications;"
        "alter table momentum_notifications set unlogged"
    )
    run(empty_database, text("database/bootstrap.sql"), APP, unlogged)
    with pytest.raises(Unsuitable, match="momentum_notifications"):
        quiet(empty_database)

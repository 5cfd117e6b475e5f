"""The doctor on real databases and servers: all is well, and each of the usual faults is named with its remedy."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from momentum_sync import __version__
from momentum_sync.doctor.database import check_database
from momentum_sync.doctor.examination import examine
from momentum_sync.doctor.finding import Finding, Level
from momentum_sync.doctor.report import as_json
from momentum_sync.settings import Settings
from tests.fixtures.cli import run
from tests.fixtures.gateways import Nats
from tests.fixtures.postgres import CAPTURE_ROLE, SERVER_ROLE, Sql
from tests.fixtures.server import SECRET, Server, Start, settings_for, sign

NOWHERE = "http://127.0.0.1:1"
GOOD = {Level.OK, Level.NOTE}


def findings(
    settings: Settings, url: str | None = NOWHERE, *, probes: bool = False, token: str | None = None
) -> list[Finding]:
    return list(examine(settings, [], url=url, token=token, probes=probes))


def of(found: list[Finding], check: str, *, level: Level) -> list[Finding]:
    """Return the findings of a check, all of which must have this level, and a remedy where something is wrong."""
    wanted = [finding for finding in found if finding.check == check and finding.level is level]
    assert wanted, [(finding.check, finding.level, finding.found) for finding in found]
    for finding in wanted:
        assert level in GOOD or finding.fix
    return wanted


def only(database: str, check: str, level: Level = Level.WARNING, **settings: object) -> Finding:
    (finding,) = of(findings(settings_for(database, **settings)), check, level=level)
    return finding


async def test_healthy_server_has_no_problems(server: Server) -> None:
    found = await asyncio.to_thread(findings, server.settings, server.url, probes=True)
    bad = [finding for finding in found if finding.level not in GOOD]
    assert {finding.check for finding in bad} <= {"retained WAL", "open files"}, bad
    assert "being read" in of(found, "replication slot", level=Level.OK)[-1].found
    assert "an event arrived" in of(found, "delivery", level=Level.OK)[0].found
    assert of(found, "versions", level=Level.OK)[0].found == f"{__version__} on this machine"
    assert of(found, "server's version", level=Level.OK)


async def test_client_sdk_versions_are_reported(server: Server, user: UUID) -> None:
    async with server.live(user, sdk="python-9.0.1"), server.live(user, client_id="b"):
        found = await asyncio.to_thread(findings, server.settings, server.url)
    (finding,) = of(found, "clients' SDKs", level=Level.NOTE)
    assert finding.found == "1 with an unknown SDK, 1 with python-9.0.1"
    assert finding.why.startswith("python-9.0.1: not the server's version")


async def test_the_probe_with_a_users_own_token(server: Server, user: UUID) -> None:
    alone = settings_for(str(server.settings.database_url), jwt_secret=None, supabase_url="http://127.0.0.1:1")
    refused = await asyncio.to_thread(findings, alone, server.url, probes=True)
    assert "only the issuer can sign" in of(refused, "delivery", level=Level.NOTE)[0].found
    assert of(refused, "issuer", level=Level.PROBLEM)
    found = await asyncio.to_thread(findings, alone, server.url, probes=True, token=sign(user))
    assert of(found, "delivery", level=Level.OK)


def test_before_migrate(empty_database: str) -> None:
    found = findings(settings_for(empty_database))
    (finding,) = of(found, "migrations", level=Level.PROBLEM)
    assert finding.fix == "Run: momentum-sync migrate"
    assert of(found, "version", level=Level.OK)
    assert of(found, "clocks", level=Level.OK), "the other checks run all the same"
    assert not [each for each in found if each.level is Level.UNKNOWN]


def test_nothing_answers(database: str) -> None:
    finding = only(make_conninfo(database, host="127.0.0.1", port=1), "connection", Level.PROBLEM)
    assert "cannot be reached" in finding.found


def test_no_server_runs(database: str) -> None:
    found = findings(settings_for(database, port=1), url=None)
    assert "no server answers at http://127.0.0.1:1" in of(found, "health", level=Level.NOTE)[0].found
    assert of(found, "versions", level=Level.NOTE)
    assert of(findings(settings_for(database)), "health", level=Level.PROBLEM), "asked for"


@pytest.mark.parametrize(
    ("statement", "check", "level", "said", "fix"),
    [
        (
            "alter table daily_engagement_scores disable trigger momentum_score_realtime_trigger",
            "triggers", Level.PROBLEM, "momentum_score", "momentum-sync migrate --again",
        ),
        (
            "create function touch() returns trigger language plpgsql as 'begin return new; end';"
            "create trigger a after update on daily_engagement_scores for each row execute function touch()",
            "other triggers", Level.WARNING, "the trigger a", "rename it",
        ),
        (
            "alter table momentum_notifications disable row level security",
            "policies of the app", Level.PROBLEM, "row level security is off", "enable row level security",
        ),
        (
            "create policy meta on momentum_notifications for select to authenticated"
            " using (auth.jwt() -> 'user_metadata' ->> 'role' = 'admin')",
            "policies of the app", Level.PROBLEM, "trusts user_metadata", "app_metadata",
        ),
        (
            "drop event trigger momentum_policies", "event trigger", Level.WARNING, "missing", "migrate --again",
        ),
        (
            "create table keyless (n int); alter publication supabase_realtime add table keyless",
            "replica identity", Level.PROBLEM, "public.keyless has none", "replica identity full",
        ),
        (
            "create table open (n int primary key); grant select on open to authenticated;"
            "alter publication supabase_realtime add table open",
            "policies", Level.WARNING, "row level security is off, and authenticated", "enable row level security",
        ),
        (
            "create table slow (n int primary key); alter table slow enable row level security;"
            "alter table slow replica identity full; grant select on slow to authenticated;"
            "create policy p on slow for select to authenticated using (n < 5);"
            "alter publication supabase_realtime add table slow",
            "policies", Level.NOTE, "public.slow: changes are checked per event", "Write policies as",
        ),
        (
            "create table two (n int primary key); alter table two enable row level security;"
            "alter table two replica identity full; grant select on two to authenticated;"
            "create policy p on two for select to authenticated using (n < 5);"
            "create policy q on two as restrictive for select to authenticated using (n > 1);"
            "alter publication supabase_realtime add table two",
            "policies", Level.NOTE, "not compiled: n < 5; not compiled: n > 1",
            "Write policies as",
        ),
        ("drop function momentum.admit(jsonb) cascade", "migrations", Level.PROBLEM, "missing", "migrate --again"),
        (
            "drop publication supabase_realtime", "publication", Level.NOTE, "no supabase_realtime", "migrate",
        ),
    ],
)  # fmt: skip
def test_each_usual_fault_is_named(
    database: str, db: Sql, statement: str, check: str, level: Level, said: str, fix: str
) -> None:
    db.execute(statement.encode())
    found = of(findings(settings_for(database)), check, level=level)
    assert any(said in finding.found and fix in finding.fix for finding in found), found


def test_a_compiled_policy_costs_no_query(database: str, db: Sql) -> None:
    db.execute(
        "create table own (n int primary key, owner uuid); alter table own enable row level security;"
        "alter table own replica identity full; grant select on own to authenticated;"
        "create policy p on own for select to authenticated using (owner = auth.uid());"
        "alter publication supabase_realtime add table own"
    )
    found = of(findings(settings_for(database)), "policies", level=Level.OK)
    assert "public.own: compiled for authenticated" in found[0].found


@pytest.fixture
def idle_slot(database: str, db: Sql) -> Iterator[str]:
    name = "doctors_slot"
    db.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    yield name
    db.execute("select pg_drop_replication_slot(%s)", (name,))


def test_a_slot_that_nobody_reads(database: str, idle_slot: str) -> None:
    finding = only(database, "replication slot", slot=idle_slot)
    assert "is not being read" in finding.found
    assert finding.fix.startswith("momentum-sync serve")


async def test_a_slot_that_was_dropped(start: Start, database: str, db: Sql) -> None:
    async with start():
        pass
    whole = await asyncio.to_thread(findings, settings_for(database))
    assert not [each for each in whole if each.check == "dropped slot"]
    db.execute("select pg_drop_replication_slot('momentum_sync')")
    finding = await asyncio.to_thread(only, database, "dropped slot")
    assert finding.found == "the event log was read through the slot momentum_sync, which is gone"


def test_an_old_transaction(database: str) -> None:
    with psycopg.connect(database, application_name="report") as other:
        other.execute("select 1")
        found = list(check_database(settings_for(database), database, old_s=0.0))
        (finding,) = of(found, "transactions", level=Level.WARNING)
        assert "(report)" in finding.found
        assert finding.fix == f"As a superuser: select pg_terminate_backend({other.info.backend_pid});"
    assert of(list(check_database(settings_for(database), database)), "transactions", level=Level.OK)


def test_a_role_that_does_not_see_transactions_of_others_is_told(database: str) -> None:
    conninfo = make_conninfo(database, user=SERVER_ROLE)
    with psycopg.connect(database) as other:
        other.execute("select 1")
        found = list(check_database(settings_for(conninfo), conninfo, old_s=0.0))
    (finding,) = of(found, "transactions", level=Level.NOTE)
    assert finding.fix == f"As a superuser: grant pg_read_all_stats to {SERVER_ROLE};"
    assert not [each for each in found if each.check == "transactions" and each.level is Level.OK]


def test_settings_of_roles_are_told(database: str, db: Sql) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    db.execute(f'alter database "{name}" set search_path = public'.encode())
    db.execute(f"alter database \"{name}\" set app.settings.jwt_secret = 'do not show'".encode())
    finding = of(findings(settings_for(database)), "role settings", level=Level.NOTE)[0]
    assert "database: search_path" in finding.found
    assert "app.settings.jwt_secret" in finding.found
    assert "do not show" not in finding.found
    assert "without effect on the server, which pins its own: 1" in finding.found


async def test_nats_that_answers_and_nats_that_does_not(database: str, nats: Nats) -> None:
    settings = settings_for(database, role="gateway", nats_url=f"{nats.url},nats://127.0.0.1:1")
    found = await asyncio.to_thread(findings, settings)
    assert "answers within" in of(found, "NATS 1", level=Level.OK)[0].found
    (finding,) = of(found, "NATS 2", level=Level.PROBLEM)
    assert "MOMENTUM_NATS_URL" in finding.fix


async def test_a_degraded_server_says_why(start: Start, database: str, db: Sql) -> None:
    db.execute("alter table daily_engagement_scores disable trigger momentum_score_realtime_trigger")
    async with start() as server, server.http() as http:
        async with asyncio.timeout(10):
            while (health := (await http.get("/sync/health?verbose")).json())["status"] != "degraded":
                await asyncio.sleep(0.1)
        assert "not as installed" in health["reasons"][0]
        found = await asyncio.to_thread(findings, server.settings, server.url)
    assert of(found, "health", level=Level.WARNING)


async def test_liveness_and_readiness_are_separate_probes(start: Start) -> None:
    async with start() as server, server.http() as http:
        assert (await http.get("/sync/health/live")).json() == {"status": "live"}
        async with asyncio.timeout(10):
            while (await http.get("/sync/health/ready")).status_code != 200:
                await asyncio.sleep(0.05)
        assert (await http.get("/sync/health")).json().keys().isdisjoint({"reasons", "sdks", "window"})
        verbose: dict[str, Any] = (await http.get("/sync/health", params={"verbose": "1"})).json()
        assert verbose["reasons"] == []
        assert verbose["sdks"] == {}
        assert verbose["window"].keys() == {"events", "bytes", "newest", "logged"}


def test_the_command(database: str, tmp_path: Path) -> None:
    done = run("doctor", "--json", cwd=tmp_path, DATABASE_URL=database, SUPABASE_JWT_SECRET=SECRET, MOMENTUM_PROT="1")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"area": "settings", "check": "variables", "level": "warning"}.items() <= found[0].items()
    text = run("doctor", cwd=tmp_path, DATABASE_URL=database, SUPABASE_JWT_SECRET=SECRET)
    assert "settings\n  ok" in text.stdout
    assert "checks: " in text.stdout.splitlines()[-1]
    assert run("doctor", "--strict", cwd=tmp_path, DATABASE_URL=database, MOMENTUM_PROT="1").returncode == 1
    assert run("doctor", cwd=tmp_path, DATABASE_URL="postgresql://127.0.0.1:1/d").returncode == 1


def test_all_invalid_values_are_reported_together(database: str, tmp_path: Path) -> None:
    wrong = {"MOMENTUM_RETENTION": "soon", "MOMENTUM_PORT": "http"}
    done = run("doctor", "--json", cwd=tmp_path, DATABASE_URL=database, SUPABASE_JWT_SECRET=SECRET, **wrong)
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    told = [each["found"] for each in found if each["check"] == "invalid"]
    assert [name for name in wrong if any(name in each for each in told)] == list(wrong)
    assert any((each["area"], each["level"]) == ("database", "ok") for each in found), "the rest is checked"


def test_settings_that_contradict_each_other_end_the_checks(tmp_path: Path) -> None:
    done = run("doctor", "--json", cwd=tmp_path, MOMENTUM_HOST="0.0.0.0", MOMENTUM_RETENTION="soon")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [each["check"] for each in found] == ["invalid", "invalid"]
    assert ["MOMENTUM_RETENTION" in found[0]["found"], "MOMENTUM_HOST" in found[1]["found"]] == [True, True]


def test_a_new_slot_that_waits_for_a_transaction(database: str, cluster: str) -> None:
    """Capture creates the slot, which waits for transactions that wrote something before."""
    with psycopg.connect(cluster) as other, psycopg.connect(database, autocommit=True) as creating:
        other.execute("select pg_current_xact_id()")
        waiting = threading.Thread(
            target=lambda: creating.execute("select pg_create_logical_replication_slot('waiting', 'pgoutput')")
        )
        waiting.start()
        try:
            deadline = time.monotonic() + 20
            while not (found := slot_findings(database, "waiting")) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert f"waits for process {other.info.backend_pid}" in found[0].found
            assert found[0].fix == f"select pg_terminate_backend({other.info.backend_pid});"
        finally:
            other.rollback()
            waiting.join()
            creating.execute("select pg_drop_replication_slot('waiting')")


def slot_findings(database: str, slot: str) -> list[Finding]:
    found = check_database(settings_for(database, slot=slot), database)
    return [each for each in found if each.check == "replication slot" and each.level is Level.PROBLEM]


def test_without_a_database_none_is_created(tmp_path: Path) -> None:
    done = run("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert any(each["found"] == "no DATABASE_URL, and no embedded PostgreSQL yet" for each in json.loads(done.stdout))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://[::1", "127.0.0.1:1", "nonsense"])
def test_an_address_that_is_none_is_a_finding(database: str, url: str) -> None:
    assert of(findings(settings_for(database), url), "health", level=Level.PROBLEM)


@pytest.mark.parametrize("host", ["fe", "db", "0.0.0.0", "::1"])
def test_any_host_can_be_asked(database: str, host: str) -> None:
    found = findings(settings_for(database, host=host, port=1), url=None)
    assert [each for each in found if each.check == "health"]


def test_no_password_is_shown(database: str) -> None:
    settings = settings_for(database, supabase_url="http://user:hidden@127.0.0.1:1")
    assert "hidden" not in as_json(findings(settings))


def test_a_table_that_postgresql_refuses_to_update(database: str, db: Sql) -> None:
    db.execute(
        "create table by_index (n int not null); create unique index one on by_index (n);"
        "alter table by_index replica identity using index one; drop index one;"
        "create publication theirs for table by_index"
    )
    found = of(findings(settings_for(database)), "replica identity", level=Level.PROBLEM)
    assert "public.by_index" in found[0].found


def test_a_server_role_without_privileges(database: str) -> None:
    finding = only(make_conninfo(database, user=CAPTURE_ROLE), "privileges", Level.PROBLEM)
    assert "migrate --server-role" in finding.fix

"""Schema realtime: made where it is missing, used as it is where Supabase has made it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from momentum_sync.database.migrate import migrate
from momentum_sync.database.uninstall import uninstall
from momentum_sync.errors import Unsuitable
from tests.fixtures.postgres import As, Sql

NAMES = """
select array_agg(c.relname::text order by c.relname) from pg_class c
where c.relnamespace = 'realtime'::regnamespace and c.relkind in ('r', 'p')
"""
SUPABASES = "supabase_realtime_admin"


def one(sql: Sql, query: str, *values: Any) -> Any:
    row = sql.execute(query.encode(), values).fetchone()
    assert row is not None
    return row[0]


def told(sql: Sql) -> list[str]:
    """Return a list that gets the warnings of a connection."""
    said: list[str] = []
    sql.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
    return said


def test_a_payload_gets_the_id_of_its_message_unless_it_has_one(db: Sql) -> None:
    for payload in ('{"a": 1}', '{"id": 7}', "[1]", "null"):
        db.execute("select realtime.send(%s::jsonb, 'e', 'a')", (payload,))
    rows = db.execute(
        "select payload, payload ->> 'id' = id::text, private, extension, topic, event from realtime.messages"
        " order by inserted_at"
    ).fetchall()
    assert [row[2:] for row in rows] == [(True, "broadcast", "a", "e")] * 4
    assert rows[0][1]
    assert rows[0][0]["a"] == 1
    assert [row[0] for row in rows[1:]] == [{"id": 7}, [1], None]
    db.execute("select realtime.send_binary('\\x00ff', 'e', 'a', false)")
    assert db.execute(
        "select binary_payload, private, payload from realtime.messages where not private"
    ).fetchall() == [(b"\x00\xff", False, None)]


def test_the_topic_is_known_to_policies_and_to_the_transaction(db: Sql, user: UUID, acting: As) -> None:
    db.execute(
        "create policy own on realtime.messages for insert to authenticated"
        " with check (realtime.topic() = 'own:' || auth.uid())"
    )
    with acting(user) as sql:
        said = told(sql)
        sql.execute("select realtime.send('{}', 'e', %s)", (f"own:{user}",))
        assert said == []
        sql.execute("select realtime.send('{}', 'e', 'another')")
        sql.execute("select realtime.send_binary('\\x00', 'e', 'another')")
        assert (
            said == ['WarnSendingBroadcastMessage: new row violates row-level security policy for table "messages"'] * 2
        )
    assert db.execute("select topic from realtime.messages").fetchall() == [(f"own:{user}",)]
    assert one(db, "select realtime.topic()") is None


def test_changes_are_broadcast_from_row_triggers_alone(db: Sql) -> None:
    call = "select realtime.broadcast_changes('a', 'e', %s, 't', 's', row(1), row(2), %s)"
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="for each row"):
        db.execute(call, ("INSERT", "STATEMENT"))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="TRUNCATE; it takes INSERT"):
        db.execute(call, ("TRUNCATE", "ROW"))


def test_days_have_partitions_and_old_ones_go(db: Sql) -> None:
    day = "select to_char(now() at time zone 'UTC' + make_interval(days => %s), 'YYYY_MM_DD')"
    wanted = sorted(["messages", "messages_default", *(f"messages_{one(db, day, ahead)}" for ahead in range(-1, 4))])
    assert one(db, NAMES) == wanted
    db.execute(
        "create table realtime.messages_2020_01_01 partition of realtime.messages for values from ('2020-01-01') to"
        " ('2020-01-02'); create table realtime.messages_2020_01_02 partition of realtime.messages for values from"
        " ('2020-01-02') to ('2020-01-03'); comment on table realtime.messages_2020_01_01 is 'Made by Momentum Sync.'"
    )
    assert one(db, "select momentum.keep_message_partitions()") == []
    assert one(db, NAMES) == sorted([*wanted, "messages_2020_01_02"]), "the other one is somebody else's"


def test_partitions_are_kept_beside_transactions_that_use_the_table(db: Sql, database: str) -> None:
    """None waits for the other."""
    day = one(db, "select to_char(now() at time zone 'UTC' + interval '3 days', 'YYYY_MM_DD')")
    db.execute(
        f"drop table realtime.messages_{day}; create table realtime.messages_2020_01_01 partition of realtime.messages"
        " for values from ('2020-01-01') to ('2020-01-02');"
        " comment on table realtime.messages_2020_01_01 is 'Made by Momentum Sync.'".encode()
    )
    with psycopg.connect(database) as app:
        app.execute("select realtime.send('{}', 'e', 'a')")
        assert one(db, "select momentum.keep_message_partitions()") == []
        assert f"messages_{day}" in one(db, NAMES)
        assert "messages_2020_01_01" in one(db, NAMES), "it goes another time"
        app.commit()
    assert one(db, "select momentum.keep_message_partitions()") == []
    assert "messages_2020_01_01" not in one(db, NAMES)


def test_a_day_without_a_partition_loses_no_message(db: Sql) -> None:
    today = one(db, "select to_char(now() at time zone 'UTC', 'YYYY_MM_DD')")
    db.execute(f"drop table realtime.messages_{today}".encode())
    said = told(db)
    db.execute("set timezone = 'UTC'")
    db.execute("select realtime.send('{}', 'e', 'a')")
    db.execute(
        "insert into realtime.messages (topic, extension, inserted_at) values ('old', 'broadcast', '2020-01-01')"
    )
    assert said == []
    assert db.execute("select topic from realtime.messages_default order by 1").fetchall() == [("a",), ("old",)]
    assert one(db, "select momentum.keep_message_partitions()") == [], "that of today cannot be created any longer"
    assert db.execute("select topic from realtime.messages_default").fetchall() == [("a",)]


def test_nobody_reads_a_partition_past_the_policies(db: Sql, user: UUID, acting: As) -> None:
    db.execute("select realtime.send('{}', 'e', 'a')")
    names = one(db, NAMES)
    for role in ("anon", "authenticated"):
        with acting(user, role=role) as sql:
            for name in names:
                query = f"select from realtime.{name}".encode()
                if name == "messages":
                    assert sql.execute(query).fetchall() == []
                else:
                    with pytest.raises(psycopg.errors.InsufficientPrivilege), sql.transaction():
                        sql.execute(query)


def test_uninstall_leaves_what_the_app_uses(database: str, db: Sql) -> None:
    said: list[str] = []
    db.execute(
        "create function public.tell() returns trigger language plpgsql as"
        " 'begin perform realtime . send(''{}'', ''e'', ''a''); return new; end'"
    )
    uninstall(database, slot="momentum_sync", tell=said.append)
    assert [line for line in said if line.startswith("left schema realtime") and "tell()" in line]
    db.execute("select realtime.send('{}', 'e', 'a')")
    assert db.execute("select topic from realtime.messages").fetchall() == [("a",)]
    migrate(database, tell=lambda _: None)
    db.execute("drop function public.tell(); create policy own on realtime.messages for select using (true)")
    uninstall(database, slot="momentum_sync", tell=said.append)
    assert [line for line in said if "policy own on realtime.messages" in line]
    migrate(database, tell=lambda _: None)
    db.execute("drop policy own on realtime.messages")
    uninstall(database, slot="momentum_sync", tell=said.append)
    assert one(db, "select to_regnamespace('realtime')") is None


def test_uninstall_refuses_where_functions_of_the_app_publish(database: str, db: Sql) -> None:
    db.execute(
        "create function public.tell() returns void language plpgsql as"
        " $$ begin perform momentum.publish(array['a'], '{}'); end $$"
    )
    with pytest.raises(Unsuitable, match=r"Functions of the app call Momentum Sync: public.tell\(\)"):
        uninstall(database, slot="momentum_sync", tell=lambda _: None)
    assert one(db, "select to_regnamespace('momentum')") is not None


def test_a_send_that_could_not_be_delivered_warns(db: Sql) -> None:
    said = told(db)
    for call in (
        "realtime.send('{}', 'e', '')", "realtime.send('{}', 'e', repeat('x', 247))", "realtime.send('{}', null, 'a')",
        "realtime.send(to_jsonb(repeat('x', 4000000)), 'e', 'a')", "realtime.send_binary('\\x', repeat('e', 256), 'a')",
        "realtime.send_binary('\\x', null, 'a')",
        "realtime.send_binary(convert_to(repeat('x', 4000000), 'UTF8'), 'e', 'a')",
    ):  # fmt: skip
        db.execute(f"select {call}".encode())
        assert said.pop().startswith("WarnSendingBroadcastMessage: realtime.send"), call
    assert db.execute("select from realtime.messages").fetchall() == []


@pytest.fixture
def supabases(template: str, empty_database: str) -> Iterator[str]:
    """Return a database in which Supabase has made schema realtime. The template's migration has made the roles."""
    with psycopg.connect(empty_database, autocommit=True) as sql:
        sql.execute(f"drop role if exists {SUPABASES}; create role {SUPABASES}; create role app_owner login".encode())
        sql.execute(
            "create schema realtime; create table realtime.messages (topic text not null, extension text not null,"
            " payload jsonb, event text, private boolean default false, updated_at timestamp not null default now(),"
            " inserted_at timestamp not null default now(), id uuid not null default gen_random_uuid(),"
            " primary key (id, inserted_at)) partition by range (inserted_at);"
            " create function realtime.send(payload jsonb, event text, topic text, private boolean default true)"
            " returns void language sql as 'select'; create function realtime.topic() returns text language sql as"
            " 'select current_setting(''realtime.topic'', true)';"
            f" alter schema realtime owner to {SUPABASES}; alter table realtime.messages owner to {SUPABASES};"
            f" alter function realtime.topic() owner to {SUPABASES}".encode()
        )
        sql.execute(
            f"grant create on database {sql.info.dbname} to app_owner; alter schema public owner to app_owner".encode()
        )
    try:
        yield empty_database
    finally:
        with psycopg.connect(empty_database, autocommit=True) as sql:
            for role in (SUPABASES, "app_owner"):
                sql.execute(f"reassign owned by {role} to postgres; drop owned by {role}; drop role {role}".encode())


def described(sql: Sql) -> list[Any]:
    """Return Supabase's objects as they are now, without partitions."""
    return sql.execute(
        "select p.oid::regprocedure::text, p.prosrc, p.proowner::regrole::text from pg_proc p"
        " where p.pronamespace = 'realtime'::regnamespace and p.proname in ('send', 'topic')"
        " union all select c.relname::text, c.relrowsecurity::text, c.relowner::regrole::text from pg_class c"
        " where c.oid = 'realtime.messages'::regclass order by 1"
    ).fetchall()


def test_what_supabase_has_made_stays_as_it_is(supabases: str) -> None:
    with psycopg.connect(supabases, autocommit=True) as sql:
        before = described(sql)
        migrate(supabases, tell=lambda _: None)
        assert described(sql) == before
        assert "messages_default" not in one(sql, NAMES)
        assert len(one(sql, NAMES)) == 6, "its days have partitions"
        assert one(sql, "select count(*) from pg_publication where pubname = 'supabase_realtime_messages_publication'")
        uninstall(supabases, slot="momentum_sync", tell=lambda _: None)
        assert described(sql) == before
        assert one(sql, NAMES) == ["messages"]


def test_an_owner_without_rights_on_supabases_schema_migrates_all_the_same(supabases: str) -> None:
    with psycopg.connect(supabases, autocommit=True) as sql:
        before = described(sql)
        theirs = make_conninfo(supabases, user="app_owner")
        migrate(theirs, tell=lambda _: None)
        assert described(sql) == before
        assert one(sql, NAMES) == ["messages"]
        assert one(sql, "select momentum.keep_message_partitions()") != [], "the server reports what it cannot create"
        uninstall(theirs, slot="momentum_sync", tell=lambda _: None)
        assert described(sql) == before

"""Changes of followed tables as events: in commit order with all others, the same after each restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from momentum_sync.capture.broadcasts import MESSAGES
from momentum_sync.capture.supervisor import Capture
from momentum_sync.domain.application import MOMENTUM
from momentum_sync.errors import CaptureError, Unavailable
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.event import Event, row_channel
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.samples import Samples
from momentum_sync.eventlog.window import Window
from momentum_sync.limits import Limits
from momentum_sync.tasks import end
from tests.fixtures.cluster import until_logged
from tests.fixtures.postgres import CAPTURE_ROLE, SERVER_ROLE, Sql, add_notification, add_score

Run = Callable[[], AbstractAsyncContextManager["Capturing"]]


class Capturing:
    """A running capture, and the events that it has published."""

    def __init__(self, capture: Capture, feed: LocalFeed) -> None:
        self.capture = capture
        self.feed = feed
        self.events: list[Event] = []
        self.breaks = 0
        self._more = asyncio.Event()
        feed.subscribe(self)

    def event(self, event: Event, *, more: bool = False) -> None:
        # Statements that may change rights on rows are events, too.
        if event.event_type != "row_rights_changed":
            self.events.append(event)
        self._more.set()

    def published(self) -> None:
        pass

    def advanced(self, lsn: int) -> None:
        pass

    def restarted(self) -> None:
        pass

    def history_changed(self) -> None:
        self.breaks += 1

    async def until(self, count: int) -> list[dict[str, Any]]:
        """Return the bodies of the events once there are this many."""
        async with asyncio.timeout(20):
            while len(self.events) < count:
                self._more.clear()
                await self._more.wait()
        return [json.loads(event.body) for event in self.events]


@pytest.fixture
def run(database: str, limits: Limits) -> Run:
    """Return a function that runs capture until live."""

    @asynccontextmanager
    async def running() -> AsyncIterator[Capturing]:
        connections = LogConnections(make_conninfo(database, user=SERVER_ROLE), limits.log)
        await connections.open()
        feed = LocalFeed(Window(10_000_000))
        schema = MOMENTUM.schema
        log = EventLog(connections, limits.log, schema.per_user_channels)
        samples = Samples(0.0, lambda: 0.0)
        capture = Capture(
            make_conninfo(database, user=CAPTURE_ROLE), "momentum_sync", connections, log, feed, samples, schema,
            limits.capture,
        )  # fmt: skip
        task = asyncio.ensure_future(capture.run())
        try:
            async with asyncio.timeout(20):
                await capture.has_begun.wait()
            yield Capturing(capture, feed)
        finally:
            await end(task)
            await connections.close()

    return running


@pytest.fixture
def limits() -> Limits:
    return Limits()


def relation(db: Sql, name: str) -> int:
    row = db.execute("select %s::regclass::oid::bigint", (name,)).fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def notes(db: Sql) -> int:
    """Make a published table, and return its id."""
    db.execute("create table notes (id int primary key, text text, tags text[], at timestamptz)")
    db.execute("alter publication supabase_realtime add table notes")
    return relation(db, "notes")


async def test_changes_of_a_followed_table_are_events_in_commit_order(
    run: Run, db: Sql, notes: int, user: UUID
) -> None:
    db.execute("insert into notes values (0, 'before')")
    async with run() as running:
        await running.capture.follow(notes)
        with db.transaction():
            db.execute("insert into notes values (1, 'one', '{a,b}', '2026-11-28 10:00+02')")
            add_notification(db, user, title="between")
            db.execute("update notes set text = 'two' where id = 1")
        db.execute("update notes set id = 2 where id = 1")
        db.execute("delete from notes where id = 2")
        db.execute("truncate notes")
        bodies = await running.until(6)
    first = running.events[0].offset
    assert [event.offset for event in running.events] == list(range(first, first + 6))
    assert [event.commit_index for event in running.events] == [0, 1, 2, 0, 0, 0]
    assert {event.channels for event in running.events if event.event_type == ""} == {(row_channel(notes),)}
    insert, notification, update, moved, delete, truncate = bodies
    assert notification["title"] == "between"
    assert insert == {
        "schema": "public", "table": "notes", "commit_timestamp": insert["commit_timestamp"], "type": "INSERT",
        "columns": [
            {"name": "id", "type": "int4"}, {"name": "text", "type": "text"}, {"name": "tags", "type": "_text"},
            {"name": "at", "type": "timestamptz"},
        ],
        "record": {"id": 1, "text": "one", "tags": ["a", "b"], "at": "2026-11-28T08:00:00+00:00"}, "errors": None,
    }  # fmt: skip
    assert (update["record"]["text"], update["old_record"]) == ("two", {"id": 1})
    assert (moved["record"]["id"], moved["old_record"]) == (2, {"id": 1})
    assert (delete["type"], delete["old_record"], "record" in delete) == ("DELETE", {"id": 2}, False)
    assert (truncate["type"], truncate["record"], truncate["old_record"]) == ("TRUNCATE", {}, {})


async def test_a_table_that_nobody_follows_makes_no_events(run: Run, db: Sql, notes: int, user: UUID) -> None:
    db.execute("create table others (id int primary key)")
    db.execute("alter publication supabase_realtime add table others")
    async with run() as running:
        await running.capture.follow(notes)
        db.execute("insert into others values (1)")
        db.execute("insert into notes values (1)")
        assert [body["table"] for body in await running.until(1)] == ["notes"]


async def test_what_is_followed_outlives_the_server(run: Run, db: Sql, notes: int) -> None:
    async with run() as running:
        await running.capture.follow(notes)
        db.execute("insert into notes values (1)")
        await running.until(1)
    db.execute("insert into notes values (2)")
    async with run() as again:
        await again.capture.follow(notes)
        assert (again.feed.offset, again.feed.epoch) == (running.feed.offset + 1, running.feed.epoch)
        db.execute("insert into notes values (3)")
        await again.until(1)
        last = again.feed.offset
        await until_logged(db, last)
    rows = db.execute("select number, event -> 'record' ->> 'id' from momentum.event_log order by number").fetchall()
    assert [number for number, _ in rows] == list(range(1, last + 1))
    assert [key for _, key in rows if key is not None] == ["1", "2", "3"]


async def test_further_tables_are_followed_without_a_break(run: Run, db: Sql, notes: int, user: UUID) -> None:
    scores = relation(db, "daily_engagement_scores")
    async with run() as running:
        await running.capture.follow(notes)
        await asyncio.gather(*[running.capture.follow(scores) for _ in range(5)])
        add_score(db, user)
        bodies = await running.until(3)
        kinds = [body.get("table") or body["event_type"] for body in bodies]
        assert sorted(kinds) == ["cache_invalidation", "daily_engagement_scores", "momentum_score_created"]
    assert running.breaks == 0


async def test_types_and_columns_that_change_while_it_runs(run: Run, db: Sql, notes: int) -> None:
    async with run() as running:
        await running.capture.follow(notes)
        db.execute("insert into notes values (1)")
        db.execute("create type mood as enum ('ok')")
        db.execute("alter table notes add column mood mood default 'ok', drop column tags")
        db.execute("alter table notes rename column text to words")
        db.execute("insert into notes (id, words) values (2, 'x')")
        db.execute("alter table notes rename to renamed")
        db.execute("insert into renamed (id) values (3)")
        await running.until(3)
        db.execute("alter table renamed drop column mood")
        db.execute("drop type mood")
        db.execute("insert into renamed (id) values (4)")
        bodies = await running.until(4)
    with_mood = ["id", "words", "at", "mood"]
    columns = [["id", "text", "tags", "at"], with_mood, with_mood, ["id", "words", "at"]]
    assert [list(body["record"]) for body in bodies] == columns
    assert bodies[1]["columns"][3] == {"name": "mood", "type": "mood"}
    assert [body["table"] for body in bodies] == ["notes", "notes", "renamed", "renamed"]
    assert [body["errors"] for body in bodies] == [None] * 4


async def test_an_unchanged_large_value_is_whole_where_the_replica_identity_has_it(
    run: Run, db: Sql, notes: int
) -> None:
    large = "".join(chr(33 + (n * n) % 90) for n in range(20_000))
    db.execute("alter table notes alter column text set storage external")
    async with run() as running:
        await running.capture.follow(notes)
        db.execute("insert into notes values (1, %s)", (large,))
        db.execute("update notes set tags = '{}' where id = 1")
        db.execute("alter table notes replica identity full")
        db.execute("update notes set tags = '{x}' where id = 1")
        _, without, whole = await running.until(3)
    assert "text" not in without["record"]
    assert whole["record"]["text"] == whole["old_record"]["text"] == large


async def test_a_change_of_more_than_a_megabyte_has_its_small_values_only(run: Run, db: Sql, notes: int) -> None:
    async with run() as running:
        await running.capture.follow(notes)
        db.execute("insert into notes values (1, repeat('x', 2000000), '{a}')")
        (body,) = await running.until(1)
    assert body["record"] == {"id": 1, "tags": ["a"], "at": None}
    assert body["errors"] == ["Error 413: Payload Too Large"]


async def test_a_dropped_publication_is_followed_again_once_it_exists(
    run: Run, db: Sql, notes: int, user: UUID
) -> None:
    """Before PostgreSQL 18 a stream cannot go on without its publication, so an epoch begins."""
    async with run() as running:
        await running.capture.follow(notes)
        epoch = running.feed.epoch
        db.execute("drop publication supabase_realtime")
        add_notification(db, user)
        if db.info.server_version < 18_00_00:
            async with asyncio.timeout(30):
                while running.feed.epoch == epoch:
                    await asyncio.sleep(0.02)
            with pytest.raises(CaptureError, match="supabase_realtime is missing"):
                await running.capture.follow(notes)
        db.execute("create publication supabase_realtime for table notes")
        await running.capture.follow(notes)
        count = len(running.events)
        db.execute("insert into notes values (1)")
        while (await running.until(count + 1))[-1].get("table") != "notes":
            count += 1
    if db.info.server_version >= 18_00_00:
        assert (running.feed.epoch, running.breaks) == (epoch, 0)


async def test_a_server_starts_without_the_publication(run: Run, db: Sql, notes: int, user: UUID) -> None:
    async with run() as running:
        await running.capture.follow(notes)
    db.execute("drop publication supabase_realtime")
    async with run() as again:
        add_notification(db, user)
        await again.until(1)


async def test_a_publication_made_while_the_stream_runs_stops_nothing(
    run: Run, db: Sql, user: UUID, database: str
) -> None:
    db.execute("drop publication supabase_realtime")
    async with run() as running:
        with pytest.raises(CaptureError):
            await running.capture.follow(1)
        db.execute("create table late (id int primary key)")
        db.execute("create publication supabase_realtime for table late")
        await running.capture.follow(relation(db, "late"))
        db.execute("insert into late values (1)")
        assert (await running.until(1))[0]["table"] == "late"
    assert running.breaks == 0


async def test_a_server_that_lost_the_log_follows_nothing(run: Run, db: Sql, notes: int) -> None:
    async with run() as running:
        await running.capture.follow(notes)
        scores = relation(db, "daily_engagement_scores")
        db.execute("update momentum.stream set holder = gen_random_uuid()")
        with pytest.raises(Unavailable):
            await running.capture.follow(scores)
        # It takes the log back, and nothing is followed that its offsets do not count.
        followed = db.execute("select relation::bigint from momentum.followed_tables order by 1").fetchall()
        assert followed == [(MESSAGES,), (notes,)]
        await running.capture.follow(scores)


@pytest.mark.parametrize("value", ['"\\ud800"', "[" * 3_000 + "]" * 3_000, '"\\u0000"'])
async def test_a_document_that_not_every_reader_can_take_is_a_string_and_stops_nothing(
    run: Run, db: Sql, notes: int, value: str
) -> None:
    db.execute("alter table notes add column doc json")
    async with run() as running:
        await running.capture.follow(notes)
        db.execute("insert into notes (id, doc) values (1, %s)", (value,))
        db.execute("insert into notes (id, doc) values (2, '[1]')")
        documents = [body["record"]["doc"] for body in await running.until(2)]
        assert documents == [value, [1]]
        await until_logged(db, 2)


async def test_a_table_that_had_changes_before_is_followed_without_a_break(run: Run, db: Sql, notes: int) -> None:
    db.execute("create type mood as enum ('ok')")
    db.execute("create table others (id int primary key, mood mood default 'ok')")
    db.execute("alter publication supabase_realtime add table others")
    async with run() as running:
        await running.capture.follow(notes)
        state = running.capture.status().state
        db.execute("insert into others values (1)")
        db.execute("insert into notes values (1)")
        await running.until(1)
        await running.capture.follow(relation(db, "others"))
        db.execute("insert into others values (2)")
        bodies = await running.until(2)
        assert bodies[1]["record"] == {"id": 2, "mood": "ok"}
        assert running.capture.status().state is state


async def test_the_servers_own_tables_are_not_followed(run: Run, db: Sql) -> None:
    async with run() as running:
        with pytest.raises(CaptureError, match="own tables"):
            await running.capture.follow(relation(db, "momentum.stream"))


async def test_only_the_server_may_say_what_is_followed(database: str, acting: Any, user: UUID) -> None:
    for role in ("anon", "authenticated", "service_role"):
        with acting(user, role=role) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select from momentum.followed_tables")

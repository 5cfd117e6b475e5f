"""The log: appended to by the holder of the checkpoint, partitioned by day, searched for unseen events."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio

from momentum_sync.capture.checkpoint import Checkpoint, Checkpoints, LogBroken
from momentum_sync.capture.preflight import check
from momentum_sync.capture.slot import SlotFacts
from momentum_sync.database import queries
from momentum_sync.database.visibility import Snapshot
from momentum_sync.errors import FencedOff, Unsuitable
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import FeedState
from momentum_sync.eventlog.log import EventLog
from momentum_sync.eventlog.page import Page
from momentum_sync.eventlog.partitions import keep_partitions
from momentum_sync.eventlog.position import Position
from momentum_sync.limits import CaptureLimits, LogLimits
from tests.fixtures.postgres import Sql

FACTS = SlotFacts(slot="s", system_identifier="7000", timeline=1, confirmed_lsn=100)


def event(offset: int, *, xid: int = 10, channels: tuple[str, ...] = ("c",), text: str = "ü") -> Event:
    body = json.dumps({"event_type": "x", "user_id": "u", "text": text}).encode()
    return Event.build(
        offset=offset, place=(200 + offset, 0), xid=xid, committed_at=1.5, channels=channels, body=body
    )  # fmt: skip


class Writer(EventLog):
    """A log with its checkpoint, as one capture process has them."""

    def __init__(self, conninfo: str, slot: str, limits: LogLimits | None = None) -> None:
        self.connections = LogConnections(conninfo, LogLimits())
        super().__init__(self.connections, limits or LogLimits(), frozenset())
        self.checkpoints = Checkpoints(self.connections, self, slot, CaptureLimits(log_check_interval_s=0.02))
        self.token = uuid4()

    async def acquire(self, facts: SlotFacts, **more: Any) -> Checkpoint:
        checkpoint = await self.checkpoints.acquire(facts, **more)
        self.token = checkpoint.token
        return checkpoint

    async def write(self, events: Sequence[Event], *, confirmed: int) -> None:
        await self.append(events, token=self.token, confirmed=confirmed)


Open = Callable[..., Awaitable[Writer]]


@pytest_asyncio.fixture
async def open_log(database: str) -> AsyncIterator[Open]:
    """Return a function that opens another writer of the log."""
    writers: list[Writer] = []

    async def opened(slot: str = "s", limits: LogLimits | None = None) -> Writer:
        writer = Writer(database, slot, limits)
        await writer.connections.open()
        writers.append(writer)
        return writer

    yield opened
    for writer in writers:
        await writer.connections.close()


@pytest_asyncio.fixture
async def log(open_log: Open) -> Writer:
    writer = await open_log()
    await keep_partitions(writer.connections, retention=None)
    return writer


async def test_a_history_begins_with_an_epoch(log: Writer) -> None:
    standing = await log.acquire(FACTS)
    assert (standing.offset, standing.place) == (0, (0, 0))
    assert len(standing.epoch) == 8
    assert (await log.acquire(FACTS)).epoch == standing.epoch


async def test_what_is_appended_stands(log: Writer, db: Sql) -> None:
    await log.acquire(FACTS)
    hostile = '"\\\n\'; drop table momentum.event_log; -- \u2028 {"'
    await log.write([event(1, text=hostile), event(2, channels=("a,b", 'c"{}'))], confirmed=210)
    rows = db.execute(
        "select number, commit_lsn::text, commit_index, xid, committed_at, channels, event"
        " from momentum.event_log order by number"
    ).fetchall()
    assert [row[0] for row in rows] == [1, 2]
    assert rows[0][1:5] == ("0/C9", 0, 10, datetime.fromtimestamp(1.5, UTC))
    assert rows[0][6]["text"] == hostile
    assert rows[1][5] == ["a,b", 'c"{}']


async def test_a_history_goes_on_where_the_log_ends(log: Writer) -> None:
    first = await log.acquire(FACTS)
    await log.write([event(1), event(2)], confirmed=210)
    again = await log.acquire(replace(FACTS, confirmed_lsn=210))
    assert (again.epoch, again.offset, again.place) == (first.epoch, 2, (202, 0))


@pytest.mark.parametrize(
    "facts",
    [
        replace(FACTS, system_identifier="7001"),
        replace(FACTS, timeline=2),
        replace(FACTS, confirmed_lsn=211),
    ],
    ids=["another system", "another timeline", "a slot confirmed further than the log is complete"],
)
async def test_a_broken_history_begins_another_epoch_with_numbers_that_go_on(log: Writer, facts: SlotFacts) -> None:
    first = await log.acquire(FACTS)
    await log.write([event(1)], confirmed=210)
    assert (await log.acquire(replace(FACTS, confirmed_lsn=210))).epoch == first.epoch
    other = await log.acquire(facts)
    assert other.epoch != first.epoch
    assert (other.offset, other.place) == (1, (0, 0))


async def test_an_instance_with_an_old_fencing_token_cannot_append(log: Writer, open_log: Open, db: Sql) -> None:
    await log.acquire(FACTS)
    await log.write([event(1)], confirmed=205)
    successor = await open_log()
    await successor.acquire(FACTS)
    with pytest.raises(FencedOff):
        await log.write([event(2)], confirmed=210)
    with pytest.raises(FencedOff):
        await log.confirm(210, token=log.token)
    await successor.write([event(2)], confirmed=210)
    assert db.execute("select array_agg(number), max(s.confirmed_lsn)::text from momentum.event_log"
                      " cross join momentum.stream s").fetchone() == ([1, 2], "0/D2")  # fmt: skip


async def test_confirmed_never_goes_back(log: Writer, db: Sql) -> None:
    await log.acquire(FACTS)
    await log.confirm(300, token=log.token)
    await log.write([event(1)], confirmed=210)
    assert db.execute("select confirmed_lsn::text from momentum.stream").fetchone() == ("0/12C",)


async def test_what_a_snapshot_has_not_seen(log: Writer) -> None:
    await log.acquire(FACTS)
    await log.write(
        [
            event(1, xid=8),
            event(2, xid=11),
            event(3, xid=12),
            event(4, xid=11, channels=("other",)),
            event(5, xid=30, channels=("other", "c")),
            event(6, xid=31),
        ],
        confirmed=300,
    )
    snapshot = Snapshot.parse("10:20:11")
    assert await log.first_unseen(snapshot, ["c"], below=6) == 2
    assert await log.first_unseen(Snapshot.parse("10:20:"), ["c"], below=7) == 5
    assert await log.first_unseen(Snapshot.parse("10:20:"), ["c"], below=5) is None


async def test_events_of_a_history_that_ended_are_not_taken_for_ones_of_this(log: Writer) -> None:
    await log.acquire(FACTS)
    await log.write([event(1, xid=1_000_000)], confirmed=210)
    await log.acquire(replace(FACTS, system_identifier="restored elsewhere"))
    await log.write([event(2, xid=12)], confirmed=220)
    assert await log.first_unseen(Snapshot.parse("10:20:12"), ["c"], below=9) == 2


async def test_events_after_an_offset_come_in_complete_pages_or_not_at_all(log: Writer, db: Sql) -> None:
    epoch = (await log.acquire(FACTS)).epoch
    history = [
        event(offset, xid=10 + offset, channels=(("c",), ("d", "c"), ("e",))[offset % 3], text="x" * 100)
        for offset in range(1, 41)
    ]
    await log.write(history, confirmed=300)
    wanted = [each for each in history if set(each.keys) & {"c", "d"} and each.offset > 4]
    for most in (0, 150, 400, 10_000):
        found: list[Event] = []
        place = 4
        while place < 40:
            page = await log.after(epoch, place, ["c", "d"], below=41, most=most)
            assert page is not None
            assert page[1] > place
            found += page[0]
            place = page[1]
        assert found == wanted
    assert await log.count_after(epoch, 4, ["c", "d"], None, below=41) == len(wanted)
    seen = Snapshot.parse("20:60:33")
    assert await log.count_after(epoch, 4, ["c", "d"], seen, below=41) == len(
        [each for each in wanted if not seen.sees(each.xid)]
    )
    assert await log.after(epoch, 30, ["c"], below=21, most=9) == Page([], 20)
    assert await log.after("00000000", 4, ["c"], below=41, most=9) is None
    db.execute("delete from momentum.event_log where number <= 5")
    assert await log.after(epoch, 4, ["c"], below=41, most=9) is None
    assert await log.count_after(epoch, 4, ["c"], None, below=41) is None
    assert await log.after(epoch, 5, ["c"], below=41, most=9) is not None


async def test_a_page_has_a_bound_in_rows(open_log: Open) -> None:
    log = await open_log(limits=LogLimits(page_rows=3))
    epoch = (await log.acquire(FACTS)).epoch
    await log.write([event(offset) for offset in range(1, 9)], confirmed=300)
    page = await log.after(epoch, 0, ["c"], below=9, most=1_000_000)
    assert page is not None
    assert ([each.offset for each in page[0]], page[1]) == ([1, 2, 3], 3)


async def test_the_newest_events_come_with_the_standing(open_log: Open) -> None:
    log = await open_log(limits=LogLimits(preload_rows=3))
    await log.acquire(FACTS)
    events = [event(offset) for offset in range(1, 9)]
    await log.write(events, confirmed=210)
    assert (await log.acquire(FACTS)).newest == events[-3:]
    other = await log.acquire(replace(FACTS, timeline=2))
    assert (other.newest, other.offset, other.broke) == ([], 8, "the database is on another timeline")


@pytest.mark.parametrize(
    "damage",
    ["truncate momentum.event_log", "delete from momentum.event_log where number = 3", "delete from momentum.event_log"
     " where number = 1"],
    ids=["truncated", "the newest gone", "the oldest gone"],
)  # fmt: skip
async def test_a_log_that_lost_events_is_noticed_and_begins_another_epoch(
    log: Writer, db: Sql, damage: LiteralString
) -> None:
    first = await log.acquire(FACTS)
    await log.write([event(1), event(2), event(3)], confirmed=210)
    watching = asyncio.ensure_future(log.checkpoints.watch_log())
    assert (await log.acquire(FACTS)).epoch == first.epoch
    db.execute(damage)
    with pytest.raises(LogBroken):
        await asyncio.wait_for(watching, 20)
    standing = await log.acquire(FACTS)
    assert standing.epoch != first.epoch
    assert standing.offset == 3
    assert standing.broke == "events are missing from the log"
    await log.write([event(4)], confirmed=220)
    assert (await log.acquire(FACTS)).epoch == standing.epoch


async def test_a_hole_among_the_newest_begins_another_epoch(log: Writer, db: Sql) -> None:
    first = await log.acquire(FACTS)
    await log.write([event(offset) for offset in range(1, 6)], confirmed=210)
    db.execute("delete from momentum.event_log where number = 3")
    standing = await log.acquire(FACTS)
    assert (standing.epoch == first.epoch, standing.newest) == (False, [])
    assert standing.broke == "events are missing from the log"


async def test_the_newest_have_a_bound_in_bytes(open_log: Open) -> None:
    log = await open_log(limits=LogLimits(preload_bytes=1000))
    first = await log.acquire(FACTS)
    events = [event(offset, text="x" * 300) for offset in range(1, 9)]
    await log.write(events, confirmed=210)
    assert (await log.acquire(FACTS)).newest == events[-2:]
    assert (await log.acquire(FACTS, known=FeedState(first.epoch, 8, 8, events[-1].mark))).newest == []
    assert (await log.acquire(FACTS, known=FeedState(first.epoch, 7, 7, events[-2].mark))).newest == events[-2:]


async def test_what_retention_takes_is_no_damage_and_cannot_be_resumed(log: Writer, db: Sql) -> None:
    first = await log.acquire(FACTS)
    day = datetime.now(UTC).date() - timedelta(days=4)

    def make() -> None:
        db.execute(
            f"create table momentum_log.event_log_{day:%Y%m%d} partition of momentum.event_log"
            f" for values from ('{day} 00:00:00+00') to ('{day + timedelta(days=1)} 00:00:00+00')"
        )

    make()
    await log.write([event(offset) for offset in range(1, 6)], confirmed=210)
    db.execute("update momentum.event_log set logged_at = logged_at - interval '4 days' where number in (1, 3)")
    assert len(await keep_partitions(log.connections, retention=timedelta(days=2))) == 1
    assert (await log.acquire(FACTS)).epoch == first.epoch
    # The clock was set back: the remaining events before offset 3 cannot be used.
    assert await log.after(first.epoch, 2, ["c"], below=6, most=9) is None
    assert await log.after(first.epoch, 3, ["c"], below=6, most=9) is not None
    make()
    db.execute("update momentum.event_log set logged_at = logged_at - interval '4 days' where number > 3")
    await keep_partitions(log.connections, retention=timedelta(days=2))
    assert (await log.acquire(FACTS)).epoch == first.epoch
    assert await log.after(first.epoch, 4, ["c"], below=6, most=9) is None


async def test_an_event_that_cannot_be_stored_keeps_its_number(log: Writer, db: Sql) -> None:
    await log.acquire(FACTS)
    await log.append_unstorable(event(1), token=log.token, confirmed=205)
    await log.write([event(2)], confirmed=210)
    rows = db.execute("select number, channels, event::text from momentum.event_log order by number").fetchall()
    assert rows[0] == (1, [], "{}")
    assert (await log.acquire(FACTS)).offset == 2


async def test_a_log_has_one_slot(log: Writer, open_log: Open, database: str, db: Sql) -> None:
    await log.acquire(FACTS)
    db.execute("select pg_create_logical_replication_slot('s', 'pgoutput')")
    second = await open_log("another")
    with pytest.raises(FencedOff, match="belongs to the replication slot s"):
        await second.acquire(replace(FACTS, slot="another"))
    with pytest.raises(Unsuitable, match="belongs to the replication slot s") as unsuitable:
        check(database, "another")
    db.execute(unsuitable.value.hint.split("drop that slot: ")[1].encode())
    assert (await second.acquire(replace(FACTS, slot="another"))).offset == 0


async def test_partitions_are_made_ahead_and_dropped_behind(log: Writer, db: Sql) -> None:
    today = datetime.now(UTC).date()

    def names() -> list[str]:
        return [
            str(name).removeprefix("event_log_")
            for (name,) in db.execute(
                "select relname from pg_inherits join pg_class on oid = inhrelid"
                " where inhparent = 'momentum.event_log'::regclass order by 1"
            )
        ]

    def days(*offsets: int) -> list[str]:
        return [f"{today + timedelta(days=offset):%Y%m%d}" for offset in offsets]

    assert names() == days(-1, 0, 1, 2)
    for offset in (-5, -3, -2):
        day = today + timedelta(days=offset)
        db.execute(
            f"create table momentum_log.event_log_{day:%Y%m%d} partition of momentum.event_log"
            f" for values from ('{day} 00:00:00+00') to ('{day + timedelta(days=1)} 00:00:00+00')"
        )
    assert await keep_partitions(log.connections, retention=None) == []
    dropped = await keep_partitions(log.connections, retention=timedelta(days=2))
    assert [name.removeprefix("event_log_") for name in dropped] == days(-5, -3)
    assert names() == days(-2, -1, 0, 1, 2)


async def test_retention_keeps_at_least_as_long_as_it_says(log: Writer, db: Sql) -> None:
    for hours, kept in ((12, True), (49, True), (1, True)):
        now = datetime.now(UTC)
        day = (now - timedelta(hours=hours)).date()
        await keep_partitions(log.connections, retention=timedelta(hours=hours))
        found = db.execute("select to_regclass(%s) is not null", (f"momentum_log.event_log_{day:%Y%m%d}",)).fetchone()
        assert found == (kept,) or day < now.date() - timedelta(days=1)


async def test_a_missing_partition_is_made_when_it_is_needed(log: Writer, db: Sql) -> None:
    await log.acquire(FACTS)
    today = f"{datetime.now(UTC).date():%Y%m%d}"
    db.execute(f"drop table momentum_log.event_log_{today}")
    await log.write([event(1)], confirmed=210)
    assert db.execute("select count(*) from momentum.event_log").fetchone() == (1,)


async def test_an_append_is_one_statement_whatever_its_size(log: Writer, db: Sql) -> None:
    await log.acquire(FACTS)
    await log.write([event(offset) for offset in range(1, 2001)], confirmed=3000)
    assert db.execute("select count(*), count(distinct xmin::text) from momentum.event_log").fetchone() == (2000, 1)


async def test_an_append_is_durable_whatever_the_databases_default(open_log: Open, db: Sql) -> None:
    db.execute(
        "do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$"
    )
    log = await open_log()
    async with log.connections.writing() as connection:
        row = await (await connection.execute("show synchronous_commit")).fetchone()
    assert row == ("local",)


def test_nobody_but_the_owner_reads_the_log(database: str) -> None:
    for role in ("anon", "authenticated", "service_role"):
        for table in ("event_log", "stream"):
            with psycopg.connect(database) as connection:
                connection.execute(f"set role {role}")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(f"select * from momentum.{table}")


async def test_a_partition_of_somebody_elses_stops_nothing_and_stays(log: Writer, db: Sql) -> None:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    db.execute(f"drop table momentum_log.event_log_{tomorrow:%Y%m%d}")
    db.execute(
        "create table public.archive partition of momentum.event_log"
        f" for values from ('{tomorrow} 00:00:00+00') to ('{tomorrow + timedelta(days=1)} 00:00:00+00');"
        "create table momentum_log.nonsense partition of momentum.event_log"
        " for values from ('2001-01-01') to ('2001-01-02')"
    )
    assert await keep_partitions(log.connections, retention=timedelta(days=1)) == []
    await log.acquire(FACTS)
    await log.write([event(1)], confirmed=210)
    found = db.execute("select to_regclass('public.archive'), to_regclass('momentum_log.nonsense')").fetchone()
    assert found == ("archive", "momentum_log.nonsense")


async def test_a_position_is_known_by_its_commit_and_after_retention_by_the_commit_before(log: Writer, db: Sql) -> None:
    standing = await log.acquire(FACTS)
    assert await log.mark_of(standing.epoch, 0) == 0
    events = [event(offset) for offset in range(1, 4)]
    await log.write(events, confirmed=210)
    assert [await log.mark_of(standing.epoch, each.offset) for each in events] == [each.mark for each in events]
    assert await log.mark_of(standing.epoch, 4) is None
    assert await log.mark_of("00000000", 1) is None
    today = datetime.now(UTC).date()
    for days in range(2, 4):
        db.execute(
            f"create table if not exists momentum_log.event_log_{today - timedelta(days=days):%Y%m%d} partition of"
            f" momentum.event_log for values from ('{today - timedelta(days=days)} 00:00:00+00')"
            f" to ('{today - timedelta(days=days - 1)} 00:00:00+00')"
        )
    db.execute("update momentum.event_log set logged_at = logged_at - interval '3 days' where number <= 2")
    await keep_partitions(log.connections, retention=timedelta(days=1))
    assert await log.mark_of(standing.epoch, 1) is None
    assert await log.mark_of(standing.epoch, 2) == events[1].mark
    assert (await log.acquire(FACTS, known=FeedState(standing.epoch, 3, 3, events[2].mark))).epoch == standing.epoch
    assert (await log.acquire(FACTS)).mark == events[2].mark


async def test_a_log_that_lacks_what_was_logged_was_restored(log: Writer, db: Sql) -> None:
    first = await log.acquire(FACTS)
    events = [event(offset) for offset in range(1, 6)]
    await log.write(events, confirmed=210)
    known = FeedState(first.epoch, 5, 4, events[3].mark)
    assert (await log.acquire(FACTS, known=known)).epoch == first.epoch
    for wrong in (known._replace(logged=6), known._replace(logged_mark=1)):
        standing = await log.acquire(FACTS, known=wrong)
        assert not standing.live
        assert standing.broke == "the log has lost events that it held before: it was restored from a copy"
        db.execute("update momentum.stream set epoch = %s, kept_from = 1", (first.epoch,))


async def test_an_append_of_the_holder_before_is_waited_for(log: Writer, database: str, db: Sql) -> None:
    """The holder was killed, and its last append still runs."""
    first = await log.acquire(FACTS)
    await log.write([event(1), event(2)], confirmed=210)
    with psycopg.connect(database) as appending:
        appending.execute(
            "insert into momentum.event_log select (jsonb_populate_record(l, '{\"number\": 3}')).*"
            " from momentum.event_log l where l.number = 2"
        )
        appending.execute("update momentum.stream set last_number = 3")
        acquiring = asyncio.ensure_future(log.acquire(FACTS))
        async with asyncio.timeout(20):
            while not db.execute("select 1 from pg_locks where not granted").fetchone():
                await asyncio.sleep(0.01)
    found = await acquiring
    assert (found.broke, found.epoch, found.offset) == (None, first.epoch, 3)


async def test_an_epoch_that_its_first_writer_did_not_settle_is_settled_by_the_next(log: Writer, db: Sql) -> None:
    first = await log.acquire(FACTS)
    assert not first.live
    second = await log.acquire(FACTS)
    assert (second.epoch, second.live, second.fence) == (first.epoch, False, first.fence + 1)
    with pytest.raises(FencedOff):
        await log.checkpoints.until_settled(first)
    await log.checkpoints.until_settled(second)
    third = await log.acquire(FACTS)
    assert (third.epoch, third.live, third.fence) == (first.epoch, True, first.fence + 2)
    broken = await log.acquire(FACTS, broke="for this test")
    assert (broken.live, broken.fence) == (False, first.fence + 3)


async def test_a_gateway_goes_on_where_it_is_or_begins_with_the_newest(log: Writer, db: Sql) -> None:
    assert await log.go_on(Position("", 0, 0), 0) is None
    standing = await log.acquire(FACTS)
    events = [event(offset) for offset in range(1, 8)]
    await log.write(events[:4], confirmed=210)

    new = await log.go_on(Position("", 0, 0), 0)
    assert new is not None
    assert (new.events, new.live) == (None, False)
    beginning = new.beginning
    assert (beginning.epoch, beginning.offset, beginning.mark) == (standing.epoch, 4, events[3].mark)
    assert (beginning.lsn, beginning.fence, beginning.before) == (210, standing.fence, 0)
    assert (beginning.incarnation, beginning.ceiling >= standing.ceiling) == (standing.incarnation, True)
    assert [each.offset for each in beginning.newest] == [1, 2, 3, 4]

    await log.checkpoints.until_settled(standing)
    await log.write(events[4:], confirmed=220)
    found = await log.go_on(Position(standing.epoch, 5, events[4].mark), 5)
    assert found is not None
    assert found.live
    assert found.events is not None
    assert [each.body for each in found.events] == [events[5].body, events[6].body]
    assert (found.beginning.offset, found.beginning.lsn) == (7, 220)
    ahead = await log.go_on(Position(standing.epoch, 9, 1), 7)  # of a feed that the log has not reached yet
    assert ahead is not None
    assert ahead.events == []
    other = await log.go_on(Position("00000000", 7, events[6].mark), 7)
    assert other is not None
    assert other.events is None

    for position, logged in ((Position(standing.epoch, 5, 1), 5), (Position(standing.epoch, 9, 1), 8)):
        restored = await log.go_on(position, logged)  # from a copy: another event is there, or what was there is not
        assert restored is not None
        assert restored.events is None

    db.execute("delete from momentum.event_log where number = 6")
    holed = await log.go_on(Position(standing.epoch, 4, events[3].mark), 4)
    assert holed is not None
    assert [each.offset for each in holed.events or ()] == [5]
    db.execute("update momentum.stream set kept_from = 7")
    expired = await log.go_on(Position(standing.epoch, 3, events[2].mark), 3)
    assert expired is not None
    assert expired.events is None
    assert [each.offset for each in expired.beginning.newest] == [7]


async def test_a_page_of_all_events_has_bounds(open_log: Open) -> None:
    log = await open_log(limits=LogLimits(page_rows=3, page_bytes=2_000))
    await keep_partitions(log.connections, retention=None)
    epoch = (await log.acquire(FACTS)).epoch
    events = [event(number, text="x" * (900 if number > 3 else 1)) for number in range(1, 9)]
    await log.write(events, confirmed=300)
    pages = [await log.go_on(Position(epoch, offset, mark), 0) for offset, mark in ((0, 0), (3, events[2].mark))]
    assert [[each.offset for each in page.events or ()] for page in pages if page] == [[1, 2, 3], [4, 5, 6]]


async def test_events_unseen_by_a_snapshot_are_found_with_the_index_on_xid(log: Writer, db: Sql) -> None:
    """One transaction has been open since before all of these events."""
    await log.acquire(FACTS)
    for start in range(0, 40_000, 10_000):
        await log.write(
            [event(offset, xid=1_000 + offset, channels=("c",)) for offset in range(start + 1, start + 10_001)],
            confirmed=210,
        )  # fmt: skip
    db.execute(
        "analyze momentum.event_log; select brin_summarize_new_values(inhrelid) from ("
        "select i.inhrelid from pg_inherits i join pg_class c on c.oid = i.inhrelid where c.relname ~ 'xid_idx') x"
    )
    snapshot = Snapshot(500, 41_001, frozenset({500, 40_990}))
    assert await log.first_unseen(snapshot, ["c"], below=40_001) == 39_990
    asked = {"xmax": 41_001, "under_way": [500, 40_990], "below": 40_001, "keys": ["c"]}
    ((plan,),) = db.execute(
        "explain (analyze, format json) " + queries.load("momentum_sync.eventlog")["first_unseen"], asked
    ).fetchall()
    text = json.dumps(plan)
    assert "event_log_xid_idx" in text or "xid_idx" in text
    removed = sum(map(int, re.findall(r'"Rows Removed by [^"]*": (\d+)', text)))
    assert removed < 10_000, "of 40,000"


async def test_the_newest_events_on_a_key_come_within_bounds(open_log: Open) -> None:
    log = await open_log(limits=LogLimits(replay_rows=3, first_span=4))
    await keep_partitions(log.connections, retention=None)
    epoch = (await log.acquire(FACTS)).epoch
    events = [event(number, channels=("a" if number % 2 else "b",)) for number in range(1, 41)]
    await log.write(events, confirmed=300)
    ours = [each.offset for each in events if each.channels == ("a",)]
    size = len(events[20].body)

    async def newest(
        most: int = 100, most_bytes: int = 10**6, below: int = 41, since: float = 0.0
    ) -> tuple[list[int], bool]:
        found = await log.newest_on(epoch, "a", below=below, since=since, most=most, most_bytes=most_bytes)
        assert found is not None
        return [each.offset for each in found.events], found.is_whole

    assert (await newest())[0] == ours
    assert await newest(most=5) == (ours[-5:], False)
    assert (await newest(most=len(ours)))[0] == ours
    assert await newest(most=0) == ([], False)
    assert await newest(most_bytes=7 * size) == (ours[-7:], False)
    assert await newest(most_bytes=size - 1) == ([], False)
    assert (await newest(below=8))[0] == [1, 3, 5, 7]
    assert (await newest(since=10**12))[0] == []
    assert await log.newest_on("another", "a", below=41, since=0.0, most=1, most_bytes=1) is None

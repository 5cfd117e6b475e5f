"""The pipeline's handling of payloads, and the order of its effects on log, slot and subscribers.

Stream and log are stand-ins that record calls; the rest is real.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pytest

from momentum_sync import metrics
from momentum_sync.capture.broadcasts import MESSAGES
from momentum_sync.capture.lag_probe import LagProbe
from momentum_sync.capture.pgoutput import ProtocolError
from momentum_sync.capture.pipeline import Pipeline
from momentum_sync.capture.sequencer import Sequencer
from momentum_sync.capture.slot import SlotFacts, StreamRefused
from momentum_sync.capture.supervisor import StuckSlot
from momentum_sync.capture.values import ColumnType, Kind
from momentum_sync.errors import CaptureError
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import Beginning, LocalFeed
from momentum_sync.eventlog.samples import Samples
from momentum_sync.eventlog.window import Window
from momentum_sync.limits import CaptureLimits


class Told:
    """Stands in for the stream and for the log."""

    facts = SlotFacts("s", "1", 1, 100)

    def __init__(self) -> None:
        self.wishes: list[bytes] = []
        self.told: list[tuple[str, int]] = []

    async def append(self, events: Sequence[Event], *, token: UUID, confirmed: int) -> None:
        self.told.append(("append", confirmed))

    async def confirm(self, confirmed: int, *, token: UUID) -> None:
        self.told.append(("confirm", confirmed))

    def send(self, payload: bytes) -> None:
        self.told.append(("slot", struct.unpack("!cQQQqB", payload)[2]))

    def pause(self) -> None:
        self.told.append(("pause", 0))

    def resume(self) -> None:
        self.told.append(("resume", 0))


def wal(payload: bytes) -> bytes:
    return b"w" + bytes(24) + payload


LIMITS = CaptureLimits(idle_confirm_interval_s=0.01, append_gather_s=0.0)
ENVELOPE = json.dumps({"channels": ["c"], "event": {}}).encode()


def begin(lsn: int) -> bytes:
    return wal(b"B" + struct.pack("!QqI", lsn, 0, 7))


def message(content: bytes = ENVELOPE) -> bytes:
    return wal(b"M" + struct.pack("!BQ", 1, 1) + b"momentum_sync\0" + struct.pack("!I", len(content)) + content)


def commit(lsn: int, end: int) -> bytes:
    return wal(b"C" + struct.pack("!BQQq", 0, lsn, end, 0))


def keepalive(end: int, *, reply: bool = False) -> bytes:
    return struct.pack("!cQqB", b"k", end, 0, reply)


class Heard:
    """A subscriber that checks that the feed is at each event when it is delivered."""

    def __init__(self, feed: LocalFeed, *, fails_at: int = 0) -> None:
        self._feed = feed
        self._fails_at = fails_at
        self.heard: list[str] = []
        feed.subscribe(self)

    def event(self, event: Event, *, more: bool = False) -> None:
        assert self._feed.offset == event.offset == self._feed.window.last
        self.heard.append(f"event {event.offset}")
        if event.offset == self._fails_at:
            raise ZeroDivisionError

    def published(self) -> None:
        self.heard.append("published")

    def advanced(self, position: int) -> None:
        self.heard.append(f"advanced {position}")

    def restarted(self) -> None:
        self.heard.append("restarted")

    def history_changed(self) -> None:
        self.heard.append("history changed")


def pipeline(told: Told, feed: LocalFeed, sequencer: Sequencer, samples: Samples) -> Pipeline:
    stands_in = cast(Any, told)

    async def load_types(oids: set[int]) -> dict[int, ColumnType]:
        told.told.append(("types", len(oids)))
        return {25: ColumnType(name="text", kind=Kind.TEXT)}

    return Pipeline(
        stands_in, stands_in, feed, LagProbe("p"), sequencer, samples, UUID(int=1), LIMITS, load_types,
        told.wishes.append,
    )  # fmt: skip


def capturing(told: Told) -> tuple[Pipeline, LocalFeed, Samples]:
    feed = LocalFeed(Window(100_000))
    feed.begin(Beginning("abcdef01", 0, 0, 100, 1, 1))
    sequencer = Sequencer(offset=0, place=(0, 0), near_xid=1)
    samples = Samples(0.0, lambda: 0.0)
    return pipeline(told, feed, sequencer, samples), feed, samples


def transaction(run: Pipeline, lsn: int, end: int) -> None:
    run.take([begin(lsn), message(), commit(lsn, end)])


async def test_what_comes_at_once_is_published_in_order_and_then_the_position_moves() -> None:
    run, feed, samples = capturing(Told())
    heard = Heard(feed)
    run.take([begin(200), message(), message(b"no envelope"), message(), commit(200, 210), begin(300), message()])
    assert heard.heard == ["event 1", "event 2", "event 3", "published", "advanced 210"]
    assert [sample.event_type for sample in samples.take()] == ["unreadable"]
    run.take([commit(300, 310)])
    assert heard.heard[5:] == ["advanced 310"]


async def test_a_keepalive_within_a_transaction_does_not_move_the_position() -> None:
    told = Told()
    run, feed, _ = capturing(told)
    run.take([begin(200), message(), keepalive(250, reply=True)])
    assert feed.lsn == 100
    run.take([commit(200, 260), keepalive(270)])
    assert feed.lsn == 270
    assert told.told == [("slot", 100)], "the server asked for a status once, and nothing is in the log yet"


async def test_what_broke_at_an_event_has_those_after_it_come_again() -> None:
    run, feed, _ = capturing(Told())
    heard = Heard(feed, fails_at=2)
    with pytest.raises(ZeroDivisionError):
        run.take([begin(200), message(), message(), message(), commit(200, 210)])
    assert heard.heard == ["event 1", "event 2", "published"]
    again = Sequencer(offset=0, place=(0, 0), near_xid=1)
    feed.begin(Beginning("abcdef01", 0, 0, 100, 1, 1))
    run = pipeline(Told(), feed, again, Samples(0.0, lambda: 0.0))
    run.take([begin(200), message(), message(), message(), commit(200, 210)])
    assert heard.heard[3:] == ["event 3", "published", "advanced 210"]


async def test_an_event_that_comes_with_the_idle_timeout_is_logged_before_anything_is_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Told()
    run, _, _ = capturing(told)
    timeout = asyncio.timeout

    def expires_as_an_event_comes(_: float) -> asyncio.Timeout:
        monkeypatch.setattr(asyncio, "timeout", timeout)
        asyncio.get_running_loop().call_soon(transaction, run, 200, 210)
        return timeout(0)

    monkeypatch.setattr(asyncio, "timeout", expires_as_an_event_comes)
    appending = asyncio.ensure_future(run.append())
    async with timeout(10):
        while not told.told:
            await asyncio.sleep(0)
    appending.cancel()
    assert told.told[:2] == [("append", 210), ("slot", 210)]


def relation(oid: int = 7, type_oid: int = 25) -> bytes:
    column = b"\1" + b"id\0" + struct.pack("!Ii", type_oid, -1)
    return wal(b"R" + struct.pack("!I", oid) + b"public\0notes\0d" + struct.pack("!H", 1) + column)


def insert(text: bytes, oid: int = 7) -> bytes:
    return wal(b"I" + struct.pack("!I", oid) + b"N" + struct.pack("!HcI", 1, b"t", len(text)) + text)


def following(told: Told) -> tuple[Pipeline, LocalFeed]:
    feed = LocalFeed(Window(100_000))
    feed.begin(Beginning("abcdef01", 0, 0, 100, 1, 1))
    sequencer = Sequencer(offset=0, place=(0, 0), near_xid=1, followed={7: 0})
    return pipeline(told, feed, sequencer, Samples(0.0, lambda: 0.0)), feed


async def test_frames_behind_an_unknown_type_wait_until_it_is_loaded() -> None:
    told = Told()
    run, feed = following(told)
    heard = Heard(feed)
    run.take([begin(200), message(), relation(), insert(b"one"), message(), commit(200, 210)])
    assert heard.heard == ["event 1", "published"]
    assert told.told == [("pause", 0)]
    loading = asyncio.ensure_future(run.load_types())
    async with asyncio.timeout(10):
        while feed.offset < 3:
            await asyncio.sleep(0)
    assert heard.heard[2:] == ["event 2", "event 3", "published", "advanced 210"]
    assert told.told[1:] == [("types", 1), ("resume", 0)]
    run.take([begin(300), relation(), insert(b"two"), commit(300, 310)])  # the type is known
    assert feed.offset == 4
    loading.cancel()


async def test_changes_of_relations_that_nobody_follows_are_not_decoded() -> None:
    run, feed = following(Told())
    nonsense = wal(b"I" + struct.pack("!I", 8) + b"nonsense")
    run.take([begin(200), relation(8), nonsense, wal(b"U" + nonsense[26:]), commit(200, 210)])
    assert feed.offset == 0


MESSAGE_COLUMNS = ("topic", "event", "payload", "private", "id", "binary_payload")


def partition(oid: int = 9, schema: bytes = b"realtime", name: bytes = b"messages_2026_11_29") -> bytes:
    columns = [b"\0" + each.encode() + b"\0" + struct.pack("!Ii", 25, -1) for each in MESSAGE_COLUMNS]
    head = b"R" + struct.pack("!I", oid) + schema + b"\0" + name + b"\0d"
    return wal(head + struct.pack("!H", len(columns)) + b"".join(columns))


def sent(*values: str | None, oid: int = 9) -> bytes:
    texts = [b"n" if each is None else b"t" + struct.pack("!I", len(each)) + each.encode() for each in values]
    return wal(b"I" + struct.pack("!I", oid) + b"N" + struct.pack("!H", len(texts)) + b"".join(texts))


def broadcasting(after: int = 0) -> tuple[Pipeline, LocalFeed, Samples]:
    feed = LocalFeed(Window(100_000))
    feed.begin(Beginning("abcdef01", 0, 0, 100, 1, 1))
    samples = Samples(10.0, lambda: 0.0)
    sequencer = Sequencer(offset=0, place=(0, 0), near_xid=1, followed={MESSAGES: after})
    return pipeline(Told(), feed, sequencer, samples), feed, samples


async def test_messages_of_every_partition_are_events_on_their_topics() -> None:
    run, feed, _ = broadcasting()
    run.take([
        begin(200), partition(), sent("a", "e", "{}", "t", "i", None), partition(10, name=b"messages_2026_11_30"),
        message(), sent("b", "e", "{}", "f", "i", None, oid=10), commit(200, 210),
    ])  # fmt: skip
    events = [feed.window.at(offset) for offset in (1, 2, 3)]
    assert [(each.channels, each.commit_index) for each in events if each] == [
        (("topic:a",), 0), (("c",), 1), (("public_topic:b",), 2),
    ]  # fmt: skip
    assert events[0] is not None
    assert events[0].body == b'{"type":"broadcast","event":"e","payload":{},"meta":{"id":"i"}}'


@pytest.mark.parametrize("described", [
    partition(schema=b"public"), partition(name=b"message"), partition(name=b"messages2"),
])  # fmt: skip
async def test_other_tables_have_no_messages(described: bytes) -> None:
    run, feed, _ = broadcasting()
    run.take([begin(200), described, sent("a", "e", "{}", "t", "i", None), commit(200, 210)])
    assert feed.offset == 0
    run.take([begin(300), partition(), sent("a", "e", "{}", "t", "i", None), commit(300, 310)])
    assert feed.offset == 1
    run.take([begin(400), described, sent("a", "e", "{}", "t", "i", None), commit(400, 410)])
    assert feed.offset == 1, "the table has been renamed"


async def test_messages_are_events_from_an_lsn_on() -> None:
    run, feed, _ = broadcasting(after=200)
    run.take([begin(200), partition(), sent("a", "e", "{}", "t", "i", None), commit(200, 210)])
    assert feed.offset == 0
    run.take([begin(300), sent("a", "e", "{}", "t", "i", None), commit(300, 310)])
    assert feed.offset == 1


async def test_messages_that_are_changed_or_deleted_are_no_events_and_have_no_place() -> None:
    run, feed, _ = broadcasting()
    old = sent("a", "e", "{}", "t", "i", None)[31:]
    deleted = wal(b"D" + struct.pack("!I", 9) + b"K" + old)
    updated = wal(b"U" + struct.pack("!I", 9) + b"N" + old)
    run.take([begin(200), partition(), deleted, updated, sent("a", "e", "{}", "t", "i", None), commit(200, 210)])
    event = feed.window.at(1)
    assert event is not None
    assert (feed.offset, event.commit_index) == (1, 0)


async def test_a_message_that_cannot_be_sent_is_reported_and_has_a_place_but_no_offset() -> None:
    run, feed, samples = broadcasting()
    run.take([
        begin(200), partition(), sent(None, "e", "{}", "t", "i", None), sent("a", "e", "{}", "t", "i", None),
        commit(200, 210),
    ])  # fmt: skip
    event = feed.window.at(1)
    assert event is not None
    assert (feed.offset, event.commit_index) == (1, 1)
    assert len(samples.take()) == 1


async def test_a_failed_send_is_counted_and_is_no_event() -> None:
    run, feed, _ = broadcasting()
    before = metrics.SEND_FAILURES.collect().samples[0].value
    content = b"42501"
    failed = wal(
        b"M" + struct.pack("!BQ", 1, 1) + b"momentum_sync.send_failed\0" + struct.pack("!I", len(content)) + content
    )
    run.take([begin(200), failed, commit(200, 210)])
    assert feed.offset == 0
    assert metrics.SEND_FAILURES.collect().samples[0].value == before + 1


async def test_a_change_without_a_description_ends_the_run() -> None:
    run, _ = following(Told())
    with pytest.raises(ProtocolError, match="relation 7"):
        run.take([begin(200), insert(b"x"), commit(200, 210)])


async def test_nothing_is_read_while_a_relation_is_taken_up() -> None:
    told = Told()
    run, _, _ = capturing(told)
    transaction(run, 200, 210)
    assert run.follows(9) is False
    after = run.reserve()
    assert after == 200
    appending = asyncio.ensure_future(run.append())
    async with asyncio.timeout(10):
        while ("append", 210) not in told.told:
            await asyncio.sleep(0)
    assert ("resume", 0) not in told.told, "also not because the log has taken the events"
    run.follow(9, after)
    assert told.told[-1] == ("resume", 0)
    assert run.follows(9)
    run.fail(CaptureError("no more"))
    with pytest.raises(CaptureError, match="no more"):
        await appending


async def test_held_frames_wait_until_a_relation_is_taken_up() -> None:
    told = Told()
    run, feed = following(told)
    run.take([begin(200), relation(), insert(b"x"), commit(200, 210), begin(300), insert(b"y", oid=9), message(),
              commit(300, 310)])  # fmt: skip
    after = run.reserve()
    loading = asyncio.ensure_future(run.load_types())
    async with asyncio.timeout(10):
        while ("types", 1) not in told.told:
            await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (after, feed.offset) == (200, 0)
    run.follow(8, after)
    async with asyncio.timeout(10):
        while feed.offset < 2:
            await asyncio.sleep(0)
    assert told.told[-1] == ("resume", 0)
    loading.cancel()


async def test_a_relation_that_was_described_before_is_followed() -> None:
    told = Told()
    run, feed = following(told)
    loading = asyncio.ensure_future(run.load_types())
    run.take([begin(200), relation(oid=9), insert(b"x", oid=9), commit(200, 210)])
    assert feed.offset == 0
    run.follow(9, run.reserve())
    async with asyncio.timeout(10):
        while ("resume", 0) not in told.told:
            await asyncio.sleep(0)
    run.take([begin(300), insert(b"y", oid=9), commit(300, 310)])
    assert feed.offset == 1
    loading.cancel()


async def test_nothing_is_confirmed_while_the_log_does_not_have_a_batch() -> None:
    told = Told()
    run, _, _ = capturing(told)
    taken, release = asyncio.Event(), asyncio.Event()
    append = told.append

    async def slow(events: Sequence[Event], *, token: UUID, confirmed: int) -> None:
        taken.set()
        await release.wait()
        await append(events, token=token, confirmed=confirmed)

    told.append = slow  # type: ignore[method-assign]
    transaction(run, 200, 210)
    appending = asyncio.ensure_future(run.append())
    await taken.wait()
    waiting = asyncio.ensure_future(run.until_durable(210))
    for _ in range(10):
        await asyncio.sleep(0)
    assert told.told == []
    release.set()
    await waiting
    assert told.told[0] == ("append", 210)
    appending.cancel()


def test_a_slot_is_given_up_after_failures_at_one_place_only() -> None:
    missing = StreamRefused('publication "momentum_sync" does not exist', "42704", began=True)
    stuck = StuckSlot(3, 30.0)
    for place in (100, 100, 200, 200):
        stuck.began(place)
        stuck.failed(missing, 0.0)
        assert stuck.for_ever is None
    for _ in range(2):
        stuck.begins()
        stuck.failed(missing, 0.0)  # the stream did not begin, so it has no LSN
        assert stuck.for_ever is None
    stuck.failed(missing, 0.0)
    assert stuck.for_ever is missing


def test_another_error_in_between_has_the_count_begin_again() -> None:
    missing = StreamRefused('publication "momentum_sync" does not exist', "42704", began=True)
    stuck = StuckSlot(3, 30.0)
    stuck.began(100)
    stuck.failed(missing, 0.0)
    stuck.failed(missing, 0.0)
    stuck.forget()
    stuck.failed(missing, 0.0)
    stuck.failed(missing, 0.0)
    assert stuck.for_ever is None


def test_an_error_that_may_be_temporary_must_recur_for_a_while() -> None:
    broken = StreamRefused("division by zero", "22012", began=True)
    assert broken.repeats
    assert not broken.is_final
    stuck = StuckSlot(3, 30.0)
    stuck.began(100)
    for now in (5.0, 10.0, 20.0, 34.9):
        stuck.failed(broken, now)
        assert stuck.for_ever is None
    stuck.failed(broken, 35.0)
    assert stuck.for_ever is broken
    stuck.began(200)
    stuck.failed(broken, 80.0)
    stuck.failed(broken, 90.0)
    stuck.failed(broken, 100.0)
    assert stuck.for_ever is None


@pytest.mark.parametrize("state", ["", "08006", "42501", "53100", "55006", "57014", "57P01", "58030", "58P01"])
def test_errors_that_go_away_keep_the_slot(state: str) -> None:
    assert not StreamRefused("could not access a file", state, began=True).repeats


def test_a_table_that_was_created_while_the_slot_was_will_never_be_decoded() -> None:
    for word in ("filenode", "filenumber"):
        assert StreamRefused(f'could not map {word} "base/5/1" to relation OID', "XX000", began=True).is_final
    assert not StreamRefused("cache lookup failed", "XX000", began=True).is_final


def test_a_row_that_is_too_large_to_be_decoded_will_always_be() -> None:
    assert StreamRefused("Cannot enlarge string buffer", "54000", began=True).repeats


def test_an_error_before_the_stream_began_keeps_the_slot() -> None:
    assert not StreamRefused("internal error", "XX000", began=False).repeats

"""When the reader of a slot has lost its client."""

from __future__ import annotations

from momentum_sync.capture.reader_watch import ReaderWatch

READER, OTHER = (7, "12:00"), (7, "13:00")


def test_a_reader_without_a_new_reply_is_silent_in_the_end() -> None:
    watch = ReaderWatch(45.0)
    assert [watch.is_silent(READER, "a", at) for at in (100.0, 144.9, 145.0, 200.0)] == [False, False, True, True]


def test_each_reply_counts_whatever_the_clock_of_the_database_says() -> None:
    watch = ReaderWatch(45.0)
    replies = (("12:30", 0.0), ("11:30", 40.0), ("11:31", 80.0))
    assert not any(watch.is_silent(READER, reply, at) for reply, at in replies)


def test_another_process_has_its_own_time() -> None:
    watch = ReaderWatch(45.0)
    assert not watch.is_silent(READER, "a", 0.0)
    assert not watch.is_silent(OTHER, "a", 50.0)
    assert watch.is_silent(OTHER, "a", 95.0)


def test_nothing_is_known_without_a_reader_or_the_privilege_to_see_its_replies() -> None:
    watch = ReaderWatch(45.0)
    assert not watch.is_silent(READER, "a", 0.0)
    assert not watch.is_silent(None, None, 50.0)
    assert not watch.is_silent(READER, "a", 60.0)
    assert not watch.is_silent(READER, None, 120.0)
    assert not watch.is_silent(READER, None, 200.0)
    assert not watch.is_silent(READER, "a", 201.0)

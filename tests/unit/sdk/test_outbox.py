"""The outbox: marks go out in order, ten per second, and stay until the server has confirmed them."""

from __future__ import annotations

from momentum_sync.sdk.outbox import Outbox


def filled(*marks: str) -> Outbox:
    outbox = Outbox()
    for mark in marks:
        outbox.add(mark)
    return outbox


def test_marks_are_kept_in_order_and_once() -> None:
    outbox = filled("b", "a", "b")
    assert outbox.waiting == ("b", "a")
    assert "a" in outbox
    assert "c" not in outbox


def test_a_mark_under_way_is_not_sent_again_until_it_is_lost() -> None:
    outbox = filled("a", "b")
    assert outbox.take(100.0) == ["a", "b"]
    assert outbox.take(102.0) == []
    outbox.later("b")
    assert outbox.take(104.0) == ["b"]
    outbox.lost()
    assert outbox.take(106.0) == ["a", "b"]
    assert outbox.waiting == ("a", "b"), "they stay until they are confirmed"


def test_a_confirmed_mark_is_gone_and_may_be_added_again() -> None:
    outbox = filled("a", "b")
    outbox.take(100.0)
    outbox.done("a")
    outbox.done("never added")
    assert outbox.waiting == ("b",)
    outbox.add("a")
    assert outbox.take(102.0) == ["a"]


def test_ten_are_sent_per_second() -> None:
    marks = [str(number) for number in range(25)]
    outbox = filled(*marks)
    assert outbox.take(0.0) == marks[:10], "also in the first second of a clock"
    assert outbox.take(0.9) == []
    assert outbox.take(1.0) == marks[10:20]
    assert outbox.take(2.5) == marks[20:]
    for mark in ("x", "y"):
        outbox.add(mark)
    assert outbox.take(3.4) == ["x", "y"], "five of that second are left"
    assert outbox.take(3.5) == []


def test_stored_marks_come_before_those_added_since() -> None:
    outbox = filled("new", "old")
    outbox.restore(["old", "older"])
    assert outbox.waiting == ("old", "older", "new")

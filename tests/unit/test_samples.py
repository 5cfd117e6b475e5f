"""Sampling: a part of the delivered events, every failure, and a bounded number."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.samples import Sample, Samples


def event(user: str = "", kind: str = "momentum_score_updated") -> Event:
    body = b'{"event_type":"%b","user_id":"%b"}' % (kind.encode(), user.encode())
    return Event.build(offset=1, place=(1, 0), xid=1, committed_at=0.0, channels=("a", "b"), body=body)


@pytest.mark.parametrize(("events", "kept"), [(200, 200), (5_000, 200)])
def test_all_are_kept_while_there_are_few_and_a_bounded_number_when_there_are_many(events: int, kept: int) -> None:
    now = 0.0
    samples = Samples(20.0, lambda: now)
    samples.delivered([(event(), 0.001)] * events)
    assert len(samples.take()) == kept
    assert samples.take() == []
    now = 100.0
    for _ in range(5_000):
        samples.delivered([(event(), 0.001)])
    assert len(samples.take()) == 200
    for second in range(101, 111):
        now = float(second)
        for _ in range(1_000):
            samples.delivered([(event(), 0.001)])
    assert len(samples.take()) == 200


def test_nothing_is_left_out_while_there_is_little() -> None:
    samples = Samples(20.0, lambda: 0.0)
    for _ in range(30):
        samples.delivered([(event(), 0.001)])
    assert len(samples.take()) == 30


def test_a_sample_says_what_and_where_and_how_long() -> None:
    user = uuid4()
    samples = Samples(1.0, lambda: 0.5)
    samples.delivered([(event(str(user)), 0.0123)])
    samples.delivered([(event("nobody's uuid"), None)])
    one, two = samples.take()
    size = len(event(str(user)).body)
    assert one == Sample("momentum_score_updated", "a", user, size, 12, success=True, error=None)
    assert (two.user_id, two.milliseconds) == (None, None)


def test_failures_are_kept_whatever_the_rate_and_find_room() -> None:
    samples = Samples(5_000.0, lambda: 0.5)
    for _ in range(5_000):
        samples.delivered([(event(), 0.001)])
    samples.failed(event(kind="intervention_created"), "x" * 10_000)
    samples.unreadable(77, "not an envelope")
    taken = samples.take()
    assert len(taken) == 1_002
    assert samples.dropped == 4_000
    failed, unreadable = taken[-2:]
    assert (failed.event_type, failed.success, failed.error) == ("intervention_created", False, "x" * 500)
    assert unreadable == Sample("unreadable", "", None, 77, None, success=False, error="not an envelope")


def test_what_nobody_takes_is_bounded() -> None:
    samples = Samples(0.0, lambda: 0.0)
    for _ in range(5_000):
        samples.unreadable(1, "no")
    assert (len(samples.take()), samples.dropped) == (2_000, 3_000)


def test_a_user_is_one_only_if_the_event_names_a_uuid() -> None:
    samples = Samples(1.0, lambda: 0.5)
    samples.delivered([(event("{" + str(UUID(int=1)) + "}"), 0.0)])
    assert samples.take()[0].user_id == UUID(int=1)

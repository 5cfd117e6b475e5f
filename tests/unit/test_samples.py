"""A part of what was delivered, every failure, and never more than fits."""

from __future__ import annotations

from itertools import cycle
from uuid import UUID, uuid4

import pytest

from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.samples import Sample, Samples


def event(user: str = "", kind: str = "momentum_score_updated") -> Event:
    body = b'{"event_type":"%b","user_id":"%b"}' % (kind.encode(), user.encode())
    return Event.build(number=1, place=(1, 0), xid=1, committed_at=0.0, channels=("a", "b"), body=body)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (0.01, 10), (0.25, 250), (1.0, 1000)])
def test_the_part_that_is_kept_is_the_rate(rate: float, expected: int) -> None:
    samples = Samples(rate, cycle(number / 1000 for number in range(1000)).__next__)
    for _ in range(1000):
        samples.delivered(event(), 0.001)
    assert len(samples.take()) == expected
    assert samples.take() == []


def test_a_sample_says_what_and_where_and_how_long() -> None:
    user = uuid4()
    samples = Samples(1.0, lambda: 0.5)
    samples.delivered(event(str(user)), 0.0123)
    samples.delivered(event("nobody's uuid"), None)
    one, two = samples.take()
    size = len(event(str(user)).body)
    assert one == Sample("momentum_score_updated", "a", user, size, 12, success=True, error=None)
    assert (two.user_id, two.milliseconds) == (None, None)


def test_failures_are_kept_whatever_the_rate_and_find_room() -> None:
    samples = Samples(1.0, lambda: 0.5)
    for _ in range(5_000):
        samples.delivered(event(), 0.001)
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
    samples.delivered(event("{" + str(UUID(int=1)) + "}"), 0.0)
    assert samples.take()[0].user_id == UUID(int=1)

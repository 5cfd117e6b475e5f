"""The pulse: what a beat that comes back, or does not, says of the feed."""

from __future__ import annotations

from momentum_sync.capture.pulse import Pulse


def test_until_the_first_beat_comes_back_the_feed_is_behind_since_the_start() -> None:
    pulse = Pulse("a")
    pulse.lost(100.0)
    assert pulse.lag(103.0) == 3.0
    beat = pulse.next(103.0)
    assert beat is not None
    assert pulse.lag(104.0) == 4.0
    assert pulse.read(beat.encode(), 105.0)
    assert pulse.lag(200.0) == 5.0


def test_the_lag_is_what_the_last_beat_took_or_what_the_next_is_taking() -> None:
    pulse = Pulse("a")
    first = pulse.next(10.0)
    assert first is not None
    assert pulse.next(11.0) is None, "one at a time"
    assert pulse.read(first.encode(), 10.25)
    assert pulse.lag(10.5) == 0.25
    second = pulse.next(11.0)
    assert second not in (None, first)
    assert pulse.lag(11.1) == 0.25
    assert pulse.lag(41.0) == 30.0


def test_beats_of_others_and_of_before_mean_nothing() -> None:
    pulse, other = Pulse("a"), Pulse("b")
    mine, theirs = pulse.next(10.0), other.next(10.0)
    assert mine is not None
    assert theirs is not None
    assert not pulse.read(theirs.encode(), 11.0)
    pulse.lost(11.0)
    assert not pulse.read(mine.encode(), 12.0)
    assert pulse.next(12.0) != mine
    assert pulse.lag(13.0) == 3.0, "owed since the one that was lost"

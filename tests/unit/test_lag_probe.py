"""The lag probe: the lag that its return, or its absence, reveals."""

from __future__ import annotations

from momentum_sync.capture.lag_probe import LagProbe


def test_until_the_first_beat_comes_back_the_feed_is_behind_since_the_start() -> None:
    lag_probe = LagProbe("a")
    lag_probe.lost(100.0)
    assert lag_probe.lag(103.0) == 3.0
    beat = lag_probe.next(103.0)
    assert beat is not None
    assert lag_probe.lag(104.0) == 4.0
    assert lag_probe.read(beat.encode(), 105.0)
    assert lag_probe.lag(200.0) == 5.0


def test_the_lag_is_what_the_last_beat_took_or_what_the_next_is_taking() -> None:
    lag_probe = LagProbe("a")
    first = lag_probe.next(10.0)
    assert first is not None
    assert lag_probe.next(11.0) is None, "one at a time"
    assert lag_probe.read(first.encode(), 10.25)
    assert lag_probe.lag(10.5) == 0.25
    second = lag_probe.next(11.0)
    assert second not in (None, first)
    assert lag_probe.lag(11.1) == 0.25
    assert lag_probe.lag(41.0) == 30.0


def test_beats_of_others_and_of_before_mean_nothing() -> None:
    lag_probe, other = LagProbe("a"), LagProbe("b")
    mine, theirs = lag_probe.next(10.0), other.next(10.0)
    assert mine is not None
    assert theirs is not None
    assert not lag_probe.read(theirs.encode(), 11.0)
    lag_probe.lost(11.0)
    assert not lag_probe.read(mine.encode(), 12.0)
    assert lag_probe.next(12.0) != mine
    assert lag_probe.lag(13.0) == 3.0, "owed since the one that was lost"


def test_probes_are_numbered_and_there_is_no_lag_before_the_first() -> None:
    lag_probe = LagProbe("a")
    assert lag_probe.lag(7.0) == 0.0
    for number in (1, 2, 3):
        beat = lag_probe.next(float(number))
        assert beat == f"a:{number}"
        assert lag_probe.read(beat.encode(), float(number))

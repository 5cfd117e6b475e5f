"""Snapshots and transaction ids, compared with PostgreSQL's documentation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.database import lsn
from momentum_sync.database.visibility import Snapshot, widen


def test_what_a_snapshot_sees() -> None:
    snapshot = Snapshot.parse("10:20:10,14,15")
    assert [xid for xid in range(8, 23) if not snapshot.sees(xid)] == [10, 14, 15, 20, 21, 22]


@given(st.sets(st.integers(3, 100)), st.integers(0, 50))
def test_text_and_back(under_way: set[int], more: int) -> None:
    xmax = max(under_way, default=3) + more
    snapshot = Snapshot(min(under_way, default=xmax), xmax, frozenset(under_way))
    assert Snapshot.parse(str(snapshot)) == snapshot


@pytest.mark.parametrize("text", ["", "1", "1:2", "a:b:c", "1:2:3:4", "1:2:x"])
def test_what_is_no_snapshot(text: str) -> None:
    with pytest.raises(ValueError, match="is not a snapshot"):
        Snapshot.parse(text)


@given(st.integers(2**31, 2**60), st.integers(-(2**31) + 1, 2**31 - 1))
def test_an_id_is_widened_to_the_nearest(near: int, distance: int) -> None:
    xid = near + distance
    assert widen(xid % 2**32, near) == xid


@pytest.mark.parametrize("near", [2**33, 2**33 + 2**31])
def test_an_id_half_the_range_away_is_taken_as_it_is(near: int) -> None:
    """Both candidates are equally near, and PostgreSQL never lets ids drift so far apart."""
    assert abs(widen((near + 2**31) % 2**32, near) - near) == 2**31


def test_an_early_id_is_not_widened_below_zero() -> None:
    assert widen(2**32 - 1, 5) == 2**32 - 1


@given(st.integers(0, 2**64 - 1))
def test_lsn_text_and_back(place: int) -> None:
    assert lsn.parse(lsn.text(place)) == place


def test_lsn_as_postgresql_writes_it() -> None:
    assert lsn.text(0x16B374D848) == "16/B374D848"


@pytest.mark.parametrize("text", ["", "1", "/", "1/", "/1", "x/y", "123456789/0", "0/123456789", "+1/0", "1/0x1"])
def test_what_is_no_lsn(text: str) -> None:
    with pytest.raises(ValueError, match="is not a log sequence number"):
        lsn.parse(text)

"""A position in the stream of events, as `last_event_id` encodes it.

A position is `<epoch>-<offset>-<mark>`. The mark is made of the commit of the event at that offset, its LSN and its
time: a database restored from a copy gives the same offsets to other events, and the mark tells them apart. Until the
stream has passed the snapshot that a connection began with, an offset alone does not identify the events that the
client has seen. The position then carries the snapshot boundary:
`<epoch>-<offset>-<mark>.<xmin>.<xmax>.<xid_xid…>.<lsn>.<incarnation>`. PostgreSQL may assign the transaction ids of a
crashed run again, so the incarnation names the run that the snapshot belongs to. To clients a position is opaque.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from momentum_sync.database import lsn as lsn_text
from momentum_sync.database.visibility import Snapshot

_POSITION = re.compile(
    r"(?P<epoch>[0-9a-f]{8})-(?P<offset>\d{1,19})-(?P<mark>[0-9a-f]{1,8})"
    r"(?:\.(?P<xmin>\d{1,20})\.(?P<xmax>\d{1,20})\.(?P<xids>[\d_]*)\.(?P<high>[0-9A-F]{1,8})_(?P<low>[0-9A-F]{1,8})"
    r"\.(?P<incarnation>[0-9a-f]{1,8}))?"
)


def mark_of(commit_lsn: int, committed_at: float) -> int:
    """Return the 32 bits of a commit that positions carry: its LSN combined with its time in microseconds.

    Two branches of a restored database may have commits at the same LSN, but not at the same microsecond as well.
    `momentum.mark` is the same function in SQL.
    """
    # A float of seconds is exact to less than a microsecond: rounding restores the microsecond, truncation could miss
    # it by one.
    return (commit_lsn ^ round(committed_at * 1e6)) & 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class SnapshotBoundary:
    """A snapshot, and the LSN from which on the stream holds only events that the snapshot does not see.

    Every transaction that the snapshot sees wrote its commit record below `lsn`. `incarnation` names the run of
    PostgreSQL that assigned the transaction ids.
    """

    snapshot: Snapshot
    lsn: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Position:
    """An offset within an epoch, with the mark of its event (0 before the first) and, at first, a snapshot boundary."""

    epoch: str
    offset: int
    mark: int
    boundary: SnapshotBoundary | None = None

    @classmethod
    def parse(cls, text: str) -> Position:
        """Parse a client's `last_event_id`.

        Raises:
            ValueError: the text is not a position.
        """
        found = _POSITION.fullmatch(text)
        if found is None:
            raise ValueError("not a position")
        boundary = None
        if found["xmin"] is not None:
            xids = frozenset(int(xid) for xid in found["xids"].split("_") if xid)
            snapshot = Snapshot(int(found["xmin"]), int(found["xmax"]), xids)
            # Queries bind transaction ids as bigint, and a client could send any number.
            if not 0 < snapshot.xmin <= snapshot.xmax < 2**63 or not all(
                snapshot.xmin <= xid < snapshot.xmax for xid in xids
            ):
                raise ValueError("not a snapshot")
            lsn = lsn_text.parse(f"{found['high']}/{found['low']}")
            boundary = SnapshotBoundary(snapshot, lsn, int(found["incarnation"], 16))
        return cls(found["epoch"], int(found["offset"]), int(found["mark"], 16), boundary)

    def __str__(self) -> str:
        """Return the text that clients get."""
        plain = f"{self.epoch}-{self.offset}-{self.mark:x}"
        boundary = self.boundary
        if boundary is None:
            return plain
        snapshot = boundary.snapshot
        xids = "_".join(str(xid) for xid in sorted(snapshot.under_way))
        lsn = lsn_text.text(boundary.lsn).replace("/", "_")
        return f"{plain}.{snapshot.xmin}.{snapshot.xmax}.{xids}.{lsn}.{boundary.incarnation:x}"

"""Transaction ids and snapshots.

`pg_current_snapshot()` prints `xmin:xmax:xip,xip…`: transactions below xmin have ended, those at or above xmax had not
become visible, those listed in xip were in progress. A transaction below xmax and not in xip is visible if it
committed. Source: PostgreSQL, "System Information Functions", table "Transaction ID and Snapshot Information
Functions"; ids there are 64 bits wide and never wrap.
"""

from __future__ import annotations

from dataclasses import dataclass

_HALF = 1 << 31
_WHOLE = 1 << 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The transactions that a snapshot sees."""

    xmin: int
    xmax: int
    under_way: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Parse PostgreSQL's text form. Raise ValueError if it is none."""
        try:
            xmin, xmax, under_way = text.split(":")
            return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in under_way.split(",") if xid))
        except ValueError:
            raise ValueError(f"{text!r} is not a snapshot") from None

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(str(xid) for xid in sorted(self.under_way))}"

    def sees(self, xid: int) -> bool:
        """Return whether the snapshot contains the changes of the committed transaction `xid` (64 bits)."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.under_way)


def widen(xid: int, near: int) -> int:
    """Return the 64-bit id of a 32-bit `xid` from the WAL, given a 64-bit id less than 2^31 away from it."""
    wide = near - near % _WHOLE + xid
    # An xid near the wraparound may belong to the neighbouring epoch; before epoch 0 there is none.
    if wide - near > _HALF and wide >= _WHOLE:
        return wide - _WHOLE
    if near - wide > _HALF:
        return wide + _WHOLE
    return wide

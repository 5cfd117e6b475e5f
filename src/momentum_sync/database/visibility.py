"""Transaction ids and snapshots: what a reader could see.

`pg_current_snapshot()` prints `xmin:xmax:xip,xip…`: transactions below xmin have ended, those at or above xmax
had not begun to be visible, those listed in xip were under way. A transaction whose id is below xmax and not in
xip was visible if it committed. Source: PostgreSQL, "System Information Functions", table "Transaction ID and
Snapshot Information Functions"; ids there are 64 bits wide and never wrap.
"""

from __future__ import annotations

from dataclasses import dataclass

_HALF = 1 << 31
_WHOLE = 1 << 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one transaction saw of all others."""

    xmin: int
    xmax: int
    under_way: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """From PostgreSQL's text form. ValueError if it is none."""
        try:
            xmin, xmax, under_way = text.split(":")
            return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in under_way.split(",") if xid))
        except ValueError:
            raise ValueError(f"{text!r} is not a snapshot") from None

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(str(xid) for xid in sorted(self.under_way))}"

    def sees(self, xid: int) -> bool:
        """Whether the snapshot holds what the committed transaction `xid` (64 bits) wrote."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.under_way)


def widen(xid: int, near: int) -> int:
    """The 64-bit id of a 32-bit `xid` from the WAL, given a 64-bit id that is less than 2^31 away from it."""
    wide = near - near % _WHOLE + xid
    if wide - near > _HALF and wide >= _WHOLE:
        return wide - _WHOLE
    if near - wide > _HALF:
        return wide + _WHOLE
    return wide

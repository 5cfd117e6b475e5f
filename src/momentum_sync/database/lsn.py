"""Log sequence numbers: byte positions in the WAL.

PostgreSQL writes one as two hexadecimal halves, `16/B374D848`, and sends it as an unsigned 64-bit integer. Here it is
an `int`, so that LSNs compare.
"""

from __future__ import annotations

import re

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


def parse(text: str) -> int:
    """Parse an LSN in PostgreSQL's text form. Raise ValueError if it is none."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a log sequence number")
    high, low = found.groups()
    return (int(high, 16) << 32) | int(low, 16)


def text(lsn: int) -> str:
    """Format an LSN in PostgreSQL's text form."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"

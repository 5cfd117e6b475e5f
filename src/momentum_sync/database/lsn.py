"""Log sequence numbers: byte positions in the WAL.

PostgreSQL writes one as two hexadecimal halves, `16/B374D848`, and sends it as an unsigned 64-bit integer. Here it is
an
`int`, so that LSNs compare.
"""

from __future__ import annotations


def parse(text: str) -> int:
    """Parse an LSN in PostgreSQL's text form. Raise ValueError if it is none."""
    high, slash, low = text.partition("/")
    if not slash or not 0 < len(high) <= 8 or not 0 < len(low) <= 8:
        raise ValueError(f"{text!r} is not a log sequence number")
    return (int(high, 16) << 32) | int(low, 16)


def text(lsn: int) -> str:
    """Format an LSN in PostgreSQL's text form."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"

"""Notices that the WAL sender of another instance has lost its client.

PostgreSQL itself ends such a WAL sender after `wal_sender_timeout`. But it measures that time by the wall clock: if
the clock is set back, the WAL sender keeps the slot for as long as the clock was set back.
"""

from __future__ import annotations

Process = tuple[int, str]
"""A process of PostgreSQL: its id, which another may have later, and when it began."""


class ReaderWatch:
    """Compares the last reply of the slot's reader over time.

    Args:
        patience_s: seconds without another reply after which the reader has lost its client.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._seen: tuple[Process, str] | None = None
        self._since = 0.0

    def is_silent(self, reader: Process | None, reply: str | None, at: float) -> bool:
        """Take a look at the slot. Return whether its reader has had no reply of its client for too long.

        Args:
            reader: the process that reads the slot; None if there is none.
            reply: when the last reply came, as text; None if that is unknown.
            at: monotonic time.
        """
        if reader is None or reply is None:
            self._seen = None
            return False
        if self._seen != (reader, reply):
            self._seen, self._since = (reader, reply), at
        return at - self._since >= self._patience_s

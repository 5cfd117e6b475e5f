"""The receipts of devices, in `momentum.devices`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from momentum_sync.database import queries
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.position import Position

_SQL = queries.load(__package__)


class ReceiptRecords:
    """Writes the records. Its methods raise psycopg.Error, or PoolTimeout without a connection."""

    def __init__(self, connections: LogConnections) -> None:
        self._connections = connections

    async def save(self, receipts: Sequence[tuple[UUID, str, Position]]) -> None:
        """Save the positions of devices, each at most once."""
        asked = {
            "users": [user_id for user_id, _, _ in receipts],
            "devices": [device for _, device, _ in receipts],
            "epochs": [position.epoch for _, _, position in receipts],
            "offsets": [position.offset for _, _, position in receipts],
        }
        async with self._connections.writing() as connection:
            await connection.execute(_SQL["save_receipts"], asked)

    async def forget(self, retention: timedelta, *, most: int) -> None:
        """Delete the records of devices that have been away for longer, and of all but a user's newest."""
        async with self._connections.writing() as connection:
            await connection.execute(_SQL["forget_receipts"], {"retention": retention, "most": most})

"""The receipts of devices, in `momentum.devices`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import msgspec

from momentum_sync.database import queries
from momentum_sync.eventlog.connections import LogConnections
from momentum_sync.eventlog.position import Position

_SQL = queries.load(__package__)


class ReceiptRecords:
    """Writes the records. Its methods raise psycopg.Error, or PoolTimeout without a connection."""

    def __init__(self, connections: LogConnections) -> None:
        self._connections = connections

    async def save(self, receipts: Sequence[tuple[UUID, str, Position, Sequence[str]]], *, most: int) -> None:
        """Save the positions of devices and the keys that they are subscribed to, and delete all but a user's newest.

        Positions of an epoch that has ended are not saved.
        """
        encode = msgspec.json.encode
        parameters = {
            "users": [user_id for user_id, _, _, _ in receipts],
            "devices": [device for _, device, _, _ in receipts],
            "epochs": [position.epoch for _, _, position, _ in receipts],
            "offsets": [position.offset for _, _, position, _ in receipts],
            "keys": [encode(list(keys)).decode() for _, _, _, keys in receipts],
        }
        async with self._connections.writing() as connection:
            await connection.execute(_SQL["save_receipts"], parameters)
            await connection.execute(_SQL["bound_receipts"], {"users": parameters["users"], "most": most})

    async def forget(self, retention: timedelta) -> None:
        """Delete the records of devices that have confirmed nothing for longer."""
        async with self._connections.writing() as connection:
            await connection.execute(_SQL["forget_receipts"], {"retention": retention})

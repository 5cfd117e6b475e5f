"""The app's table `realtime_event_metrics`: rows written in batches, old ones deleted."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from psycopg import sql

from momentum_sync.database import queries
from momentum_sync.database.connection import make_pool, using
from momentum_sync.eventlog.samples import Sample

_SQL = queries.load(__package__)
_WAIT_S = 5.0
_WORK_S = 30.0
# The server's role has no privileges of its own on the app's tables.
_AS_SERVICE_ROLE = sql.SQL("set local role service_role")


class EventMetrics:
    """The app's table, written and cleaned under `service_role`."""

    def __init__(self, conninfo: str) -> None:
        self._pool = make_pool(conninfo, "metrics", size=1, wait=_WAIT_S)

    async def open(self) -> None:
        """Start connecting in the background."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close the connection."""
        await self._pool.close(timeout=5.0)

    async def write(self, samples: Sequence[Sample]) -> None:
        """Add a row for each sample. Raises psycopg.Error, or PoolTimeout while there is no connection."""
        text = msgspec.json.encode([sample._asdict() for sample in samples]).decode()
        async with using(self._pool, _WORK_S) as connection, connection.transaction():
            await connection.execute(_AS_SERVICE_ROLE)
            await connection.execute(_SQL["write_metrics"], {"samples": text})

    async def clean(self) -> int:
        """Delete rows older than the setting `metrics_retention`. Return how many. Raises as `write`."""
        async with using(self._pool, _WORK_S) as connection, connection.transaction():
            await connection.execute(_AS_SERVICE_ROLE)
            row = await (await connection.execute(_SQL["cleanup_metrics"])).fetchone()
        return 0 if row is None else int(row[0])

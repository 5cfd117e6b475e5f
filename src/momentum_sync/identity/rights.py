"""What a caller may have: asked of the database, as the caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from momentum_sync.eventlog.event import CACHE_INVALIDATION

_MAY_SUBSCRIBE: LiteralString = """
select channel from unnest(%(channels)s::text[]) with ordinality as asked (channel, place)
where momentum.may_subscribe(channel) order by place
"""
_MAY_ACT_FOR: LiteralString = "select momentum.may_act_for(%(user_id)s)"


def own_channels(user_id: UUID) -> list[str]:
    """The four channels of a user."""
    return [f"momentum_updates:{user_id}", f"interventions:{user_id}", f"notifications:{user_id}", CACHE_INVALIDATION]


async def granted(connection: AsyncConnection[TupleRow], channels: Sequence[str], user_id: UUID | None) -> list[str]:
    """Those of the channels that the connection's caller may have, in the order asked for.

    `user_id` is the user whose connection it is; without one there are no cache keys to hear of.
    """
    if user_id is None:
        channels = [channel for channel in channels if channel != CACHE_INVALIDATION]
    cursor = await connection.execute(_MAY_SUBSCRIBE, {"channels": list(channels)})
    return [str(channel) for (channel,) in await cursor.fetchall()]


async def may_act_for(connection: AsyncConnection[TupleRow], user_id: UUID) -> bool:
    """Whether the connection's caller may do for this user what the user may."""
    row = await (await connection.execute(_MAY_ACT_FOR, {"user_id": user_id})).fetchone()
    return row is not None and bool(row[0])

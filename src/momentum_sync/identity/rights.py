"""What a caller may have: asked of the database, as the caller."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, errors
from psycopg.rows import TupleRow

from momentum_sync.database.pool import CallerPool
from momentum_sync.errors import Forbidden, Unavailable
from momentum_sync.eventlog.event import CACHE_INVALIDATION
from momentum_sync.identity.tokens import Identity

_AT_ONCE = 2
_BATCH = 50

_RIGHTS: LiteralString = """
select
    %(user_id)s::uuid is null or momentum.may_act_for(%(user_id)s::uuid),
    array(
        select channel from unnest(%(channels)s::text[]) with ordinality as asked (channel, place)
        where momentum.may_subscribe(channel) order by place)
"""


class _Asked(NamedTuple):
    identity: Identity
    parameters: dict[str, object]
    answer: asyncio.Future[list[str]]


class Rights:
    """Asks which channels callers may have: many of them in one round trip when many ask at once.

    No more than two such round trips are under way at a time, whatever number of clients come back together.
    """

    def __init__(self, pool: CallerPool) -> None:
        self._pool = pool
        self._waiting: deque[_Asked] = deque()
        self._asking: set[asyncio.Task[None]] = set()

    async def granted(self, identity: Identity, user_id: UUID | None, channels: Sequence[str]) -> list[str]:
        """Those of the channels that the caller may have, in the order asked for.

        `user_id` is the user whose connection it is: Forbidden if the caller may not act for that user. Without one
        there are no cache keys to hear of. Unavailable if the database does not answer.
        """
        asked = _Asked(identity, _parameters(user_id, channels), asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if len(self._asking) < _AT_ONCE:
            task = asyncio.ensure_future(self._ask())
            self._asking.add(task)
        return await asked.answer

    async def _ask(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while self._waiting:
                await self._answer([self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))])
        finally:
            self._asking.discard(task)

    async def _answer(self, batch: list[_Asked]) -> None:
        try:
            answers = await self._pool.ask_each([(asked.identity, _RIGHTS, asked.parameters) for asked in batch])
        except Exception as error:
            away = isinstance(error, Unavailable) and not isinstance(error.__cause__, errors.QueryCanceled)
            if len(batch) > 1 and not away:
                for asked in batch:  # one of them spoilt it for all
                    await self._answer([asked])
                return
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
            return
        for asked, rows in zip(batch, answers, strict=True):
            _settle(asked.answer, rows[0])


def own_channels(user_id: UUID | None) -> list[str]:
    """The four channels of a user; none for nobody."""
    if user_id is None:
        return []
    return [f"momentum_updates:{user_id}", f"interventions:{user_id}", f"notifications:{user_id}", CACHE_INVALIDATION]


async def granted_within(
    connection: AsyncConnection[TupleRow], user_id: UUID | None, channels: Sequence[str]
) -> list[str]:  # fmt: skip
    """As `Rights.granted`, within a transaction that is the caller's."""
    row = await (await connection.execute(_RIGHTS, _parameters(user_id, channels))).fetchone()
    assert row is not None
    return _granted(row)


async def may_act_for(connection: AsyncConnection[TupleRow], user_id: UUID) -> bool:
    """Whether the connection's caller may do for this user what the user may."""
    row = await (await connection.execute("select momentum.may_act_for(%s)", (user_id,))).fetchone()
    return row is not None and bool(row[0])


def _parameters(user_id: UUID | None, channels: Sequence[str]) -> dict[str, object]:
    wanted = [channel for channel in channels if user_id is not None or channel != CACHE_INVALIDATION]
    return {"user_id": user_id, "channels": wanted}


def _granted(row: TupleRow) -> list[str]:
    acts, channels = row
    if not acts:
        raise Forbidden("This token does not allow acting for that user.")
    return list(channels)


def _settle(answer: asyncio.Future[list[str]], row: TupleRow) -> None:
    if answer.done():  # whoever asked has gone
        return
    try:
        answer.set_result(_granted(row))
    except Forbidden as error:
        answer.set_exception(error)

"""Connections for work that is done as a caller, under the caller's role and claims.

The database decides who may see what: every read for a client runs in a transaction whose role and
`request.jwt.claims` are the caller's, as PostgREST does it, and row level security applies as it stands.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import LiteralString, NamedTuple, Protocol

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, IsolationLevel, errors, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from momentum_sync.errors import Forbidden, Unauthenticated, Unavailable, Unsuitable

_Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]
Params = Mapping[str, object]
Query = LiteralString | sql.Composed

_STATEMENT_TIMEOUT_MS = 10_000
_WAIT_FOR_CONNECTION_S = 5.0
_BECOME: LiteralString = "select momentum.become(%s, %s)"
_OURSELVES: LiteralString = "set local role none"
_AT_ONCE = 2
_BATCH = 50


class Caller(Protocol):
    """Whoever work is done for."""

    @property
    def role(self) -> str:
        """A database role that the server may become: `authenticated` or `service_role`."""

    @property
    def claims(self) -> str:
        """The token's claims as a JSON object."""


def connect(conninfo: str, *, application_name: str) -> Connection[TupleRow]:
    """A connection for a command's own work, in autocommit. Unsuitable, with what to set, if there is none."""
    try:
        return psycopg.connect(conninfo, autocommit=True, connect_timeout=10, application_name=application_name)
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        raise Unsuitable(
            f"The database cannot be reached: {str(error).strip().splitlines()[-1].strip()}.",
            "Set DATABASE_URL=postgresql://user:password@host:5432/database, or unset it for an embedded PostgreSQL.",
        ) from error


class _Question(NamedTuple):
    caller: Caller
    queries: Sequence[tuple[Query, Params]]
    answer: asyncio.Future[list[list[TupleRow]]]


class CallerPool:
    """A bounded pool whose only verbs are to work and to ask as somebody.

    What many ask at once shares round trips, and no more than two of those are under way at a time, whatever number of
    clients come back together.
    """

    def __init__(self, conninfo: str, *, size: int) -> None:
        self._pool: _Pool = AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=size,
            timeout=_WAIT_FOR_CONNECTION_S,
            open=False,
            configure=_configure,
            check=alive,
            reconnect_timeout=60.0,
            kwargs={"autocommit": True, "application_name": "momentum-sync gateway", "connect_timeout": 5},
            name="callers",
        )
        self._waiting: deque[_Question] = deque()
        self._asking: set[asyncio.Task[None]] = set()
        self._apart: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Starts connecting in the background; work waits until there is a connection."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Closes every connection, waiting a few seconds for work under way."""
        await self._pool.close(timeout=5.0)

    @asynccontextmanager
    async def as_caller(self, caller: Caller, *, frozen: bool = False) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A transaction that is the caller's, committed on leaving; with `frozen` it is REPEATABLE READ.

        Raises Forbidden for what the database refuses the caller, Unauthenticated for a token that was revoked,
        Unavailable when the database cannot be reached in time.
        """
        async with self._connection(frozen=frozen) as connection, connection.transaction():
            await connection.execute(_BECOME, (caller.role, caller.claims))
            yield connection

    async def ask(self, caller: Caller, *queries: tuple[Query, Params]) -> list[list[TupleRow]]:
        """The rows of queries that only read, under the caller's role and claims. Raises as `as_caller`.

        All of them see the same.
        """
        question = _Question(caller, queries, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        if len(self._asking) < _AT_ONCE:
            self._asking.add(asyncio.ensure_future(self._answer_waiting()))
        return await question.answer

    async def _answer_waiting(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while self._waiting:
                await self._answer([self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))])
        finally:
            self._asking.discard(task)  # not later: who asks next must find it gone

    async def _answer(self, batch: list[_Question]) -> None:
        try:
            answers = await self._ask_each(batch)
        except Exception as error:
            slow = isinstance(error.__cause__, errors.QueryCanceled)
            if len(batch) > 1 and (slow or not isinstance(error, Unavailable)):  # one of them spoilt it for all
                if slow:  # the others' questions do not wait for theirs
                    self._keep(asyncio.ensure_future(_all([self._answer([question]) for question in batch])))
                    return
                half = len(batch) // 2
                await self._answer(batch[:half])
                await self._answer(batch[half:])
                return
            for question in batch:
                if not question.answer.done():
                    question.answer.set_exception(error)
            return
        for question, rows in zip(batch, answers, strict=True):
            if not question.answer.done():  # else whoever asked has gone
                question.answer.set_result(rows)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._apart.add(task)
        task.add_done_callback(self._apart.discard)

    async def _ask_each(self, questions: Sequence[_Question]) -> list[list[list[TupleRow]]]:
        """The answers in one round trip. Raises for all of them if it must for one.

        All see the same: what `become` says of policies and tokens is as new as what is then asked.
        """
        answers: list[list[AsyncCursor[TupleRow]]] = []
        async with self._connection(frozen=True) as connection, connection.pipeline(), connection.transaction():
            for caller, asked, _ in questions:
                if answers:  # still the caller of before, who may not look into the schema that makes it the next one
                    await connection.execute(_OURSELVES)
                await connection.execute(_BECOME, (caller.role, caller.claims))
                answers.append([await connection.execute(query, parameters) for query, parameters in asked])
            return [[await answer.fetchall() for answer in answered] for answered in answers]

    @asynccontextmanager
    async def _connection(self, *, frozen: bool = False) -> AsyncIterator[AsyncConnection[TupleRow]]:
        try:
            async with self._pool.connection() as connection:
                await connection.set_isolation_level(
                    IsolationLevel.REPEATABLE_READ if frozen else IsolationLevel.READ_COMMITTED
                )
                yield connection
        except errors.InsufficientPrivilege as error:
            raise Forbidden("This token does not allow that.") from error
        except errors.InvalidAuthorizationSpecification as error:
            raise Unauthenticated("The token was revoked.", "token_revoked") from error
        except PoolTimeout as error:
            raise Unavailable("The database does not answer; try again in a moment.") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise Unavailable("The database could not do that now; try again in a moment.") from error


async def alive(connection: AsyncConnection[TupleRow]) -> None:
    """A pool's check. Raises psycopg.OperationalError for a connection that has ended.

    One that nobody uses has nothing to read unless it has ended, or has been told something. So the usual question,
    which costs a round trip before each piece of work, is asked only where there is something to read.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        await AsyncConnectionPool.check_connection(connection)


async def _all(work: Sequence[Coroutine[None, None, None]]) -> None:
    await asyncio.gather(*work)


async def _configure(connection: AsyncConnection[TupleRow]) -> None:
    await connection.execute(f"set statement_timeout = {_STATEMENT_TIMEOUT_MS}")
    await connection.execute(f"set idle_in_transaction_session_timeout = {_STATEMENT_TIMEOUT_MS}")

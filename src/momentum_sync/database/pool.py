"""Queries under a caller's role and claims.

The database decides which rows a caller may see: every read for a client runs in a transaction with the caller's
role and `request.jwt.claims`, as in PostgREST, and row level security applies.

Policies are the operator's SQL, and one may take seconds for one caller. So questions run in lanes: one for clients
that connect, one for events, and one for callers with slow questions lately. A question that exceeds its lane's timeout
moves to the last lane, where callers are served in turn, four at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum
from typing import LiteralString, NamedTuple, Protocol

import psycopg
from psycopg import AsyncConnection, AsyncCursor, IsolationLevel, errors
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout

from momentum_sync.database.connection import Pool, Query, make_pool, using
from momentum_sync.errors import Forbidden, Unauthenticated, Unavailable
from momentum_sync.limits import QueryLimits

Params = Mapping[str, object]

# The database's clock times each question, so that the network and other questions do not count as a caller's slowness.
_BECOME: LiteralString = "select extract(epoch from clock_timestamp())::float8, momentum.become(%s, %s)"
_NOW: LiteralString = "select extract(epoch from clock_timestamp())::float8"
_OURSELVES: LiteralString = "set local role none"


class Caller(Protocol):
    """The role and claims that a query runs under."""

    @property
    def role(self) -> str:
        """Return a database role that the server may become: `authenticated` or `service_role`."""

    @property
    def claims(self) -> str:
        """Return the token's claims as a JSON object."""


class Lane(Enum):
    """The purpose of a question. Lanes do not wait for each other."""

    CONNECT = "connect"
    EVENTS = "events"


class _Question(NamedTuple):
    caller: Caller
    queries: Sequence[tuple[Query, Params]]
    answer: asyncio.Future[list[list[TupleRow]]]


class _TooSlow(Exception):
    """A statement of the question at `index` in a batch exceeded its lane's timeout."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class CallerPool:
    """A bounded pool of connections that run work as a caller.

    Concurrent questions share round trips, and each lane has a bounded number of those, however many clients reconnect
    together.
    """

    def __init__(self, conninfo: str, limits: QueryLimits, *, size: int) -> None:
        self._limits = limits
        self._direct = _pool(conninfo, "gateway", size, limits.direct_s, limits)
        slow = _pool(conninfo, "slow callers", limits.slow_round_trips, limits.slow_s, limits)
        self._slow = _SlowCallers(slow, limits)
        self._lanes = {
            lane: _Shared(_pool(conninfo, lane.value, limits.round_trips, limits.shared_s, limits), self._slow, limits)
            for lane in Lane
        }
        self._turns = _Turns(limits)
        self._turns_of_slow = asyncio.Semaphore(max(1, size // 2))

    async def open(self) -> None:
        """Start connecting in the background; work waits for a connection."""
        for pool in self._pools():
            await pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection, waiting a few seconds for running work."""
        await asyncio.gather(*[pool.close(timeout=5.0) for pool in self._pools()])

    def _pools(self) -> list[Pool]:
        return [self._direct, self._slow.pool, *[lane.pool for lane in self._lanes.values()]]

    @asynccontextmanager
    async def as_caller(self, caller: Caller, *, frozen: bool = False) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """Open a transaction under the caller's role, committed on exit; with `frozen`, REPEATABLE READ.

        A caller has two of them at a time; slow callers leave half of the pool to others.

        Raises:
            Forbidden: the database refuses the caller.
            Unauthenticated: the token was revoked.
            Unavailable: the database does not answer in time.
        """
        async with AsyncExitStack() as stack:
            # The caller's own turn comes before the connection, so that requests waiting for their turn hold none of
            # the pool.
            if not _is_service(caller):
                await stack.enter_async_context(self._turns.of(caller.claims))
            if self._slow.knows(caller):
                await stack.enter_async_context(_in_time(self._turns_of_slow, self._limits.pool_wait_s))
            connection = await stack.enter_async_context(_connection(self._direct, self._limits.cut_s, frozen=frozen))
            began = time.monotonic()
            try:
                async with connection.transaction():
                    await connection.execute(_BECOME, (caller.role, caller.claims))
                    yield connection
            finally:  # also if it exceeded its timeout
                if time.monotonic() - began > self._limits.slow_request_s:
                    self._slow.note(caller, self._limits.slow_request_s)

    async def ask(
        self, caller: Caller, *queries: tuple[Query, Params], lane: Lane = Lane.EVENTS
    ) -> list[list[TupleRow]]:
        """Run queries that only read, under the caller's role and claims, in one snapshot. Return their rows.

        Raises as `as_caller`; Unavailable also if the caller's own earlier questions take too long.
        """
        loop = asyncio.get_running_loop()
        question = _Question(caller, queries, loop.create_future())
        if self._slow.knows(caller):
            self._slow.put(question)
        else:
            self._lanes[lane].put(question)
        # A timer of its own costs a tenth of `asyncio.timeout`, and every client that connects has one.
        late = Unavailable("The database did not answer in time; try again in a moment.")
        timer = loop.call_later(self._limits.answer_s, _fail, [question], late)
        try:
            return await question.answer
        finally:
            timer.cancel()
            del question, late  # an error refers to this frame by its traceback, and would refer to itself

    async def until_visible(self) -> AsyncIterator[None]:
        """Yield, with pauses between, until the caller stops: for work that waits for a commit to become visible.

        A commit is in the WAL before snapshots see it: for less than a millisecond, or as long as it waits for a
        standby.

        Raises:
            Unavailable: it is not visible after the last pause.
        """
        yield
        for pause in self._limits.visibility_pauses_s:
            await asyncio.sleep(pause)
            yield
        raise Unavailable("A committed change is not visible to queries yet; try again in a moment.")


class _Shared:
    """A lane with shared round trips: a batch of questions is one transaction, of several callers in turn."""

    def __init__(self, pool: Pool, slow: _SlowCallers, limits: QueryLimits) -> None:
        self.pool = pool
        self._slow = slow
        self._limits = limits
        self._waiting: deque[_Question] = deque()
        self._asking: set[asyncio.Task[None]] = set()
        self._each = 0.0  # moving average of the database's work on one question, in seconds

    def put(self, question: _Question) -> None:
        """Queue the question for the next round trip."""
        self._waiting.append(question)
        if len(self._asking) < self._limits.round_trips:
            # The task starts in the next iteration of the event loop, so questions of this iteration share its first
            # round trip.
            self._asking.add(asyncio.ensure_future(self._answer_waiting()))

    async def _answer_waiting(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while batch := self._next_batch():
                await self._answer(batch)
        finally:
            self._asking.discard(task)  # at once: the next question must see it gone

    def _next_batch(self) -> list[_Question]:
        """Return the questions for one round trip: at most two of one caller, none that was cancelled.

        Questions that are skipped go to the end of the queue. The operator's own backends do not count as one caller.
        """
        limits = self._limits
        # `_each` is 0 until the first answer, so this comparison also guards the division below.
        fits = self._each * limits.batch < limits.batch_work_s
        most = limits.batch if fits else max(1, int(limits.batch_work_s / self._each))
        batch: list[_Question] = []
        later: list[_Question] = []
        count: Counter[str] = Counter()
        while self._waiting and len(batch) < most and len(later) < limits.scan:
            question = self._waiting.popleft()
            if question.answer.done():
                continue
            count[question.caller.claims] += 1
            taken = _is_service(question.caller) or count[question.caller.claims] <= limits.batch_per_caller
            (batch if taken else later).append(question)
        self._waiting.extend(later)
        return batch

    async def _answer(self, batch: list[_Question]) -> None:
        while batch:
            began = time.monotonic()
            try:
                spent = await _answer_together(self.pool, batch, self._slow, self._limits.batch_s)
                self._each += (spent / len(batch) - self._each) / 4
            except _TooSlow as slow:
                question = batch.pop(slow.index)
                self._slow.note(question.caller, self._limits.shared_s)
                self._slow.put(question)
                # The same caller's other questions would exceed the timeout one by one, and repeat the batch each time.
                for other in [other for other in batch if self._slow.knows(other.caller)]:
                    batch.remove(other)
                    self._slow.put(other)
                continue
            except Exception as error:
                # By default the pool's wait equals this deadline, so time alone cannot tell slow questions from a lost
                # database.
                late = isinstance(error, Unavailable) and time.monotonic() - began >= self._limits.batch_s
                if late and len(batch) > 1 and not isinstance(error.__cause__, PoolTimeout):
                    # Together they took too long; each alone may be fast.
                    self._each = self._limits.batch_s / len(batch)
                    for question in batch:
                        self._slow.put(question)
                    return
                if len(batch) > 1 and not isinstance(error, Unavailable):  # one question failed all
                    half = len(batch) // 2
                    await self._answer(batch[:half])
                    await self._answer(batch[half:])
                else:
                    _fail(batch, error)
                    batch.clear()  # as in `ask`
            return


class _SlowCallers:
    """The lane of slow callers: one question of a caller at a time, callers in turn."""

    def __init__(self, pool: Pool, limits: QueryLimits) -> None:
        self.pool = pool
        self.limits = limits
        self._until: OrderedDict[str, float] = OrderedDict()
        self._waiting: OrderedDict[str, deque[_Question]] = OrderedDict()
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def knows(self, caller: Caller) -> bool:
        """Return whether the caller's questions were slow lately."""
        if _is_service(caller):  # the operator's backends are many callers
            return False
        until = self._until.get(caller.claims)
        return until is not None and time.monotonic() < until

    def note(self, caller: Caller, seconds: float) -> None:
        """Record how long a question of the caller took."""
        if seconds < self.limits.slow_from_s:
            return
        self._until.pop(caller.claims, None)
        self._until[caller.claims] = time.monotonic() + self.limits.slow_for_s
        if len(self._until) > self.limits.slow_callers:
            self._until.popitem(last=False)

    def put(self, question: _Question) -> None:
        """Queue the question until it is the caller's turn."""
        self._waiting.setdefault(question.caller.claims, deque()).append(question)
        self._start()

    def _start(self) -> None:
        for claims in list(self._waiting):
            if len(self._tasks) >= self.limits.slow_round_trips:
                return
            if claims not in self._busy:
                self._busy.add(claims)
                task = asyncio.ensure_future(self._answer_next(claims))
                self._tasks.add(task)

    async def _answer_next(self, claims: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        waiting = self._waiting[claims]
        question = waiting.popleft()
        try:
            if not question.answer.done():  # otherwise the caller was cancelled
                await _answer_together(self.pool, [question], self, self.limits.cut_s)
        except _TooSlow:
            _fail([question], Unavailable("The database did not answer in time; try again in a moment."))
        except Exception as error:
            _fail([question], error)
        finally:
            del question  # as in `ask`
            self._tasks.discard(task)
            self._busy.discard(claims)
            if waiting:
                self._waiting.move_to_end(claims)  # other callers come first
            else:
                del self._waiting[claims]
            self._start()


class _Turns:
    """The number of open transactions per caller."""

    def __init__(self, limits: QueryLimits) -> None:
        self._limits = limits
        self._turns: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, claims: str) -> AsyncIterator[None]:
        """Wait until the caller has fewer open transactions than the limit. Raise Unavailable on timeout."""
        semaphore, users = self._turns.get(claims) or (asyncio.Semaphore(self._limits.per_caller), 0)
        # Waiting requests count as users: without its entry, the next request would get a new semaphore and exceed the
        # limit.
        self._turns[claims] = semaphore, users + 1
        try:
            async with _in_time(semaphore, self._limits.pool_wait_s):
                yield
        finally:
            semaphore, users = self._turns.pop(claims)
            if users > 1:
                self._turns[claims] = semaphore, users - 1


@asynccontextmanager
async def _in_time(semaphore: asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            await semaphore.acquire()
    except TimeoutError:
        raise Unavailable("Too many requests of this user are still running; try again in a moment.") from None
    try:
        yield
    finally:
        semaphore.release()


def _pool(conninfo: str, name: str, size: int, statement_s: float, limits: QueryLimits) -> Pool:
    settings = {
        "statement_timeout": f"{statement_s * 1000:.0f}ms",
        "idle_in_transaction_session_timeout": f"{limits.cut_s * 1000:.0f}ms",
    }
    return make_pool(conninfo, name, size=size, wait=limits.pool_wait_s, settings=settings)


def _fail(questions: Sequence[_Question], error: Exception) -> None:
    for question in questions:
        if not question.answer.done():
            question.answer.set_exception(error)


def _is_service(caller: Caller) -> bool:
    return caller.role == "service_role"


async def _answer_together(pool: Pool, questions: Sequence[_Question], slow: _SlowCallers, seconds: float) -> float:
    """Answer questions in one round trip. Return the seconds that the database worked on them.

    All share a snapshot, so the policies and revocations that `momentum.become` reads are as new as the answers.

    Raises:
        _TooSlow: a statement exceeded its timeout; no question is answered.
        Exception: a statement or the database failed; no question is answered.
    """
    began: list[AsyncCursor[TupleRow]] = []
    answers: list[list[AsyncCursor[TupleRow]]] = []
    try:
        async with (
            _connection(pool, seconds, frozen=True) as connection,
            connection.pipeline(),
            connection.transaction(force_rollback=True),  # a policy may call a function that writes
        ):
            for caller, queries, _ in questions:
                if answers:  # the role is still the previous caller's, which may not use the schema `momentum`
                    await connection.execute(_OURSELVES)
                began.append(await connection.execute(_BECOME, (caller.role, caller.claims)))
                answers.append([await connection.execute(query, parameters) for query, parameters in queries])
            began.append(await connection.execute(_NOW))
            # In a pipeline, a fetch waits for the server: fetching between the statements would cost a round trip per
            # question.
            found = [[await answer.fetchall() for answer in answered] for answered in answers]
            times = await _times(began, slow.limits.slow_from_s)
    except Unavailable as error:
        if isinstance(error.__cause__, errors.QueryCanceled):
            raise _TooSlow(min(_first_unanswered(answers), len(questions) - 1)) from error
        raise
    if times[-1] - times[0] >= slow.limits.slow_from_s:
        # Questions of one caller add up, because many fast ones hold up a shared round trip like one slow one.
        spent: dict[str, float] = {}
        for question, start, end in zip(questions, times, times[1:], strict=False):
            by = question.caller.claims
            spent[by] = spent.get(by, 0.0) + end - start
            slow.note(question.caller, spent[by])
    for question, rows in zip(questions, found, strict=True):
        if not question.answer.done():  # otherwise the caller no longer waits
            question.answer.set_result(rows)
    return times[-1] - times[0]


async def _times(began: Sequence[AsyncCursor[TupleRow]], slow_from_s: float) -> list[float]:
    """Return when each question began, and when all had ended; only the first and the last time if all were fast."""
    first, last = await began[0].fetchone(), await began[-1].fetchone()
    assert first is not None
    assert last is not None
    if last[0] - first[0] < slow_from_s:
        return [first[0], last[0]]
    rows = [await each.fetchone() for each in began[1:-1]]
    return [first[0], *[row[0] for row in rows if row is not None], last[0]]


def _first_unanswered(answers: Sequence[Sequence[AsyncCursor[TupleRow]]]) -> int:
    """Return the index of the question at which a batch stopped; earlier ones have results."""
    for index, answered in enumerate(answers):
        if any(cursor.pgresult is None for cursor in answered):
            return index
    return len(answers)


@asynccontextmanager
async def _connection(pool: Pool, seconds: float, *, frozen: bool = False) -> AsyncIterator[AsyncConnection[TupleRow]]:
    try:
        async with using(pool, seconds) as connection:
            # A pooled connection keeps the level of its previous user, so it is set in both cases.
            await connection.set_isolation_level(
                IsolationLevel.REPEATABLE_READ if frozen else IsolationLevel.READ_COMMITTED
            )
            yield connection
    except errors.InsufficientPrivilege as error:
        raise Forbidden("This token does not allow this operation.") from error
    except errors.InvalidAuthorizationSpecification as error:
        # `momentum.admit` raises this class for a revoked token. It is an OperationalError, so it must be caught before
        # those.
        raise Unauthenticated("The token was revoked.", "token_revoked") from error
    except PoolTimeout as error:
        raise Unavailable("The database does not answer; try again in a moment.") from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise Unavailable("The database operation failed; try again in a moment.") from error

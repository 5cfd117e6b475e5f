"""The sessions of a gateway's clients of Supabase's protocol: numbered, settled and saved.

All database work is shared: sockets that open together take their numbers in one query, first joins that arrive
together are settled in one transaction, and positions are saved together, every few seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import Generic, NamedTuple, TypeVar

import psycopg

from momentum_sync import observe
from momentum_sync.errors import Unavailable
from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.session_records import SavedSession, SessionRecords, Settling
from momentum_sync.gateway.dialects.realtime_resume import (
    LOST,
    UNKNOWN_REF,
    Key,
    Ledger,
    Record,
    Verdict,
    may_continue,
    settle,
)
from momentum_sync.gateway.dialects.realtime_services import LiveSession
from momentum_sync.gateway.realtime_pings import Pings
from momentum_sync.limits import ResumeLimits
from momentum_sync.wire.close import Close

_BATCH = 1_000  # sessions in one query
_MOST_CURSORS = 200  # topics that a session inherits
_TOUCH_S = 600.0  # how often a quiet session is saved, so that its record does not expire
Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Batches(Generic[Question, Answer]):
    """Collects questions, and answers all that wait with one piece of work at a time.

    Args:
        work: answers questions.
        every_s: interval from one piece of work to the next. When thousands of clients come back at once, a few of them
            ask while each query is under way, and the queries would cost more than all else.
    """

    def __init__(self, work: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]], every_s: float) -> None:
        self._work = work
        self._every_s = every_s
        self._next = 0.0
        self._waiting: list[tuple[Question, asyncio.Future[Answer] | None]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        self._begin()
        try:
            return await answer
        finally:
            del answer  # an error refers to this frame by its traceback, and would refer to itself

    async def run_all(self, questions: Iterable[Question]) -> None:
        """Process all questions and discard the answers. Failures are logged."""
        self._waiting += [(each, None) for each in questions]
        await asyncio.shield(self._begin())

    def _begin(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
        return self._task

    async def _run(self) -> None:
        try:
            while self._waiting:
                if (early := self._next - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                self._next = time.monotonic() + self._every_s
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                await self._answer(
                    [(question, answer) for question, answer in batch if answer is None or not answer.done()]
                )  # fmt: skip
        finally:
            self._task = None

    async def _answer(self, batch: Sequence[tuple[Question, asyncio.Future[Answer] | None]]) -> None:
        try:
            found = await self._work([question for question, _ in batch])
        except Exception as error:
            if len(batch) > 1 and isinstance(error, psycopg.DataError):  # one of them, which must not fail the others
                for one in batch:
                    await self._answer([one])
                return
            observe.failed("the sessions' records", error)
            for _, answer in batch:
                if answer is not None and not answer.done():
                    answer.set_exception(Unavailable("The database does not answer; try again in a moment."))
            return
        for (_, answer), one_found in zip(batch, found, strict=True):
            if answer is not None and not answer.done():
                answer.set_result(one_found)


class _Claim(NamedTuple):
    """A first join that is to be settled."""

    ledger: Ledger
    key: Key
    ref: int
    topic: str
    start: Position
    silent: frozenset[int]
    is_reconnect: bool


class _Renaming(NamedTuple):
    """A session that is to be found under another key."""

    ledger: Ledger
    key: Key


class RealtimeSessions:
    """The sessions of one gateway.

    Args:
        records: the records in the database.
        limits: bounds.

    Attributes:
        pings: sends pings to the open sessions.
    """

    def __init__(self, records: SessionRecords, limits: ResumeLimits) -> None:
        self._records = records
        self._limits = limits
        self.pings = Pings(limits)
        self._live: dict[int, LiveSession] = {}
        self._by_key: dict[str, set[int]] = {}  # of the live ones that have a key
        self._ended: dict[int, Ledger] = {}
        self._claimed_elsewhere: Callable[[Sequence[int]], None] = lambda _: None
        self._saved: dict[int, tuple[int, float]] = {}  # by session: its changes, and when they were saved
        self._numbers: _Batches[None, int] = _Batches(self._take_numbers, limits.batch_s)
        self._claims: _Batches[_Claim, Verdict] = _Batches(self._settle, limits.batch_s)
        self._saves: _Batches[Ledger, bool] = _Batches(self._save, limits.batch_s)
        self._discards: _Batches[_Renaming, None] = _Batches(self._discard, limits.batch_s)

    async def number(self) -> int:
        """Return the number of a socket that has just been accepted."""
        return await self._numbers.ask(None)

    def begin(self, session: LiveSession) -> None:
        """Know a session from now on."""
        number = session.ledger.session
        # A database that was restored from a copy gives numbers again.
        earlier = self._live.get(number)
        if earlier is not None:
            self.end(earlier)
        self._ended.pop(number, None)
        self._saved.pop(number, None)
        self._live[number] = session
        self.pings.add(session)
        if earlier is not None:
            try:
                earlier.drop(Close.RESTART)
            except Exception as error:  # the new one must not fail with it
                observe.failed("a session whose number was given again", error)

    def end(self, session: LiveSession) -> None:
        """Note that a session's socket is closed. Its record stays."""
        ledger = session.ledger
        if not self._is_live(ledger):
            return
        self.pings.remove(self._live.pop(ledger.session))
        if ledger.key is not None:
            self._unindex(ledger, ledger.key)
            ledger.ended()
            self._ended[ledger.session] = ledger

    def _is_replaced(self, ledger: Ledger) -> bool:
        """Return whether a later session has the session's number."""
        session = self._live.get(ledger.session)
        return session is not None and session.ledger is not ledger

    def _is_live(self, ledger: Ledger) -> bool:
        """Return whether the session's socket is open, and no later session has its number."""
        session = self._live.get(ledger.session)
        return session is not None and session.ledger is ledger

    def _unindex(self, ledger: Ledger, key: Key) -> None:
        same = self._by_key.get(key.digest, set())
        same.discard(ledger.session)
        if not same:
            self._by_key.pop(key.digest, None)

    def _take_key(self, ledger: Ledger, key: Key) -> None:
        is_live = self._is_live(ledger)
        if ledger.key is not None and is_live:
            self._unindex(ledger, ledger.key)
        ledger.key = key
        if is_live:
            self._by_key.setdefault(key.digest, set()).add(ledger.session)

    async def claim(
        self, ledger: Ledger, key: Key, ref: int, topic: str, start: Position, *, is_reconnect: bool
    ) -> Verdict:
        """Settle the first join on a socket. Its record is written when this returns, unless it is late.

        Args:
            ledger: the session, which gets the key and the cursors of those that it continues.
            key: the client's key.
            ref: the join's.
            topic: the joined topic.
            start: where the topic begins if it does not go on from earlier.
            is_reconnect: whether the ref proves a reconnect.

        Raises:
            Unavailable: the database does not answer.
        """
        silent: frozenset[int] = frozenset()
        if not key.is_exact:
            numbers = self._by_key.get(key.digest, set())
            live = [self._live[number] for number in numbers]
            others = [each for each in live if may_continue(ledger.session, ref, key, each.ledger.record())]
            answers = await asyncio.gather(*[self._answers(each) for each in others])
            silent = frozenset(
                each.ledger.session for each, answered in zip(others, answers, strict=True) if not answered
            )
        verdict = await self._claims.ask(_Claim(ledger, key, ref, topic, start, silent, is_reconnect))
        self.claimed(verdict.claimed)
        # Under a shared key a socket on another gateway may be another client, and was not asked whether it answers.
        if key.is_exact and verdict.claimed:
            self._claimed_elsewhere(verdict.claimed)
        return verdict

    def claimed(self, sessions: Iterable[int]) -> None:
        """Close the sockets here of sessions that another socket continues."""
        for session in sessions:
            if (old := self._live.get(session)) is not None:
                old.drop(Close.REPLACED)

    def share(self, claimed: Callable[[Sequence[int]], None]) -> None:
        """Call a function with the sessions that are continued here and may be open on another gateway."""
        self._claimed_elsewhere = claimed

    async def rename(self, ledger: Ledger, key: Key) -> bool:
        """Have a session be found under another key. Return whether it still exists.

        With an exact key, sessions before it under that key belong to earlier pages, and go.
        """
        self._take_key(ledger, key)
        ledger.rename(key)
        if key.is_exact:
            earlier = [number for number in self._by_key.get(key.digest, set()) if number < ledger.session]
            for number in earlier:
                self._live[number].drop(Close.REPLACED)
            await self._discards.ask(_Renaming(ledger, key))
        return await self._saves.ask(ledger)

    async def _answers(self, session: LiveSession) -> bool:
        """Return whether a client answers a ping that is sent now."""
        answered = asyncio.Event()
        session.probe(answered.set)
        try:
            async with asyncio.timeout(self._limits.probe_s):
                await answered.wait()
        except TimeoutError:
            return False
        return True

    async def save(self, ledger: Ledger) -> bool:
        """Save a session now. Return whether it still exists: another one may have continued it."""
        return await self._saves.ask(ledger)

    async def run_saves(self) -> None:
        """Save at intervals, for ever."""
        while True:
            await asyncio.sleep(self._limits.save_s)
            await self._save_changed(time.monotonic())

    async def flush(self) -> None:
        """Save everything, because the server stops."""
        await self._save_changed(time.monotonic())

    async def _save_changed(self, at: float) -> None:
        """Save the sessions that have changed, and close those that have been continued elsewhere."""
        ledgers = [session.ledger for session in self._live.values() if session.ledger.key is not None]
        changed = [each for each in (*ledgers, *self._ended.values()) if self._is_changed(each, at)]
        await self._saves.run_all(changed)
        for number in [number for number, ledger in self._ended.items() if not self._is_changed(ledger, at)]:
            del self._ended[number]
            self._saved.pop(number, None)

    def _is_changed(self, ledger: Ledger, at: float) -> bool:
        changes, saved_at = self._saved.get(ledger.session, (-1, 0.0))
        # A quiet session is saved now and then, too: its record would expire.
        return changes != ledger.changes or (self._is_live(ledger) and at - saved_at > _TOUCH_S)

    async def _take_numbers(self, requests: Sequence[None]) -> Sequence[int]:
        return await self._records.numbers(len(requests))

    async def _save(self, ledgers: Sequence[Ledger]) -> Sequence[bool]:
        at = time.monotonic()
        rows = {
            ledger.session: (ledger, ledger.changes, _row(ledger))
            for ledger in ledgers
            if not self._is_replaced(ledger)
        }
        there = await self._records.save([row for _, _, row in rows.values()])
        answers = []
        for ledger in ledgers:
            saved, changes = rows[ledger.session][:2] if ledger.session in rows else (None, 0)
            exists = saved is ledger and ledger.session in there and not self._is_replaced(ledger)
            if saved is ledger and not self._is_replaced(ledger):
                self._saved[ledger.session] = changes, at
            if not exists and self._is_live(ledger):
                self._live[ledger.session].drop(Close.REPLACED)
            answers.append(exists)
        return answers

    async def _discard(self, renamed: Sequence[_Renaming]) -> Sequence[None]:
        await self._records.discard([(each.ledger.session, each.key.digest) for each in renamed])
        return [None] * len(renamed)

    async def _settle(self, claims: Sequence[_Claim]) -> Sequence[Verdict]:
        async with self._records.settling() as settling:
            verdicts = await self._settle_in(settling, claims)
        # Committed: no other gateway can claim the same sessions.
        at = time.monotonic()
        for claim, verdict in zip(claims, verdicts, strict=True):
            if verdict.is_late:
                continue
            ledger = claim.ledger
            self._take_key(ledger, claim.key)
            ledger.cursors = _begun(claim, verdict)
            if self._is_live(ledger):
                self._saved[ledger.session] = ledger.changes, at
            for number in verdict.removed:
                self._ended.pop(number, None)
                self._saved.pop(number, None)
        return verdicts

    async def _settle_in(self, settling: Settling, claims: Sequence[_Claim]) -> list[Verdict]:
        keys = {claim.key.digest for claim in claims}
        recent = timedelta(seconds=self._limits.shared_s)
        known: dict[str, dict[int, Record]] = {digest: {} for digest in keys}
        for row in await settling.of(keys, recent=recent):
            known[row.identity][row.session] = self._record(row)
        verdicts: list[Verdict] = []
        begun: dict[int, SavedSession] = {}
        ended: list[int] = []
        for claim in sorted(claims, key=lambda claim: claim.ledger.session):
            session = claim.ledger.session
            others = known[claim.key.digest]
            others.pop(session, None)
            # Under an exact key an open socket is one that the client has lost, and the server has not noticed yet.
            answering: set[int] = set()
            if not claim.key.is_exact:  # one that became live after the others were probed is alive, too
                answering = self._by_key.get(claim.key.digest, set()) - claim.silent - {session}
            verdict = settle(
                session, claim.ref, claim.key, list(others.values()), answering, is_reconnect=claim.is_reconnect
            )
            verdicts.append(verdict)
            if verdict.is_late:
                continue
            for number in verdict.removed:
                del others[number]
                if begun.pop(number, None) is None:
                    ended.append(number)
            cursors = _begun(claim, verdict)
            ref = claim.ledger.ref if claim.ref == UNKNOWN_REF else claim.ref
            others[session] = Record(session, ref, cursors)
            begun[session] = SavedSession(session, claim.key.digest, ref, cursors, user_id=claim.key.user_id)
        await settling.replace(ended, list(begun.values()))
        by_session = dict(zip(sorted(claim.ledger.session for claim in claims), verdicts, strict=True))
        return [by_session[claim.ledger.session] for claim in claims]

    def _record(self, row: SavedSession) -> Record:
        """Return a session as it is known here: from memory, if it was on this gateway, else as it was saved."""
        live = self._live.get(row.session)
        ledger = self._ended.get(row.session) if live is None else live.ledger
        if ledger is not None and ledger.key is not None and ledger.key.digest == row.identity:
            return ledger.record()
        return Record(row.session, row.ref, row.cursors, bool(row.is_recent))


def _begun(claim: _Claim, verdict: Verdict) -> dict[str, Position]:
    """Return the positions with which a session begins: also of topics that were joined before it had a key."""
    start = LOST if verdict.has_lost else claim.start
    return {claim.topic: start, **claim.ledger.cursors, **dict(list(verdict.cursors.items())[:_MOST_CURSORS])}


def _row(ledger: Ledger) -> SavedSession:
    assert ledger.key is not None
    return SavedSession(
        ledger.session, ledger.key.digest, ledger.ref, dict(ledger.cursors), user_id=ledger.key.user_id
    )  # fmt: skip

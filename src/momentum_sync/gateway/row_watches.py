"""Confirms bindings of `postgres_changes` with the database, and has their tables followed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import msgspec

from momentum_sync.errors import BadRequest, CaptureError, Unavailable
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.page import Newest
from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.resume import ResumeRefused
from momentum_sync.gateway.dialects.realtime_resume import LOST, Key, Ledger, Verdict
from momentum_sync.gateway.dialects.realtime_services import LiveSession, SharedFrames, Watched
from momentum_sync.gateway.realtime_sessions import RealtimeSessions
from momentum_sync.identity.compiled_policies import CompiledPolicies
from momentum_sync.identity.decider import Decider
from momentum_sync.identity.keys import Authenticator
from momentum_sync.identity.row_queries import PUBLICATION
from momentum_sync.identity.row_rights import RowRights
from momentum_sync.identity.row_tables import RowTable, SeenChange
from momentum_sync.identity.tokens import Identity
from momentum_sync.identity.topic_access import TopicAccess
from momentum_sync.identity.topic_rights import TopicRights
from momentum_sync.wire.realtime_filter import Condition, MalformedFilter, Operator, parse_filter
from momentum_sync.wire.realtime_join import Binding
from momentum_sync.wire.row_watch import Test, Watch

Answer = TypeVar("Answer")
_MOST_TESTS = 20
_PATIENCE_S = 6.0
_PAUSES_S = (0.1, 0.3, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0)
_EVENTS = frozenset({"*", "INSERT", "UPDATE", "DELETE"})
_PATTERNS = frozenset({Operator.LIKE, Operator.ILIKE, Operator.MATCH, Operator.IMATCH})


class RowSource(Protocol):
    """Capture, as sessions need it. Its methods raise Unavailable while it is not live."""

    async def follow(self, relation: int) -> None:
        """Have the changes of a relation's rows become events. Raise CaptureError if that is not possible."""

    async def follow_messages(self) -> bool:
        """Return whether the messages in `realtime.messages` are events, or there is no such table."""


class RowWatches:
    """The `RowServices` of the sessions of a gateway.

    Args:
        authenticator: verifies tokens.
        rights: decides about changes.
        policies: decides about those that need no database.
        feed: the events.
        history: the events before.
        sessions: numbers, settles and saves sessions.
        source: has changes become events.
        topics: decides about private topics.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        rights: RowRights,
        policies: CompiledPolicies,
        feed: LocalFeed,
        history: History,
        sessions: RealtimeSessions,
        source: RowSource,
        topics: TopicRights,
    ) -> None:
        self._authenticator = authenticator
        self._rights = rights
        self._policies = policies
        self.shared = SharedFrames()
        self._feed = feed
        self._history = history
        self._sessions = sessions
        self._source = source
        self._topics = topics

    @property
    def position(self) -> Position:
        """Return the position of the last event."""
        return self._feed.position

    async def number(self) -> int:
        """Return the number of a socket that has just been accepted. Raise Unavailable."""
        return await self._sessions.number()

    def begin(self, session: LiveSession) -> None:
        """Know a session from now on."""
        self._sessions.begin(session)

    def end(self, session: LiveSession) -> None:
        """Note that a session's socket is closed."""
        self._sessions.end(session)

    async def claim(
        self, ledger: Ledger, key: Key, ref: int, topic: str, start: Position, *, is_reconnect: bool
    ) -> Verdict:
        """Settle the first join on a socket; its record is written when this returns. Raise Unavailable."""
        return await self._sessions.claim(ledger, key, ref, topic, start, is_reconnect=is_reconnect)

    async def rename(self, ledger: Ledger, key: Key) -> bool:
        """Have a session be found under another key. Return whether it still exists. Raise Unavailable."""
        return await self._sessions.rename(ledger, key)

    async def save(self, ledger: Ledger) -> bool:
        """Save a session now. Return whether it still exists. Raise Unavailable."""
        return await self._sessions.save(ledger)

    async def verify(self, position: Position) -> None:
        """Check that a position belongs to the present history, and that all that follows is there.

        Raises:
            ResumeRefused: it does not, or not everything is.
            Unavailable: this gateway is behind another one, from which the client comes.
        """
        if position == LOST:  # no history has it, so nothing has to be asked
            raise ResumeRefused("history_changed")
        await self._history.reach(position)
        if position.epoch != self._feed.epoch or position.offset > self._feed.offset:
            raise ResumeRefused("history_changed")
        await self._history.verify(position)

    async def authenticate_realtime(self, token: str) -> Identity:
        """Verify a token or API key. Raise Unauthenticated."""
        return await self._authenticator.realtime(token)

    @property
    def generation(self) -> int:
        """Return a number that changes with the rights on rows."""
        return self._policies.generation

    async def decider(self, identity: Identity, relation: int) -> Decider | None:
        """Return the decider of a table's changes for a caller; None if the database has to."""
        decider = await self._policies.decider(identity, relation)
        if decider is not None and self._rights.deletes_by_key and not decider.table.checks_deletes:
            return None  # a route would miss the keys of deleted rows, which go to all
        return decider

    async def topic_access(self, identity: Identity, topic: str) -> TopicAccess:
        """Return the rights of a caller on the messages of a private topic, which has no `realtime:`."""
        return await _patiently(lambda: self._topics.of(identity, topic))

    async def admit(self, identity: Identity) -> None:
        """Raise Unauthenticated for a revoked token."""
        await self._policies.admit(identity)

    async def newest(self, channel: str, offset: int, *, since: float, most: int, most_bytes: int) -> Newest:
        """Return the newest events on a channel up to an offset, of commits since a time in seconds since 1970."""
        return await self._history.newest(channel, offset, since=since, most=most, most_bytes=most_bytes)

    async def seen(self, identity: Identity, events: Sequence[tuple[Event, int]]) -> dict[int, SeenChange]:
        """Return the visible part of changes, each with the id of its relation, by offset."""
        return await self._rights.seen(identity, events)

    async def tested(self, identity: Identity, tests: Sequence[tuple[Test, bytes]]) -> list[bool]:
        """Return for each test and value whether it holds."""
        return await self._rights.tested(identity, tests)

    async def watch(self, identity: Identity, bindings: Sequence[Binding]) -> Watched:
        """Confirm bindings, and have their tables followed.

        Raises:
            BadRequest: a table, column or filter is wrong, or the caller may not select it.
            Unavailable: the database does not answer, or capture is not live.
        """
        return await _patiently(lambda: self._watch(identity, bindings))

    async def _watch(self, identity: Identity, bindings: Sequence[Binding]) -> Watched:
        has_messages = await self._source.follow_messages()
        # Also without bindings: the database refuses a token that was revoked.
        tables = await self._policies.published(identity)
        watches = [await self._confirm(identity, binding, _named(binding, tables)) for binding in bindings]
        await self._follow_all(watches)
        pending = () if has_messages else (_PENDING,)
        return Watched(tuple(watches), (*pending, *self._notices(watches, tables)))

    async def watch_again(self, identity: Identity, bindings: Sequence[Binding], known: Sequence[Watch]) -> Watched:
        """Confirm bindings again, because tables or rights have changed. A table that was renamed is the same.

        A binding of a table that cannot be read now stays: its changes are checked. One whose columns or filter cannot
        be read any longer goes, and is reported.

        Raises:
            Unavailable: the database does not answer, or capture is not live.
        """
        tables = await self._policies.published(identity)
        before = {watch.id: watch for watch in known}
        watches: list[Watch] = []
        wrong: list[str] = []
        for binding in bindings:
            old = before.get(binding.id)
            same = [table for table in tables if old is not None and table.oid in old.relations]
            is_wildcard = "*" in (binding.schema, binding.table)
            if old is not None and not same and not is_wildcard:
                watches.append(old)
                continue
            try:
                watches.append(
                    await self._confirm(
                        identity, binding, same if same and not is_wildcard else _named(binding, tables)
                    )
                )
            except BadRequest as error:
                if old is not None:
                    wrong.append(str(error))
        await self._follow_all(watches)
        return Watched(tuple(watches), tuple(self._notices(watches, tables)), tuple(wrong))

    async def _follow_all(self, watches: Sequence[Watch]) -> None:
        for relation in sorted({relation for watch in watches for relation in watch.relations}):
            try:
                await self._source.follow(relation)
            except CaptureError as error:
                raise Unavailable(f"The table cannot be followed: {error}.") from error

    def _notices(self, watches: Sequence[Watch], tables: Sequence[RowTable]) -> Iterator[str]:
        """Yield a notice for each table with a `DELETE` that will be withheld."""
        if self._rights.deletes_by_key:
            return
        watched = {relation for watch in watches if watch.event in ("*", "DELETE") for relation in watch.relations}
        for table in tables:
            if table.oid in watched and not table.checks_deletes:
                name = f'"{table.schema}"."{table.name}"'
                yield (
                    f"DeletesWithheld: the policies of {name} read columns that its replica identity does not have."
                    f" This mends it: alter table {name} replica identity full"
                )

    async def _confirm(self, identity: Identity, binding: Binding, found: Sequence[RowTable]) -> Watch:
        """Confirm a binding of these tables."""
        try:
            conditions = parse_filter(binding.filter or "")
        except MalformedFilter as error:
            raise BadRequest("bad_filter", str(error)) from None
        if len(conditions) > _MOST_TESTS:
            raise _refused(binding, f"a filter has at most {_MOST_TESTS} conditions")
        is_wildcard = "*" in (binding.schema, binding.table)
        if binding.event not in _EVENTS:
            raise _refused(binding, "the event is none of INSERT, UPDATE, DELETE and *")
        if is_wildcard and (conditions or binding.select is not None):
            raise _refused(binding, "a wildcard can have neither filter nor select")
        if not is_wildcard and not found:
            raise _refused(binding)
        tests = [await self._test(identity, binding, found[0], condition) for condition in conditions]
        for name in binding.select or ():
            if found[0].column(name) is None:
                raise _refused(binding, f"column {name} cannot be selected")
        return Watch(
            id=binding.id,
            event=binding.event,
            relations=frozenset(table.oid for table in found),
            tests=tuple(tests),
            select=None if binding.select is None else frozenset(binding.select),
        )

    async def _test(self, identity: Identity, binding: Binding, table: RowTable, condition: Condition) -> Test:
        column = table.column(condition.column)
        if column is None:
            raise _refused(binding, f"column {condition.column} cannot be filtered")
        operands: tuple[bytes, ...] = ()
        if condition.operator in _PATTERNS:
            await self._rights.check_pattern(identity, condition)
        elif condition.operator is not Operator.IS:
            try:
                operands = await self._rights.operands(identity, column.type_sql, condition.values)
            except BadRequest as error:
                raise _refused(binding, f"column {column.name}: {error}") from None
        return Test(condition, column.type_name, column.type_sql, column.definition, operands)


async def _patiently(work: Callable[[], Awaitable[Answer]]) -> Answer:
    """Do work for a join, again while the database is away for a moment.

    A client gives its join 10 s. One that is answered with an error does not always join again: supabase-py of 2025
    stays without the channel.
    """
    ends = time.monotonic() + _PATIENCE_S
    for pause in _PAUSES_S:
        try:
            return await work()
        except Unavailable:
            if time.monotonic() + pause > ends:
                raise
        await asyncio.sleep(pause)
    return await work()


def _named(binding: Binding, tables: Sequence[RowTable]) -> list[RowTable]:
    """Return the tables that a binding names."""
    return [table for table in tables if binding.schema in ("*", table.schema) and binding.table in ("*", table.name)]


_PENDING = (
    "BroadcastsPending: messages from the database do not come yet. They will once the transactions have ended that"
    " were open when their table was published."
)
_UNKNOWN = f"the table is not in the publication {PUBLICATION}, or the role has no privilege to select it"


def _refused(binding: Binding, why: str = _UNKNOWN) -> BadRequest:
    """Return the error of a binding that cannot be subscribed to, in Supabase's words and with the reason."""
    given = msgspec.json.decode(binding.given, type=dict[str, object])
    filters = [] if binding.filter is None else [binding.filter]
    return BadRequest(
        "bad_binding",
        "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given connect"
        f" parameters: [event: {binding.event}, schema: {binding.schema}, table: {binding.table},"
        f" filters: {msgspec.json.encode(filters).decode()},"
        f" select: {msgspec.json.encode(given.get('select')).decode()}] ({why})",
    )

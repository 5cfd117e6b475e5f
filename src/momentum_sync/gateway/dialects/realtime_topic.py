"""A joined topic of Supabase's protocol: which changes it gets, and its frames."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping

import msgspec

from momentum_sync.eventlog.event import Event, row_channel, topic_channel
from momentum_sync.eventlog.row_index import Route
from momentum_sync.gateway.cursor import Slot
from momentum_sync.gateway.dialects.realtime_errors import PREFIX
from momentum_sync.gateway.dialects.realtime_services import SharedFrames
from momentum_sync.identity.decider import Decider, Undecided
from momentum_sync.identity.policy import Value
from momentum_sync.identity.row_tables import SeenChange
from momentum_sync.identity.tokens import LEEWAY_S, Identity
from momentum_sync.identity.topic_access import EVERYTHING, TopicAccess
from momentum_sync.wire.messages import frame
from momentum_sync.wire.phoenix import Ref, Version, encode_frame
from momentum_sync.wire.realtime_broadcast import stored_frame
from momentum_sync.wire.realtime_filter import Operator
from momentum_sync.wire.realtime_join import Binding, Join
from momentum_sync.wire.row_change import Change, as_delete, encode_change, parse_change
from momentum_sync.wire.row_watch import Test, Watch, matches, tested

_ids = msgspec.json.Encoder().encode
_decode = msgspec.json.decode
# Types of which equal values have equal JSON.
_ROUTED = frozenset({"uuid", "text", "varchar", "int2", "int4", "int8", "bool", "date"})


class TopicEvents:
    """The changes that a topic gets.

    Args:
        bindings: the client's request.
        watches: the same, confirmed.
        since: offset of the last event that the topic does not get.

    Attributes:
        channels: the channels of the watched tables.
        notices: those about the tables that were sent.
        deciders: they decide about changes for the topic's caller, by relation; of the others the database does.
    """

    __slots__ = ("_answers", "_relations", "_whole", "bindings", "channels", "deciders", "notices", "since", "watches")

    def __init__(self, bindings: tuple[Binding, ...], watches: tuple[Watch, ...], since: int) -> None:
        self.bindings = bindings
        self.since = since
        self._answers: Mapping[tuple[Test, bytes], bool] = {}
        self.deciders: dict[int, Decider] = {}
        self.notices: frozenset[str] = frozenset()
        self.watch(watches)

    def watch(self, watches: tuple[Watch, ...]) -> None:
        """Have other watches: tables were published since."""
        self.watches = watches
        self._relations = {row_channel(relation): relation for relation in self.relations}
        self.channels = frozenset(self._relations)
        # Tables of which the topic may get every change.
        self._whole = frozenset(
            relation for watch in watches if watch.event == "*" and not watch.tests for relation in watch.relations
        )

    def copy(self) -> TopicEvents:
        """Return the same events, to be decided for another caller."""
        events = TopicEvents(self.bindings, self.watches, self.since)
        events.notices = self.notices
        return events

    @property
    def relations(self) -> frozenset[int]:
        """Return the ids of the watched tables."""
        return frozenset(relation for watch in self.watches for relation in watch.relations)

    def slots(self, relation: int) -> frozenset[Slot] | None:
        """Return the routes by which every change that the topic can get of a table comes; None: all have to come."""
        decider = self.deciders.get(relation)
        by_rights = None if decider is None else decider.keys
        found: set[Slot] = set()
        for watch in self.watches:
            if relation not in watch.relations:
                continue
            routes = _filtered_values(watch)
            if routes is None and decider is not None and by_rights is not None:
                types = {column.name: column.type_name for column in decider.table.columns}
                routes = frozenset((column, types[column], value) for column, value in by_rights)
            if routes is None:
                return None
            found |= {Route(row_channel(relation), *route) for route in routes}
        return frozenset(found)

    @property
    def view(self) -> Hashable | None:
        """Return a key of the frames if these depend on event, bindings and the caller's role alone; else None."""
        if any(watch.tests for watch in self.watches):
            return None
        tables = []
        for relation in sorted(self.relations):
            decider = self.deciders.get(relation)
            if decider is None or not decider.allows_all:
                return None
            tables.append(decider.table)
        return self.watches, tuple(tables)

    def skip_to(self, offset: int) -> None:
        """Note that the topic has had everything up to an offset: the connection may go back further for others."""
        self.since = max(self.since, offset)

    def may_want(self, event: Event) -> int | None:
        """Return the relation of a change that a watch may get; None if none does, even with the database's answers."""
        relation = self._relations.get(event.channels[0])
        if relation is None or event.offset <= self.since:
            return None
        if relation in self._whole:
            return relation
        change = parse_change(event.body)
        for watch in self.watches:
            if matches(watch, relation, change, _unknown) is not False:
                return relation
        if change.type == "UPDATE" and change.has_whole_old_row:
            gone = as_delete(change)
            if any(matches(watch, relation, gone, _unknown) is not False for watch in self.watches):
                return relation
        return None

    def decide(self, event: Event, relation: int) -> SeenChange | None:
        """Return the visible part of a change that a watch may get.

        Raises:
            Undecided: the database has to be asked, about the rights or about a filter.
        """
        decider = self.deciders.get(relation)
        if decider is None:
            raise Undecided
        seen = decider.seen(parse_change(event.body))
        if seen is None:
            return None
        change = _filtered(event, seen)
        is_wanted = False
        for watch in self.watches:
            match matches(watch, relation, change, _unknown):
                case None:
                    raise Undecided
                case True:
                    is_wanted = True
        return seen if is_wanted else None

    def matching(self, event: Event, relation: int, change: Change) -> list[Watch]:
        """Return the watches that get a change, with the database's answers."""
        if event.offset <= self.since:
            return []
        return [watch for watch in self.watches if matches(watch, relation, change, self._answer) is True]

    # The tests that only the database can decide

    def open_tests(self, event: Event, relation: int, seen: SeenChange) -> Iterator[tuple[Test, bytes]]:
        """Yield the tests on which it depends whether a watch gets a visible change."""
        change = _filtered(event, seen)
        for watch in self.watches:
            if matches(watch, relation, change, _unknown) is None:
                yield from ((test, value) for test, value in tested(watch, change) if value is not None)

    def learn(self, answers: Mapping[tuple[Test, bytes], bool]) -> None:
        """Take the database's answers about a page, in place of those about the one before."""
        self._answers = answers

    def _answer(self, test: Test, value: bytes) -> bool | None:
        return self._answers.get((test, value))


class Topic:
    """A joined topic.

    Attributes:
        name: its name, with `realtime:`.
        join_ref: the number of its join.
        identity: its caller.
        ends_at: when the caller's token ends, in seconds on a monotonic clock.
        events: which events it gets.
        join: its client's request.
        access: its caller's rights on its messages.
        channel: the channel of messages from the database.
        is_confirmed: whether the client has answered a ping that followed the reply to its join.
    """

    __slots__ = (
        "_messages_since", "access", "channel", "ends_at", "events", "identity", "is_confirmed", "join", "join_ref",
        "name",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        join_ref: Ref,
        identity: Identity,
        ends_at: float,
        events: TopicEvents,
        join: Join,
        access: TopicAccess = EVERYTHING,
    ) -> None:
        self.name = name
        self.join = join
        self.join_ref = join_ref
        self.identity = identity
        self.ends_at = ends_at
        self.events = events
        self.access = access
        self.channel = topic_channel(name.removeprefix(PREFIX), is_private=join.is_private)
        self.is_confirmed = False
        self._messages_since = events.since

    def renewed(self, identity: Identity, ends_at: float, access: TopicAccess) -> Topic:
        """Return the topic with a fresh token. It loses no event."""
        topic = Topic(self.name, self.join_ref, identity, ends_at, self.events.copy(), self.join, access)
        topic.is_confirmed = self.is_confirmed
        topic._messages_since = self._messages_since
        return topic

    def skip_to(self, offset: int) -> None:
        """Note that the topic has had everything up to an offset: the connection may go back further for others."""
        self.events.skip_to(offset)
        self._messages_since = max(self._messages_since, offset)

    @property
    def channels(self) -> frozenset[str]:
        """Return the channels of its messages and of its tables."""
        return self.events.channels | {self.channel}

    def gets(self, event: Event) -> bool:
        """Return whether an event is a message to the topic that the client has not had."""
        return event.offset > self._messages_since and self.channel in event.channels

    def message(self, version: Version, event: Event, shared: SharedFrames) -> bytes:
        """Return the frame of a message from the database; nothing if the version cannot carry it."""

        def encode() -> bytes:
            return stored_frame(event.body, event.event_type, self.name, version) or b""

        return shared.get(event, (version, self.name), encode)

    def frames(
        self, version: Version, event: Event, relation: int, seen: SeenChange, shared: SharedFrames
    ) -> list[bytes]:
        """Return the frames of a visible change: one for each choice of columns, with all ids that it matches."""
        by_columns: dict[frozenset[str] | None, list[int]] = {}
        shown, key = seen.table.shown_of(parse_change(event.body)), seen.table.key
        for watch in self.events.matching(event, relation, _filtered(event, seen)):
            by_columns.setdefault(_columns(watch, shown, key), []).append(watch.id)
        frames = []
        for columns, ids in by_columns.items():
            view = (version, self.name, tuple(ids), columns, seen.is_gone, seen.old_columns)

            def encode(ids: list[int] = ids, columns: frozenset[str] | None = columns) -> bytes:
                payload = b'{"ids":' + _ids(ids) + b',"data":' + _data(event, seen, columns) + b"}"
                return frame(encode_frame(version, self.name, "postgres_changes", payload))

            frames.append(shared.get(event, view, encode))
        return frames


def _unknown(test: Test, value: bytes) -> bool | None:
    return None


def _filtered_values(watch: Watch) -> frozenset[tuple[str, str, Value]] | None:
    """Return a column, its type, and each value that a watch's filter allows; None if it names none."""
    for test in watch.tests:
        condition = test.condition
        if not condition.negated and condition.operator in (Operator.EQ, Operator.IN) and test.type_name in _ROUTED:
            return frozenset((condition.column, test.type_name, _decode(operand)) for operand in test.operands)
    return None


def _filtered(event: Event, seen: SeenChange) -> Change:
    """Return the change that filters apply to: for a row that is gone its `DELETE`, with the whole old row."""
    change = parse_change(event.body)
    return as_delete(change) if seen.is_gone else change


def _columns(watch: Watch, shown: frozenset[str] | None, key: frozenset[str]) -> frozenset[str] | None:
    """Return the columns that a watch gets: those that the caller may select and, of these, those that it selected."""
    if watch.select is None:
        return shown
    wanted = watch.select | key
    return wanted if shown is None else wanted & shown


def _data(event: Event, seen: SeenChange, columns: frozenset[str] | None) -> bytes:
    """Return the JSON of a change for a caller: the event's own where nothing is left out."""
    if columns is None and not seen.is_gone and seen.old_columns is None:
        return event.body
    change = parse_change(event.body)
    return encode_change(as_delete(change) if seen.is_gone else change, columns, seen.old_columns)


def ends_at(identity: Identity, now: float, at: float) -> float:
    """Return when a token ends, on the monotonic clock, of which `at` is now."""
    return float("inf") if identity.expires_at is None else at + identity.expires_at + LEEWAY_S - now

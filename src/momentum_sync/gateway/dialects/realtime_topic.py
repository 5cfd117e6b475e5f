"""A joined topic of Supabase's protocol: which changes it gets, and its frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from momentum_sync.eventlog.event import Event, relation_of, row_channel
from momentum_sync.identity.row_tables import RowTable, SeenChange
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.messages import frame
from momentum_sync.wire.phoenix import Ref, Version, encode_frame
from momentum_sync.wire.row_change import Change, as_delete, encode_change, parse_change
from momentum_sync.wire.row_watch import Test, Watch, matches, tested

_ids = msgspec.json.Encoder().encode


class TopicEvents:
    """The events of a topic.

    Args:
        watches: its bindings.
        since: offset of the last event before the join.
    """

    __slots__ = ("_answers", "_since", "_watches", "channels", "noticed")

    def __init__(self, watches: tuple[Watch, ...], since: int) -> None:
        self._watches = watches
        self._since = since
        self._answers: Mapping[tuple[Test, bytes], bool] = {}
        self.channels = frozenset(row_channel(relation) for watch in watches for relation in watch.relations)
        self.noticed: set[int] = set()

    def skip_to(self, offset: int) -> None:
        """Note that the topic has had everything up to an offset: the connection may go back further for others."""
        self._since = max(self._since, offset)

    def may_want(self, event: Event) -> int | None:
        """Return the relation of a change that a watch may get; None if none does, whatever the database says."""
        relation = relation_of(event)
        if relation is None or event.offset <= self._since:
            return None
        change = parse_change(event.body)
        gone = as_delete(change, frozenset()) if change.type == "UPDATE" and change.has_whole_old_row else None
        for watch in self._watches:
            if matches(watch, relation, change, _unknown) is not False:
                return relation
            if gone is not None and matches(watch, relation, gone, _unknown) is not False:
                return relation
        return None

    def matching(self, event: Event, relation: int, change: Change) -> list[Watch]:
        """Return the watches that get a change, with the database's answers."""
        if event.offset <= self._since:
            return []
        return [watch for watch in self._watches if matches(watch, relation, change, self._answer) is True]

    # The tests that only the database can decide

    def open_tests(self, event: Event, relation: int, seen: SeenChange) -> Iterator[tuple[Test, bytes]]:
        """Yield the tests on which it depends whether a watch gets a visible change."""
        change = _filtered(event, seen)
        for watch in self._watches:
            if matches(watch, relation, change, _unknown) is None:
                yield from ((test, value) for test, value in tested(watch, change) if value is not None)

    def forget_answers(self) -> None:
        """Forget the database's answers about the page before."""
        self._answers = {}

    def learn(self, answers: Mapping[tuple[Test, bytes], bool]) -> None:
        """Take the database's answers about this page."""
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
        is_confirmed: whether the client has answered a ping that followed the reply to its join.
    """

    __slots__ = ("ends_at", "events", "identity", "is_confirmed", "join_ref", "name")

    def __init__(self, name: str, join_ref: Ref, identity: Identity, ends_at: float, events: TopicEvents) -> None:
        self.name = name
        self.join_ref = join_ref
        self.identity = identity
        self.ends_at = ends_at
        self.events = events
        self.is_confirmed = False

    def renewed(self, identity: Identity, ends_at: float) -> Topic:
        """Return the topic with a fresh token. It loses no event."""
        topic = Topic(self.name, self.join_ref, identity, ends_at, self.events)
        topic.is_confirmed = self.is_confirmed
        return topic

    def frames(self, version: Version, event: Event, relation: int, seen: SeenChange) -> list[bytes]:
        """Return the frames of a visible change: one for each choice of columns, with all ids that it matches."""
        by_columns: dict[frozenset[str] | None, list[int]] = {}
        for watch in self.events.matching(event, relation, _filtered(event, seen)):
            by_columns.setdefault(_columns(watch, seen), []).append(watch.id)
        return [
            frame(encode_frame(version, self.name, "postgres_changes", _payload(ids, _data(event, seen, columns))))
            for columns, ids in by_columns.items()
        ]

    def notices(self, unchecked: Mapping[int, RowTable]) -> list[str]:
        """Return what the app has to be told, once each, about tables with a `DELETE` that could not be checked."""
        told = []
        for relation, table in unchecked.items():
            if row_channel(relation) in self.events.channels and relation not in self.events.noticed:
                self.events.noticed.add(relation)
                name = f'"{table.schema}"."{table.name}"'
                told.append(
                    f"The policies of {name} read columns that its replica identity does not have, so a row that was"
                    f" deleted was withheld. This mends it: alter table {name} replica identity full"
                )
        return told


def _unknown(test: Test, value: bytes) -> bool | None:
    return None


def _filtered(event: Event, seen: SeenChange) -> Change:
    """Return the change that filters apply to: for a row that is gone its `DELETE`, with the whole old row."""
    change = parse_change(event.body)
    return as_delete(change, frozenset()) if seen.is_gone else change


def _columns(watch: Watch, seen: SeenChange) -> frozenset[str] | None:
    """Return the columns that a watch gets: those that the caller may select and, of these, those that it selected."""
    shown, select = seen.table.shown, watch.select
    if select is None:
        return shown
    wanted = select | seen.table.key
    return wanted if shown is None else wanted & shown


def _data(event: Event, seen: SeenChange, columns: frozenset[str] | None) -> bytes:
    """Return the JSON of a change for a caller: the event's own where nothing is left out."""
    if columns is None and not seen.is_gone:
        return event.body
    change = parse_change(event.body)
    return encode_change(as_delete(change, seen.table.key) if seen.is_gone else change, columns)


def _payload(ids: list[int], data: bytes) -> bytes:
    return b'{"ids":' + _ids(ids) + b',"data":' + data + b"}"

"""Events on a connection of Supabase's protocol: which topics get which changes of rows and which messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from momentum_sync.eventlog.event import Event, row_channel
from momentum_sync.gateway.cursor import Cursor, Slot
from momentum_sync.gateway.dialects.realtime_services import RowServices, SharedFrames
from momentum_sync.gateway.dialects.realtime_topic import Topic, TopicEvents
from momentum_sync.gateway.subscriber import Dialect
from momentum_sync.identity.decider import Undecided
from momentum_sync.identity.row_tables import SeenChange
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.messages import DeliveryIds
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.row_watch import Test


class _Decision(NamedTuple):
    """A decision about an event, made without the database.

    Attributes:
        place: the event's offset, and its place in the WAL, which another epoch does not repeat.
        is_open: whether the database has to be asked.
        seen: topics that get the change, each with the part that it sees.
        messages: topics that get the message.
    """

    place: tuple[int, int, int]
    is_open: bool
    seen: list[tuple[Topic, int, SeenChange]]
    messages: list[Topic]


class SharedView:
    """The dialect of connections with equal topics, of which one at most has tables, and gets every change of those.

    They share each frame.

    Args:
        topics: the topics of one of them, as they are now.
        version: of the serializer.
        shared: frames of the event that is being delivered.

    Attributes:
        together: events that were written to all of them at once.
    """

    __slots__ = ("__weakref__", "_by_channel", "_shared", "_topic", "_version", "together")

    def __init__(self, topics: Sequence[Topic], version: Version, shared: SharedFrames) -> None:
        copies = [_from_the_start(topic) for topic in topics]
        self._by_channel = {topic.channel: topic for topic in copies}
        self._topic = next((topic for topic in copies if topic.events.relations), None)
        self._version = version
        self._shared = shared
        self.together: int | None = 0

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Return the frames of an event; none for a kind of change that the topic does not get."""
        topic = self._topic
        relation = None if topic is None else topic.events.may_want(event)
        if topic is None or relation is None:
            found = [self._by_channel[channel] for channel in event.channels if channel in self._by_channel]
            return b"".join([each.message(self._version, event, self._shared) for each in found])
        seen = topic.events.decide(event, relation)
        return b"" if seen is None else b"".join(topic.frames(self._version, event, relation, seen, self._shared))


def _from_the_start(topic: Topic) -> Topic:
    """Return a topic that gets the same events as this one, whenever it was joined."""
    events = TopicEvents((), topic.events.watches, 0)
    events.deciders = topic.events.deciders
    return Topic(topic.name, None, topic.identity, topic.ends_at, events, topic.join)


class RowCursor(Cursor):
    """A cursor with events that the topics choose. It encodes the events that need no database.

    Args:
        topics: the joined topics by name.
        version: of the serializer.
        shared: frames of the event that is being delivered.

    Attributes:
        has_news: whether something was written since the last ping, other than the events of the view.
        view: the dialect that the connection shares with others; None if its frames depend on rows or on the caller.
        together: None, because as a dialect it is the connection's own.
    """

    together: int | None = None

    __slots__ = (
        "_decision", "_follows", "_names", "_shared", "_slots", "_together", "_topics", "_version", "has_news", "view",
    )  # fmt: skip

    def __init__(self, topics: Mapping[str, Topic], version: Version, shared: SharedFrames) -> None:
        super().__init__(None, frozenset())
        self._topics = topics
        self._version = version
        self._shared = shared
        self._slots: tuple[Slot, ...] = ()
        self._decision: _Decision | None = None
        self._follows = False
        self._together: int | None = None  # of the view, when the last ping was written
        self.has_news = False
        self._names: tuple[str, ...] = ()
        self.view: Dialect | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Return the routes of the topics, and the channels of tables with a topic that has none."""
        return self._slots

    def passed(self, event_id: str) -> None:
        """Record the id under which an event was delivered."""
        super().passed(event_id)
        self.has_news = True

    def follow(self) -> None:
        """Note that the subscriber follows the feed from now on, and gets the events of its view."""
        self._follows = True
        self._together = self._together_now

    def fall_behind(self, offset: int) -> None:
        """Note that the subscriber stops following the feed after an offset."""
        self.has_news = self.is_ahead_of_ping()
        self._follows = False
        super().fall_behind(offset)

    def pinged(self) -> tuple[str, ...]:
        """Note that a ping is written. Return the topics that it covers."""
        self.has_news = False
        self._together = self._together_now
        return self._names

    def is_ahead_of_ping(self) -> bool:
        """Return whether something was written since the last ping."""
        return self.has_news or (self._follows and self._together != self._together_now)

    @property
    def _together_now(self) -> int | None:
        return None if self.view is None else self.view.together

    @property
    def lookups(self) -> tuple[Slot, ...]:
        """Return the slots: the window finds changes by routes, too."""
        return self._slots

    def topics_changed(self) -> None:
        """Note that the topics or their deciders have changed."""
        self._decision = None
        self.has_news = self.is_ahead_of_ping()
        self._names = tuple(self._topics)
        slots: dict[Slot, None] = {topic.channel: None for topic in self._topics.values()}
        relations = {relation for topic in self._topics.values() for relation in topic.events.relations}
        for relation in sorted(relations):
            watching = [topic.events for topic in self._topics.values() if relation in topic.events.relations]
            routes = [events.slots(relation) for events in watching]
            if None in routes:
                slots[row_channel(relation)] = None
            else:
                slots.update(dict.fromkeys(route for each in routes if each is not None for route in each))
        self._slots = tuple(slots)
        self.view = self._view()
        self._together = self._together_now

    def _view(self) -> Dialect | None:
        topics = list(self._topics.values())
        with_tables = [topic for topic in topics if topic.events.relations]
        view = with_tables[0].events.view if with_tables else ()
        if view is None or len(with_tables) > 1:
            return None
        named = tuple(sorted((topic.name, topic.channel) for topic in topics))
        key = self._version, named, with_tables[0].name if with_tables else "", view
        shared = self._shared.views.get(key)
        if shared is None:
            self._shared.views[key] = shared = SharedView(topics, self._version, self._shared)
        return shared

    def channel_of(self, event: Event) -> str | None:
        """Return the channel of an event that a topic gets, or may get."""
        held = self.channels
        for channel in event.channels:  # one, for changes of rows and nearly all messages
            if channel in held:
                decision = self._decide(event)
                return channel if decision.is_open or decision.seen or decision.messages else None
        return None

    def must_check(self, event: Event) -> bool:
        """Return whether the database has to decide."""
        return event.channels[0] in self.channels and self._decide(event).is_open

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Return the frames of an event that needed no database. It is the `Dialect` of its connection."""
        decision = self._decide(event)
        assert not decision.is_open, f"event {event.offset} was not checked"
        if decision.messages:
            return b"".join([topic.message(self._version, event, self._shared) for topic in decision.messages])
        return b"".join(
            [
                frame
                for topic, relation, seen in decision.seen
                for frame in topic.frames(self._version, event, relation, seen, self._shared)
            ]
        )

    def _decide(self, event: Event) -> _Decision:
        decision = self._decision
        place = (event.offset, event.commit_lsn, event.commit_index)
        if decision is not None and decision.place == place:
            return decision
        is_open, seen, messages = False, [], []
        for topic in self._topics.values():
            relation = topic.events.may_want(event)
            if relation is None:
                if topic.gets(event):
                    messages.append(topic)
                continue
            try:
                found = topic.events.decide(event, relation)
            except Undecided:
                is_open = True
                continue
            if found is not None:
                seen.append((topic, relation, found))
        self._decision = _Decision(place, is_open, seen, messages)
        return self._decision


async def check_rows(
    events: Sequence[Event], topics: Sequence[Topic], version: Version, rows: RowServices
) -> dict[int, bytes]:
    """Decide, with the database, which topics get which changes. Return the frames by offset."""
    frames: dict[int, list[bytes]] = {}
    by_caller: dict[Identity, list[Topic]] = {}
    for topic in topics:
        by_caller.setdefault(topic.identity, []).append(topic)
    for identity, ours in by_caller.items():
        wanted = {
            event.offset: (event, relation)
            for event in events
            for topic in ours
            if (relation := topic.events.may_want(event)) is not None
        }
        seen = await rows.seen(identity, list(wanted.values())) if wanted else {}
        await _ask_tests(identity, ours, wanted, seen, rows)
        for topic in ours:
            for offset, change in seen.items():
                event, relation = wanted[offset]
                frames.setdefault(offset, []).extend(topic.frames(version, event, relation, change, rows.shared))
    return {offset: b"".join(each) for offset, each in frames.items() if each}


async def _ask_tests(
    identity: Identity,
    topics: Sequence[Topic],
    wanted: Mapping[int, tuple[Event, int]],
    seen: Mapping[int, SeenChange],
    rows: RowServices,
) -> None:
    """Have the database decide the tests of filters that only it can decide, for visible changes."""
    questions: dict[tuple[Test, bytes], None] = {}
    for topic in topics:
        for offset, change in seen.items():
            questions.update(dict.fromkeys(topic.events.open_tests(*wanted[offset], change)))
    answers = dict(zip(questions, await rows.tested(identity, list(questions)), strict=True))
    for topic in topics:
        topic.events.learn(answers)


async def take_deciders(topics: Sequence[Topic], rows: RowServices) -> None:
    """Ask for the deciders of changes, until they are up to date for all of these topics at once."""
    generation = None
    while generation != rows.generation:
        generation = rows.generation
        for topic in topics:
            topic.events.deciders = {
                relation: decider
                for relation in sorted(topic.events.relations)
                if (decider := await rows.decider(topic.identity, relation)) is not None
            }

"""Changes of rows on a connection of Supabase's protocol: which topics get which of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from momentum_sync.eventlog.event import Event
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.dialects.realtime_services import RowServices
from momentum_sync.gateway.dialects.realtime_topic import Topic
from momentum_sync.identity.row_tables import SeenChange, SeenRows
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.messages import DeliveryIds
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.row_watch import Test


class RealtimeDialect:
    """Encodes nothing: each event is checked for its caller, and `RealtimeSession.encode` has its frames."""

    def encode(self, event: Event, ids: DeliveryIds, now: float) -> bytes:
        """Raise: no connection gets an event without a check."""
        raise AssertionError(f"event {event.offset} was not checked")


DIALECT = RealtimeDialect()


class RowCursor(Cursor):
    """A cursor of a connection whose topics decide what it wants. All of its channels are checked."""

    __slots__ = ("_topics",)

    def __init__(self, topics: Mapping[str, Topic]) -> None:
        super().__init__(None, frozenset())
        self._topics = topics

    def channel_of(self, event: Event) -> str | None:
        """Return the channel of a change that a topic may want."""
        channel = super().channel_of(event)
        if channel is None or not any(topic.events.may_want(event) for topic in self._topics.values()):
            return None
        return channel


async def check_rows(
    events: Sequence[Event], topics: Sequence[Topic], version: Version, rows: RowServices
) -> tuple[dict[int, bytes], list[tuple[Topic, str]]]:
    """Decide which topics get which changes.

    Returns:
        The frames by offset, and what is to be told to topics.
    """
    frames: dict[int, list[bytes]] = {}
    notices: list[tuple[Topic, str]] = []
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
        seen = await rows.seen(identity, list(wanted.values())) if wanted else SeenRows({}, {})
        await _ask_tests(identity, ours, wanted, seen.changes, rows)
        for topic in ours:
            for offset, change in seen.changes.items():
                frames.setdefault(offset, []).extend(topic.frames(version, *wanted[offset], change))
            notices += [(topic, notice) for notice in topic.notices(seen.unchecked)]
    return {offset: b"".join(each) for offset, each in frames.items() if each}, notices


async def _ask_tests(
    identity: Identity,
    topics: Sequence[Topic],
    wanted: Mapping[int, tuple[Event, int]],
    seen: Mapping[int, SeenChange],
    rows: RowServices,
) -> None:
    """Have the database decide the tests of filters that only it can decide, for visible changes."""
    asked: dict[tuple[Test, bytes], None] = {}
    for topic in topics:
        topic.events.forget_answers()
        for offset, change in seen.items():
            asked.update(dict.fromkeys(topic.events.open_tests(*wanted[offset], change)))
    answers = dict(zip(asked, await rows.tested(identity, list(asked)), strict=True))
    for topic in topics:
        topic.events.learn(answers)

"""Replay: the messages of a private topic from before a join, in commit order, from the log.

Supabase replays at most 25, chosen by the time at which their transactions began, and says nothing of older ones. Here
a client gets as many as it asks for, within a limit, by the time of their commit, and is told when there were more.
"""

from __future__ import annotations

from typing import NamedTuple

from momentum_sync.errors import Unavailable
from momentum_sync.eventlog.resume import ResumeRefused
from momentum_sync.gateway.dialects.realtime_place import Start
from momentum_sync.gateway.dialects.realtime_services import RowServices
from momentum_sync.gateway.dialects.realtime_topic import Topic
from momentum_sync.limits import SocketLimits
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.realtime_broadcast import stored_frame


class Replayed(NamedTuple):
    """What a join gets from before.

    Attributes:
        frames: WebSocket frames.
        said: a message to the app; empty if everything is there.
    """

    frames: list[bytes]
    said: str


_NOTHING = Replayed([], "")


async def replay(
    topic: Topic, start: Start, version: Version, rows: RowServices, limits: SocketLimits
) -> Replayed:  # fmt: skip
    """Return the messages that a join asks for. A client that is resumed had them, for it repeats its first join.

    Args:
        topic: the topic.
        start: where it begins.
        version: of the client's serializer.
        rows: the gateway.
        limits: bounds.

    Raises:
        Unavailable: they cannot be read now.
    """
    asked = topic.join.replay
    if asked is None or start.is_resumed:
        return _NOTHING
    most = limits.replayed if asked.limit is None else min(asked.limit, limits.replayed)
    try:
        found = await rows.newest(topic.channel, start.position.offset, since=asked.since / 1_000, most=most)
    except (Unavailable, ResumeRefused) as error:
        raise Unavailable("Realtime was unable to replay messages", "UnableToReplayMessages") from error
    events, size = [], 0
    for event in reversed(found.events):
        size += len(event.body)
        if size > limits.replayed_bytes:
            break
        events.append(event)
    frames = [
        stored_frame(event.body, event.event_type, topic.name, version, replayed=True) for event in reversed(events)
    ]
    is_whole = found.is_whole and len(events) == len(found.events)
    said = "" if is_whole else f"ReplayGap: the newest {len(events)} messages were replayed; there may be older ones."
    return Replayed([frame for frame in frames if frame is not None], said)

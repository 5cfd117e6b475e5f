"""Replay: the messages of a private topic from before a join, in commit order, from the log.

Supabase replays at most 25, selected by the time at which their transactions began, and is silent about older ones.
Here a client gets as many as it asks for, within a limit, selected by commit time. A `system` message says if the limit
left some out.
"""

from __future__ import annotations

from typing import NamedTuple

from momentum_sync.errors import Unavailable
from momentum_sync.eventlog.resume import ResumeRefused
from momentum_sync.gateway.dialects.realtime_services import RowServices
from momentum_sync.limits import SocketLimits
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.realtime_broadcast import stored_frame
from momentum_sync.wire.realtime_join import Join


class Replayed(NamedTuple):
    """Messages from before a join.

    Attributes:
        frames: WebSocket frames.
        said: a message to the app; empty if everything is there.
    """

    frames: list[bytes]
    said: str


NOTHING = Replayed([], "")


async def replay(
    channel: str, name: str, join: Join, offset: int, version: Version, rows: RowServices, limits: SocketLimits
) -> Replayed:  # fmt: skip
    """Return the messages up to an offset that a join asks for.

    Args:
        channel: the topic's channel.
        name: its name, with `realtime:`.
        join: the client's request.
        offset: the last offset to replay; later messages are delivered live.
        version: of the client's serializer.
        rows: the gateway.
        limits: bounds.

    Raises:
        Unavailable: they cannot be read now.
    """
    request = join.replay
    if request is None:
        return NOTHING
    most = limits.replayed if request.limit is None else min(request.limit, limits.replayed)
    since = request.since / 1_000
    try:
        found = await rows.newest(channel, offset, since=since, most=most, most_bytes=limits.replayed_bytes)
    except (Unavailable, ResumeRefused) as error:
        raise Unavailable("Realtime was unable to replay messages", "UnableToReplayMessages") from error
    frames = [stored_frame(each.body, each.event_type, name, version, replayed=True) for each in found.events]
    count = len(found.events)
    # A client that set a limit and got that many messages gets no notice of a gap.
    has_all = found.is_whole or count == request.limit
    said = "" if has_all else f"ReplayGap: the newest {count} messages were replayed; there may be older ones."
    return Replayed([frame for frame in frames if frame is not None], said)

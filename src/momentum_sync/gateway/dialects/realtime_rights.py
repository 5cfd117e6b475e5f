"""A caller's rights on a topic of Supabase's protocol: when it joins, with a fresh token, and when policies change."""

from __future__ import annotations

from typing import NamedTuple

from momentum_sync.errors import BadRequest, Forbidden
from momentum_sync.gateway.dialects.realtime_errors import PREFIX
from momentum_sync.gateway.dialects.realtime_services import RowServices, Watched
from momentum_sync.gateway.dialects.realtime_topic import Topic
from momentum_sync.identity.tokens import Identity
from momentum_sync.identity.topic_access import BROADCAST, EVERYTHING, TopicAccess
from momentum_sync.wire.realtime_join import Join


class Confirmed(NamedTuple):
    """A join that the caller is entitled to.

    Attributes:
        access: its rights on the topic's messages.
        watched: its bindings; without any if they are wrong.
        wrong: why they are; empty if they are right.
    """

    access: TopicAccess
    watched: Watched
    wrong: str


async def confirm(name: str, join: Join, identity: Identity, rows: RowServices) -> Confirmed:
    """Confirm a join with the database.

    Args:
        name: the topic, with `realtime:`.
        join: the client's request.
        identity: the caller.
        rows: the gateway.

    Raises:
        Forbidden: the caller may not read the private topic.
        Unauthenticated: its token was revoked.
        Unavailable: the database does not answer.
    """
    watched, wrong = Watched((), ()), ""
    try:
        watched = await rows.watch(identity, join.bindings)
    except BadRequest as error:
        wrong = str(error)
    return Confirmed(await access(name, join, identity, rows), watched, wrong)


async def access(name: str, join: Join, identity: Identity, rows: RowServices) -> TopicAccess:
    """Return a caller's rights on a topic's messages. Raise as `confirm`."""
    if not join.is_private:
        return EVERYTHING
    topic = name.removeprefix(PREFIX)
    found = await rows.topic_access(identity, topic)
    if BROADCAST not in found.reads:
        raise Forbidden(f"You do not have permissions to read from this Channel topic: {topic}", "Unauthorized")
    return found


def lost_right(topic: Topic) -> str:
    """Return the message to a client whose caller may not read a topic any longer."""
    return f"You no longer have permission to read from this Channel topic: {topic.name.removeprefix(PREFIX)}"

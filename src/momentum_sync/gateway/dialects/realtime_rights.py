"""A caller's rights on a topic of Supabase's protocol: when it joins, with a fresh token, and when policies change."""

from __future__ import annotations

from typing import NamedTuple

from momentum_sync.errors import BadRequest, Forbidden, Unavailable
from momentum_sync.gateway.dialects.realtime_errors import PREFIX
from momentum_sync.gateway.dialects.realtime_rows import take_deciders
from momentum_sync.gateway.dialects.realtime_services import RowServices, Watched
from momentum_sync.gateway.dialects.realtime_topic import Topic
from momentum_sync.identity.tokens import Identity
from momentum_sync.identity.topic_access import BROADCAST, EVERYTHING, TopicAccess
from momentum_sync.wire.realtime_join import Join

_ATTEMPTS = 20


class Confirmed(NamedTuple):
    """A join that the caller is entitled to.

    Attributes:
        access: its rights on the topic's messages.
        watched: its bindings; without any if they are wrong.
        wrong: why they are; empty if they are right.
        generation: of the rights; see `RowServices`.
    """

    access: TopicAccess
    watched: Watched
    wrong: str
    generation: int


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
    watched, wrong, generation = Watched((), ()), "", rows.generation
    try:
        watched = await rows.watch(identity, join.bindings)
    except BadRequest as error:
        wrong = str(error)
    return Confirmed(await access(name, join, identity, rows), watched, wrong, generation)


async def settle(topic: Topic, confirmed: Confirmed, rows: RowServices) -> Confirmed:
    """Have a topic, which is not joined yet, be up to date with its caller's rights. Return these.

    A change of rights is told to joined topics only. So nothing may be awaited between this and the join.

    Raises:
        Forbidden, Unauthenticated or Unavailable: as `confirm`.
    """
    for _ in range(_ATTEMPTS):
        await take_deciders([topic], rows)
        if confirmed.generation == rows.generation:
            return confirmed
        confirmed = await confirm(topic.name, topic.join, topic.identity, rows)
        topic.access = confirmed.access
        topic.events.watch(confirmed.watched.watches)
    raise Unavailable("Rights change faster than they can be read; try again in a moment.")


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

"""What a resume would bring, in one answer: for a client that asks over HTTP instead of holding a socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from momentum_sync.eventlog.history import History
from momentum_sync.gateway.session import Session
from momentum_sync.gateway.snapshot import Desk
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire import messages

_PAGE = 256 * 1024


class Missed(msgspec.Struct):
    """Events as a socket would bring them, the id to go on from, and whether that is all for now.

    `refused` are the channels asked for that the caller may not have.
    """

    events: list[msgspec.Raw]
    last_event_id: str
    complete: bool
    refused: list[str]


async def missed(
    desk: Desk, history: History, identity: Identity, channels: Sequence[str], last_event_id: str, *, limit: int
) -> Missed:
    """At most `limit` events after an id, and no more than fit a page of bytes.

    Raises Refused when they can no longer be had, RequestError for what cannot be done.
    """
    reached, position = (
        history.reached,
        history.position,
    )  # what comes after the rights were asked for may be for others
    end = reached.offset
    greeting = await desk.resume(identity, identity.subject, channels, last_event_id, counted=False)
    session = Session(identity, identity.subject, "", heartbeat=0.0, now=0.0, at=0.0)
    session.greet(greeting, 0.0, 0.0)
    keys = list(session.channels.values())
    found: list[msgspec.Raw] = []
    size = 0
    while session.place < end:
        events, upto = await history.after(session.epoch, session.place, keys, most=_PAGE)
        events, upto = [event for event in events if event.offset <= end], min(upto, end)
        asked = [event for event in events if session.asks(event)]
        seen = (await desk.sight(session, asked))[0] if asked else set()
        withheld = {event.offset for event in asked} - seen
        for event in events:
            if event.offset in withheld:
                continue
            if len(found) == limit or size > _PAGE:
                return Missed(found, session.last_id, complete=False, refused=greeting.refused)
            delivery = session.deliver(event)
            if delivery is not None:
                found.append(msgspec.Raw(messages.event_object(event.body, delivery)))
                size += len(event.body)
        session.place = upto
    # Not the last event's id: a client for whom there is little would expire with it.
    session.advanced(position)
    last = session.last_id if reached.epoch != session.epoch else str(replace(reached, seen=session.seen))
    return Missed(found, last, complete=True, refused=greeting.refused)

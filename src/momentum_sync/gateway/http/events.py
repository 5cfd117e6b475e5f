"""`POST /sync/events`: the events of a resume in one response, for a phone that wakes up in the background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import msgspec
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from momentum_sync.errors import Unavailable
from momentum_sync.eventlog.resume import ResumeRefused, parse_position
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.http.requests import REFUSALS, Caller, Refusal, Whole, refusal
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire import messages
from momentum_sync.wire.messages import PRINTABLE

_NO_RESUME = "The events after this id are no longer available; read the state instead."


class Events(BaseModel):
    """The last event id, channels beside the caller's own, and the number of events at most."""

    model_config = ConfigDict(extra="forbid")

    # An id with a snapshot boundary lists the transactions that were in progress.
    last_event_id: str = Field(max_length=10_000)
    channels: list[Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE)]] = Field(
        [], max_length=500
    )  # fmt: skip
    limit: Whole = Field(500, ge=1, le=1000)


class Missed(BaseModel):
    """The events after the caller's last one; `complete` when that is all."""

    events: list[dict[str, object]]
    last_event_id: str
    complete: bool
    refused: list[str] = Field(description="channels asked for that the caller may not have")


class NoResume(Refusal):
    """The events are no longer available: begin with the state as it is."""

    reason: str = Field(description="`unknown_id`, `history_changed` or `expired`")


class MissedEvents(msgspec.Struct):
    """The answer; see `Missed`."""

    events: list[msgspec.Raw]
    last_event_id: str
    complete: bool
    refused: list[str]


async def missed_events(
    gateway: Gateway, identity: Identity, channels: Sequence[str], last_event_id: str, *, limit: int
) -> MissedEvents:
    """Return at most `limit` events after a position, and not more than fit into one answer.

    Raises:
        ResumeRefused: they are no longer available.
        RequestError: the caller may not have them, or the database does not answer.
    """
    history, most = gateway.history, gateway.limits.http.events_bytes
    await history.reach(parse_position(last_event_id))
    reached, lsn = history.position, history.lsn  # later events may need other grants than those asked for below
    end = reached.offset
    opening = await gateway.opener.resume(identity, identity.subject, channels, last_event_id, counted=False)
    if opening.position.epoch != reached.epoch:  # it ended meanwhile, and `end` is no offset of the one that goes on
        raise _another_history()
    user = None if identity.subject is None else str(identity.subject)
    cursor = Cursor(user, gateway.application.schema.per_user_channels)
    cursor.subscribe(opening.granted)
    cursor.begin(opening.position)
    keys = list(cursor.channels.values())
    found: list[msgspec.Raw] = []
    size = 0
    while cursor.offset < end:
        page = await history.after(cursor.epoch, cursor.offset, keys, most=most)
        if page.through <= cursor.offset:  # the feed has gone back, and whether it comes as far again is not known
            raise _another_history()
        events, through = [event for event in page.events if event.offset <= end], min(page.through, end)
        unchecked = [(event, cursor.channel_of(event)) for event in events if cursor.must_check(event)]
        visible = (await gateway.event_filter.filter(identity, unchecked)).visible if unchecked else set()
        withheld = {event.offset for event, _ in unchecked} - visible
        for event in events:
            if event.offset in withheld:
                continue
            # Checked before `deliver`, which would move `last_id` past an event that is not returned.
            if len(found) == limit or size > most:
                return MissedEvents(found, cursor.last_id, complete=False, refused=opening.refused)
            ids = cursor.deliver(event)
            if ids is not None:
                found.append(msgspec.Raw(messages.event_object(event.body, ids)))
                size += len(event.body)
        cursor.rewind(through)
    # Not the last event's id: it would expire for a client with few events.
    cursor.advanced(lsn)
    last = str(replace(reached, boundary=cursor.boundary))
    return MissedEvents(found, last, complete=True, refused=opening.refused)


def _another_history() -> Unavailable:
    return Unavailable("Another history has begun; try again in a moment.")


def add_events(sync: APIRouter, gateway: Gateway) -> None:
    """Add the route."""

    @sync.post("/events", response_model=Missed, responses={**REFUSALS, 409: {"model": NoResume}})
    async def events(query: Events, caller: Caller) -> Response:
        """Return the events of a resume: for a phone that wakes up in the background."""
        if gateway.draining or not gateway.feed.status().live:
            raise Unavailable("The event stream is not running; try again in a moment.")
        try:
            found = await missed_events(
                gateway, caller, query.channels, query.last_event_id, limit=query.limit
            )  # fmt: skip
        except ResumeRefused as refused:
            return refusal(409, refused.reason, _NO_RESUME, reason=refused.reason)
        return Response(msgspec.json.encode(found), media_type="application/json")

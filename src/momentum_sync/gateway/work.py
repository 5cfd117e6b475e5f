"""Database work requested by client messages, done under the client's role."""

from __future__ import annotations

import time
from uuid import UUID

from momentum_sync.errors import BadRequest, Forbidden
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.session import CheckToken, Grant, MarkRead, ReadState, Session, Work
from momentum_sync.wire.close import Close


async def perform(work: Work, session: Session, gateway: Gateway) -> None:
    """Do the work that a message asked for, and have the session answer. Raises RequestError."""
    desk = gateway.desk
    match work:
        case Grant(channels, ref):
            granted = await desk.grant(session.identity, session.user_id, channels)
            session.granted(channels, granted, time.time(), ref)
        case CheckToken(token, ref):
            identity = await gateway.authenticator.verify(token)
            if (identity.role, identity.subject) != (session.identity.role, session.identity.subject):
                raise Forbidden("The new token has another user or role; open a new connection.")
            try:
                granted = await desk.grant(identity, session.user_id, list(session.channels))
            except Forbidden:  # for the user whose connection it is
                session.close(Close.NOT_ALLOWED)
                return
            session.renewed(identity, granted, time.time(), time.monotonic(), ref)
        case ReadState(ref):
            user_id = _needed(session.user_id)
            session.state(await desk.momentum(session.identity, user_id), time.time(), ref)
        case MarkRead(notification_id, ref):
            await desk.mark_read(session.identity, _needed(session.user_id), notification_id)
            session.marked_read(notification_id, time.time(), ref)


def _needed(user_id: UUID | None) -> UUID:
    if user_id is None:
        raise BadRequest("no_user", "This connection has no user: reconnect with `user_id`.")
    return user_id

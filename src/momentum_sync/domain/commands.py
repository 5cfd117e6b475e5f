"""Handlers of the momentum app's messages, and the message that carries cache invalidations."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from momentum_sync.domain.messages import CacheInvalidationAck, MarkNotificationRead, RequestMomentumUpdate
from momentum_sync.domain.reads import MomentumReads
from momentum_sync.errors import BadRequest
from momentum_sync.eventlog.event import Event
from momentum_sync.gateway.conversation import Services
from momentum_sync.gateway.dialects.native import Command, Session
from momentum_sync.wire import messages
from momentum_sync.wire.messages import DeliveryIds


def commands(reads: MomentumReads) -> Sequence[Command]:
    """Return the handlers."""

    async def request_momentum_update(session: Session, message: RequestMomentumUpdate, services: Services) -> None:
        data = await reads.momentum(session.identity, _user_of(session))
        session.send("momentum_state_update", {"data": data}, services.now(), message.ref)

    async def mark_notification_read(session: Session, message: MarkNotificationRead, services: Services) -> None:
        await reads.mark_read(session.identity, _user_of(session), message.notification_id)
        fields: dict[str, object] = {"notification_id": message.notification_id}
        session.send("notification_marked_read", fields, services.now(), message.ref)

    def cache_invalidation_ack(session: Session, message: CacheInvalidationAck, services: Services) -> None:
        for key in message.keys:
            # The seed's client acknowledges every message: confirming a key twice would loop for ever (contract,
            # section 2).
            if session.take_ack(key):
                session.send("cache_invalidation_confirmed", {"cache_key": key}, services.now(), message.ref)

    return (
        Command(RequestMomentumUpdate, request_momentum_update),
        Command(MarkNotificationRead, mark_notification_read),
        Command(CacheInvalidationAck, cache_invalidation_ack),
    )


def encode_cache_invalidation(event: Event, ids: DeliveryIds, now: float) -> bytes:
    """Encode an event of the channel `cache_invalidation` as a `cache_invalidation` message."""
    fields: dict[str, object] = {
        "cache_keys": event.cache_keys, "id": ids.event_id, "previous_id": ids.previous_id,
    }  # fmt: skip
    return messages.encode("cache_invalidation", now, fields)


def _user_of(session: Session) -> UUID:
    if session.user_id is None:
        raise BadRequest("no_user", "This connection has no user: reconnect with `user_id`.")
    return session.user_id

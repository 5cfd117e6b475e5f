"""`POST /sync/receipts`: which devices of a user have an event. The same as `momentum.receipts` in SQL."""

from __future__ import annotations

from uuid import UUID

import msgspec
import psycopg
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from momentum_sync.database import queries
from momentum_sync.errors import Forbidden, NotFound
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.http.requests import REFUSALS, Caller
from momentum_sync.wire.messages import timestamp

_SQL = queries.load(__package__)
_EVENT_ID = r"^[0-9a-f]{8}-[0-9]{1,18}-[0-9a-f]{1,8}(\.[0-9A-Fa-f_.]*)?$"


class ReceiptQuery(BaseModel):
    """A user and an event."""

    model_config = ConfigDict(extra="forbid", strict=False)

    user_id: UUID
    event_id: str = Field(
        max_length=300, pattern=_EVENT_ID, description="the id of a delivered event, or one from `momentum.event_ids`"
    )


class ReceiptOfDevice(BaseModel):
    """The receipt of one device."""

    device: str = Field(description="its `client_id`; a digest for Supabase's protocol")
    protocol: str = Field(description="`native` or `supabase`")
    topic: str | None = Field(description="the topic, with Supabase's protocol; each topic has its own position")
    has_event: bool | None = Field(
        description="whether it has the event, or a snapshot taken after it; null for a change of a row, which a topic"
        " has if it watches the table"
    )
    confirmed_at: str = Field(description="when it last confirmed something")


class ReceiptsOfUser(BaseModel):
    """The user's devices, most recent confirmation first."""

    devices: list[ReceiptOfDevice]


def add_receipts(sync: APIRouter, gateway: Gateway) -> None:
    """Add the route `/sync/receipts`."""

    @sync.post("/receipts", response_model=ReceiptsOfUser, responses=REFUSALS)
    async def receipts(query: ReceiptQuery, caller: Caller) -> Response:
        """Return which devices of a user have an event. Requires `service_role`."""
        if caller.role != "service_role":
            raise Forbidden("Only service_role may read receipts.")
        try:
            async with gateway.reads.plain(caller) as connection:
                parameters = {"user_id": query.user_id, "event_id": query.event_id}
                rows = await (await connection.execute(_SQL["receipts"], parameters)).fetchall()
        except psycopg.errors.NoDataFound:
            raise NotFound("The event is not in the log, or not any longer.") from None
        names = ReceiptOfDevice.model_fields
        found = [dict(zip(names, (*row[:-1], timestamp(row[-1])), strict=True)) for row in rows]
        return Response(msgspec.json.encode({"devices": found}), media_type="application/json")

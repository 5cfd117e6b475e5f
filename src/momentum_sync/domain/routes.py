"""HTTP routes of the momentum app: contract, section 3."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from momentum_sync.domain.reads import MomentumReads
from momentum_sync.gateway.caller_reads import CallerReads
from momentum_sync.gateway.http.requests import REFUSALS, Answer, Caller, Whole, answer


class ForUser(BaseModel):
    """The body of a request for the data of one user."""

    model_config = ConfigDict(extra="forbid")

    user_id: UUID


class Notifications(ForUser):
    """The user, and the maximum number of notifications."""

    limit: Whole = Field(50, ge=1, le=200)


class History(ForUser):
    """The user, and the number of days until today."""

    days: Whole = Field(30, ge=1, le=366)


class Overview(BaseModel):
    """The number of days until today."""

    model_config = ConfigDict(extra="forbid")

    days: Whole = Field(30, ge=1, le=366)


class Names(BaseModel):
    """The users, 500 at most."""

    model_config = ConfigDict(extra="forbid")

    user_ids: Annotated[list[UUID], Field(max_length=500)]


def add_routes(sync: APIRouter, caller_reads: CallerReads) -> None:
    """Add the app's routes."""
    reads = MomentumReads(caller_reads)

    @sync.post("/momentum", response_model=Answer, responses=REFUSALS)
    async def momentum(asked: ForUser, caller: Caller) -> Response:
        """Return the user's momentum now."""
        return answer(await reads.momentum(caller, asked.user_id))

    @sync.post("/interventions", response_model=Answer, responses=REFUSALS)
    async def interventions(asked: ForUser, caller: Caller) -> Response:
        """Return the user's interventions that are scheduled or in progress."""
        return answer(await reads.interventions(caller, asked.user_id))

    @sync.post("/notifications", response_model=Answer, responses=REFUSALS)
    async def notifications(asked: Notifications, caller: Caller) -> Response:
        """Return the user's notifications, newest first."""
        return answer(await reads.notifications(caller, asked.user_id, asked.limit))

    @sync.post("/history", response_model=Answer, responses=REFUSALS)
    async def history(asked: History, caller: Caller) -> Response:
        """Return the user's scores, day by day."""
        return answer(await reads.history(caller, asked.user_id, asked.days))

    @sync.post("/overview", response_model=Answer, responses=REFUSALS)
    async def overview(asked: Overview, caller: Caller) -> Response:
        """Return everybody whom the caller may see: latest scores, states over time, open interventions."""
        return answer(await reads.overview(caller, asked.days))

    @sync.post("/names", response_model=Answer, responses=REFUSALS)
    async def names(asked: Names, caller: Caller) -> Response:
        """Return display names of users, by the database function `momentum_display_name`."""
        return answer(await reads.names(caller, asked.user_ids))

"""The check from end to end: an event is published in the database, and a client of the server receives it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg

from momentum_sync.cli.token import Role, sign
from momentum_sync.database import queries
from momentum_sync.database.connection import connect
from momentum_sync.doctor.finding import Finding, Level
from momentum_sync.errors import ClientError, MomentumError
from momentum_sync.observe import described
from momentum_sync.sdk.client import Client
from momentum_sync.sdk.connection import subject
from momentum_sync.sdk.protocol import Event
from momentum_sync.settings import Settings
from momentum_sync.token_settings import token_rules
from momentum_sync.wire.messages import TOOL

_SQL = queries.load(__package__)
_EVENT_TYPE = "doctor_probe"
_WITHIN_S = 10.0
_SLOW_S = 1.0
_LIFETIME = timedelta(minutes=5)


async def check_delivery(settings: Settings, conninfo: str, url: str, token: str | None) -> AsyncIterator[Finding]:
    """Publish an event to a user, and yield how long it took to a client of that user.

    Without a token the user id is random, so no other client receives the event. The log keeps it, as any event, until
    retention ends.
    """
    secret = token_rules(settings).secret
    if token is None and secret is None:
        yield Finding(
            "servers", "delivery", Level.NOTE, "not tried: only the issuer can sign a token",
            fix="MOMENTUM_TOKEN=<a user's token> momentum-sync doctor --probe",
        )  # fmt: skip
        return
    user = str(uuid4()) if token is None else subject(token)
    if user is None:
        yield Finding("servers", "delivery", Level.NOTE, "not tried: MOMENTUM_TOKEN names no user")
        return
    if token is None and secret is not None:
        token = sign(secret, UUID(user), Role.user, _LIFETIME, audience=settings.jwt_audience)
    errors: list[ClientError] = []
    try:
        name = f"{TOOL}doctor {uuid4()}"
        async with (
            asyncio.timeout(_WITHIN_S),
            Client(url, str(token), client_id=name, on_error=errors.append) as client,
        ):
            yield await _deliver(client, conninfo, user)
    except (psycopg.Error, MomentumError, TimeoutError, ValueError) as error:
        last = errors[-1] if errors else error
        said = str(last) if isinstance(last, MomentumError) else described(last)
        yield Finding(
            "servers", "delivery", Level.PROBLEM, f"no event came within {_WITHIN_S:g} s: {said}".rstrip(": "),
            "A client that connects now gets nothing, or cannot connect.",
            "This shell's SUPABASE_JWT_SECRET is not the server's; set the same." if "401" in said
            else f"See the other findings and the server's log; momentum-sync tail --user {user} --url {url}",
        )  # fmt: skip


async def _deliver(client: Client, conninfo: str, user: str) -> Finding:
    await client.wait_until_live()
    mark = uuid4().hex
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_arrival(client, mark))
        began = time.monotonic()
        await asyncio.to_thread(_publish, conninfo, user, mark)
        committed = time.monotonic()
    took = await waiting - began
    sql_ms = (committed - began) * 1000
    found = f"an event arrived {took * 1000:.0f} ms after publishing started, {sql_ms:.0f} ms of that in SQL"
    if took <= _SLOW_S:
        return Finding("servers", "delivery", Level.OK, found)
    return Finding(
        "servers", "delivery", Level.WARNING, found, "Clients see changes that much later.",
        "A large transaction or a slow disk delays capture: see the slot above.",
    )  # fmt: skip


async def _arrival(client: Client, mark: str) -> float:
    """Return the monotonic time at which the event with this mark came."""
    async for event in client.events():
        if isinstance(event, Event) and event.fields.get("mark") == mark:
            return time.monotonic()
    raise AssertionError("the events of a client end with an error only")


def _publish(conninfo: str, user: str, mark: str) -> None:
    with connect(conninfo, application_name="momentum-sync doctor") as connection, connection.transaction():
        connection.execute("set local role service_role")  # which may publish; the server's role may not
        parameters = {"channel": f"momentum_updates:{user}", "type": _EVENT_TYPE, "user": user, "mark": mark}
        connection.execute(_SQL["publish"], parameters)

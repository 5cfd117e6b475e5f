"""Load on any deployment: clients of made-up users, and events published for each of them.

Nothing is written to the app's tables. The events go through `momentum.publish` and the server as all others do, and
stay
in the log until its retention ends.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import msgspec
import psycopg
import websockets

from momentum_sync.bench.tally import Tally
from momentum_sync.errors import Unsuitable
from momentum_sync.tasks import end

_PATH = "/functions/v1/realtime-momentum-sync"
_CONNECTING_AT_ONCE = 32
_CONNECT_TIMEOUT_S = 30.0
_SETTLE_S = 10.0
_WRITERS = 8
_PUBLISH = """
    select momentum.publish(array['momentum_updates:' || %(user)s::text], jsonb_build_object(
        'event_type', 'bench', 'user_id', %(user)s::text, 'number', %(number)s::bigint, 'fill', repeat('x', %(fill)s)))
"""


class _Body(msgspec.Struct):
    id: str = ""
    previous_id: str = ""
    number: int = -1


class _Message(msgspec.Struct):
    type: str
    event: _Body | None = None
    last_event_id: str = ""


_decoder = msgspec.json.Decoder(_Message)


@dataclass(frozen=True, slots=True)
class Load:
    """The amount of load: clients, events per second over all of them, seconds, and filler bytes of an event."""

    connections: int
    rate: float
    seconds: float
    fill: int

    @property
    def events(self) -> int:
        """Return the number of events in all."""
        return int(self.rate * self.seconds)


@dataclass(frozen=True, slots=True)
class Target:
    """The server's URL, the database's connection string, and the secret that signs users' tokens."""

    url: str
    conninfo: str
    token: Callable[[uuid.UUID], str]


async def run(target: Target, load: Load, tally: Tally, progress: Callable[[str, float, float], None]) -> None:
    """Connect, publish, and wait until everything has arrived, at most 10 s. `tally` has the results so far.

    Args:
        load: the amount of load.
        target: the deployment.
        tally: counts events.
        progress: called with a step, how much of it is done, and how much it is.

    Raises:
        Unsuitable: the load cannot begin.
    """
    users = [uuid.uuid4() for _ in range(load.connections)]
    async with AsyncExitStack() as stack:
        sockets = await _connect(target, users, tally, stack, progress)
        listening = [asyncio.ensure_future(_listen(socket, index, tally)) for index, socket in enumerate(sockets)]
        try:
            await _publish(target, users, load, tally, progress)
            ends_at = time.monotonic() + _SETTLE_S
            while tally.lost and time.monotonic() < ends_at:
                progress("waiting for the last", tally.sent - tally.lost, tally.sent)
                await asyncio.sleep(0.05)
            progress("waiting for the last", tally.sent - tally.lost, tally.sent)
        finally:
            await end(*listening)
            for task in listening:
                if not task.cancelled():
                    task.result()


async def _connect(
    target: Target,
    users: list[uuid.UUID],
    tally: Tally,
    stack: AsyncExitStack,
    progress: Callable[[str, float, float], None],
) -> list[websockets.ClientConnection]:
    address = urlsplit(target.url)
    scheme = "wss" if address.scheme == "https" else "ws"
    url = urlunsplit((scheme, address.netloc, address.path.rstrip("/") + _PATH, "client_id=bench", ""))
    gate = asyncio.Semaphore(_CONNECTING_AT_ONCE)

    async def one(index: int) -> websockets.ClientConnection:
        async with gate, asyncio.timeout(_CONNECT_TIMEOUT_S):
            began = time.monotonic()
            headers = {"Authorization": f"Bearer {target.token(users[index])}"}
            socket = await stack.enter_async_context(
                websockets.connect(url, additional_headers=headers, compression=None, max_size=None)
            )
            while (message := _decoder.decode(await socket.recv())).type != "initial_state":
                pass
            tally.live(index, time.monotonic() - began, message.last_event_id)
            progress("connecting", len(tally.connected), len(users))
            return socket

    connecting = [asyncio.ensure_future(one(index)) for index in range(len(users))]
    try:
        return await asyncio.gather(*connecting)
    except websockets.InvalidStatus as error:
        said = error.response.body.decode(errors="replace") if error.response.body else ""
        raise Unsuitable(
            f"The server refused a connection: {error.response.status_code} {said}",
            "On 401, set the server's own SUPABASE_JWT_SECRET. On 429 or 503, use fewer --connections, or try again"
            " later.",
        ) from error
    except (OSError, TimeoutError, websockets.WebSocketException) as error:
        raise Unsuitable(
            f"Only {len(tally.connected)} of {len(users)} connections were opened:"
            f" {str(error) or type(error).__name__}.",
            "Check --url, MOMENTUM_MAX_CONNECTIONS, and `ulimit -n` on both machines.",
        ) from error
    finally:  # after one failure the others stop
        await end(*connecting)


async def _listen(socket: websockets.ClientConnection, index: int, tally: Tally) -> None:
    try:
        async for text in socket:
            now = time.monotonic()
            message = _decoder.decode(text)
            if message.event is not None:
                event = message.event
                tally.received(index, event.number, event.id, event.previous_id, now)
    except websockets.ConnectionClosed as closed:
        tally.closed(str(closed.rcvd.code) if closed.rcvd else "no close frame")
    else:
        tally.closed("1000")


async def _publish(
    target: Target,
    users: list[uuid.UUID],
    load: Load,
    tally: Tally,
    progress: Callable[[str, float, float], None],
) -> None:
    # Random numbers tell the events of this run from those of others.
    first = time.time_ns() // 1000
    writers = min(_WRITERS, len(users), load.events)
    began = time.monotonic()
    done = 0

    async def write(connection: psycopg.AsyncConnection, part: int) -> None:
        """Publish the events of one writer's users, so that each user's are committed in order."""
        nonlocal done
        own = users[part::writers]
        for turn, index in enumerate(range(part, load.events, writers)):
            due = began + index / load.rate
            if (delay := due - time.monotonic()) > 0:
                await asyncio.sleep(delay)
            tally.writes(first + index, due)
            try:
                await connection.execute(
                    _PUBLISH, {"user": str(own[turn % len(own)]), "number": first + index, "fill": load.fill}
                )
            except psycopg.Error:
                tally.failed(first + index)
                raise
            done += 1
            progress("publishing", done, load.events)

    try:
        async with AsyncExitStack() as stack:
            connections = [
                await stack.enter_async_context(
                    await psycopg.AsyncConnection.connect(target.conninfo, autocommit=True, connect_timeout=10)
                )
                for _ in range(writers)
            ]
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for part, connection in enumerate(connections):
                    group.create_task(write(connection, part))
            tally.took = time.monotonic() - began
    except* psycopg.Error as errors:
        said = str(errors.exceptions[0]).strip().splitlines()[0]
        raise Unsuitable(
            f"The database rejected an event: {said}",
            "Set DATABASE_URL for a role that may call momentum.publish: the owner of the tables, or service_role.",
        ) from errors

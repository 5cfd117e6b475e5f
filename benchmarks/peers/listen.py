"""A server written without this project: FastAPI, one LISTEN, and a set of sockets per channel, on the seed's triggers.

Like typical servers of this kind, it verifies a token, gives users their own channels and admins all scores, and sends
the state and then notifications. It guarantees nothing: events published while a client is disconnected are lost.

uvicorn benchmarks.peers.listen:app        with DATABASE_URL and JWT_SECRET
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from typing import Any

import asyncpg
import jwt
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

_PATH = "/functions/v1/realtime-momentum-sync"
_QUEUE = 1_000

queues: dict[str, set[asyncio.Queue[str]]] = defaultdict(set)


def notified(_connection: object, _pid: int, channel: str, payload: str) -> None:
    """Pass a notification to the channel's clients; a slow client loses it."""
    if channel == "cache_invalidation":
        channel = f"cache_invalidation:{json.loads(payload)['user_id']}"
    for queue in queues.get(channel, ()):
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(payload)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold a pool for snapshots, and one connection that listens; users' channels are added on demand."""
    app.state.pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=8)
    app.state.listener = await asyncpg.connect(os.environ["DATABASE_URL"])
    for channel in ("momentum_updates:all", "cache_invalidation"):
        await app.state.listener.add_listener(channel, notified)
    app.state.listening = asyncio.Lock()
    yield
    await app.state.listener.close()
    await app.state.pool.close()


app = FastAPI(lifespan=lifespan)


async def state(user_id: str) -> dict[str, Any] | None:
    """Return the user's score of today."""
    row = await app.state.pool.fetchrow(
        "select score_date, momentum_state, final_score from public.daily_engagement_scores"
        " where user_id = $1 order by score_date desc limit 1",
        user_id,
    )
    return None if row is None else {k: str(v) if isinstance(v, date) else v for k, v in row.items()}


async def send(socket: WebSocket, user: str, queue: asyncio.Queue[str]) -> None:
    """Send the state, then notifications."""
    await socket.send_text(json.dumps({"type": "initial_state", "momentum": await state(user)}, default=float))
    while True:
        payload = await queue.get()
        await socket.send_text('{"type":"realtime_event","event":' + payload + "}")


@app.websocket(_PATH)
async def follow(socket: WebSocket) -> None:
    """Serve one client."""
    token = socket.headers.get("authorization", "").removeprefix("Bearer ")
    try:
        claims = jwt.decode(token, os.environ["JWT_SECRET"], algorithms=["HS256"], options={"verify_aud": False})
    except jwt.PyJWTError:
        await socket.close(4401)
        return
    await socket.accept()
    user = str(claims["sub"])
    channels = [f"momentum_updates:{user}", f"cache_invalidation:{user}"]
    if claims.get("app_metadata", {}).get("role") == "admin":
        channels.append("momentum_updates:all")
    queue: asyncio.Queue[str] = asyncio.Queue(_QUEUE)
    async with app.state.listening:
        await app.state.listener.add_listener(channels[0], notified)
    for channel in channels:
        queues[channel].add(queue)
    sending = asyncio.ensure_future(send(socket, user, queue))
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        sending.cancel()
        for channel in channels:
            queues[channel].discard(queue)
        if not queues[channels[0]]:
            async with app.state.listening:
                await app.state.listener.remove_listener(channels[0], notified)

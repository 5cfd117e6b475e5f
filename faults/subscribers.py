"""Clients that record the events and the channels that they receive."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import httpx
import jwt
import websockets
from websockets.asyncio.client import ClientConnection

from faults.policies import Caller

SECRET = "a-secret-for-the-faults-with-more-than-32-bytes"
_PATH = "/functions/v1/realtime-momentum-sync"
_ANSWER_S = 20.0


class Subscriber:
    """One caller's connection. `wishes` are channels that it may ask for, `held` those that it was granted.

    `got` are the events received, `fresh` the channels granted since the last check.
    """

    def __init__(self, caller: Caller, users: Sequence[UUID], address: str) -> None:
        self.caller = caller
        kinds = ("momentum_updates", "interventions", "notifications")
        self.wishes = [f"{kind}:{user}" for user in users for kind in kinds if user != caller.subject]
        self.wishes += ["interventions:coaches", "momentum_updates:all"] * 3
        self.held: set[str] = set()
        self.got: list[tuple[object, ...]] = []
        self.fresh: set[str] = set()
        self.broken: list[str] = []
        self._address = address
        self._last: str | None = None
        self._fence = 0
        self._refs = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._heard = asyncio.Event()
        self._socket: ClientConnection
        self._reading: asyncio.Task[None]

    def _token(self) -> str:
        now = int(time.time())
        return jwt.encode({**self.caller.claims, "iat": now, "exp": now + 86400}, SECRET, algorithm="HS256")

    async def connect(self) -> None:
        """Connect with its channels, and resume from its last event."""
        query = {"client_id": self.caller.name}
        more = sorted(channel for channel in self.held if str(self.caller.subject) not in channel)
        if more:
            query["channels"] = ",".join(more)
        if self._last:
            query["last_event_id"] = self._last
        self._socket = await websockets.connect(
            str(httpx.URL(f"ws://{self._address}{_PATH}", params=query)),
            additional_headers={"Authorization": f"Bearer {self._token()}"}, open_timeout=_ANSWER_S,
        )  # fmt: skip
        async with asyncio.timeout(_ANSWER_S):
            confirmed = json.loads(await self._socket.recv())
            if not confirmed["resumed"]:
                self._last = json.loads(await self._socket.recv())["last_event_id"]
        self.held = set(confirmed["channels"])
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Disconnect."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()

    async def reconnect(self) -> None:
        """Disconnect and resume."""
        await self.close()
        await self.connect()

    async def become(self, role: str | None) -> None:
        """Use a token of another role."""
        self.caller.role = role
        answer = await self._ask({"type": "authenticate", "token": self._token()})
        if answer["type"] != "authenticated":
            self.broken.append(f"{self.caller.name}: {answer}")
        self._lose(answer.get("refused", []))

    async def subscribe(self, channel: str) -> bool:
        """Subscribe to a channel. Return whether it was granted."""
        answer = await self._ask({"type": "subscribe", "channels": [channel]})
        if answer["type"] == "subscription_confirmed":
            self.held = set(answer["channels"])
            self.fresh.add(channel)
        return channel in self.held

    async def unsubscribe(self, channel: str) -> None:
        """Unsubscribe from a channel."""
        self.held = set((await self._ask({"type": "unsubscribe", "channels": [channel]}))["channels"])

    async def until_fence(self, number: int) -> None:
        """Wait until it has received a marker published after everything else."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                while self._fence < number:
                    if self._reading.done():
                        break
                    await self._heard.wait()
                    self._heard.clear()
        except TimeoutError:
            pass
        if self._fence < number:
            gone = f"closed with {self._socket.close_code}" if self._reading.done() else "open"
            self.broken.append(f"LOSS: {self.caller.name} did not hear the fence {number}; its socket is {gone}")

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._refs += 1
        answer = self._answers[self._refs] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({**message, "ref": self._refs}))
        return await asyncio.wait_for(answer, _ANSWER_S)

    async def _read(self) -> None:
        try:
            async for text in self._socket:
                self._take(json.loads(text))
        finally:
            self._heard.set()

    def _take(self, message: dict[str, Any]) -> None:
        if "ref" in message:
            self._answers.pop(message["ref"]).set_result(message)
        elif message["type"] == "error" and message["code"] == "forbidden":
            self._lose(message["refused"])
        elif message["type"] == "error":
            self.broken.append(f"{self.caller.name}: {message}")
        elif message["type"] == "cache_invalidation":
            self._last = message["id"]
            if not all(str(self.caller.subject) in key for key in message["cache_keys"]):
                self.broken.append(f"LEAK: {self.caller.name} was told of the keys {message['cache_keys']}")
        elif message["type"] == "realtime_event":
            self._event(message["event"])

    def _event(self, event: dict[str, Any]) -> None:
        self._last = event["id"]
        kind = event["event_type"]
        gone = event.get("out_of_sight", False)
        if kind == "fence":
            self._fence = event["number"]
            self._heard.set()
        elif kind.startswith("momentum_score"):
            what = (event["user_id"], event["score_date"], event["momentum_state"], f"{event['final_score']:.2f}")
            self.got.append((kind, gone, *what))
        elif kind.startswith("intervention"):
            self.got.append((kind, gone, event["user_id"], event["intervention_id"], event["trigger_reason"]))
        else:
            self.got.append((kind, gone, event["user_id"], event["notification_id"], event["title"]))

    def _lose(self, channels: Sequence[str]) -> None:
        self.held -= set(channels)

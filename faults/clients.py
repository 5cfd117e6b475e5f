"""Clients that connect and disconnect, pause reading, resume from old ids, and record every message."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from random import Random
from typing import Any

import httpx
import jwt
import websockets
from websockets.asyncio.client import ClientConnection

from faults.checker import Came, Client, Held, Invalidated, Record, Snapshot
from faults.http_client import http_client

_PATH = "/functions/v1/realtime-momentum-sync"
_SILENT_S = 4.0  # the servers' heartbeat interval is one second
_OPEN_S = 5.0
_TRACED = 5_000


class Walker:
    """One client's life. `client` holds its record; `connects`, `resumes` and `resyncs` count."""

    def __init__(self, client: Client, role: str | None, url: str, secret: str, seed: int) -> None:
        self.client = client
        self.connects = self.resumes = self.resyncs = 0
        self._url = url
        self._extra = sorted(channel for channel in client.channels if client.user not in channel)
        self._chance = Random(f"{seed}-{client.name}")
        claims: dict[str, object] = {
            "sub": client.user, "role": "authenticated", "aud": "authenticated", "exp": int(time.time()) + 86400,
            "app_metadata": {"role": role} if role else {},
        }  # fmt: skip
        self._token = jwt.encode(claims, secret, algorithm="HS256")
        self._last: str | None = None
        self._known: list[tuple[str, int]] = []  # ids, and the length of the record at each
        self._previous = ""
        self._greeted = False
        self._calm = False
        self.broken: list[str] = []
        self.trace: deque[str] = deque(maxlen=_TRACED)

    def _say(self, what: str) -> None:
        """Add a line to the trace, which is kept for a record that is wrong."""
        self.trace.append(f"{time.time():.3f} {self.client.name}: {what}")

    def calm_down(self) -> None:
        """Connect and stay from now on."""
        self._calm = True

    async def live(self) -> None:
        """Connect again and again, until cancelled."""
        while True:
            try:
                if not self._calm and self._last and self._chance.random() < 0.1:
                    await self._ask_over_http()
                else:
                    await self._one_connection()
            except (OSError, TimeoutError, websockets.WebSocketException, httpx.HTTPError) as error:
                self._say(f"ended: {error!r}")  # network errors are expected; their effect shows in the record
            await asyncio.sleep(self._chance.uniform(0.05, 0.4))

    def _choose_place(self) -> None:
        """Choose the id to resume from: mostly the last one, at times none or an older one."""
        choice = 1.0 if self._calm else self._chance.random()
        if choice < 0.08:
            self._last = None
        elif choice < 0.2 and len(self._known) > 1:
            self._last, length = self._chance.choice(self._known[-40:])
            del self.client.record[length:]
            self._known = [known for known in self._known if known[1] <= length]

    async def _one_connection(self) -> None:
        self._choose_place()
        self._say(f"connects after {self._last}")
        query = {"client_id": self.client.name, "channels": ",".join(self._extra)}
        if self._last:
            query["last_event_id"] = self._last
        address = httpx.URL(f"ws://{self._url}{_PATH}", params=query)
        async with websockets.connect(
            str(address), additional_headers={"Authorization": f"Bearer {self._token}"}, open_timeout=_OPEN_S,
            close_timeout=0.2, ping_interval=None, max_size=None, max_queue=4,
        ) as socket:  # fmt: skip
            self.connects += 1
            self._greeted = False
            await self._converse(socket)

    async def _converse(self, socket: ClientConnection) -> None:
        ends = time.monotonic() + self._chance.uniform(0.2, 6.0)
        off: str | None = None
        while self._calm or time.monotonic() < ends:
            async with asyncio.timeout(_SILENT_S):
                message = json.loads(await socket.recv())
            self._take(message)
            if self._calm or not self._greeted:
                continue
            if self._chance.random() < 0.01:
                await asyncio.sleep(self._chance.uniform(0.5, 2.5))  # a phone that is busy
            elif self._chance.random() < 0.02 and not self._extra:
                off = await self._toggle(socket, off)
        if self._chance.random() < 0.7:
            socket.transport.abort()

    async def _toggle(self, socket: ClientConnection, off: str | None) -> str | None:
        """Unsubscribe from a channel, or subscribe to it again."""
        channel = off or self._chance.choice([f"notifications:{self.client.user}", f"interventions:{self.client.user}"])
        ref = self._chance.randrange(1 << 30)
        self._say(f"{'subscribes to' if off else 'leaves'} {channel}")
        await socket.send(
            json.dumps({"type": "subscribe" if off else "unsubscribe", "channels": [channel], "ref": ref})
        )
        if not off:
            self._note(Held(frozenset({channel}), on=False))
        async with asyncio.timeout(_SILENT_S * 2):
            while True:
                message = json.loads(await socket.recv())
                self._take(message)
                if message.get("ref") == ref:
                    break
        if message["type"] == "error":  # the database was away: the channels are as before
            return off
        if off:
            self._note(Held(frozenset({channel}), on=True))
        return None if off else channel

    def _note(self, record: Record) -> None:
        self.client.record.append(record)

    def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "subscription_confirmed" if "ref" not in message:
                self._confirmed(message)
            case "initial_state":
                self._say(f"a snapshot came: {message['last_event_id']}")
                self.resyncs += 1
                self._greeted = True
                self._note(Snapshot(_rows(message, self.client), time.time()))
                self._have(message["last_event_id"])
            case "realtime_event":
                self._event(message["event"])
            case "cache_invalidation":
                self._chain(message)
                self._note(Invalidated(tuple(message["cache_keys"])))
                self._have(message["id"])
            case "error" if message["code"] != "unavailable":
                self.broken.append(f"{self.client.name}: an error came: {message}")

    def _confirmed(self, message: dict[str, Any]) -> None:
        self._say(f"resumed: {message['resumed']}, {message.get('reason')}")
        if message["resumed"]:
            self.resumes += 1
            self._greeted = True
            self._previous = self._last or ""
            # All of its channels are confirmed again, from the position that it resumed from.
            self._note(Held(self.client.channels, on=True))
        elif self._last and not message.get("reason"):
            self.broken.append(f"{self.client.name}: no resume, and no reason")
        missing = self.client.channels - set(message["channels"])
        if missing - {"cache_invalidation"}:
            self.broken.append(f"{self.client.name}: it did not get {sorted(missing)}")

    def _event(self, event: dict[str, Any]) -> None:
        self._chain(event)
        what = _what(event)
        self._say(f"{event['id']} came: {what}")
        self._note(Came(what))
        self._have(event["id"])

    def _chain(self, message: dict[str, Any]) -> None:
        if message["previous_id"] != self._previous:
            self.broken.append(
                f"{self.client.name}: {message['id']} follows {message['previous_id']}, not {self._previous}"
            )

    def _have(self, event_id: str) -> None:
        self._last = self._previous = event_id
        self._known.append((event_id, len(self.client.record)))

    async def _ask_over_http(self) -> None:
        async with http_client(_OPEN_S, {"Authorization": f"Bearer {self._token}"}) as http:
            answer = await http.post(
                f"http://{self._url}/sync/events",
                json={"last_event_id": self._last, "channels": self._extra, "limit": 50},
            )
        self._say(f"asks over HTTP after {self._last}: {answer.status_code}")
        if answer.status_code != 200:
            return
        self._previous = self._last or ""
        self._note(Held(self.client.channels, on=True))
        for event in answer.json()["events"]:
            if event["event_type"] == "cache_invalidation":
                self._chain(event)
                self._note(Invalidated(tuple(event["cache_keys"])))
                self._have(event["id"])
            else:
                self._event(event)


def _what(event: dict[str, Any]) -> tuple[object, ...]:
    """Return an event as the witness names it."""
    kind, user = event["event_type"], event["user_id"]
    if kind.startswith("momentum_score"):
        old = None if kind.endswith(("created", "deleted")) else event["previous_state"]
        return kind, user, event["score_date"], event["momentum_state"], f"{event['final_score']:.2f}", old
    if kind.startswith("intervention"):
        old = None if kind.endswith(("created", "deleted")) else event["previous_status"]
        return kind, user, event["intervention_id"], event["trigger_reason"], event["status"], old
    return kind, user, event.get("notification_id"), event.get("title"), event.get("status")


def _rows(state: dict[str, Any], client: Client) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the content of a snapshot, by row."""
    rows: dict[tuple[str, str], tuple[str, ...]] = {}
    momentum = state["momentum"]
    if momentum["has_data"]:
        rows["score", client.user] = (momentum["momentum_state"], f"{momentum['final_score']:.2f}")
    for intervention in state["interventions"]["interventions"]:
        rows["intervention", intervention["id"]] = (intervention["trigger_reason"], intervention["status"])
    for notification in state["notifications"]:
        rows["notification", notification["id"]] = (notification["title"], notification["status"])
    return rows

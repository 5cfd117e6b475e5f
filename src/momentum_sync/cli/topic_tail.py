"""Messages and presence of a topic of Supabase's protocol, for `momentum-sync tail --topic`.

It speaks as Supabase's clients do, so it sees what they see: broadcasts of clients and of the database, and presence.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit, urlunsplit
from uuid import uuid4

import websockets
from websockets.asyncio.client import ClientConnection

from momentum_sync.errors import Unsuitable
from momentum_sync.tasks import end
from momentum_sync.wire.paths import REALTIME_SOCKETS

REFUSED = "Set the server's own SUPABASE_JWT_SECRET, or give a --token that it accepts."
_ANSWER_S = 15.0
_HEARTBEAT_S = 25.0
_TOKEN_S = 20 * 60.0  # a signed token lasts longer
_PAUSES_S = (1.0, 2.0, 5.0, 10.0)


class Message(NamedTuple):
    """A message of a topic's member, or a notice of the server.

    Attributes:
        kind: the event of a broadcast; `joined`, `left` or `here` for a change of presence; empty for a notice.
        fields: the fields that are shown. A member's own data is in `payload` or `state`, and nowhere else.
    """

    kind: str
    fields: Mapping[str, Any]


class TopicTail:
    """A topic's messages, across reconnects.

    Args:
        url: root URL of the server.
        topic: the topic, without `realtime:`.
        token: returns a token, or an API key.
        is_private: whether the topic is.
    """

    def __init__(self, url: str, topic: str, token: Callable[[], str], *, is_private: bool) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Unsuitable(f"{url} is not the URL of a server.", "--url http://127.0.0.1:8787")
        scheme = "wss" if parts.scheme == "https" else "ws"
        self._url = urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + REALTIME_SOCKETS[0], "", ""))
        self._topic = topic.removeprefix("realtime:")  # which clients add by themselves
        self._token = token
        self._is_private = is_private
        self._client_id = str(uuid4())
        self._refs = itertools.count(1)  # it goes on across sockets, by which the server recognizes a reconnect

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Yield broadcasts, changes of presence and notices, for ever.

        Raises:
            Unsuitable: the server refuses the topic.
        """
        failures = 0
        while True:
            try:
                async with self._connected() as socket:
                    await self._join(socket)
                    print(f"momentum-sync: live on {self._topic}", file=sys.stderr, flush=True)
                    failures = 0
                    beating = asyncio.ensure_future(self._beat(socket))
                    try:
                        async for data in socket:
                            for message in self._read(data):
                                yield message
                    finally:
                        await end(beating)
            except (OSError, TimeoutError, websockets.WebSocketException) as error:
                if (
                    isinstance(error, websockets.InvalidStatus)
                    and error.response.status_code == HTTPStatus.UNAUTHORIZED
                ):
                    raise Unsuitable(f"{_why(error)}.", REFUSED) from None
                if failures == 0:
                    print(f"momentum-sync: {_why(error)}. Reconnecting.", file=sys.stderr, flush=True)
            # The random part keeps many of them from coming back together.
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)] * random.uniform(0.5, 1.0))
            failures += 1

    def _connected(self) -> websockets.connect:
        query = urlencode({"apikey": self._token(), "vsn": "2.0.0", "client_id": self._client_id})
        return websockets.connect(f"{self._url}?{query}", open_timeout=_ANSWER_S, max_size=None)

    async def _send(self, socket: ClientConnection, topic: str, event: str, payload: Mapping[str, Any]) -> str:
        ref = str(next(self._refs))
        join_ref = ref if event == "phx_join" else None
        await socket.send(json.dumps([join_ref, ref, topic, event, payload]))
        return ref

    async def _join(self, socket: ClientConnection) -> None:
        config = {"private": self._is_private, "presence": {"enabled": True}}
        ref = await self._send(socket, f"realtime:{self._topic}", "phx_join", {"config": config})
        async with asyncio.timeout(_ANSWER_S):
            while True:
                frame = json.loads(await socket.recv())
                if frame[1] == ref:
                    break
        if frame[4]["status"] != "ok":
            raise Unsuitable(
                f"The server refused the topic: {frame[4]['response'].get('reason')}.",
                "Check the name; give a --token that its policies allow, or --public for the public topic.",
            )

    async def _beat(self, socket: ClientConnection) -> None:
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            await self._send(socket, "phoenix", "heartbeat", {})
            if time.monotonic() - renewed > _TOKEN_S:
                renewed = time.monotonic()
                await self._send(
                    socket, f"realtime:{self._topic}", "access_token", {"access_token": self._token()}
                )  # fmt: skip

    def _read(self, data: str | bytes) -> list[Message]:
        """Return the messages of a frame. Members choose the payload, so each field is checked."""
        if isinstance(data, bytes):
            return [_binary(data)]
        _, _, topic, event, payload = json.loads(data)
        if topic != f"realtime:{self._topic}":
            return []
        if event == "broadcast":
            given = payload if isinstance(payload, Mapping) else {"payload": payload}
            name = given.get("event")
            shown = {key: given[key] for key in ("payload", "meta") if key in given}
            return [Message(str(name), {"event": name, **shown})]
        if event == "presence_state":
            return list(_presence("here", payload))
        if event == "presence_diff":
            return [*_presence("joined", payload["joins"]), *_presence("left", payload["leaves"])]
        if event == "system" and payload.get("extension") in ("resume", "system", "rights"):
            said = str(payload.get("message"))
            hidden = said.startswith(("Resumed", "Replication", "NotResumable"))
            return [] if hidden else [Message("", {"notice": said})]
        if event == "phx_close":
            raise Unsuitable("The server ended the topic.", "The message before says why.")
        return []


def _presence(kind: str, metas: Mapping[str, Any]) -> Iterator[Message]:
    for key, entry in metas.items():
        for meta in entry["metas"]:
            state = {name: value for name, value in meta.items() if name not in ("phx_ref", "phx_ref_prev")}
            yield Message(kind, {"presence": kind, "key": key, "state": state})


def _binary(data: bytes) -> Message:
    """Return a broadcast in a binary frame: kind, three lengths, the encoding, and the parts."""
    lengths, is_json = data[1:4], data[4] == 1
    parts, at = [], 5
    for length in lengths:
        parts.append(data[at : at + length].decode())
        at += length
    payload: Any = json.loads(data[at:]) if is_json else {"base64": b64encode(data[at:]).decode()}
    meta = {"meta": json.loads(parts[2])} if parts[2] else {}
    return Message(parts[1], {"event": parts[1], "payload": payload, **meta})


def _why(error: Exception) -> str:
    if isinstance(error, websockets.InvalidStatus):
        body = error.response.body or b""
        return f"The server answered {error.response.status_code} {body.decode(errors='replace')[:200]}"
    return f"The connection was lost ({str(error) or type(error).__name__})"

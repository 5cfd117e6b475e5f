"""One connection of a client: the socket, from the handshake to its end, in the SDK's own errors."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec
import websockets
from websockets.asyncio.client import ClientConnection

from momentum_sync.errors import ConnectionLost, Ended, Offline, Rejected, RequestFailed, TokenUnavailable
from momentum_sync.sdk.following import verdict
from momentum_sync.wire import from_server as wire

Token = str | Callable[[], str | Awaitable[str]]
"""A token, or what gives one."""

PATH = "/functions/v1/realtime-momentum-sync"
_MOST_BYTES = 64 * 1024 * 1024
_OPEN_TIMEOUT_S = 15.0
_CLOSE_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 15.0
_TOKEN_TIMEOUT_S = 30.0


def address(url: str, query: Mapping[str, str | None], channels: Sequence[str]) -> str:
    """The socket's address on a server with this root. ValueError if `url` is none."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise ValueError(f"{url!r} is not the root of a server, such as https://api.example.com")
    given = {name: value for name, value in query.items() if value is not None}
    if channels:
        given["channels"] = ",".join(channels)
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + PATH, urlencode(given, quote_via=quote), ""))


class Connection:
    """An open socket, and the questions under way on it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._answers: dict[str, asyncio.Future[wire.ServerMessage]] = {}

    async def texts(self) -> AsyncIterator[str | bytes]:
        """What comes. Raises ConnectionLost or Ended where it ends."""
        try:
            while True:
                yield await self._socket.recv()
        except websockets.ConnectionClosed as error:
            raise _lost(error) from error

    async def send(self, message: Mapping[str, object]) -> None:
        """Sends, if there still is somebody; whoever reads hears of it if not."""
        with suppress(websockets.ConnectionClosed):
            await self._socket.send(msgspec.json.encode(message).decode())

    async def ask(self, message: Mapping[str, object]) -> wire.ServerMessage:
        """Sends, and waits for the answer. Raises Offline or RequestFailed."""
        ref = uuid.uuid4().hex
        answer: asyncio.Future[wire.ServerMessage] = asyncio.get_running_loop().create_future()
        self._answers[ref] = answer
        try:
            await self.send({**message, "ref": ref})
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                said = await answer
        except TimeoutError as error:
            raise Offline("The server did not answer in time.") from error
        finally:
            self._answers.pop(ref, None)
        if isinstance(said, wire.Error):
            raise RequestFailed(said.code, said.error)
        return said

    def answered(self, message: wire.ServerMessage) -> bool:
        """Hands an answer to whoever asked; whether anybody had."""
        answer = self._answers.get(str(getattr(message, "ref", None)))
        if answer is None or answer.done():
            return False
        answer.set_result(message)
        return True

    def abort(self) -> None:
        """Ends it without a word to anybody."""
        self._socket.transport.abort()

    async def close(self) -> None:
        """Ends it, and every question."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Offline("The connection went away before the answer came."))
        with suppress(OSError, TimeoutError):
            await self._socket.close()


async def connect(address: str, token: str) -> Connection:
    """An open connection. Raises Ended, Rejected or ConnectionLost."""
    try:
        socket = await websockets.connect(
            address,
            additional_headers={"Authorization": f"Bearer {token}"},
            compression=None,
            max_size=_MOST_BYTES,
            open_timeout=_OPEN_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            ping_interval=None,  # the server's heartbeats say more
        )
    except websockets.InvalidStatus as error:
        raise _rejected(error.response.status_code, bytes(error.response.body or b"")) from error
    except (OSError, TimeoutError) as error:
        raise ConnectionLost(f"The server cannot be reached: {str(error) or type(error).__name__}.") from error
    except websockets.WebSocketException as error:  # whose text may quote what was sent
        raise ConnectionLost(f"The server is no WebSocket server: {type(error).__name__}.") from None
    return Connection(socket)


def _rejected(status: int, body: bytes) -> Rejected | Ended:
    code, sentence = "rejected", "The server did not take the connection."
    try:
        fault: Any = msgspec.json.decode(body)["error"]
        code, sentence = str(fault["code"]), str(fault["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        pass  # somebody between us and the server answered
    if verdict(status) == "end":
        return Ended(status, sentence)
    return Rejected(status, code, sentence)


def _lost(error: websockets.ConnectionClosed) -> ConnectionLost | Ended:
    if error.rcvd is None:
        return ConnectionLost("The connection broke.")
    code, reason = error.rcvd.code, error.rcvd.reason or "closed"
    if verdict(code) == "end":
        return Ended(code, reason)
    return ConnectionLost(f"The server closed the connection: {reason} ({code}).", code)


async def fresh(token: Token) -> str:
    """A token, asked for where it is given by a function. Raises TokenUnavailable."""
    given: object = token
    if callable(token):
        try:
            async with asyncio.timeout(_TOKEN_TIMEOUT_S):
                given = token()
                given = await given if inspect.isawaitable(given) else given
        except Exception as error:
            raise TokenUnavailable(f"The token provider failed: {str(error) or type(error).__name__}.") from error
    if not isinstance(given, str) or not given or not given.isascii() or not given.isprintable() or " " in given:
        raise TokenUnavailable("What was given is no token: a token is a text without blanks.")
    return given


def subject(token: str) -> str | None:
    """Whose token it is, by its own word, which the server checks; None if it does not say."""
    try:
        claims = token.split(".")[1]
        found = msgspec.json.decode(urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
    except (IndexError, ValueError, KeyError, TypeError):
        return None
    return found.lower() if isinstance(found, str) else None

"""One connection of a client: the socket, from the handshake to its end, with the SDK's own errors."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec
import websockets
from websockets.asyncio.client import ClientConnection

from momentum_sync.errors import (
    ClientError,
    ConnectionLost,
    Ended,
    MessageTooLarge,
    Offline,
    Rejected,
    RequestFailed,
    TokenUnavailable,
)
from momentum_sync.sdk.callbacks import done_by, in_thread
from momentum_sync.sdk.protocol import verdict
from momentum_sync.version import __version__
from momentum_sync.wire import from_server as wire
from momentum_sync.wire.close import Close

Token = str | Callable[[], str | Awaitable[str]]
"""A token, or what gives one."""

SDK = f"python-{__version__}"
"""The library's name and version, which the server counts."""

PATH = "/functions/v1/realtime-momentum-sync"
# The server takes as many in the address of a connection.
_MOST_CHANNELS = 500
MOST_BYTES = 64 * 1024 * 1024
_OPEN_TIMEOUT_S = 15.0
_CLOSE_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 15.0
_TOKEN_TIMEOUT_S = 30.0
OWN_CODES = frozenset({
    "bad_address", "bad_handshake", "forbidden", "forbidden_origin", "invalid_text", "invalid_user_id",
    "repeated_header", "too_long", "upgrade_required",
})  # fmt: skip
"""Codes with which the server refuses a connection for good."""


def address(url: str, query: Mapping[str, str | None], channels: Sequence[str]) -> str:
    """Return the WebSocket address on a server with this root URL. Raise ValueError if it is not a URL."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise ValueError(f"{url!r} is not the root of a server, such as https://api.example.com")
    given = {name: value for name, value in query.items() if value is not None}
    if channels:
        given["channels"] = ",".join(channels)
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + PATH, urlencode(given, quote_via=quote), ""))


def is_open(address: str) -> bool:
    """Return whether traffic to this address is readable by others: unencrypted, and beyond this machine."""
    parts = urlsplit(address)
    return parts.scheme == "ws" and (parts.hostname or "") not in ("localhost", "127.0.0.1", "::1")


class _Fault(msgspec.Struct):
    code: str
    message: str


class _Refusal(msgspec.Struct):
    """The body of the server's HTTP errors."""

    error: _Fault


class Connection:
    """An open socket, and the questions that await an answer on it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._answers: dict[str, asyncio.Future[wire.ServerMessage]] = {}

    async def texts(self) -> AsyncIterator[str | bytes]:
        """Yield received messages. Raise ConnectionLost or Ended at the end."""
        try:
            while True:
                yield await self._socket.recv()
        except websockets.ConnectionClosed as error:
            raise _lost(error) from error

    async def send(self, message: Mapping[str, object]) -> None:
        """Send a message. If the connection is lost, the reader gets the error."""
        with suppress(websockets.ConnectionClosed):
            await self._socket.send(msgspec.json.encode(message).decode())

    async def ask(self, message: Mapping[str, object]) -> wire.ServerMessage:
        """Send a message and return its answer. Raise Offline or RequestFailed."""
        ref = uuid.uuid4().hex
        answer: asyncio.Future[wire.ServerMessage] = asyncio.get_running_loop().create_future()
        # Registered before the message is sent, because the answer may arrive while `send` still waits.
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
        """Pass an answer to the caller that waits for it. Return whether there was one."""
        answer = self._answers.get(str(getattr(message, "ref", None)))
        if answer is None or answer.done():
            return False
        answer.set_result(message)
        return True

    def abort(self) -> None:
        """Drop the connection without a close frame."""
        self._socket.transport.abort()

    async def close(self) -> None:
        """Close the connection and fail all open questions."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Offline("The connection was lost before the answer arrived."))
        with suppress(OSError, TimeoutError):
            await self._socket.close()


async def connect(address: str, token: str) -> Connection:
    """Open a connection. Raise Ended, Rejected or ConnectionLost."""
    try:
        socket = await websockets.connect(
            address,
            additional_headers={"Authorization": f"Bearer {token}"},
            compression=None,
            max_size=MOST_BYTES,
            open_timeout=_OPEN_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            ping_interval=None,  # the server's heartbeats do this
        )
    except websockets.InvalidStatus as error:
        raise _rejected(error.response.status_code, bytes(error.response.body or b"")) from error
    except (OSError, TimeoutError) as error:
        raise ConnectionLost(f"The server cannot be reached: {str(error) or type(error).__name__}.") from error
    except websockets.WebSocketException as error:  # its text may quote sent data
        raise ConnectionLost(f"The server is not a WebSocket server: {type(error).__name__}.") from None
    return Connection(socket)


def _rejected(status: int, body: bytes) -> Rejected | Ended:
    """Return the error for an HTTP status. Only an error code of the server itself ends the client.

    A captive portal, a proxy or another program at the address may answer 403, too.
    """
    try:
        fault = msgspec.json.decode(body, type=_Refusal).error
    except msgspec.MsgspecError:
        return Rejected(status, "rejected", "A proxy or another server answered instead of Momentum Sync.")
    if verdict(status) == "end" and fault.code in OWN_CODES:
        return Ended(status, fault.message)
    return Rejected(status, fault.code, fault.message)


def _lost(error: websockets.ConnectionClosed) -> ClientError:
    # A 1009 that the server sent first is only echoed here, and means that a message of this client was too large.
    if error.sent is not None and error.sent.code == Close.TOO_BIG.code and not error.rcvd_then_sent:
        return MessageTooLarge(f"A message exceeds {MOST_BYTES} bytes; the client continues with a new snapshot.")
    if error.rcvd is None:
        return ConnectionLost("The connection was lost.")
    code, reason = error.rcvd.code, error.rcvd.reason or "closed"
    if verdict(code) == "end":
        return Ended(code, reason)
    return ConnectionLost(f"The server closed the connection: {reason} ({code}).", code)


async def fresh(token: Token) -> str:
    """Return a token, calling the provider if it is a function. Raise TokenUnavailable.

    A plain function is called in a thread, because it may block.
    """
    given: object = token
    if callable(token):
        try:
            given = await done_by(lambda: _given(token), _TOKEN_TIMEOUT_S)
        except Exception as error:
            raise TokenUnavailable(f"The token provider failed: {str(error) or type(error).__name__}.") from error
    # The token becomes part of a header, where a line break would begin another header.
    if not isinstance(given, str) or not given or not given.isascii() or not given.isprintable() or " " in given:
        raise TokenUnavailable("The token is invalid: it must be a non-empty ASCII string without spaces.")
    return given


async def _given(token: Callable[[], str | Awaitable[str]]) -> object:
    found: object = token() if inspect.iscoroutinefunction(token) else await in_thread(token)
    return await found if inspect.isawaitable(found) else found


def subject(token: str) -> str | None:
    """Return the user that a token claims, which the server verifies; None if it claims none."""
    try:
        claims = token.split(".")[1]
        found = msgspec.json.decode(urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
    except (IndexError, ValueError, KeyError, TypeError):
        return None
    return found.lower() if isinstance(found, str) else None


def check_names(channels: Iterable[str], others: Iterable[str] = ()) -> list[str]:
    """Return each channel once. Refuse one string, which is a sequence of characters, and too many for a reconnect."""
    if isinstance(channels, str):
        raise TypeError(f"channels must be a list of names, such as [{channels!r}]")
    unique = list(dict.fromkeys(channels))
    if len({*unique, *others}) > _MOST_CHANNELS:
        raise ValueError(f"a client can have at most {_MOST_CHANNELS} channels; use a second client for the others")
    return unique

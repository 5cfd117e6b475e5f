"""Many clients in one process at low cost: raw sockets that hardly parse their data.

Clients that decoded each frame would cost more CPU than the server and, on two cores, limit the measurement.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import select
import socket
import time
from collections.abc import Sequence
from types import TracebackType
from urllib.parse import quote, urlsplit

from benchmarks.environment import PATH, token, user

CONNECTING_AT_ONCE = 32
LAST_ID = re.compile(rb'"last_event_id":"([^"]+)"')
_CHUNK = 96 * 1024
_LONGEST_MARK = 64
_PING = re.compile(rb"\x89([\x00-\x0f])(\d*)")  # JSON contains no control character after the byte 0x89


def handshake(url: str, token: str, *, client: str = "c", channels: str = "", last: str = "") -> bytes:
    """Return the request that opens a connection."""
    query = f"client_id={client}"
    if channels:
        query += f"&channels={channels}"
    if last:
        query += f"&last_event_id={last}"
    return (
        f"GET {PATH}?{query} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()


def row_request(url: str, index: int) -> bytes:
    """Return the request of a user's client of Supabase's protocol."""
    return (
        f"GET /realtime/v1/websocket?vsn=2.0.0&client_id=c{index}&apikey={quote(token(index))} HTTP/1.1\r\n"
        f"Host: {urlsplit(url).netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def row_join(index: int, *, filtered: bool = False, ref: int = 1) -> bytes:
    """Return the join of a user's client, whose changes of rows may be filtered by its user."""
    binding = {"event": "INSERT", "schema": "public", "table": "rows"}
    if filtered:
        binding["filter"] = f"user_id=eq.{user(index)}"
    payload = {"config": {"postgres_changes": [binding], "presence": {"enabled": False}}}
    return text_frame(json.dumps([str(ref), str(ref), "realtime:rows", "phx_join", payload]).encode())


def text_frame(text: bytes) -> bytes:
    """Return a client's text frame of less than 64 KiB."""
    # RFC 6455, section 5.2: a client's frame is masked; a mask of zeros leaves the text as it is.
    size = bytes((0x80 | len(text),)) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2, "big")
    return b"\x81" + size + b"\0\0\0\0" + text


class LoadClients:
    """Live sockets.

    `took` is the connect time of each in seconds, `ids` the position of each, `bytes` the data read since then.
    """

    def __init__(self, sockets: list[socket.socket], took: list[float], ids: list[str]) -> None:
        self.sockets = sockets
        self.took = took
        self.ids = ids
        self.bytes = 0
        self._epoll = select.epoll()
        for each in sockets:
            self._epoll.register(each.fileno(), select.EPOLLIN)

    def __enter__(self) -> LoadClients:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.sockets)

    def close(self) -> None:
        """Close all sockets."""
        self._epoll.close()
        for each in self.sockets:
            each.close()

    def until_all(self, mark: bytes, *, timeout: float = 60.0, rest: float = 0.0) -> tuple[float, float]:
        """Read until every socket has received the mark. Return the monotonic times of the first and the last.

        With a `rest` in seconds data can gather: on one machine a reader that waits for each frame makes the sender pay
        for waking it, which a reader on a network does not.
        """
        assert len(mark) <= _LONGEST_MARK
        waiting, first, ends_at = len(self.sockets), 0.0, time.monotonic() + timeout
        had: set[int] = set()
        tails: dict[int, bytes] = {}  # the end of each socket's data, because the mark may be split between two reads
        while waiting:
            if rest:
                time.sleep(rest)
            ready = self._epoll.poll(1.0)
            if time.monotonic() > ends_at:
                raise SystemExit(f"{waiting} of {len(self.sockets)} clients have not had what was sent.")
            for number, _ in ready:
                data = self._read(number)
                if number in had:
                    continue
                if mark not in data:
                    data = tails.get(number, b"") + data
                    if mark not in data:
                        tails[number] = data[-_LONGEST_MARK:]
                        continue
                had.add(number)
                waiting -= 1
                first = first or time.monotonic()
        return first, time.monotonic()

    def rest(self, seconds: float) -> None:
        """Read for this long, and answer pings."""
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            for number, _ in self._epoll.poll(left):
                self._read(number)

    def _read(self, number: int) -> bytes:
        """Return the data that a socket has, and answer its pings.

        Keep this short: if the reader is slower than the server, the server sleeps between events, and is charged for
        each wake-up.
        """
        data = os.read(number, _CHUNK)
        if not data:
            raise SystemExit("The server closed a connection that is being measured.")
        self.bytes += len(data)
        if b"\x89" in data and (pong := pong_to(data)) is not None:
            os.write(number, pong)
        return data


def pong_to(data: bytes) -> bytes | None:
    """Return the pong for the last ping in the data; None if there is none. Supabase's clients acknowledge that way."""
    payloads = [found[2] for found in _PING.finditer(data) if len(found[2]) == found[1][0]]
    if not payloads:
        return None
    payload = payloads[-1]  # RFC 6455, section 5.5.3: one answer is enough for several
    # RFC 6455, section 5.2: a client's frame is masked; a mask of zeros leaves the payload as it is.
    return b"\x8a" + bytes((0x80 | len(payload),)) + b"\0\0\0\0" + payload


async def connect(
    urls: str | Sequence[str],
    requests: Sequence[bytes],
    *,
    until: tuple[bytes, int] = (b'"initial_state"', 1),
    first: Sequence[bytes] | None = None,
    at_once: int = CONNECTING_AT_ONCE,
) -> LoadClients:
    """Open a connection with each request, and read each until the awaited bytes have arrived this many times.

    Several `urls` get the requests in turn. `first` has the frame that each sends when it is open.
    """
    loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(at_once)
    places = [urlsplit(url) for url in ([urls] if isinstance(urls, str) else urls)]
    addresses = [(place.hostname or "127.0.0.1", place.port or 80) for place in places]

    async def one(address: tuple[str, int], request: bytes, frame: bytes) -> tuple[socket.socket, float, str]:
        async with gate, asyncio.timeout(60):
            began = time.monotonic()
            each = socket.socket()
            each.setblocking(False)
            await loop.sock_connect(each, address)
            await loop.sock_sendall(each, request)
            data = b""
            while frame and b"\r\n\r\n" not in data:  # RFC 6455, section 4.1: the client waits for the response
                data += await loop.sock_recv(each, _CHUNK)
            if frame:
                await loop.sock_sendall(each, frame)
            while data.count(until[0]) < until[1]:
                more = await loop.sock_recv(each, _CHUNK)
                if not more:
                    raise SystemExit(f"Refused: {data[:500]!r}")
                data += more
            found = LAST_ID.search(data)
            return each, time.monotonic() - began, found[1].decode() if found else ""

    frames = first or [b""] * len(requests)
    opened = await asyncio.gather(*map(one, itertools.cycle(addresses), requests, frames))
    sockets, took, ids = zip(*opened, strict=True)
    return LoadClients(list(sockets), list(took), list(ids))

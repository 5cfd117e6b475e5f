"""The network between clients and servers, with faults: connections are cut, half-open or slow, or lose a frame."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from random import Random

_PACKET = 1500


class Proxy:
    """A local port that forwards each connection to the first server that accepts it; with `spread`, to any.

    `ports` may change at any time; a path in it is a Unix socket's, such as PostgreSQL's. `delay` is the time that
    every 1,500 bytes take, in seconds, in each direction. The next frame from a server that contains `lose` is dropped;
    with `websockets=False` the bytes are another protocol's, and have no frames.
    """

    def __init__(self, *, websockets: bool = True, spread: Random | None = None) -> None:
        self.websockets = websockets
        self.spread = spread
        self.ports: list[int | Path] = []
        self.delay = 0.0
        self.lose: bytes | None = None
        self._pipes: set[_Pipe] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        self.cut(Random(0), share=1.0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self, chance: Random, share: float) -> int:
        """Reset a share of the connections on both sides. Return how many."""
        chosen = [pipe for pipe in self._pipes if chance.random() < share]
        for pipe in chosen:
            pipe.cut()
        return len(chosen)

    def go_dead(self, chance: Random, share: float) -> int:
        """Stop carrying data on a share of the connections, silently. Return how many."""
        chosen = [pipe for pipe in self._pipes if chance.random() < share]
        for pipe in chosen:
            pipe.dead.set()
        return len(chosen)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports = list(self.ports)
        if self.spread is not None:
            self.spread.shuffle(ports)
        for port in ports:
            try:
                upstream = await _connected(port)
            except OSError:
                continue
            pipe = _Pipe(self, (reader, writer), upstream)
            self._pipes.add(pipe)
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await pipe.run()
            except asyncio.CancelledError:  # cancelled by `stop`, which waits for it
                return
            finally:
                self._pipes.discard(pipe)
                self._tasks.discard(task)
            return
        writer.transport.abort()


async def _connected(port: int | Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(port, Path):
        return await asyncio.open_unix_connection(port)
    return await asyncio.open_connection("127.0.0.1", port)


class _Pipe:
    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self.dead = asyncio.Event()

    def cut(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def run(self) -> None:
        ways = [
            asyncio.ensure_future(self._carry(self._client[0], self._server[1], None)),
            asyncio.ensure_future(
                self._carry(self._server[0], self._client[1], _Frames() if self._proxy.websockets else None)
            ),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self.cut()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: _Frames | None) -> None:
        with suppress(OSError):
            while data := await reader.read(_PACKET if self._proxy.delay else 65536):
                if self._proxy.delay:
                    await asyncio.sleep(self._proxy.delay)
                if self.dead.is_set():
                    await asyncio.get_running_loop().create_future()  # until it is cut
                for part in [data] if frames is None else frames.split(data):
                    if frames is not None and self._proxy.lose is not None and self._proxy.lose in part:
                        self._proxy.lose = None
                        continue
                    writer.write(part)
                await writer.drain()


class _Frames:
    """A server's bytes: the answer to the handshake, then whole frames."""

    def __init__(self) -> None:
        self._held = b""
        self._open = False

    def split(self, data: bytes) -> list[bytes]:
        self._held += data
        parts = []
        while length := self._length():
            parts.append(self._held[:length])
            self._held = self._held[length:]
        return parts

    def _length(self) -> int:
        """Return the length of the first whole unit; 0 if there is none."""
        held = self._held
        if not self._open:
            if not held.startswith(b"HTTP/1.1 101 "[: len(held)]):
                return len(held)  # HTTP passes unchanged
            end = held.find(b"\r\n\r\n") + 4
            self._open = end >= 4
            return end if self._open else 0
        if len(held) < 2:
            return 0
        head, size = 2, held[1] & 127
        if size >= 126:
            head += 2 if size == 126 else 8
            if len(held) < head:
                return 0
            size = int.from_bytes(held[2:head], "big")
        return head + size if len(held) >= head + size else 0

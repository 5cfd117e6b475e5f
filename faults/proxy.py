"""The network between clients and servers, to be mistreated: connections are cut, or go dead without a word."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random


class Proxy:
    """A port whose connections go to whichever of the servers takes them. `ports` may change at any time."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self._pipes: set[_Pipe] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listens."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Ends everything."""
        assert self._server is not None
        self._server.close()
        self.cut(Random(0), share=1.0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self, chance: Random, share: float) -> int:
        """Resets a share of the connections on both sides; returns how many."""
        chosen = [pipe for pipe in self._pipes if chance.random() < share]
        for pipe in chosen:
            pipe.cut()
        return len(chosen)

    def go_dead(self, chance: Random, share: float) -> int:
        """A share of the connections carries nothing from now on, and says nothing; returns how many."""
        chosen = [pipe for pipe in self._pipes if chance.random() < share]
        for pipe in chosen:
            pipe.dead.set()
        return len(chosen)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in list(self.ports):
            try:
                upstream = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            pipe = _Pipe((reader, writer), upstream)
            self._pipes.add(pipe)
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await pipe.run()
            except asyncio.CancelledError:  # by `stop`, which waits for it
                return
            finally:
                self._pipes.discard(pipe)
                self._tasks.discard(task)
            return
        writer.transport.abort()


class _Pipe:
    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._client, self._server = client, server
        self.dead = asyncio.Event()

    def cut(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def run(self) -> None:
        ways = [
            asyncio.ensure_future(self._carry(self._client[0], self._server[1])),
            asyncio.ensure_future(self._carry(self._server[0], self._client[1])),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self.cut()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self.dead.is_set():
                    await asyncio.get_running_loop().create_future()  # until it is cut
                writer.write(data)
                await writer.drain()

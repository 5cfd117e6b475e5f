"""The Python SDK under commands, like `clients/js/test/driver.js`: JSON lines in and out."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from momentum_sync import Client, ClientError, Ended, Event, FetchFailed, FileStore, Resync, State, StoreFailed


def write(**happened: Any) -> None:
    sys.stdout.write(msgspec.json.encode(happened).decode() + "\n")
    sys.stdout.flush()


class Failing(FileStore):
    """A file on a disk that is full for a number of writes."""

    def __init__(self, path: str, times: int) -> None:
        super().__init__(path)
        self._times = times

    def save(self, document: bytes) -> None:
        if self._times > 0:
            self._times -= 1
            raise OSError("No space left on device")
        super().save(document)


class Driver:
    def __init__(self) -> None:
        self.client: Client
        self.ahead = 0.0
        self.tokens: list[str] = []
        self.asked = 0
        self.fetches = 0
        self.held: dict[str, asyncio.Event] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def token(self) -> str:
        """Return a token: `!fail` is a provider that fails, `!hold` one that answers when it is released."""
        self.asked += 1
        write(token=self.asked)
        token = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        if token == "!fail":
            raise OSError("no network, no token")
        if token == "!hold":
            self.held["token"] = asyncio.Event()
            await self.held["token"].wait()
            token = self.tokens[0]
        return token

    async def open(self, command: dict[str, Any]) -> None:
        self.tokens = command["token"]
        store = Failing(command["store"], command["store_failures"]) if command["store"] else None
        self.client = Client(
            command["url"],
            self.token,
            channels=command["channels"],
            user_id=command["user_id"],
            client_id=command["client_id"],
            patience=command["patience"],
            store=store,
            clock=lambda: time.time() + self.ahead,
            on_error=lambda error: write(error=type(error).__name__, code=getattr(error, "code", None)),
        )
        self.client.cache.listen(lambda keys: write(invalidated=sorted(keys)))
        self.spawn(self.iterate(self.client.events()))
        self.spawn(self.watch(self.client.changes()))
        await self.client.start()

    async def iterate(self, events: AsyncIterator[Event | Resync]) -> None:
        try:
            async for one in events:
                if isinstance(one, Resync):
                    write(resync=one.reason)
                else:
                    write(event=one.type, fields=dict(one.fields), id=one.id)
        except Ended as error:
            write(ended=error.code, name="Ended")

    async def watch(self, changes: AsyncIterator[State]) -> None:
        async for state in changes:
            write(state=state._asdict())

    async def mark_read(self, command: dict[str, Any]) -> None:
        try:
            await self.client.mark_notification_read(command["id"])
        except StoreFailed:
            write(not_kept=command["id"])
        else:
            write(kept=command["id"])

    async def sent(self, _: dict[str, Any]) -> None:
        await self.client.flush()
        write(sent=True)

    async def momentum(self, _: dict[str, Any]) -> None:
        write(momentum=msgspec.to_builtins(await self.client.request_momentum_update()))

    async def subscribe(self, command: dict[str, Any]) -> None:
        try:
            await self.client.subscribe(command["channels"])
        except ClientError as error:
            write(error=type(error).__name__, code=getattr(error, "code", None))
        else:
            write(channels=list(self.client.channels))

    async def advance(self, command: dict[str, Any]) -> None:
        self.ahead += command["seconds"]

    async def wake(self, _: dict[str, Any]) -> None:
        self.client.reconnect_now()

    async def get(self, command: dict[str, Any]) -> None:
        key = command["key"]

        async def fetch() -> Any:
            self.fetches += 1
            if command.get("hold"):
                self.held[key] = asyncio.Event()
            write(fetched=key, fetches=self.fetches)
            if command.get("hold"):
                await self.held[key].wait()
            return command["value"]

        within = command.get("within", 60.0)
        try:
            value = await self.client.cache.get(key, fetch, persistent=bool(command.get("persistent")), within=within)
        except FetchFailed as error:
            write(error=type(error).__name__, code=None)
        else:
            write(key=key, value=value)

    async def release(self, command: dict[str, Any]) -> None:
        self.held[command["key"]].set()

    async def peek(self, command: dict[str, Any]) -> None:
        entry = self.client.cache.peek(command["key"])
        write(peeked=None if entry is None else entry.value)

    async def write_store(self, command: dict[str, Any]) -> None:
        store = FileStore(command["store"])
        store.save(command["text"].encode())
        store.close()
        write(written=True)

    async def clear(self, _: dict[str, Any]) -> None:
        await self.client.clear()
        write(cleared=True)

    async def close(self, _: dict[str, Any]) -> None:
        await self.client.close()
        write(closed=True)

    async def do(self, command: dict[str, Any]) -> None:
        try:
            await getattr(self, command["do"])(command)
        except Exception as error:
            write(failed=f"{type(error).__name__}: {error}", doing=command["do"])


async def main() -> None:
    driver = Driver()
    reader = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        driver.spawn(driver.do(json.loads(line)))


asyncio.run(main())

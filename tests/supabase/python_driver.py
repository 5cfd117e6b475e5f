"""Supabase's Python client under commands: JSON lines in and out, like `clients/driver.js`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from realtime import AsyncRealtimeClient


def write(**happened: Any) -> None:
    sys.stdout.write(json.dumps(happened, default=str) + "\n")
    sys.stdout.flush()


LOST_AFTER = 15  # seconds; an attempt to connect takes up to 10


class Driver:
    def __init__(self) -> None:
        self.client: Any = None
        self.opened = asyncio.Event()
        self.channels: dict[str, Any] = {}
        self.watching: Any = None

    async def open(
        self, url: str, key: str, token: str | None, params: dict[str, str], vsn: str | None = None,
        heartbeat: float | None = None,
    ) -> None:  # fmt: skip
        # By default it gives up after five attempts.
        more: dict[str, Any] = {} if heartbeat is None else {"hb_interval": heartbeat, "max_retries": 1_000}
        self.client = AsyncRealtimeClient(f"{url}/realtime/v1", key, params=params, **more)
        await self.client.connect()
        if token is not None:
            await self.client.set_auth(token)
        self.opened.set()
        if heartbeat is not None:
            self.watching = asyncio.ensure_future(self.watch())

    async def watch(self) -> None:
        """Report channels that the client has lost, as an app that checks their state would.

        supabase-py of 2025 leaves each channel before it joins it again. If that connection breaks, too, the next
        attempt skips this channel, and the first one is cancelled: it stays in the state `leaving`.
        """
        leaving: dict[str, int] = {}
        while True:
            await asyncio.sleep(1.0)
            leaving = {
                topic: leaving.get(topic, 0) + 1 for topic, channel in self.channels.items() if channel.is_leaving
            }
            for topic in [topic for topic, seconds in leaving.items() if seconds >= LOST_AFTER]:
                del leaving[topic]
                self.client.channels.pop(f"realtime:{topic}", None)
                del self.channels[topic]
                write(status="CLOSED", topic=topic, error="the client has lost it")

    async def subscribe(
        self, topic: str, bindings: list[dict[str, str]], config: dict[str, Any], events: list[str] | None = None,
        presence: bool = False,
    ) -> None:  # fmt: skip
        await self.opened.wait()  # or the first join has no token; for that there are tests without a client
        channel = self.client.channel(topic, {"config": config})

        def changed(payload: dict[str, Any]) -> None:
            data = payload["data"]
            kind = getattr(data["type"], "value", data["type"])
            change = {
                "topic": topic, "eventType": kind, "schema": data["schema"], "table": data["table"],
                "commit_timestamp": data["commit_timestamp"], "new": data.get("record") or {},
                "old": data.get("old_record") or {}, "errors": data.get("errors"),
            }  # fmt: skip
            write(change=change)

        for binding in bindings:
            channel.on_postgres_changes(
                binding["event"], changed, table=binding.get("table", "*"), schema=binding.get("schema", "public"),
                filter=binding.get("filter"),
            )  # fmt: skip
        for event in events or []:
            channel.on_broadcast(event, lambda message: write(broadcast={"topic": topic, **message}))
        if presence:
            channel.on_presence_sync(
                lambda: write(presence={"topic": topic, "state": presence_of(channel.presence_state())})
            )
        channel.on_system(lambda payload: write(system={"topic": topic, **payload.model_dump()}))
        self.channels[topic] = channel
        await channel.subscribe(
            lambda status, error: write(status=status.value, topic=topic, error=None if error is None else str(error))
        )

    async def send(self, topic: str, event: str, payload: dict[str, Any]) -> None:
        await self.channels[topic].send_broadcast(event, payload)

    async def http_send(self, topic: str, event: str, payload: dict[str, Any]) -> None:
        await self.channels[topic].http_send(event, payload)
        write(sent=event)

    async def track(self, topic: str, payload: dict[str, Any]) -> None:
        await self.channels[topic].track(payload)

    async def untrack(self, topic: str) -> None:
        await self.channels[topic].untrack()

    async def unsubscribe(self, topic: str) -> None:
        await self.channels[topic].unsubscribe()
        write(unsubscribed="ok", topic=topic)

    async def token(self, token: str) -> None:
        await self.client.set_auth(token)
        write(renewed=True)


def presence_of(state: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names that are tracked, by key."""
    return {key: sorted(meta["name"] for meta in metas) for key, metas in state.items()}


async def main() -> None:
    driver = Driver()
    loop = asyncio.get_running_loop()
    running = set()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        work = getattr(driver, command.pop("do"))(**command)
        task = asyncio.ensure_future(work)
        running.add(task)

        def done(task: asyncio.Task[None]) -> None:
            running.discard(task)
            if not task.cancelled() and task.exception() is not None:
                write(failed=repr(task.exception()))

        task.add_done_callback(done)
        await asyncio.sleep(0)


asyncio.run(main())

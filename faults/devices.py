"""Devices: apps with Supabase's own clients, unmodified, that record every change of rows and every message.

The programs are those of `tests/supabase`. Their own reconnects are left as they are, but for the interval of their
heartbeats, by which they notice a dead connection.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import jwt

from faults.row_checker import Came, Gap, Joined, Record
from faults.workload import ROW_TABLES
from tests.sdk.drivers import Program
from tests.supabase.programs import missing, program

HEARTBEAT_S = 3.0
MESSAGES = "fault_messages"
"""The record of messages from the database, which a trigger sends to a private topic of each user."""

_READY_S = 60.0
_TRACED = 5_000
_CLIENTS = ("python-2026", "node-2026", "python-2025", "node-2025")


class Identity(NamedTuple):
    """The identity of a device: its `client_id`, its session, or its user alone.

    Only with a `client_id` is the age of repeated changes bounded.
    """

    client_id: str | None
    session_id: str | None


class Device:
    """One app of a user. `records` has its record by table."""

    def __init__(self, name: str, client: str, user: str, identity: Identity, *, filtered: bool) -> None:
        self.name = f"{name} ({client})"
        self.user = user
        self.is_shared = identity.client_id is None
        self.records: dict[str, list[Record]] = {table: [] for table in (*ROW_TABLES, MESSAGES)}
        self.joins = self.resumes = self.gaps = self.closed = 0
        self.broken: list[str] = []
        self.trace: deque[str] = deque(maxlen=_TRACED)
        self._client = client
        self._identity = identity
        self._filtered = filtered
        self._driver: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, stack: AsyncExitStack, url: str, secret: str) -> None:
        """Start the program, and wait until it has joined all topics."""
        running = await stack.enter_async_context(program(self._client))
        assert isinstance(running, Program)
        self._driver = await stack.enter_async_context(running.start(self._happened))
        claims: dict[str, object] = {"aud": "authenticated", "exp": int(time.time()) + 86_400 * 4}
        session = {"session_id": self._identity.session_id} if self._identity.session_id else {}
        await self._driver.do(
            "open", url=url, key=jwt.encode({**claims, "role": "anon"}, secret, algorithm="HS256"),
            token=jwt.encode(
                {**claims, **session, "role": "authenticated", "sub": self.user}, secret, algorithm="HS256"
            ),
            params={"client_id": self._identity.client_id} if self._identity.client_id else {},
            heartbeat=HEARTBEAT_S,
        )  # fmt: skip
        for table in self.records:
            await self._subscribe(table)
        async with asyncio.timeout(_READY_S):
            while not all(self.records.values()):
                await asyncio.sleep(0.05)

    async def _subscribe(self, table: str) -> None:
        if table == MESSAGES:
            config = {"private": True, "broadcast": {"replication_ready": True}}
            topic = f"{MESSAGES}:{self.user}"
            await self._driver.do("subscribe", topic=topic, bindings=[], config=config, events=["row"])
            return
        binding = {"event": "*", "schema": "public", "table": table}
        if self._filtered:
            binding["filter"] = f"owner=eq.{self.user}"
        await self._driver.do("subscribe", topic=table, bindings=[binding], config={})

    def _happened(self, one: dict[str, Any]) -> None:
        now = time.monotonic()
        self.trace.append(f"{time.time():.3f} {self.name}: {json.dumps(one)[:300]}")
        if "change" in one:
            change = one["change"]
            row = change["old"] if change["eventType"] == "DELETE" else change["new"]
            self.records[change["topic"]].append(Came((change["eventType"], int(row["number"])), now))
        elif "broadcast" in one:
            message = one["broadcast"]["payload"]
            self.records[MESSAGES].append(Came((message["operation"], int(message["number"])), now))
        elif one.get("status") == "CLOSED":
            # supabase-js 2.86 leaves its own channel when a rejoin is late. The app subscribes again.
            self.closed += 1
            table = one["topic"].partition(":")[0]
            self.records[table].append(Gap())
            self._tasks.append(asyncio.ensure_future(self._subscribe(table)))
        elif "system" in one:
            self._told(one["system"]["topic"].partition(":")[0], str(one["system"]["message"]))
        elif "failed" in one:
            self.broken.append(f"{self.name}: {one['failed']}")

    def _told(self, table: str, message: str) -> None:
        if message in ("Subscribed to PostgreSQL", "Replication connection established"):
            self.joins += 1
            self.records[table].append(Joined())
        elif message.startswith("Resumed"):
            self.resumes += 1
        elif message.startswith("ResumeGap"):
            # A client gets this at its first join if attempts to connect had failed before. It has missed nothing.
            if sum(isinstance(record, Joined) for record in self.records[table]) > 1:
                self.gaps += 1
                self.records[table].append(Gap())
        elif not message.startswith("{"):
            self.broken.append(f"{self.name}: a message came: {message}")


def installed_clients() -> list[str]:
    """Return which of Supabase's clients this machine has.

    Raises:
        RuntimeError: it has none.
    """
    there = [client for client in _CLIENTS if missing(client) is None]
    if not there:
        raise RuntimeError(f"{missing(_CLIENTS[0])}")
    return there


def make_devices(users: list[str]) -> list[Device]:
    """Return devices of two users: with names of their own, two tabs of one session, and one without any.

    Raises:
        RuntimeError: no Supabase client is installed.
    """
    there = installed_clients()
    one, other = users[:2]
    named: Callable[[str], Identity] = lambda name: Identity(name, None)  # noqa: E731
    tab = Identity(None, json.dumps("tab"))
    plans = [
        ("phone", one, named("phone"), True), ("tablet", one, named("tablet"), False),
        ("tab 1", one, tab, True), ("tab 2", one, tab, False),
        ("laptop", other, named("laptop"), True), ("watch", other, Identity(None, None), False),
    ]  # fmt: skip
    return [
        Device(name, there[number % len(there)], user, identity, filtered=filtered)
        for number, (name, user, identity, filtered) in enumerate(plans)
    ]

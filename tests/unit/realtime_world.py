"""A session of Supabase's protocol with its surroundings, without socket and database."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from momentum_sync.errors import BadRequest, Forbidden, Unauthenticated, Unavailable
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.page import Newest
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.conversation import BinaryMessage
from momentum_sync.gateway.dialects.realtime import RealtimeSession
from momentum_sync.gateway.dialects.realtime_resume import Key, Ledger, Verdict
from momentum_sync.gateway.dialects.realtime_services import LiveSession, SharedFrames, Watched
from momentum_sync.gateway.direct_files import DirectFiles
from momentum_sync.gateway.topic_members import TopicMembers
from momentum_sync.identity.channels import Filtered, Granted
from momentum_sync.identity.decider import Decider
from momentum_sync.identity.row_tables import SeenChange
from momentum_sync.identity.tokens import Identity
from momentum_sync.identity.topic_access import EVERYTHING, TopicAccess
from momentum_sync.limits import SocketLimits
from momentum_sync.wire import row_watch
from momentum_sync.wire.messages import frame
from momentum_sync.wire.phoenix import Version
from momentum_sync.wire.realtime_join import Binding
from momentum_sync.wire.row_watch import Watch

USER = UUID(int=1)
_UNIQUE = (f"unique-{number}-" for number in itertools.count())
ANON = Identity("anon", None, '{"role":"anon"}', None)


def at(offset: int) -> Position:
    return Position("abcdef01", offset, offset)


def identity(expires_at: float | None = None, user: UUID = USER) -> Identity:
    return Identity("authenticated", user, json.dumps({"sub": str(user), "session_id": "s"}), expires_at)


class Gateway:
    """The services of a session, without a database."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.position = at(5)
        self.generation = 0
        self.shared = SharedFrames()
        self.tokens: dict[str, Identity | Exception] = {"t": identity()}
        self.watched: Watched | Exception = Watched((), ())
        self.again = Watched((), ())
        self.deciders: dict[int, Decider] = {}
        self.visible: dict[int, SeenChange] = {}
        self.truths: dict[bytes, bool] = {}
        self.verdict: Verdict | Exception = Verdict()
        self.there = True
        self.refused: Exception | None = None
        self.access = EVERYTHING
        self.access_error: Exception | None = None
        self.replayed = Newest([], is_whole=True)
        self.unread: Exception | None = None
        self.calls: list[Any] = []
        self.claims: list[tuple[Ledger, Key, bool]] = []
        self.renamed: list[tuple[Ledger, Key]] = []
        self.saved: list[Ledger] = []
        self.verified: list[Position] = []

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def authenticate(self, token: str) -> Identity:
        raise AssertionError(token)

    async def grants(self, identity: Identity, user_id: UUID | None, channels: Sequence[str]) -> Granted:
        raise AssertionError(channels)

    async def filter(self, identity: Identity, events: Sequence[tuple[Event, str | None]]) -> Filtered:
        raise AssertionError(events)

    async def authenticate_realtime(self, token: str) -> Identity:
        found = self.tokens.get(token, Unauthenticated("No.", "invalid_token"))
        if isinstance(found, Exception):
            raise found
        return found

    async def decider(self, identity: Identity, relation: int) -> Decider | None:
        return self.deciders.get(relation)

    async def watch(self, identity: Identity, bindings: Sequence[Binding]) -> Watched:
        self.calls.append(("watch", identity, len(bindings)))
        if isinstance(self.watched, Exception):
            raise self.watched
        return self.watched

    async def watch_again(self, identity: Identity, bindings: Sequence[Binding], known: Sequence[Watch]) -> Watched:
        self.calls.append(("watch_again", tuple(known)))
        return self.again

    async def admit(self, identity: Identity) -> None:
        raise AssertionError(identity)

    async def topic_access(self, identity: Identity, topic: str) -> TopicAccess:
        self.calls.append(("access", topic))
        if self.access_error is not None:
            raise self.access_error
        return self.access

    async def newest(self, channel: str, offset: int, *, since: float, most: int, most_bytes: int) -> Newest:
        self.calls.append(("newest", channel, offset, since, most, most_bytes))
        if self.unread is not None:
            raise self.unread
        return self.replayed

    async def seen(self, identity: Identity, events: Sequence[tuple[Event, int]]) -> dict[int, SeenChange]:
        self.calls.append(("seen", identity, [(event.offset, relation) for event, relation in events]))
        return {event.offset: self.visible[event.offset] for event, _ in events if event.offset in self.visible}

    async def tested(self, identity: Identity, tests: Sequence[tuple[row_watch.Test, bytes]]) -> list[bool]:
        return [self.truths[value] for _, value in tests]

    async def verify(self, position: Position) -> None:
        self.verified.append(position)
        if self.refused is not None:
            raise self.refused

    async def number(self) -> int:
        return 1

    async def claim(
        self, ledger: Ledger, key: Key, ref: int, topic: str, start: Position, *, is_reconnect: bool
    ) -> Verdict:
        self.calls.append(("claim", key.is_exact, ref, topic, start))
        self.claims.append((ledger, key, is_reconnect))
        if isinstance(self.verdict, Exception):
            raise self.verdict
        if not self.verdict.is_late:
            ledger.key = key
            ledger.cursors = {topic: start, **ledger.cursors, **self.verdict.cursors}
        return self.verdict

    async def rename(self, ledger: Ledger, key: Key) -> bool:
        self.calls.append("rename")
        self.renamed.append((ledger, key))
        ledger.rename(key)
        return self.there

    async def save(self, ledger: Ledger) -> bool:
        self.calls.append("save")
        self.saved.append(ledger)
        return self.there

    def begin(self, session: LiveSession) -> None:
        self.calls.append("begin")

    def end(self, session: LiveSession) -> None:
        self.calls.append("end")


_FILES = DirectFiles(os.write)


class Outgoing:
    """The outgoing side: the frames written so far, and pings."""

    def __init__(self) -> None:
        self.offset = 5
        self.position: Position | None = at(5)
        self.follows = False
        self.rewound: list[int] = []
        self.pings: list[bytes] = []
        self.flushes = 0
        self.written: list[bytes] = []
        self.indexed: list[list[str]] = []
        self.session: RealtimeSession
        self.file = _FILES.add()

    def write(self, data: bytes | memoryview) -> None:
        self.written.append(bytes(data))

    def index(self) -> None:
        self.indexed.append(sorted(self.session.cursor.channels))

    def rewind(self, offset: int) -> None:
        self.rewound.append(offset)

    def flush(self, *, ping: bool = False) -> None:
        self.flushes += 1
        self.written += map(frame, self.session.to_send())
        if ping:
            self.pings.append(self.session.ping())


class World:
    """A session with its surroundings."""

    def __init__(
        self, *, name: str | None = "c", shared: SharedFrames | None = None, version: Version = Version.V2,
        members: TopicMembers | None = None, **limits: Any,
    ) -> None:  # fmt: skip
        self.gateway = Gateway()
        self.gateway.shared = shared or SharedFrames()
        self.outgoing = Outgoing()
        self.later: list[Callable[[], None]] = []
        self.counted: list[tuple[int, int]] = []
        self.received: list[str] = []
        self.failures: list[tuple[str, Exception]] = []
        self.members = members or TopicMembers(
            lambda _, tell: self.later.append(tell), _FILES, 0.05, sent=lambda *sent: self.counted.append(sent),
            received=self.received.append, unique=lambda: next(_UNIQUE),
            failed=lambda *failed: self.failures.append(failed),
        )  # fmt: skip
        self.session = RealtimeSession(
            ANON, "x", version, self.gateway, self.members, SocketLimits(**limits), name=name, heartbeat=25.0, at=1000.0
        )
        self.outgoing.session = self.session
        self.session.attach(self.outgoing)
        self.session.begin(1, at(5), 1000.0)
        self.ref = 0

    def send(
        self, topic: str, event: str, payload: dict[str, Any] | None = None, join_ref: str | None = None
    ) -> list[Any]:
        """Handle a frame completely. Return the frames that answer it."""
        self.ref += 1
        ref, content = str(self.ref), payload or {}
        given: Any = [join_ref, ref, topic, event, content]
        if self.session.version is Version.V1:
            given = {"join_ref": join_ref, "ref": ref, "topic": topic, "event": event, "payload": content}
        text = json.dumps(given).encode()
        request = self.session.receive(text, self.gateway)
        if request is not None:
            try:
                asyncio.run(_run(request.work))
            except (BadRequest, Forbidden, Unauthenticated, Unavailable) as error:
                request.failed(error, self.gateway.time)
        return self.sent()

    def send_binary(self, data: bytes) -> list[Any]:
        """Handle a binary frame. Return the frames that answer it."""
        assert self.session.receive(BinaryMessage(data), self.gateway) is None
        return self.sent()

    def sent(self) -> list[Any]:
        return [json.loads(text) for text in self.session.to_send()]

    def written(self) -> list[Any]:
        """Return the texts that were written at once, decoded, and the binary frames as they are."""
        found: list[Any] = []
        data = b"".join(self.outgoing.written)
        while data:
            length, start = (data[1], 2) if data[1] < 126 else (int.from_bytes(data[2:4], "big"), 4)
            content, is_text, data = data[start : start + length], data[0] == 0x81, data[start + length :]
            assert len(content) == length
            found.append(json.loads(content) if is_text else content)
        self.outgoing.written = []
        return found

    def pass_time(self) -> None:
        """Have everything happen that is due later."""
        due, self.later[:] = list(self.later), []
        for one in due:
            one()

    def join(self, topic: str = "realtime:a", *, count: int = 1, token: str | None = "t", **config: Any) -> list[Any]:
        bindings = [{"event": "*", "schema": "public", "table": "t"}] * count
        payload: dict[str, Any] = {"config": {"postgres_changes": bindings, **config}}
        if token is not None:
            payload["access_token"] = token
        return self.send(topic, "phx_join", payload, str(self.ref + 1))

    def said(self, frames: list[Any], extension: str) -> list[str]:
        return [frame[4]["message"] for frame in frames if frame[3] == "system" and frame[4]["extension"] == extension]


async def _run(work: Any) -> None:
    await work

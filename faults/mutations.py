"""A server with one deliberate defect, which the checker must detect: `python -m faults.mutations NAME serve …`.

stitch   a snapshot counts as containing every transaction that had begun
dedup    events that the slot repeats after a crash count as new
order    every tenth event is sent after the next
sight    no event is checked
review   grants are never reviewed
marks    positions are compared by their offset alone
truncate a TRUNCATE is an ordinary event
silence  database connections have no deadlines
pins     connections have the settings of their role
acks     a pong of a Supabase client confirms frames written after its ping
forget   a Supabase client's topics start at the newest event after a lost connection, and report a resume
open     compiled policies allow every row to Supabase's clients
gap      a gateway applies events behind a gap
epoch    a gateway applies messages of any epoch
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from momentum_sync import limits
from momentum_sync.capture import checkpoint, pipeline, slot
from momentum_sync.capture.checkpoint import Checkpoint, Checkpoints
from momentum_sync.capture.pgoutput import Message
from momentum_sync.capture.sequencer import Sequencer
from momentum_sync.capture.slot import SlotFacts
from momentum_sync.cli.main import make_app
from momentum_sync.database import connection
from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.follower import FeedMessage, Follower
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.dialects.realtime import RealtimeSession
from momentum_sync.gateway.dialects.realtime_place import Places, Start
from momentum_sync.gateway.dialects.realtime_topic import TopicEvents
from momentum_sync.gateway.hub import Hub
from momentum_sync.identity.decider import Decider
from momentum_sync.identity.row_tables import SeenChange
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.phoenix import Ref


def stitch() -> None:
    """Ignore the transactions in progress."""
    Snapshot.sees = lambda snapshot, xid: xid < snapshot.xmax  # type: ignore[method-assign, assignment]


def dedup() -> None:
    """Forget how far the log has come."""
    real = Sequencer.message

    def message(sequencer: Sequencer, heard: Message) -> Event | None:
        sequencer._place = (0, 0)
        return real(sequencer, heard)

    Sequencer.message = message  # type: ignore[method-assign, assignment]


def order() -> None:
    """Hold every tenth event back until the next is sent."""
    real = Hub.event
    kept: list[Event] = []

    def event(hub: Hub, came: Event, *, more: bool = False) -> None:
        if came.offset % 10 == 0:
            kept.append(came)
            return
        real(hub, came, more=more)
        while kept:
            real(hub, kept.pop())

    Hub.event = event  # type: ignore[method-assign, assignment]


def sight() -> None:
    """Check no event in the database."""
    Cursor.must_check = lambda cursor, event: False  # type: ignore[method-assign, assignment]


def review() -> None:
    """Ignore changes of policies."""
    Hub._control = lambda hub, event: None  # type: ignore[method-assign, assignment]


def marks() -> None:
    """Accept any history that has the same offsets."""

    async def verify(history: History, place: Position) -> None:
        """Accept every position."""

    async def acquire(checkpoints: Checkpoints, facts: SlotFacts, **_: object) -> Checkpoint:
        return await real(checkpoints, facts, known=None)

    real = Checkpoints.acquire
    History.verify = verify  # type: ignore[method-assign, assignment]
    LocalFeed._compare = lambda feed, event: None  # type: ignore[method-assign, assignment]
    Checkpoints.acquire = acquire  # type: ignore[method-assign, assignment]


def truncate() -> None:
    """Treat a TRUNCATE as an ordinary event."""
    pipeline._ends_history = lambda event: False
    truncated = checkpoint._TRUNCATED
    real = Checkpoints._break

    async def ignored(*arguments: Any) -> str | None:
        broke = await real(*arguments)
        return None if broke == truncated else broke

    Checkpoints._break = ignored  # type: ignore[method-assign, assignment]


def silence() -> None:
    """Remove all deadlines on database connections."""
    for part, names in (
        (limits.CaptureLimits, ("silence_s", "answer_s")),
        (limits.LogLimits, ("work_s", "read_s")),
        (limits.QueryLimits, ("cut_s",)),
    ):
        defaults = part.__init__.__kwdefaults__
        assert defaults is not None
        defaults.update(dict.fromkeys(names, 1e6))
    connection._KEEPALIVES = {}


def pins() -> None:
    """Pin only the path that the server's own statements need."""
    connection.PINNED = {"search_path": "pg_catalog,pg_temp"}
    real = connection.pinned

    def pinned(conninfo: str, **more: Any) -> str:
        return real(conninfo, **more).replace("client_encoding=UTF8", "")

    connection.pinned = slot.pinned = pinned  # type: ignore[attr-defined]


def acks() -> None:
    """Let a pong confirm everything that was written until it came."""
    real = RealtimeSession.pong

    def pong(session: RealtimeSession, payload: bytes, *, in_order: bool) -> None:
        session.ledger._advance(session.topics, session._outgoing.position or session._rows.position)
        real(session, payload, in_order=in_order)

    RealtimeSession.pong = pong  # type: ignore[method-assign, assignment]


def forget() -> None:
    """Begin every topic at the present position, and say that it was resumed."""
    real = Places.start

    async def start(
        places: Places, topic: str, ref: Ref, identity: Identity, head: Position, *, is_alone: bool
    ) -> Start | None:  # fmt: skip
        found = await real(places, topic, ref, identity, head, is_alone=is_alone)
        return None if found is None else Start(head, found.said)

    Places.start = start  # type: ignore[method-assign, assignment]


def open_policies() -> None:
    """Let every caller see every row."""
    Decider.seen = lambda decider, change: SeenChange(decider.table)  # type: ignore[method-assign, assignment]
    TopicEvents.slots = lambda events, relation: None  # type: ignore[method-assign, assignment]


def gap() -> None:
    """Publish the events behind a gap at once."""

    def keep(follower: Follower, message: FeedMessage) -> None:
        follower._feed.publish([event for event in message.events if event.offset > follower._feed.offset])

    Follower._keep = keep  # type: ignore[method-assign, assignment]


def epoch() -> None:
    """Take every message for one of the present epoch."""
    real = Follower.heard

    def heard(follower: Follower, message: FeedMessage, at: float) -> None:
        same = msgspec.structs.replace(message, epoch=follower._feed.epoch, fence=follower._feed.fence)
        real(follower, same, at)

    Follower.heard = heard  # type: ignore[method-assign, assignment]


MUTATIONS: dict[str, Callable[[], None]] = {
    "stitch": stitch, "dedup": dedup, "order": order, "sight": sight, "review": review, "marks": marks,
    "truncate": truncate, "silence": silence, "pins": pins, "acks": acks, "forget": forget, "open": open_policies,
    "gap": gap, "epoch": epoch,
}  # fmt: skip

if __name__ == "__main__":
    MUTATIONS[sys.argv.pop(1)]()
    make_app(sys.argv[1:])()

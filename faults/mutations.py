"""A server with one defect on purpose, to show that the checker notices it: `python -m faults.mutations NAME serve …`.

stitch   a snapshot is taken to hold whatever had begun when it was read
dedup    what the slot repeats after a crash is taken for new
order    now and then an event overtakes the one before it
sight    whoever has a channel gets every event on it
review   what was granted stays granted, whatever becomes of the policies
marks    an id's number alone says where a client is
truncate a truncated table is an event like others
silence  connections that say nothing are waited for
pins     connections have the settings that their role gives them
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from momentum_sync import limits
from momentum_sync.capture import checkpoint, pipeline, slot
from momentum_sync.capture.checkpoint import Checkpoint, Checkpoints
from momentum_sync.capture.pgoutput import Message
from momentum_sync.capture.sequencer import Sequencer
from momentum_sync.capture.slot import SlotFacts
from momentum_sync.cli.main import app
from momentum_sync.database import connection
from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.history import History
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.hub import Hub


def stitch() -> None:
    """Ignores what was under way."""
    Snapshot.sees = lambda snapshot, xid: xid < snapshot.xmax  # type: ignore[method-assign, assignment]


def dedup() -> None:
    """Forgets how far the log has come."""
    real = Sequencer.message

    def message(sequencer: Sequencer, heard: Message) -> Event | None:
        sequencer._place = (0, 0)
        return real(sequencer, heard)

    Sequencer.message = message  # type: ignore[method-assign, assignment]


def order() -> None:
    """Keeps every tenth event back until the next has gone."""
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
    """Asks the database about no event."""
    Cursor.must_check = lambda cursor, event: False  # type: ignore[method-assign, assignment]


def review() -> None:
    """Does not listen when policies change."""
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
    """Pins nothing but the path that the server's own statements need."""
    connection.PINNED = {"search_path": "pg_catalog,pg_temp"}
    real = connection.pinned

    def pinned(conninfo: str, **more: Any) -> str:
        return real(conninfo, **more).replace("client_encoding=UTF8", "")

    connection.pinned = slot.pinned = pinned  # type: ignore[attr-defined]


MUTATIONS: dict[str, Callable[[], None]] = {
    "stitch": stitch, "dedup": dedup, "order": order, "sight": sight, "review": review, "marks": marks,
    "truncate": truncate, "silence": silence, "pins": pins,
}  # fmt: skip

if __name__ == "__main__":
    MUTATIONS[sys.argv.pop(1)]()
    app()

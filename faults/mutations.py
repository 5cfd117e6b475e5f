"""A server with one defect on purpose, to show that the checker notices it: `python -m faults.mutations NAME serve …`.

stitch   a snapshot is taken to hold whatever had begun when it was read
dedup    what the slot repeats after a crash is taken for new
order    now and then an event overtakes the one before it
sight    whoever has a channel gets every event on it
review   what was granted stays granted, whatever becomes of the policies
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from momentum_sync.capture.numbering import Numbering
from momentum_sync.capture.pgoutput import Message
from momentum_sync.cli.main import app
from momentum_sync.database.visibility import Snapshot
from momentum_sync.eventlog.event import Event
from momentum_sync.gateway.router import Router
from momentum_sync.gateway.session import Session


def stitch() -> None:
    """Ignores what was under way."""
    Snapshot.sees = lambda snapshot, xid: xid < snapshot.xmax  # type: ignore[method-assign, assignment]


def dedup() -> None:
    """Forgets how far the log has come."""
    real = Numbering.message

    def message(numbering: Numbering, heard: Message) -> Event | None:
        numbering._place = (0, 0)
        return real(numbering, heard)

    Numbering.message = message  # type: ignore[method-assign, assignment]


def order() -> None:
    """Keeps every tenth event back until the next has gone."""
    real = Router.event
    kept: list[Event] = []

    def event(router: Router, came: Event, *, more: bool = False) -> None:
        if came.number % 10 == 0:
            kept.append(came)
            return
        real(router, came, more=more)
        while kept:
            real(router, kept.pop())

    Router.event = event  # type: ignore[method-assign, assignment]


def sight() -> None:
    """Asks the database about no event."""
    Session.asks = lambda session, event: False  # type: ignore[method-assign, assignment]


def review() -> None:
    """Does not listen when policies change."""
    Router._control = lambda router, event: None  # type: ignore[method-assign, assignment]


MUTATIONS: dict[str, Callable[[], None]] = {
    "stitch": stitch, "dedup": dedup, "order": order, "sight": sight, "review": review,
}  # fmt: skip

if __name__ == "__main__":
    MUTATIONS[sys.argv.pop(1)]()
    app()

"""Counts the events of a load: each once, in order, and with which delay."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Percentiles of a measure, in its own unit."""

    p50: float
    p95: float
    p99: float
    p99_9: float
    highest: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return the percentiles of any number of values; None if there are none."""
    if not values:
        return None
    cuts = statistics.quantiles(values, n=1000, method="inclusive") if len(values) > 1 else list(values) * 999
    return Spread(cuts[499], cuts[949], cuts[989], cuts[998], max(values))


class Tally:
    """One run. Times are seconds of one clock; an event is identified by the number that it carries.

    `took` is how long publishing took. `delays` count from when an event was due, whether or not it could be written
    then, so that a server or a database that cannot keep up is not hidden.
    """

    def __init__(self) -> None:
        self.connected: list[float] = []
        self.delays: list[float] = []
        self.closes: Counter[str] = Counter()
        self.took = 0.0
        self.twice = 0
        self.gaps = 0
        self.disordered = 0
        self._sent: dict[int, float] = {}
        self._had: set[int] = set()
        self._last_id: dict[int, str] = {}
        self._last_number: dict[int, int] = {}

    @property
    def sent(self) -> int:
        """Return the number of events that were committed, or are about to be."""
        return len(self._sent)

    @property
    def lost(self) -> int:
        """Return the number of events that their client has not received."""
        return len(self._sent) - len(self._had)

    @property
    def is_whole(self) -> bool:
        """Return whether everything arrived once and in order, and no client was disconnected."""
        return not (self.lost or self.twice or self.gaps or self.disordered or self.closes)

    def live(self, client: int, took: float, last_event_id: str) -> None:
        """Record that a client is connected; events follow this id."""
        self.connected.append(took)
        self._last_id[client] = last_event_id

    def writes(self, number: int, due: float) -> None:
        """Record that a statement is sent, and when it was due."""
        self._sent[number] = due

    def failed(self, number: int) -> None:
        """Record that a statement did not commit."""
        del self._sent[number]

    def received(self, client: int, number: int, event_id: str, previous_id: str, now: float) -> None:
        """Record that a client received an event, and after which."""
        if previous_id != self._last_id[client]:
            self.gaps += 1
        self._last_id[client] = event_id
        if number not in self._sent:
            return  # of another run
        if number in self._had:
            self.twice += 1
            return
        if number < self._last_number.get(client, -1):
            self.disordered += 1
        self._last_number[client] = number
        self._had.add(number)
        self.delays.append(now - self._sent[number])

    def closed(self, why: str) -> None:
        """Record that a client was disconnected."""
        self.closes[why] += 1

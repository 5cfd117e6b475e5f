"""Trends of a long run: memory, files, WAL and log must stay flat. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

_WARM_UP = 0.1  # of the run, in which caches and pools fill


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a run.

    Attributes:
        at: seconds since the beginning.
        rss: resident memory of the server, in bytes.
        files: its open files.
        clients: its connections.
        retained: bytes of WAL that the slot retains.
        log: bytes of the event log.
        events: events in the log, over the whole run.
        received: events that clients have received, over the whole run.
        lag_ms: lag of the feed.
    """

    at: float
    rss: int
    files: int
    clients: int
    retained: int
    log: int
    events: int
    received: int
    lag_ms: int

    def as_json(self) -> dict[str, float]:
        """Return all fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Trend:
    """A quantity in the first and in the last third of a run, and whether it stays within its bound."""

    what: str
    unit: str
    first: float
    last: float
    most: float

    @property
    def is_flat(self) -> bool:
        """Return whether the last third is within the bound."""
        return self.last <= self.most


def trends(samples: Sequence[Sample]) -> list[Trend]:
    """Return the trends of a run, without its beginning. Raise ValueError for less than nine samples."""
    kept = [sample for sample in samples if sample.at >= _WARM_UP * samples[-1].at]
    if len(kept) < 9:
        raise ValueError(f"{len(kept)} samples are too few to tell a trend from chance")
    third = len(kept) // 3
    first, last = kept[:third], kept[-third:]

    def of(part: Sequence[Sample], value: Callable[[Sample], float]) -> float:
        return statistics.median(map(value, part))

    def per_event(sample: Sample) -> float:
        return sample.log / max(1, sample.events)

    memory, files = of(first, lambda each: each.rss), of(first, lambda each: each.files - each.clients)
    retained = of(first, lambda each: each.retained)
    more_files = of(last, lambda each: each.files - each.clients)
    bound = max(2 * retained, 256 * 2**20)
    each = of(first, per_event)
    return [
        Trend("memory of the server", "bytes", memory, of(last, lambda each: each.rss), 1.1 * memory),
        Trend("open files beside clients", "files", files, more_files, files + 10),
        Trend("WAL that the slot retains", "bytes", retained, of(last, lambda each: each.retained), bound),
        Trend("log of one event", "bytes", each, of(last, per_event), 1.25 * each),
    ]

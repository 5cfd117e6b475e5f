"""Counters and histograms for Prometheus.

An event or a frame is counted in plain integers, without a lock or an object, and converted only when somebody
scrapes: an event costs less than a microsecond here. Values that the parts of a server know anyway are read at the
scrape. Labels are bounded: values that are not listed count as `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

OTHER = "other"


class Count:
    """A counter with one label or none. `values` lists the values of the label."""

    def __init__(self, name: str, meaning: str, label: str | None = None, values: Sequence[str] = ()) -> None:
        self.name = name
        self.meaning = meaning
        self._label = label
        self._values = frozenset(values)
        # Every series starts at 0, because Prometheus computes no increase for one that appears with its first count.
        self._counts: Counter[str] = Counter(dict.fromkeys(values, 0))

    def add(self, count: int = 1, value: str = "") -> None:
        """Add to the counter."""
        if self._label is not None and value not in self._values:
            value = OTHER
        self._counts[value] += count

    def add_each(self, values: Iterable[str]) -> None:
        """Add one for each label value."""
        for value in values:
            self._counts[value if value in self._values else OTHER] += 1

    def collect(self) -> Metric:
        """Return the metric in Prometheus' form."""
        family = CounterMetricFamily(self.name, self.meaning, labels=[self._label] if self._label else [])
        for value, count in self._counts.items() if self._counts else [("", 0)]:
            family.add_metric([value] if self._label else [], count)
        return family


class Spread:
    """A histogram with the given upper bounds."""

    def __init__(self, name: str, meaning: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.meaning = meaning
        self._bounds = list(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, *measures: float) -> None:
        """Add measured values."""
        for measure in measures:
            self._counts[bisect_left(self._bounds, measure)] += 1
        self._sum += sum(measures)

    def collect(self) -> Metric:
        """Return the metric in Prometheus' form."""
        family = HistogramMetricFamily(self.name, self.meaning)
        buckets, total = [], 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric([], buckets, self._sum)
        return family


_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

EVENTS = Count(
    "momentum_events", "Events read from the database, in commit order.", "type",
    [
        "momentum_score_created", "momentum_score_updated", "momentum_score_deleted", "intervention_created",
        "intervention_updated", "intervention_deleted", "push_notification", "notification_removed",
        "cache_invalidation", OTHER,
    ],
)  # fmt: skip
FRAMES = Count("momentum_frames_sent", "WebSocket messages written to clients.")
BYTES = Count("momentum_bytes_sent", "Bytes of those messages, with their frames.")
DELAY = Spread(
    "momentum_commit_to_send_seconds",
    "Time from the commit (database clock) to the event's last socket write (server clock).", _SECONDS,
)  # fmt: skip
APPEND = Spread("momentum_log_append_seconds", "Duration of appending a batch of events to the log.", _SECONDS)
OPENINGS = Count(
    "momentum_openings",
    "Connections by how they began: a resume, a snapshot, or a snapshot because a resume was refused for this reason.",
    "outcome", ["resumed", "snapshot", "unknown_id", "history_changed", "expired"],
)  # fmt: skip
REPLAYED = Spread(
    "momentum_resume_events", "Events replayed by a resume.", (0, 1, 2, 5, 10, 50, 100, 500, 1000, 10_000)
)
CLOSES = Count(
    "momentum_closes", "Closed connections by close code; `client` if the client or the network closed them.", "code",
    ["client", "1001", "1002", "1007", "1009", "1012", "4400", "4401", "4403", "4409", "4410", "4413", "4429"],
)  # fmt: skip
REFUSALS = Count(
    "momentum_refusals", "Handshakes and requests that were refused, by the code of the error.", "reason",
    [
        "unauthenticated", "invalid_token", "token_expired", "token_revoked", "invalid_api_key", "forbidden",
        "forbidden_origin", "not_found", "too_many_requests", "unavailable", "invalid_field", "invalid_json",
        "invalid_user_id", "invalid_text", "too_long", "too_large", "bad_handshake", "unknown_id", "history_changed",
        "expired",
    ],
)  # fmt: skip
CHECKED_EVENTS = Count(
    "momentum_checked_events",
    "Events checked for a caller on channels that are checked per event: seen or withheld.",
    "outcome",
    ["seen", "withheld"],
)  # fmt: skip
BROADCASTS = Count(
    "momentum_broadcasts",
    "Broadcasts to topics of Supabase's protocol, by the way they came.",
    "by",
    ["socket", "http", "database"],
)
SEND_FAILURES = Count("momentum_send_failures", "Messages that realtime.send could not insert.")
FAILURES = Count("momentum_failures", "Defects, and events that could not be read or kept.")
UNSENT = Count("momentum_events_unsent", "Events that were not sent by NATS; gateways read them from the log.")
CAPTURE_BREAKS = Count("momentum_capture_breaks", "Restarts of capture after an error of the stream or the log.")

# Read at each scrape.
READ = {
    "momentum_connections": "Connections that are open and admitted.",
    "momentum_subscriptions": "Subscriptions to channels, over all connections.",
    "momentum_channels": "Distinct channels with subscribers.",
    "momentum_topics": "Topics of Supabase's protocol with members.",
    "momentum_present": "Members in the presence of all topics.",
    "momentum_queue_bytes": "Unsent bytes of all connections.",
    "momentum_window_bytes": "Bytes of the newest events in memory.",
    "momentum_capture_live": "1 while the feed runs.",
    "momentum_standby": "1 while a process that only captures waits for the slot of another.",
    "momentum_capture_lag_seconds": "Lag of the feed, measured by the lag probe.",
    "momentum_slot_retained_bytes": "WAL that the replication slot retains; -1 if unknown.",
    "momentum_nats_connected": "1 while NATS, between capture and gateways, is connected, or not needed.",
    "momentum_draining": "1 while the server is shutting down.",
}

_KEPT = (
    EVENTS, FRAMES, BYTES, DELAY, APPEND, OPENINGS, REPLAYED, CLOSES, REFUSALS, CHECKED_EVENTS, BROADCASTS,
    SEND_FAILURES, FAILURES, UNSENT, CAPTURE_BREAKS,
)  # fmt: skip


class Scrape(Collector):
    """All metrics of one process. `readings` returns the value of each name in READ that this process has."""

    def __init__(self, readings: Mapping[str, Callable[[], float]]) -> None:
        assert readings.keys() <= READ.keys()
        self._readings = readings
        # The global registry would refuse the same names for a second server in one process.
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric once."""
        yield from (kept.collect() for kept in _KEPT)
        for name, read in self._readings.items():
            yield GaugeMetricFamily(name, READ[name], value=read())

    def families(self) -> list[Metric]:
        """Return all metrics, those of the process included."""
        return list(self._registry.collect())

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)

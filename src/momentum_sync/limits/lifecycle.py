"""Bounds of starting, housekeeping and stopping."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleLimits:
    """Bounds of starting, housekeeping and stopping."""

    housekeeping_s: float = 3600.0
    """Interval of partition maintenance and metrics cleanup."""

    housekeeping_retry_s: float = 60.0
    """The same after a failure."""

    sessions_s: float = 30 * 86_400.0
    """Time for which records of Supabase's clients, and receipts, are kept, if the log is not kept longer.

    A client that was away for longer than the log lasts can be told so only while its record is there.
    """

    # uvicorn's `timeout_graceful_shutdown` takes whole seconds only.
    stop_s: int = 10
    """Wait for capture to write what it has read, and for HTTP requests to end."""

    metrics_interval_s: float = 5.0
    """Interval at which rows of `realtime_event_metrics` are written."""

    metrics_s: float = 5.0
    """Deadline of one such write."""

    listen_s: float = 10.0
    """Wait until the feed is live before a process listens on a port that others share."""

    worker_live_s: float = 60.0
    """Time within which a worker that was replaced has to be live."""

    worker_steady_s: float = 10.0
    """A worker that ran longer than this is started again at once."""

    worker_pauses_s: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 5.0)
    """Pauses before a worker is started again, after consecutive early ends."""

    grants_lag_s: float = 2.0
    """Cached grants are used only while the feed's lag is below this; a lag probe is due each second."""

    drain_batch: int = 50
    """Connections closed at once when the server stops."""

    drain_interval_s: float = 0.1
    """Pause between those batches."""

    garbage_s: float = 3600.0
    """Interval of full garbage collections."""

    garbage_look_s: float = 5.0
    """Interval at which it is decided whether one is due."""

    garbage_connections: int = 2_000
    """Closed connections that were not freed, after which one is."""

    health_s: float = 1.0
    """Interval at which health is checked for changes to log."""

    degraded_lag_s: float = 5.0
    """Lag of the feed above which health is `degraded`."""

    unhealthy_lag_s: float = 30.0
    """Lag of the feed above which health is `unhealthy`."""

"""Bounds of capture, the feed and the log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureLimits:
    """Bounds of the process that reads the replication slot."""

    backoff_s: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
    """Pauses after consecutive failed runs."""

    steady_s: float = 10.0
    """A run that lasts longer resets the backoff."""

    slot_retry_s: float = 0.25
    """Pause before another attempt at a slot that another instance reads."""

    slot_elsewhere_s: float = 5.0
    """Time after which a held slot must belong to another instance: a broken stream of this one frees it earlier."""

    slot_silent_s: float = 45.0
    """Time without a status of its client, due each second, after which the WAL sender that holds the slot is ended.
    PostgreSQL should have ended it after 30 s, but does not if its clock was set back. Only with the privilege of
    `pg_read_all_stats`, which shows the status."""

    log_look_s: float = 1.0
    """Interval at which an instance that waits for the slot looks at the end of the log."""

    probe_interval_s: float = 1.0
    """Interval of lag probes and of status messages to PostgreSQL."""

    silence_s: float = 20.0
    """Time without data after which the stream is restarted. Probes arrive every second, keepalives every 15 s."""

    messages_wait_s: float = 2.0
    """Time that a join waits until messages from the database are events; before PostgreSQL 18 that may take longer."""

    slot_check_interval_s: float = 5.0
    """Interval at which the state of the slot is read for health."""

    slot_checks_per_trigger_check: int = 3
    """Checks of the slot per check of triggers and functions."""

    stuck_failures: int = 3
    """Equal errors at the same LSN before the slot is replaced; those that may be temporary also last for `stuck_s`."""

    stuck_s: float = 30.0
    """Time for which an error that may be temporary must recur at the same LSN before the slot is replaced."""

    follow_s: float = 15.0
    """Wait until a further table is followed."""

    follow_again_s: float = 2.0
    """Interval at which a gateway repeats a request to follow a table."""

    settle_notice_s: float = 5.0
    """Wait for transactions of the previous epoch before a warning names them."""

    settle_interval_s: float = 0.1
    """Interval at which capture checks whether those transactions have ended."""

    idle_confirm_interval_s: float = 10.0
    """Interval of slot confirmations while there are no events, so that PostgreSQL can remove WAL."""

    append_batch: int = 2_000
    """Most events in one append."""

    append_gather_s: float = 0.05
    """Wait for more events before an append: a batch of one costs as much as one of a hundred."""

    pending_bytes: int = 16 * 1024 * 1024
    """Bytes of events waiting for the log above which reading of the stream pauses."""

    frames_per_turn: int = 100
    """Frames decoded in one iteration of the event loop."""

    bytes_per_turn: int = 1024 * 1024
    """Bytes decoded in one iteration of the event loop."""

    log_check_interval_s: float = 2.0
    """Interval at which capture checks that the log still holds its first and last event."""

    policy_check_interval_s: float = 1.0
    """Interval at which the database compares its policies with those it knows."""

    policy_check_failures: int = 5
    """Consecutive failed comparisons after which an error is logged."""

    answer_s: float = 30.0
    """Deadline for PostgreSQL's answer to a replication command."""

    connect_s: float = 15.0
    """Deadline for a replication connection, including DNS, which libpq's own timeout leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedLimits:
    """Bounds of the feed between capture and gateways in other processes."""

    report_s: float = 1.0
    """Interval at which capture repeats how far it has come."""

    advance_s: float = 0.05
    """Wait before capture tells that the WAL has advanced without an event."""

    message_bytes: int = 256 * 1024
    """Bytes of events after which a message ends. NATS takes at most 1 MiB; a larger event is read from the log."""

    outbox_bytes: int = 8 * 1024 * 1024
    """Unsent bytes above which capture drops messages; gateways then read the log."""

    inbox_bytes: int = 32 * 1024 * 1024
    """Bytes of messages that a gateway has not handled yet above which further ones are dropped."""

    ahead_bytes: int = 16 * 1024 * 1024
    """Bytes of events behind a gap that a gateway keeps until the gap is filled."""

    silence_s: float = 3.0
    """Time without a message from capture after which a gateway polls the log."""

    poll_s: float = 1.0
    """Interval of those polls while the broker is connected."""

    poll_alone_s: float = 0.2
    """Interval of those polls without a broker, when the log is the only way."""

    retry_s: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    """Pauses before the log is read again, because it does not have yet what the gateway needs."""

    backoff_s: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0)
    """Pauses after consecutive failed reads of the log."""

    away_s: float = 5.0
    """Lag of a gateway's own probe above which it takes no new clients: capture, or the way from it, is away."""

    probe_s: float = 1.0
    """Interval at which a gateway asks the database how far the WAL is written, to measure how far it is behind."""

    ahead_s: float = 5.0
    """Wait for the feed to reach the position of a client that comes from another gateway."""

    connect_s: int = 2
    """Deadline of an attempt to connect to the broker."""

    reconnect_s: int = 1
    """Pause before another attempt."""

    stuck_s: float = 8.0
    """Time without a connection after which the client is replaced: it may wait for a server that does not read."""

    told_s: float = 10.0
    """Errors of NATS are logged at most once in this time."""

    ping_s: int = 2
    """Interval of pings to the broker; it counts as lost after two without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """Bounds of reads and writes of `momentum.event_log`."""

    pool_wait_s: float = 10.0
    """Wait for a free connection."""

    work_s: float = 30.0
    """Deadline of a write, in case the network drops PostgreSQL's own timeout error."""

    read_s: float = 10.0
    """Deadline of a read."""

    page_rows: int = 1_000
    """Most events in one page."""

    page_bytes: int = 4 * 1024 * 1024
    """Bytes after which a page of all events ends, which a gateway reads to follow the log."""

    replay_rows: int = 100
    """Most messages that one query of a replay reads: each may have 3,000 KiB."""

    first_span: int = 20_000
    """Offsets that the first query of a page covers. Each further query covers four times as many."""

    search_s: float = 2.0
    """Time after which a page is returned although it may be empty."""

    preload_rows: int = 20_000
    """Events loaded into the window when capture starts."""

    preload_bytes: int = 16 * 1024 * 1024
    """Most bytes of those events."""

    count_rows: int = 100_000
    """Most events that are counted for `replayed`."""

    snapshot_attempts: int = 5
    """Attempts to locate a snapshot in the window while the window advances."""

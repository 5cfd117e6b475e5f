"""Every bound and timeout of the server, in one object that is passed to its components.

Settings are the operator's choices; these values follow from the design and are the same everywhere. A test passes
its own, such as `Limits(delivery=DeliveryLimits(stall_s=1.0))`. Names end in their unit: `_s` seconds, `_bytes` bytes;
all others are counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `per_second` operations on average, and up to `burst` at once."""

    burst: float
    per_second: float


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
class PeerLimits:
    """Bounds of the state that gateways share."""

    report_s: float = 1.0
    """Interval at which a gateway says that it is there."""

    expire_s: float = 5.0
    """Silence after which a gateway's clients count as gone."""

    flush_s: float = 0.02
    """Time for which changes are collected into one message."""

    answer_s: float = 0.5
    """Least time between two answers with all items, and between two requests for one."""

    items: int = 500
    """Most items in one message."""

    message_bytes: int = 256 * 1024
    """Bytes of items after which a message ends."""

    share: float = 0.25
    """Share of a rate per second below which a user's usage is not sent to the other gateways."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryLimits:
    """Bounds of queries that run as a caller."""

    pool_wait_s: float = 5.0
    """Wait for a free connection."""

    shared_s: float = 0.5
    """Statement timeout in a lane that callers share."""

    slow_s: float = 10.0
    """Statement timeout of a caller in the slow lane."""

    direct_s: float = 10.0
    """Statement timeout of an HTTP read."""

    cut_s: float = 15.0
    """Deadline after which the connection is closed, in case the network drops PostgreSQL's own timeout error."""

    batch_s: float = 5.0
    """Deadline of all queries that share a round trip."""

    slow_from_s: float = 0.25
    """A query that takes longer moves its caller to the slow lane."""

    slow_request_s: float = 1.0
    """The same for an HTTP read, including the network."""

    answer_s: float = 30.0
    """Longest wait of a caller for a result."""

    slow_for_s: float = 30.0
    """Time that a caller stays in the slow lane."""

    slow_callers: int = 1_000
    """Most callers remembered as slow."""

    round_trips: int = 2
    """Concurrent round trips in a shared lane."""

    slow_round_trips: int = 4
    """Concurrent round trips in the slow lane."""

    per_caller: int = 2
    """Concurrent HTTP reads of one caller."""

    batch: int = 50
    """Most queries that share a round trip."""

    batch_per_caller: int = 2
    """Most queries of one caller among them."""

    scan: int = 1_000
    """Waiting queries that are examined to fill a round trip."""

    batch_work_s: float = 0.5
    """Target for the database time of one round trip."""

    visibility_pauses_s: tuple[float, ...] = (
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.0, 1.0, 1.0,
    )  # fmt: skip
    """Pauses while a commit read from the WAL is not visible yet. A commit is in the WAL before snapshots see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """Bounds of fetching an issuer's signing keys."""

    fresh_s: float = 600.0
    """Keys are fetched again after this time."""

    retry_s: float = 10.0
    """Pause after a failed fetch, and between fetches for an unknown key."""

    timeout_s: float = 5.0
    """Deadline of a fetch."""

    key_set_bytes: int = 256 * 1024
    """Size of a key set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryLimits:
    """Bounds of a connection's outgoing side."""

    stall_s: float = 10.0
    """Time without reading after which a client is closed as too slow."""

    turn_s: float = 30.0
    """Time for a client to read an event that exceeds the total send budget."""

    uncounted_bytes: int = 4 * 1024
    """Bytes that asyncio may buffer before the connection counts as waiting."""

    page_bytes: int = 64 * 1024
    """Bytes written to a connection that catches up before the next connection gets its turn."""

    smallest_page_bytes: int = 1024
    """First page after the database took too long over a larger one. Each further page is twice as large."""

    large_bytes: int = 64 * 1024
    """Events above this size are written only if the send budget has room; a socket takes less at once."""

    coalesced_bytes: int = 16 * 1024
    """Bytes collected for one write of a connection within one iteration of the event loop."""

    admitted_at_once: int = 16
    """Connections that resume at the same time when the send budget has room again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLimits:
    """Bounds of a WebSocket and of the conversation on it."""

    frame_bytes: int = 64 * 1024
    """A larger message of a client ends the connection with 1009."""

    handshake_s: float = 15.0
    """Deadline for authentication before the upgrade."""

    close_s: float = 5.0
    """Wait for the client's close frame."""

    close_slow_s: float = 15.0
    """The same for a client that is too slow: it must first read the data already sent."""

    slice_bytes: int = 2 * 1024
    """Received bytes that are parsed before rates are checked: some hundred of the smallest frames."""

    early_frames: int = 100
    """Frames accepted before the handshake is complete."""

    bytes_after_close: int = 16 * 1024
    """Bytes read in search of the client's close frame."""

    tick_s: float = 0.05
    """Resolution of timers. Connections wake together: waking for each alone costs as much as its work."""

    frames: Rate = Rate(100, 20)
    """Rate limit for the frames of one connection."""

    unreadable_in_a_row: int = 5
    """Unreadable messages after which the connection ends with 4400."""

    realtime_frames: Rate = Rate(500, 50)
    """The same for Supabase's protocol, whose clients send a join and a token for each topic."""

    realtime_frame_bytes: int = 256 * 1024
    """A larger message of a client of Supabase's protocol ends the connection with 1009; also the largest by HTTP."""

    presence_bytes: int = 4 * 1024
    """Payload of one `track`."""

    presence_key_bytes: int = 255
    """Key of a member in the presence of a topic."""

    presence_members: int = 5_000
    """Members in the presence of a topic."""

    presence_topic_bytes: int = 2 * 1024 * 1024
    """Payloads in the presence of a topic, which each client that joins gets at once. Other gateways' may add a few."""

    presence_s: float = 0.05
    """Time for which changes of a topic's presence are collected."""

    replayed: int = 1_000
    """Messages that a join can have replayed."""

    replayed_bytes: int = 4 * 1024 * 1024
    """Their size."""

    topics: int = 100
    """Topics of one connection, as at Supabase; at most as many bindings in one topic."""

    pending_keys: int = 1_000
    """Cache keys whose acknowledgement is awaited; the oldest are forgotten."""

    channels: int = 2_000
    """Channels of one connection."""

    expiry_notice_s: float = 60.0
    """Time before a token's expiry at which the client gets `token_expiring`."""

    ping_interval_s: float = 25.0
    """Longest interval of pings: proxies close connections that are idle for 30 s."""

    pong_share: float = 0.6
    """Share of the ping interval after which a client without an answer is gone."""

    pong_s: float = 5.0
    """Lower bound of that time, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeLimits:
    """Bounds of the resume of Supabase's clients."""

    ping_s: float = 1.0
    """Interval of pings after events. What was sent since the last one that was answered may arrive twice."""

    save_s: float = 5.0
    """Interval at which positions are saved. After a crash of the server, events since then may arrive twice."""

    probe_s: float = 2.0
    """Wait for the answer of a socket that may be the one that a rejoin replaces."""

    shared_s: float = 3_600.0
    """Time away after which a client without an id of its own is told of a gap instead of resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of HTTP connections."""

    request_s: float = 10.0
    """Time to receive a complete request, from the connect or its first byte."""

    answer_s: float = 60.0
    """Time from the complete request until the client has read the response."""

    linger_s: float = 5.0
    """Time that a refused client may go on sending: closing at once would reset the connection before it reads why."""

    head_bytes: int = 32 * 1024
    """Size of request line and headers. The URL of a coach contains all channels."""

    body_bytes: int = 64 * 1024
    """Size of a request's body."""

    pipelined: int = 8
    """Requests that wait for the answer to the one before."""

    connections: int = 1_000
    """HTTP connections, in addition to the WebSockets."""

    events_bytes: int = 256 * 1024
    """Size of one response of `/sync/events`."""

    kernel_bytes: int = 256 * 1024
    """Kernel send buffer of a connection. It is outside the send budget, and hides a client that stopped reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLimits:
    """Rates of one user over all connections and requests."""

    connects: Rate = Rate(100, 10)
    requests: Rate = Rate(200, 20)
    frames: Rate = Rate(500, 100)

    broadcasts: Rate = Rate(500, 100)
    """Messages by HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginLimits:
    """Bounds of the log lines about origins that are refused. Anyone may send any origin, so both are needed."""

    warnings: Rate = Rate(1, 1 / 600)
    """Lines for one origin."""

    most: int = 100
    """Origins with a line in that time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleLimits:
    """Bounds of starting, housekeeping and stopping."""

    housekeeping_s: float = 3600.0
    """Interval of partition maintenance and metrics cleanup."""

    housekeeping_retry_s: float = 60.0
    """The same after a failure."""

    sessions_s: float = 30 * 86_400.0
    """Time for which records of Supabase's clients are kept, if the log is not kept longer.

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

    health_s: float = 1.0
    """Interval at which a change of the server's health is looked for, to be logged."""

    degraded_lag_s: float = 5.0
    """Lag of the feed above which health is `degraded`."""

    unhealthy_lag_s: float = 30.0
    """Lag of the feed above which health is `unhealthy`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All bounds of a server."""

    capture: CaptureLimits = field(default_factory=CaptureLimits)
    feed: FeedLimits = field(default_factory=FeedLimits)
    peers: PeerLimits = field(default_factory=PeerLimits)
    log: LogLimits = field(default_factory=LogLimits)
    queries: QueryLimits = field(default_factory=QueryLimits)
    keys: KeyLimits = field(default_factory=KeyLimits)
    delivery: DeliveryLimits = field(default_factory=DeliveryLimits)
    sockets: SocketLimits = field(default_factory=SocketLimits)
    resume: ResumeLimits = field(default_factory=ResumeLimits)
    http: HttpLimits = field(default_factory=HttpLimits)
    users: UserLimits = field(default_factory=UserLimits)
    origins: OriginLimits = field(default_factory=OriginLimits)
    lifecycle: LifecycleLimits = field(default_factory=LifecycleLimits)

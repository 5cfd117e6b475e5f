"""Bounds of clients, of their requests and of their questions to the database."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `per_second` operations on average, and up to `burst` at once."""

    burst: float
    per_second: float


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

    ring_entries: int = 4096
    """Writes of one frame that are handed to the kernel with one system call, where it has io_uring; a power of two."""

    ring_bytes: int = 128 * 1024
    """Bytes of the largest frame that is written so. Larger ones are written to one connection after the other."""


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
    """Payloads in the presence of a topic; a client that joins receives all of them. Checked on each gateway, so
    concurrent tracks can exceed it slightly."""

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
    """Shortest interval of pings after events. What was sent after the last one that was answered may arrive twice."""

    pings_per_s: int = 500
    """Pings per second above which the interval is longer, up to `longest_ping_s`."""

    longest_ping_s: float = 5.0
    """Longest interval of pings after events, reached with 2,500 busy clients."""

    save_s: float = 5.0
    """Interval at which positions are saved. After a crash of the server, events since then may arrive twice."""

    batch_s: float = 0.02
    """Interval of queries for sockets that open at the same time. The first one does not wait."""

    probe_s: float = 2.0
    """Wait for the answer of a socket that may be the one that a rejoin replaces."""

    shared_s: float = 3_600.0
    """Time away after which a client without an id of its own is told of a gap instead of resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptLimits:
    """Bounds of the receipts of devices."""

    save_s: float = 2.0
    """Interval at which receipts are saved."""

    save_batch: int = 1_000
    """Receipts in one statement."""

    most: int = 50_000
    """Receipts that wait to be saved, while the database does not answer."""

    of_user: int = 100
    """Devices of a user that are kept: those with the newest receipts."""


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

    backlog: int = 65_535
    """Connections that the kernel accepts while the server is busy, as when all clients reconnect. Linux takes at most
    `net.core.somaxconn`. TCP tries further ones again after 1, 3 and 7 s."""

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

"""Every bound and timeout of the server, in one object that is passed to its components.

Settings are the operator's choices; these values follow from the design and are the same everywhere. A test passes
its own, such as `Limits(delivery=DeliveryLimits(stall_s=1.0))`. Names end in their unit: `_s` seconds, `_bytes` bytes;
all others are counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from momentum_sync.limits.clients import (
    DeliveryLimits,
    HttpLimits,
    KeyLimits,
    OriginLimits,
    PeerLimits,
    QueryLimits,
    Rate,
    ReceiptLimits,
    ResumeLimits,
    SocketLimits,
    UserLimits,
)
from momentum_sync.limits.lifecycle import LifecycleLimits
from momentum_sync.limits.stream import CaptureLimits, FeedLimits, LogLimits

__all__ = [
    "CaptureLimits",
    "DeliveryLimits",
    "FeedLimits",
    "HttpLimits",
    "KeyLimits",
    "LifecycleLimits",
    "Limits",
    "LogLimits",
    "OriginLimits",
    "PeerLimits",
    "QueryLimits",
    "Rate",
    "ReceiptLimits",
    "ResumeLimits",
    "SocketLimits",
    "UserLimits",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All bounds of a server."""

    capture: CaptureLimits = field(default_factory=CaptureLimits)
    feed: FeedLimits = field(default_factory=FeedLimits)
    peers: PeerLimits = field(default_factory=PeerLimits)
    log: LogLimits = field(default_factory=LogLimits)
    receipts: ReceiptLimits = field(default_factory=ReceiptLimits)
    queries: QueryLimits = field(default_factory=QueryLimits)
    keys: KeyLimits = field(default_factory=KeyLimits)
    delivery: DeliveryLimits = field(default_factory=DeliveryLimits)
    sockets: SocketLimits = field(default_factory=SocketLimits)
    resume: ResumeLimits = field(default_factory=ResumeLimits)
    http: HttpLimits = field(default_factory=HttpLimits)
    users: UserLimits = field(default_factory=UserLimits)
    origins: OriginLimits = field(default_factory=OriginLimits)
    lifecycle: LifecycleLimits = field(default_factory=LifecycleLimits)

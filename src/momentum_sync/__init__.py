"""Momentum Sync: committed changes in PostgreSQL for the clients that may see them, in order, exactly once.

These names are the SDK, for programs that follow a server. The server itself is in the extra `server`.
"""

from momentum_sync.domain.messages import Intervention, Momentum, Notification
from momentum_sync.errors import (
    ClientError,
    ConnectionLost,
    Ended,
    FeedFrozen,
    FetchFailed,
    Gap,
    MessageTooLarge,
    NotUnderstood,
    Offline,
    Rejected,
    RequestFailed,
    StoreFailed,
    TokenUnavailable,
)
from momentum_sync.sdk.cache import Cache
from momentum_sync.sdk.client import Client
from momentum_sync.sdk.protocol import ClientStatus, Event, Resync, State
from momentum_sync.sdk.state import Saved
from momentum_sync.sdk.store import Entry, FileStore, Store
from momentum_sync.version import __version__ as __version__

__all__ = [
    "Cache",
    "Client",
    "ClientError",
    "ClientStatus",
    "ConnectionLost",
    "Ended",
    "Entry",
    "Event",
    "FeedFrozen",
    "FetchFailed",
    "FileStore",
    "Gap",
    "Intervention",
    "MessageTooLarge",
    "Momentum",
    "NotUnderstood",
    "Notification",
    "Offline",
    "Rejected",
    "RequestFailed",
    "Resync",
    "Saved",
    "State",
    "Store",
    "StoreFailed",
    "TokenUnavailable",
]

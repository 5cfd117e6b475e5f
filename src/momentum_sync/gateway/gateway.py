"""What all connections of a server share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

from websockets.datastructures import Headers

from momentum_sync import observe
from momentum_sync.errors import Forbidden, TooMany, Unavailable
from momentum_sync.eventlog.event import Position
from momentum_sync.eventlog.history import History
from momentum_sync.gateway import handshake
from momentum_sync.gateway.handshake import ConnectRequest
from momentum_sync.gateway.hub import Hub
from momentum_sync.gateway.rate_limits import RateLimit
from momentum_sync.gateway.send_budget import SendBudget
from momentum_sync.gateway.snapshot import Desk
from momentum_sync.identity.keys import Authenticator
from momentum_sync.identity.tokens import Identity


class _Allowed(TypedDict):
    burst: int
    a_second: float


_CONNECTS: _Allowed = {"burst": 100, "a_second": 10.0}
_REQUESTS: _Allowed = {"burst": 200, "a_second": 20.0}
_FRAMES: _Allowed = {"burst": 500, "a_second": 100.0}


@dataclass(slots=True)
class Gateway:
    """What all connections share.

    `live` says whether the feed runs; `lag` is seconds by which it may be behind, `reached` how far it has come.
    `draining` is set when the server is about to end and takes no new sockets. The rates are a user's, over all that
    the user has open.
    """

    desk: Desk
    history: History
    hub: Hub
    send_budget: SendBudget
    authenticator: Authenticator
    live: Callable[[], bool]
    lag: Callable[[], float]
    reached: Callable[[], Position]
    heartbeat: float
    send_buffer: int
    allowed_origins: tuple[str, ...]
    loopback_origins: bool
    token_in_query: bool
    metrics_open: bool
    draining: bool = False
    connects: RateLimit = field(default_factory=lambda: RateLimit(**_CONNECTS))
    requests: RateLimit = field(default_factory=lambda: RateLimit(**_REQUESTS))
    frames: RateLimit = field(default_factory=lambda: RateLimit(**_FRAMES))

    async def admit(self, path: str, headers: Headers) -> tuple[ConnectRequest, Identity]:
        """Settle who asks for a socket, before the upgrade, and for what. Raises RequestError."""
        query = handshake.address(path)
        origin, authorization, apikey, host = [
            handshake.only(name, headers.get_all(name)) for name in ("Origin", "Authorization", "apikey", "Host")
        ]
        # Each proxy on the way may have added its own.
        hosts = [host, *[one.strip() for line in headers.get_all("X-Forwarded-Host") for one in line.split(",")]]
        try:
            handshake.check_origin(origin, hosts, self.allowed_origins, loopback=self.loopback_origins)
        except Forbidden:
            observe.refused_origin(str(origin))
            raise
        if authorization is None:
            token = handshake.token_of_subprotocols(headers.get_all("Sec-WebSocket-Protocol"))
            if token is None and self.token_in_query:
                token = query.get("access_token")
            authorization = None if token is None else f"Bearer {token}"
        identity = await self.authenticator.authenticate(authorization=authorization, apikey=apikey)
        hello = handshake.hello(query, identity.subject)
        self.count(self.connects, identity)
        if self.draining:
            raise Unavailable("This server is shutting down; reconnect to reach another one.")
        if not self.live():
            raise Unavailable("The event stream is not running; try again in a moment.")
        return hello, identity

    def count(self, rate: RateLimit, identity: Identity) -> None:
        """Counts one more for a user; service_role is none. Raises TooMany if that is too many."""
        if identity.subject is not None and not rate.allows(identity.subject, time.monotonic()):
            raise TooMany("too_many_requests", "Too many requests; try again in a moment.")

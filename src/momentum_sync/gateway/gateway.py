"""The shared parts of all connections of a gateway, and admission of new ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from uuid import UUID, uuid4

from momentum_sync import observe
from momentum_sync.errors import Forbidden, TooMany, Unauthenticated, Unavailable
from momentum_sync.eventlog.event import Event
from momentum_sync.eventlog.feed import LocalFeed
from momentum_sync.eventlog.history import History
from momentum_sync.gateway import handshake
from momentum_sync.gateway.application import Application
from momentum_sync.gateway.caller_reads import CallerReads
from momentum_sync.gateway.conversation import Entrance, Opened
from momentum_sync.gateway.cursor import Cursor
from momentum_sync.gateway.dialects.native import NativeDialect, Session
from momentum_sync.gateway.dialects.realtime import RealtimeSession
from momentum_sync.gateway.dialects.realtime_services import RowServices
from momentum_sync.gateway.direct_files import DirectFiles
from momentum_sync.gateway.hub import Hub
from momentum_sync.gateway.opening import Opener
from momentum_sync.gateway.receipts import Device, Receipts
from momentum_sync.gateway.send_budget import SendBudget
from momentum_sync.gateway.topic_members import TopicMembers
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.channels import Filtered, Granted
from momentum_sync.identity.event_filter import EventFilter
from momentum_sync.identity.keys import Authenticator
from momentum_sync.identity.tokens import Identity
from momentum_sync.limits import Limits
from momentum_sync.token_bucket import TokenBuckets


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """The operator's choices; see `Settings`. Times are seconds."""

    role: str
    heartbeat: float
    send_buffer: int
    allowed_origins: tuple[str, ...]
    loopback_origins: bool
    token_in_query: bool
    metrics_open: bool


class Gateway:
    """The shared parts of all connections. It is the `Services` of their conversations.

    Attributes:
        draining: whether the server is stopping and takes no new connections.
        unfreed: the number of connections that were closed, and whose objects are still there.
    """

    def __init__(
        self,
        options: GatewayOptions,
        limits: Limits,
        application: Application,
        *,
        feed: LocalFeed,
        history: History,
        files: DirectFiles,
        hub: Hub,
        send_budget: SendBudget,
        authenticator: Authenticator,
        authorizer: Authorizer,
        event_filter: EventFilter,
        reads: CallerReads,
        rows: RowServices,
        members: TopicMembers,
        receipts: Receipts,
    ) -> None:
        self.options = options
        self.limits = limits
        self.application = application
        self.feed = feed
        self.history = history
        self.files = files
        self.hub = hub
        self.send_budget = send_budget
        self.authenticator = authenticator
        self.authorizer = authorizer
        self.event_filter = event_filter
        self.reads = reads
        self.rows = rows
        self.members = members
        self.receipts = receipts
        self.opener = Opener(authorizer, feed, history, application.schema, application.snapshot)
        self.native = NativeDialect(application.commands(reads), application.encoders)
        self.send_buffer = options.send_buffer
        self.draining = False
        self.unfreed = 0
        self.connects = TokenBuckets(limits.users.connects)
        self.requests = TokenBuckets(limits.users.requests)
        self.frames = TokenBuckets(limits.users.frames)
        self.broadcasts = TokenBuckets(limits.users.broadcasts)
        self.refused_origins = TokenBuckets(limits.origins.warnings, most=limits.origins.most)

    @property
    def rates(self) -> Mapping[str, TokenBuckets]:
        """Return the rates of users that hold on all gateways together, by name."""
        return {
            "connects": self.connects, "requests": self.requests, "frames": self.frames,
            "broadcasts": self.broadcasts,
        }  # fmt: skip

    def drain(self) -> None:
        """Take no new connections from now on."""
        self.draining = True

    @property
    def connections(self) -> int:
        """Return the number of clients."""
        return len(self.hub)

    @property
    def subscriptions(self) -> int:
        """Return the number of their subscriptions."""
        return self.hub.subscriptions

    @property
    def sdks(self) -> Mapping[str, int]:
        """Return the number of connections by the client's library."""
        return self.hub.sdks

    async def admit(self, path: str, headers: handshake.Headers) -> Entrance:
        """Decide about a WebSocket before the upgrade. Raise RequestError."""
        query, is_realtime = handshake.address(path)
        if is_realtime:
            return await self._admit_realtime(query, headers)
        options = self.options
        origin, authorization, apikey = [
            handshake.only(name, headers.get(name.lower(), ())) for name in ("Origin", "Authorization", "apikey")
        ]  # fmt: skip
        hosts = handshake.hosts_of(headers)
        try:
            handshake.check_origin(origin, hosts, options.allowed_origins, loopback=options.loopback_origins)
        except Forbidden:
            if self.refused_origins.take(origin, time.monotonic()):
                observe.refused_origin(str(origin))
            raise
        if authorization is None:
            token = handshake.token_of_subprotocols(headers)
            if token is None and options.token_in_query:
                token = query.get("access_token")
            authorization = None if token is None else f"Bearer {token}"
        identity = await self.authenticator.authenticate(authorization=authorization, apikey=apikey)
        request = handshake.connect_request(query, identity.subject)
        self._take_in(identity)
        return self._native_entrance(request, identity)

    def _take_in(self, identity: Identity) -> None:
        """Raise TooMany or Unavailable if a caller cannot connect now."""
        # An unauthenticated request must not use up a user's rate.
        self.count(self.connects, identity)
        if self.draining:
            raise Unavailable("This server is shutting down; reconnect to reach another one.")
        # A confirmed subscription is live, so no client is admitted before.
        if not self.feed.status().live:
            raise Unavailable("The event stream is not running; try again in a moment.")

    async def _admit_realtime(self, query: Mapping[str, str], headers: handshake.Headers) -> Entrance:
        """Decide about a WebSocket of Supabase's protocol. Pages of any origin may connect: no cookie is read."""
        key = handshake.only("x-api-key", headers.get("x-api-key", ())) or query.get("apikey")
        if not key:
            raise Unauthenticated("API key is missing", "missing_api_key")
        version = handshake.serializer_version(query)
        identity = await self.authenticator.realtime(key)
        self._take_in(identity)
        session = RealtimeSession(
            identity, token_hex(16), version, self.rows, self.members, self.limits.sockets, name=query.get("client_id"),
            heartbeat=self.options.heartbeat, at=time.monotonic(),
        )  # fmt: skip

        async def open_it() -> Opened:
            number = await self.rows.number()
            position = self.feed.position
            return Opened(position, lambda _, at: session.begin(number, position, at), 0, "realtime", 0)

        return Entrance(session, open_it)

    def _native_entrance(self, request: handshake.ConnectRequest, identity: Identity) -> Entrance:
        user = None if request.user_id is None else str(request.user_id)
        device = None
        # A caller that acts for another user is not that user's device, and a client without `client_id` could not be
        # recognized again.
        if (
            request.user_id is not None
            and request.user_id == identity.subject
            and handshake.is_device(request.client_id)
        ):
            device = Device(self.receipts, request.user_id, str(request.client_id))
        # Equal client ids replace each other, so a client without one gets a random id.
        session = Session(
            identity, request.user_id, request.client_id or str(uuid4()),
            Cursor(user, self.application.schema.per_user_channels), self.native, self.limits.sockets,
            heartbeat=self.options.heartbeat, now=time.time(), at=time.monotonic(), sdk=request.sdk,
            device=device,
        )  # fmt: skip

        async def open_it() -> Opened:
            opening = await self.opener.open(
                identity, request.user_id, request.channels, last_event_id=request.last_event_id
            )  # fmt: skip

            def begin(now: float, at: float) -> None:
                session.begin(
                    opening.granted, opening.position, opening.state, now, at,
                    refused=opening.refused, replayed=opening.replayed, reason=opening.reason,
                )  # fmt: skip

            outcome = "resumed" if opening.state is None else opening.reason or "snapshot"
            return Opened(opening.position, begin, len(opening.granted.channels), outcome, opening.replayed)

        return Entrance(session, open_it)

    def count(self, buckets: TokenBuckets, identity: Identity) -> None:
        """Count one operation of a user; `service_role` has no limit. Raise TooMany."""
        if identity.subject is not None and not buckets.take(identity.subject, time.monotonic()):
            raise TooMany("too_many_requests", "Too many requests; try again in a moment.")

    # Services of handlers

    def now(self) -> float:
        """Return seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds on a monotonic clock."""
        return time.monotonic()

    async def authenticate(self, token: str) -> Identity:
        """Verify a token. Raise Unauthenticated."""
        return await self.authenticator.verify(token)

    async def grants(self, identity: Identity, user_id: UUID | None, channels: Sequence[str]) -> Granted:
        """Return those of the channels that the caller may have. Raise Forbidden if it may not act for the user."""
        return await self.authorizer.granted(identity, user_id, channels)

    async def filter(self, identity: Identity, events: Sequence[tuple[Event, str | None]]) -> Filtered:
        """Decide which events the caller may see, each with the channel on which it would be delivered."""
        return await self.event_filter.filter(identity, events)

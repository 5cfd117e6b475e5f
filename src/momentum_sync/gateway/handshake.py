"""The request of a client that connects: address, origin, place of the token, and the answer to it."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from momentum_sync.errors import BadRequest, Forbidden, NotFound
from momentum_sync.wire.messages import PRINTABLE, TOOL, UNKNOWN_SDK
from momentum_sync.wire.paths import PREFIX, REALTIME_SOCKETS, SOCKETS
from momentum_sync.wire.phoenix import Version

SUBPROTOCOL = "momentum.v1"
# A browser's page cannot set headers of a WebSocket, only subprotocols: contract, section 2.
_BEARER = "bearer."
_MAX_TEXT = 200
_PRINTABLE = re.compile(PRINTABLE)
# As many as one `subscribe` message may name: `_Channels` in `wire/messages.py`.
_MAX_CHANNELS = 500
_SDK = re.compile(r"[a-z]{1,16}-\d{1,4}\.\d{1,4}\.\d{1,4}")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_KEY_BYTES = 16

Headers = Mapping[str, Sequence[str]]
"""The values of each header, by its name in lower case."""


class Handshake(NamedTuple):
    """A request for a WebSocket.

    Attributes:
        target: path and query.
        headers: its headers.
    """

    target: str
    headers: Headers


def acceptance(headers: Headers) -> bytes | None:
    """Return the response that accepts a handshake; None if its key or version is wrong.

    RFC 6455, sections 4.2.1 and 4.2.2. No extension is accepted: without compression, one encoded frame serves every
    connection. The subprotocol of the response is never `bearer.<token>`.
    """
    keys, versions = headers.get("sec-websocket-key", ()), headers.get("sec-websocket-version", ())
    if len(keys) != 1 or list(versions) != ["13"] or "upgrade" not in map(str.lower, _listed(headers, "connection")):
        return None
    try:
        if len(b64decode(keys[0], validate=True)) != _KEY_BYTES:
            return None
    except ValueError:
        return None
    digest = b64encode(sha1((keys[0] + _GUID).encode(), usedforsecurity=False).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
             f"Sec-WebSocket-Accept: {digest}"]  # fmt: skip
    if SUBPROTOCOL in _listed(headers, "sec-websocket-protocol"):
        lines.append(f"Sec-WebSocket-Protocol: {SUBPROTOCOL}")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def _listed(headers: Headers, name: str) -> list[str]:
    """Return the items of a header that is a list, and may be repeated."""
    return [item.strip(" \t") for line in headers.get(name, ()) for item in line.split(",")]


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """The user, the device and the channels that a connection asks for; and the client's library."""

    user_id: UUID | None
    client_id: str | None
    channels: list[str]
    last_event_id: str | None
    sdk: str


def address(target: str) -> tuple[dict[str, str], bool]:
    """Parse a request's target.

    Returns:
        The query, the last value of each name; and whether the socket speaks Supabase's protocol.

    Raises:
        NotFound: no socket is there.
    """
    try:
        parts = urlsplit(target)
    except ValueError:
        raise BadRequest("bad_address", "The URL is malformed.") from None
    is_realtime = parts.path in REALTIME_SOCKETS
    if parts.path not in SOCKETS and not is_realtime:
        raise NotFound(f"There is no WebSocket here; it is at {PREFIX}.")
    # If blank values were dropped, an empty `user_id` would silently become the token's subject.
    return {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}, is_realtime


def serializer_version(query: Mapping[str, str]) -> Version:
    """Return the version of Supabase's protocol that a client asks for. Raise BadRequest."""
    try:
        return Version(query.get("vsn", Version.V1.value))
    except ValueError:
        raise BadRequest("bad_version", "`vsn` is not 1.0.0 or 2.0.0.") from None


def connect_request(query: Mapping[str, str], subject: UUID | None) -> ConnectRequest:
    """Parse the query; the token's subject stands in for a missing user. Raise BadRequest."""
    user_id = subject
    if "user_id" in query:
        try:
            user_id = UUID(query["user_id"])
        except ValueError:
            raise BadRequest("invalid_user_id", "`user_id` is not a UUID.") from None
    client_id = query.get("client_id") or None
    channels = [channel for channel in query.get("channels", "").split(",") if channel]
    texts = channels if client_id is None else [client_id, *channels]
    if len(channels) > _MAX_CHANNELS or any(len(text) > _MAX_TEXT for text in texts):
        raise BadRequest("too_long", "`client_id` or the list of channels is too long.")
    if not all(_PRINTABLE.fullmatch(text) for text in texts):
        raise BadRequest("invalid_text", "`client_id` and `channels` must not contain control characters.")
    return ConnectRequest(user_id, client_id, channels, query.get("last_event_id"), sdk_of(query))


def sdk_of(query: Mapping[str, str]) -> str:
    """Return the library that a client names, such as `python-1.2.3`."""
    named = query.get("sdk", "")
    return named if _SDK.fullmatch(named) else UNKNOWN_SDK


def is_device(client_id: str | None) -> bool:
    """Return whether receipts are kept for a client: it has a name of its own, and is none of our commands."""
    return client_id is not None and not client_id.startswith(TOOL)


def token_of_subprotocols(headers: Headers) -> str | None:
    """Return the token that a browser sends as the subprotocol `bearer.<token>`; None if there is none."""
    for offered in _listed(headers, "sec-websocket-protocol"):
        if offered.startswith(_BEARER):
            return offered.removeprefix(_BEARER)
    return None


def hosts_of(headers: Headers) -> list[str]:
    """Return the names by which a client addressed this server. Each proxy on the way may have added its own."""
    host = only("Host", headers.get("host", ()))
    return [*([] if host is None else [host]), *_listed(headers, "x-forwarded-host")]


def only(name: str, values: Sequence[str]) -> str | None:
    """Return the value of a header, or None. Raise BadRequest if the header is repeated."""
    if len(values) > 1:
        raise BadRequest("repeated_header", f"The request has {len(values)} headers `{name}`; send one.")
    return values[0] if values else None


def check_origin(origin: str | None, hosts: Sequence[str], allowed: tuple[str, ...], *, loopback: bool = False) -> None:
    """Raise Forbidden for a page that is neither the server's own nor one that the operator allows.

    Args:
        origin: the `Origin` header; only pages send it.
        hosts: the names by which the client addressed this server, in `Host` and, behind a proxy, in
            `X-Forwarded-Host`. No page can set either.
        allowed: origins that the operator allows.
        loopback: allow pages of this machine, on which web apps are developed.
    """
    if origin is None or is_allowed(origin, allowed, loopback=loopback):
        return
    page = _origin(origin)
    # Behind a proxy that terminates TLS the server does not know the scheme, so it takes the page's.
    if page is None or page not in {_origin(f"{page[0]}://{host}") for host in hosts if host}:
        raise Forbidden(
            f"Pages of {origin[:200]} may not connect to this server. If it is your app, start the server with"
            f" MOMENTUM_ALLOWED_ORIGINS={origin[:200]}, or configure the proxy to forward `Host`.",
            "forbidden_origin",
        )


def is_allowed(origin: str, allowed: tuple[str, ...], *, loopback: bool) -> bool:
    """Return whether the operator allows the pages of an origin."""
    # Origins such as `null` or `capacitor://localhost` have no normal form, so text is compared first.
    if "*" in allowed or origin in allowed:
        return True
    page = _origin(origin)
    if page is None:
        return False
    return (loopback and page[1] in LOOPBACK) or page in {_origin(each.rstrip("/")) for each in allowed}


def _origin(text: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port of an origin in normal form; None if the text is not an origin."""
    try:
        parts = urlsplit(text)
        scheme, host = parts.scheme.lower(), parts.hostname
        port = parts.port or _DEFAULT_PORTS.get(scheme)
    except ValueError:
        return None
    # RFC 6454, section 7.1: an `Origin` header has scheme, host and port only.
    is_bare = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    return None if not host or port is None or not is_bare else (scheme, host.lower().rstrip("."), port)

"""Every error that leaves this package, as a tree.

MomentumError
├── RequestError          a client's request failed: an HTTP error, or an `error` message
│   ├── BadRequest        400  malformed
│   ├── Unauthenticated   401  no token, or an invalid one
│   ├── Forbidden         403  authenticated, and not allowed
│   ├── NotFound          404
│   ├── TooLarge          413
│   ├── Unprocessable     422  well-formed, with a missing or wrong field
│   ├── TooMany           429
│   └── Unavailable       503  temporary; the same request may succeed later
├── ClientError           an error of the SDK; the client recovers automatically, unless it is Ended
│   ├── ConnectionLost    the connection to the server was lost
│   ├── FeedFrozen        heartbeats are missing
│   ├── Rejected          the server refused the connection: `status` and `code`
│   ├── TokenUnavailable  the token provider raised
│   ├── MessageTooLarge   a message exceeds the client's limit; the client reads a new snapshot
│   ├── Gap               an event is missing, which must not happen; the client reads a new snapshot
│   ├── NotUnderstood     a message is not one of the protocol
│   ├── RequestFailed     the server answered a message with `error`: `code`
│   ├── StoreFailed       the store could not be read or written
│   ├── FetchFailed       a fetch for the cache exceeded its deadline or was cancelled
│   ├── Offline           the call needs a connection
│   └── Ended             the client does not reconnect: `code` and `reason` of the close
├── Unsuitable            the database or a setting does not fit; exit status 2
├── CaptureError          the replication stream broke; capture restarts automatically
│   └── SlotBusy          another instance reads the slot
└── FencedOff             another instance has taken over the log
"""

from __future__ import annotations

from typing import ClassVar


class MomentumError(Exception):
    """The root. `str(error)` is one sentence."""


class RequestError(MomentumError):
    """A client's request failed. `code` is for programs, the sentence for people."""

    status: ClassVar[int]
    code: str

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class BadRequest(RequestError):
    """The request is malformed."""

    status = 400


class Unauthenticated(RequestError):
    """There is no token, or it is invalid.

    Attributes:
        fault: what is wrong with a token: `claims`, `signature` or `expired`; else `malformed`.
        late_s: seconds since it expired.
    """

    status = 401

    def __init__(
        self, sentence: str, code: str = "unauthenticated", *, fault: str = "malformed", late_s: float = 0.0
    ) -> None:
        super().__init__(code, sentence)
        self.fault = fault
        self.late_s = late_s


class Forbidden(RequestError):
    """The caller is authenticated, and not allowed."""

    status = 403

    def __init__(self, sentence: str, code: str = "forbidden") -> None:
        super().__init__(code, sentence)


class NotFound(RequestError):
    """There is no such thing, or the caller may not see it."""

    status = 404

    def __init__(self, sentence: str, code: str = "not_found") -> None:
        super().__init__(code, sentence)


class TooLarge(RequestError):
    """The request is too large."""

    status = 413


class Unprocessable(RequestError):
    """The request is well-formed, with a missing or wrong field."""

    status = 422


class TooMany(RequestError):
    """The caller exceeds a rate."""

    status = 429


class Unavailable(RequestError):
    """The server cannot answer now; the same request may succeed later."""

    status = 503

    def __init__(self, sentence: str, code: str = "unavailable") -> None:
        super().__init__(code, sentence)


class Unsuitable(MomentumError):
    """The database or a setting cannot work. `hint` is the command or the setting that fixes it."""

    def __init__(self, sentence: str, hint: str) -> None:
        super().__init__(sentence)
        self.hint = hint


class ClientError(MomentumError):
    """An error that the SDK reports to the program."""


class ConnectionLost(ClientError):
    """The connection to the server was lost. `code` is the close code, if there was one."""

    def __init__(self, sentence: str, code: int | None = None) -> None:
        super().__init__(sentence)
        self.code = code


class FeedFrozen(ClientError):
    """No data arrived for longer than the interval of heartbeats allows."""


class Rejected(ClientError):
    """The server answered the handshake with an HTTP error. `code` is for programs."""

    def __init__(self, status: int, code: str, sentence: str) -> None:
        super().__init__(f"{sentence} (HTTP {status}, {code})")
        self.status = status
        self.code = code


class TokenUnavailable(ClientError):
    """The token provider raised an exception, which is the cause."""


class MessageTooLarge(ClientError):
    """The server sent a message above the client's limit; the client reads a new snapshot."""


class Gap(ClientError):
    """An event does not follow the previous one; the client reads a new snapshot."""


class NotUnderstood(ClientError):
    """The server sent something that is not a message of the protocol."""


class RequestFailed(ClientError):
    """A message was answered with `error`. `code` is for programs."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class StoreFailed(ClientError):
    """The store could not be read or written; the client continues without it. The cause says why."""


class FetchFailed(ClientError):
    """A fetch for the cache exceeded its deadline or was cancelled. Nothing is cached."""


class Offline(ClientError):
    """The call needs a connection, and there is none."""


class Ended(ClientError):
    """The client does not reconnect. `code` is the close code, or the HTTP status of the handshake."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason


class CaptureError(MomentumError):
    """The replication stream ended or could not begin."""


class SlotBusy(CaptureError):
    """Another instance holds the replication slot."""


class FencedOff(MomentumError):
    """Another instance writes the log now."""

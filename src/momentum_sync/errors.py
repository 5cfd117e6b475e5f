"""Every error that leaves this package, in one tree.

MomentumError
├── RequestError          a client asked for what it cannot have; becomes an HTTP answer or an `error` frame
│   ├── BadRequest        400  it could not be read
│   ├── Unauthenticated   401  no token, or one that proves nothing
│   ├── Forbidden         403  known, but not allowed
│   ├── NotFound          404
│   ├── TooLarge          413
│   ├── Unprocessable     422  readable, but a field is missing or wrong
│   ├── TooMany           429
│   └── Unavailable       503  not now; the same request may succeed later
├── ClientError           what a program that uses the SDK is told; the client goes on by itself, unless it is Ended
│   ├── ConnectionLost    the network, or the server, went away
│   ├── FeedFrozen        nothing came for longer than heartbeats leave
│   ├── Rejected          the server did not take the connection: `status` and `code`
│   ├── TokenUnavailable  the token provider raised
│   ├── MessageTooLarge   the server sent more than the client takes at once; the state is read anew
│   ├── Gap               an event was missed, which must not be; the state is read anew
│   ├── NotUnderstood     the server sent what is no message
│   ├── RequestFailed     a message of ours was answered with `error`: `code`
│   ├── StoreFailed       the store could not be read or written
│   ├── FetchFailed       what the program fetches for its cache did not come in time, or was cancelled
│   ├── Offline           what was asked for needs a connection
│   └── Ended             for good: `code` and `reason` of the close
├── Unsuitable            the database or a setting does not fit; the operator mends it, exit status 2
├── CaptureError          the replication stream broke; capture comes back by itself
│   └── SlotBusy          another instance reads the slot
└── FencedOff             another instance has taken over the log
"""

from __future__ import annotations

from typing import ClassVar


class MomentumError(Exception):
    """The root. `str(error)` is one sentence for a person."""


class RequestError(MomentumError):
    """What a client did wrong, or cannot have now. `code` is for programs, the sentence for people."""

    status: ClassVar[int]
    code: str

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class BadRequest(RequestError):
    status = 400


class Unauthenticated(RequestError):
    status = 401

    def __init__(self, sentence: str, code: str = "unauthenticated") -> None:
        super().__init__(code, sentence)


class Forbidden(RequestError):
    status = 403

    def __init__(self, sentence: str, code: str = "forbidden") -> None:
        super().__init__(code, sentence)


class NotFound(RequestError):
    status = 404

    def __init__(self, sentence: str, code: str = "not_found") -> None:
        super().__init__(code, sentence)


class TooLarge(RequestError):
    status = 413


class Unprocessable(RequestError):
    status = 422


class TooMany(RequestError):
    status = 429


class Unavailable(RequestError):
    status = 503

    def __init__(self, sentence: str, code: str = "unavailable") -> None:
        super().__init__(code, sentence)


class Unsuitable(MomentumError):
    """What the server was given cannot work. `hint` is the command, or the setting, that mends it."""

    def __init__(self, sentence: str, hint: str) -> None:
        super().__init__(sentence)
        self.hint = hint


class ClientError(MomentumError):
    """What the SDK tells the program that uses it."""


class ConnectionLost(ClientError):
    """The network, or the server, went away. `code` is the close code, where there was one."""

    def __init__(self, sentence: str, code: int | None = None) -> None:
        super().__init__(sentence)
        self.code = code


class FeedFrozen(ClientError):
    """Nothing came for longer than heartbeats leave."""


class Rejected(ClientError):
    """The server answered the handshake with an HTTP error. `code` is for programs."""

    def __init__(self, status: int, code: str, sentence: str) -> None:
        super().__init__(f"{sentence} (HTTP {status}, {code})")
        self.status = status
        self.code = code


class TokenUnavailable(ClientError):
    """The token provider raised; the cause is what."""


class MessageTooLarge(ClientError):
    """The server sent a message of more bytes than the client takes; the state is read anew."""


class Gap(ClientError):
    """An event does not follow the one before it; the state is read anew."""


class NotUnderstood(ClientError):
    """The server sent what is no message of the protocol."""


class RequestFailed(ClientError):
    """A message was answered with `error`. `code` is for programs."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class StoreFailed(ClientError):
    """The store could not be read or written; the cause is why. The client goes on without it."""


class FetchFailed(ClientError):
    """A fetch for the cache took too long, or was cancelled. Nothing is kept of it."""


class Offline(ClientError):
    """What was asked for needs a connection, and there is none now."""


class Ended(ClientError):
    """The client does not come back by itself. `code` is the close code, or the HTTP status of the handshake."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason


class CaptureError(MomentumError):
    """The replication stream ended or could not begin."""


class SlotBusy(CaptureError):
    """Another instance holds the replication slot."""


class FencedOff(MomentumError):
    """Another instance writes the log now; this one must not."""

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


class CaptureError(MomentumError):
    """The replication stream ended or could not begin."""


class SlotBusy(CaptureError):
    """Another instance holds the replication slot."""


class FencedOff(MomentumError):
    """Another instance writes the log now; this one must not."""

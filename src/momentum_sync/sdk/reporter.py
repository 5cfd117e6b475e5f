"""Reports failures to the program's `on_error` and to the logger `momentum_sync.sdk`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from momentum_sync import errors
from momentum_sync.errors import ClientError, RequestFailed
from momentum_sync.sdk.callbacks import carefully

LOG = logging.getLogger("momentum_sync.sdk")
# Without any handler, Python prints a library's warnings to standard error.
LOG.addHandler(logging.NullHandler())
_LOUD = (
    errors.Ended, errors.Gap, errors.MessageTooLarge, errors.NotUnderstood, errors.Rejected, errors.StoreFailed,
)  # fmt: skip


class Reporter:
    """Reports errors. An exception of `on_error` does not stop the client."""

    def __init__(self, on_error: Callable[[ClientError], None] | None) -> None:
        self._on_error = on_error

    def report(self, error: ClientError) -> None:
        """Report one error."""
        LOG.log(logging.WARNING if isinstance(error, _LOUD) else logging.INFO, "%s: %s", type(error).__name__, error)
        on_error = self._on_error
        if on_error is not None:
            carefully(lambda: on_error(error), lambda: LOG.exception("on_error raised"))

    def report_refused(self, channels: Sequence[str]) -> None:
        """Report channels that the server does not grant, if there are any."""
        if channels:
            self.report(RequestFailed("forbidden", f"Not allowed to subscribe to {', '.join(channels)}."))

"""The command line: one verb a file."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from momentum_sync.errors import Unsuitable

EXIT_UNSUITABLE = 2


@contextmanager
def explained() -> Iterator[None]:
    """Turns Unsuitable into its sentence, what mends it, and exit status 2.

    SIGTERM leaves by the same doors as an exception, so that what was started is stopped.
    """
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except Unsuitable as error:
        print(f"momentum-sync: {error}\n  {error.hint}", file=sys.stderr)
        raise SystemExit(EXIT_UNSUITABLE) from None


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)

"""The command line: one command a file."""

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
    """Turn Unsuitable into its sentence, its hint and exit status 2.

    SIGTERM unwinds as an exception does, so that everything that was started is stopped.
    """
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except Unsuitable as error:
        print(f"momentum-sync: {error}\n  {error.hint}", file=sys.stderr)
        raise SystemExit(EXIT_UNSUITABLE) from None


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)

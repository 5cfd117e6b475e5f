"""One worker of `serve --workers`: `python -m momentum_sync.worker NAME`, with its name in the log.

Its standard input is a pipe that the parent holds, so that it ends when the parent does. Standard output is another,
where it writes `live`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from momentum_sync import observe
from momentum_sync.cli import explained
from momentum_sync.cli.serve import run
from momentum_sync.settings import read_environment


def main() -> None:
    """Serve under the settings of the environment alone, until a signal or the end of standard input."""
    # A signal to the terminal's whole group reaches the parent, too, which ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with explained():
        run(read_environment(), live=_tell_parent, name=sys.argv[1])


def _tell_parent() -> None:
    os.write(1, b"live\n")


def _end_with_parent() -> None:
    while os.read(0, 1024):  # of the descriptor: a buffered reader would be locked while the interpreter ends
        pass
    observe.parent_ended()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()

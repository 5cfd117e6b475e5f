"""Servers as processes, on a port that the kernel chooses and that they hold from then on.

Choosing a free port first and passing it on leaves a moment in which another program takes it. If that is another
test's server, it answers in place of the right one.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_LISTENING = re.compile(rb'"url": "http://127\.0\.0\.1:(\d+)", "event": "listening"')


async def start_server(
    program: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path, seconds: float
) -> tuple[subprocess.Popen[bytes], int]:
    """Start `python PROGRAM serve` with its output appended to a file. Return the process and its port once it listens.

    Raises:
        RuntimeError: it ended, or did not listen in time.
    """
    with log.open("ab") as output:
        before = output.tell()
        process = subprocess.Popen(
            [sys.executable, *program, "serve", "--port", "0"], env=environment, cwd=folder, stdout=output,
            stderr=output,
        )  # fmt: skip
    try:
        async with asyncio.timeout(seconds):
            while (said := _LISTENING.search(log.read_bytes()[before:])) is None:
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended by itself; see {log}")
                await asyncio.sleep(0.02)
    except BaseException as error:
        process.kill()
        await asyncio.to_thread(process.wait)
        if isinstance(error, TimeoutError):
            raise RuntimeError(f"the server did not listen within {seconds:g} s; see {log}") from error
        raise
    return process, int(said[1])

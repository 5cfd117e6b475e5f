"""The machine that measures: its cores, what a process has used of them, and what it holds of memory. Linux only."""

from __future__ import annotations

import gc
import os
import platform
import resource
from pathlib import Path

_CORES = sorted(os.sched_getaffinity(0))
ALL_CORES = set(_CORES)
SERVER_CORES = {_CORES[0]}
"""What is measured runs on one core alone."""
LOAD_CORES = set(_CORES[1:]) or SERVER_CORES
"""PostgreSQL, clients and writers have the others."""


def pin(cores: set[int]) -> None:
    """Keeps this process, and those that it starts from now on, on these cores."""
    os.sched_setaffinity(0, cores)


def prepare_process() -> None:
    """Lets a measuring process have many sockets, and keeps it from pausing for garbage that it does not make."""
    gc.disable()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_seconds(pid: int) -> float:
    """Seconds of processor time that the process and all its threads have used so far."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return spent / 1e9


def resident(pid: int) -> int:
    """Bytes of memory that the process holds now."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("The server is gone.")


def described() -> str:
    """In a few words, for whoever reads the numbers."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{len(_CORES)} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}"

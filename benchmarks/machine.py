"""The machine: its cores, and CPU time and memory of processes. Linux only."""

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
    """Keep this process, and those that it starts from now on, on these cores."""
    os.sched_setaffinity(0, cores)


def prepare_process() -> None:
    """Raise the limit of open files, and disable garbage collection pauses of the measuring process."""
    gc.disable()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds used by a process and all its threads."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return spent / 1e9


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("The server is gone.")


def described() -> str:
    """Describe the machine in a few words."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{len(_CORES)} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}"

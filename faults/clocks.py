"""Wall clocks of processes, which a test steps: `clock.c`, loaded before the C library."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

_COMPILER = shutil.which("cc")


def can_step() -> bool:
    """Return whether clocks can be stepped here: that takes a C compiler."""
    return _COMPILER is not None


def step(clock: Path, seconds: float) -> None:
    """Set the offset from the machine's clock, for all processes that have this clock."""
    if not clock.exists():
        clock.touch(mode=0o644)
    # In place: the processes have mapped the file.
    with clock.open("r+b") as file:
        file.write(struct.pack("=q", round(seconds * 1e9)))


def environment(clock: Path) -> dict[str, str]:
    """Return the environment of processes that get this clock."""
    assert _COMPILER is not None
    library = clock.with_name("clock.so")
    if not library.exists():
        source = Path(__file__).with_name("clock.c")
        subprocess.run([_COMPILER, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    if not clock.exists():
        step(clock, 0.0)
    return {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(clock)}

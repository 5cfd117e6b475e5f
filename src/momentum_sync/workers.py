"""`serve --workers`: a capture and several gateways as processes that share a port, started again if one ends.

A worker ends when its parent does: its standard input is a pipe that the parent holds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from pydantic import SecretStr

from momentum_sync import observe
from momentum_sync.errors import Unsuitable
from momentum_sync.eventlog.nats_server import private_nats, until_ended
from momentum_sync.limits import Limits
from momentum_sync.settings import Settings, variable
from momentum_sync.tasks import end
from momentum_sync.token_settings import token_rules

WORKER = "momentum_sync.worker"
"""The module that a worker runs."""

_NOT_PASSED_ON = frozenset({"workers", "role", "database_url", "nats_url", "port", "own_port", "reuse_port"})


def count_of(settings: Settings) -> int:
    """Return the number of gateways."""
    if settings.workers == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores - 1)  # one core is capture's, through which all events go
    return int(settings.workers or 1)


def environment(settings: Settings, conninfo: str, nats_url: str, port: int) -> dict[str, str]:
    """Return the environment variables of all workers: the settings that were given, wherever they came from."""
    given = {name: _text(getattr(settings, name)) for name in settings.model_fields_set - _NOT_PASSED_ON}
    ours = {
        **{variable(name): text for name, text in given.items() if text is not None},
        "DATABASE_URL": conninfo,
        "MOMENTUM_NATS_URL": nats_url,
        "MOMENTUM_PORT": str(port),
    }
    names = {variable(name) for name in Settings.model_fields}
    return {name: value for name, value in os.environ.items() if name not in names} | ours


def _text(value: object) -> str | None:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case timedelta():
            return f"{value.total_seconds():.6f}s"
        case tuple():
            return ",".join(map(str, value))
        case None:
            return None
    return str(value)


@asynccontextmanager
async def workers(settings: Settings, conninfo: str, limits: Limits | None = None) -> AsyncIterator[list[Worker]]:
    """Run capture and gateways on a migrated database. Yield them, capture first.

    Args:
        settings: the operator's settings.
        conninfo: connection string of the database.
        limits: bounds; the defaults if left out.

    Raises:
        Unsuitable: the port is taken, or NATS does not start.
    """
    limits = limits or Limits()
    token_rules(settings)  # in development mode it makes the secret, which all workers read
    async with AsyncExitStack() as stack:
        port = stack.enter_context(_reserved(settings.host, settings.port)).getsockname()[1]
        urls = ",".join(settings.nats_urls)
        if not urls:
            # One folder for each port, used again: a process that was killed removes nothing.
            folder = settings.data_dir.expanduser() / f"nats-{port}"
            urls = await stack.enter_async_context(private_nats(folder))
        common = environment(settings, conninfo, urls, port)
        gateways = count_of(settings)
        found = [
            Worker("capture", {**common, "MOMENTUM_ROLE": "capture", **_own(settings, 0, is_capture=True)}, limits)
        ]
        for number in range(1, gateways + 1):
            role = {"MOMENTUM_ROLE": "gateway", "MOMENTUM_REUSE_PORT": "true"}
            found.append(Worker(f"gateway_{number}", {**common, **role, **_own(settings, number)}, limits))
        try:
            for worker in found:
                await worker.start()
            observe.workers_started(gateways, {worker.name: worker.pid for worker in found})
            yield found
        finally:
            # Gateways first: capture still delivers to clients that are not closed yet.
            await asyncio.gather(*[worker.stop(_patience_s(settings, limits)) for worker in found[1:]])
            await found[0].stop(_patience_s(settings, limits))


def _patience_s(settings: Settings, limits: Limits) -> float:
    """Return how long the orderly end of a worker may take: drain, the last answers, and saving at the end."""
    return settings.drain.total_seconds() + 3 * limits.lifecycle.stop_s


def _own(settings: Settings, number: int, *, is_capture: bool = False) -> Mapping[str, str]:
    """Return the port of a worker's own health and metrics. Capture listens there only."""
    port = 0 if settings.own_port in (None, 0) else settings.own_port + 1 + number
    if is_capture:
        return {"MOMENTUM_HOST": "127.0.0.1", "MOMENTUM_PORT": str(port)}
    return {"MOMENTUM_OWN_PORT": str(port)}


def _reserved(host: str, port: int) -> socket.socket:
    """Return a socket that holds the port, without listening, so that it is known and stays theirs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family)
    try:
        # Another server that shares its port would let this one share it, too, and clients would reach either.
        with socket.socket(family) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise Unsuitable(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            "Stop the program that listens there, or choose another port: --port 8788",
        ) from error
    return held


class Worker:
    """One process, started again whenever it ends unasked.

    Attributes:
        name: its name in the log.
    """

    def __init__(self, name: str, environment: Mapping[str, str], limits: Limits) -> None:
        self.name = name
        self._environment = environment
        self._limits = limits.lifecycle
        self._process: subprocess.Popen[bytes] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._live = asyncio.Event()

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, and keep it running."""
        await self._run()
        self._keeping = asyncio.create_task(self._keep())

    async def start_again(self) -> None:
        """Start it after it was stopped, and keep it running."""
        await self._run_again()
        self._keeping = asyncio.create_task(self._keep())

    async def _run(self) -> None:
        self._live = live = asyncio.Event()
        process = self._process = await asyncio.to_thread(
            subprocess.Popen, [sys.executable, "-P", "-m", WORKER, self.name], env=dict(self._environment),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # a signal to the terminal's group is for the parent, which ends them in order
        )  # fmt: skip
        assert process.stdout is not None
        output = process.stdout.fileno()
        loop = asyncio.get_running_loop()

        def told() -> None:
            if os.read(output, 1024):
                live.set()
            else:
                loop.remove_reader(output)

        loop.add_reader(output, told)

    async def until_live(self, seconds: float) -> bool:
        """Wait until the worker reports that it is live. Return False if that takes too long."""
        try:
            async with asyncio.timeout(seconds):
                await self._live.wait()
        except TimeoutError:
            return False
        return True

    async def _keep(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            assert self._process is not None
            status = await until_ended(self._process)
            failures = 0 if time.monotonic() - began > self._limits.worker_steady_s else failures + 1
            pauses = self._limits.worker_pauses_s
            pause = pauses[min(failures, len(pauses) - 1)]
            observe.worker_ended(self.name, status, pause)
            await asyncio.sleep(pause)
            self._close()
            await self._run_again()

    async def _run_again(self) -> None:
        while True:
            try:
                await self._run()
            except OSError as error:  # the machine has no process or memory left at the moment
                observe.failed(f"starting {self.name}", error)
                await asyncio.sleep(self._limits.worker_pauses_s[-1])
            else:
                observe.worker_started(self.name, self.pid)
                return

    async def stop(self, seconds: float) -> None:
        """End it by SIGTERM, and by SIGKILL if it takes longer than this."""
        if self._keeping is not None:
            await end(self._keeping)
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)  # which does nothing to one that has ended
        try:
            async with asyncio.timeout(seconds):
                await until_ended(process)
        except TimeoutError:
            process.kill()
            await until_ended(process)
        self._close()

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            asyncio.get_running_loop().remove_reader(process.stdout.fileno())
            process.stdin.close()
            process.stdout.close()


async def roll(found: Sequence[Worker], settings: Settings, limits: Limits | None = None) -> None:
    """Replace all workers, one after another: the clients of each gateway resume on the others.

    It ends with the first that is not live in time, so that a package that was upgraded and does not work stops one
    worker, not all. Settings stay as they were.
    """
    limits = limits or Limits()
    capture, *gateways = found
    for worker in (*gateways, capture):
        await worker.stop(_patience_s(settings, limits))
        await worker.start_again()
        is_live = await worker.until_live(limits.lifecycle.worker_live_s)
        observe.worker_rolled(worker.name, worker.pid, is_live=is_live)
        if not is_live:
            return

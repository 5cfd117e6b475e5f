"""`momentum-sync serve`: the server."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Callable

import uvloop
from dotenv import dotenv_values

from momentum_sync import observe, server
from momentum_sync.cli import explained
from momentum_sync.cli.options import with_options
from momentum_sync.eventlog.nats_server import program
from momentum_sync.lifecycle import stopped_by_signals, tasks_told_by_signal
from momentum_sync.settings import Settings, read, unknown
from momentum_sync.tasks import end
from momentum_sync.telemetry import check_installed
from momentum_sync.workers import roll, workers


@with_options
def serve(**given: object) -> None:
    """Run the server until Ctrl-C or SIGTERM; a second signal ends it at once.

    SIGUSR1 logs where each task waits. With --workers, SIGHUP restarts the workers one after another, and their clients
    resume on the others.

    Settings are also read from the environment and .env; options take precedence. Keep secrets in the environment or
    .env: other users of the machine can read a command line.
    """
    with explained():
        run(read(**given))


def run(settings: Settings, *, live: Callable[[], None] | None = None, name: str | None = None) -> None:
    """Run the server under these settings until a signal ends it. Raise Unsuitable.

    `live` is called once the server is live. A worker gives it and its `name` in the log, and ignores SIGINT, because
    its parent stops it.
    """
    observe.configure(level=settings.log_level, role=settings.role, name=name, form=settings.log_format)
    for name in unknown([*os.environ, *dotenv_values(".env")]):
        observe.unknown_setting(name)
    settings.check_broker()
    if settings.otel:
        check_installed()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, most)
    )  # each socket is a file, and the soft limit of shells is low
    if settings.workers is not None and not settings.nats_urls:
        program()  # before a database is started for nothing
    with server.database(settings) as conninfo:
        uvloop.run(_serve(settings, conninfo, live))


async def _serve(settings: Settings, conninfo: str, live: Callable[[], None] | None) -> None:
    if settings.development and live is None:
        observe.development_secret()
    with stopped_by_signals(interrupt=live is None) as stopped, tasks_told_by_signal():
        if settings.workers is not None:
            await _serve_workers(settings, conninfo, stopped)
            return
        async with server.server(settings, conninfo, stopped=stopped) as running:
            if live is not None:
                waits = (asyncio.ensure_future(stopped.wait()), asyncio.ensure_future(running.live.wait()))
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                await end(*waits)
                if running.live.is_set():
                    live()
            await stopped.wait()


async def _serve_workers(settings: Settings, conninfo: str, stopped: asyncio.Event) -> None:
    """Run workers until a signal ends them. SIGHUP replaces them."""
    loop, restart = asyncio.get_running_loop(), asyncio.Event()

    async def roll_when_asked() -> None:
        while True:
            await restart.wait()
            restart.clear()
            await roll(found, settings)

    async with workers(settings, conninfo) as found:
        loop.add_signal_handler(signal.SIGHUP, restart.set)
        rolling = asyncio.ensure_future(roll_when_asked())
        rolling.add_done_callback(lambda _: stopped.set())
        try:
            await stopped.wait()
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            await end(rolling)
            if not rolling.cancelled():
                rolling.result()

"""`momentum-sync serve`: the server."""

from __future__ import annotations

import os
import resource

import uvloop
from dotenv import dotenv_values

from momentum_sync import observe, server
from momentum_sync.cli import explained
from momentum_sync.cli.options import with_options
from momentum_sync.lifecycle import stopped_by_signals, tasks_told_by_signal
from momentum_sync.settings import Settings, read, unknown
from momentum_sync.workers import workers


@with_options
def serve(**given: object) -> None:
    """Run the server until Ctrl-C or SIGTERM; a second signal ends it at once.

    SIGUSR1 logs the places at which its tasks wait.

    Settings are also read from the environment and .env; options take precedence. Keep secrets in the environment or
    .env: other users of the machine can read a command line.
    """
    with explained():
        run(read(**given))


def run(settings: Settings, *, ignores_interrupts: bool = False) -> None:
    """Run the server under these settings until a signal ends it. Raise Unsuitable.

    `ignores_interrupts` is for a worker, whose parent gets SIGINT, too.
    """
    observe.configure(level=settings.log_level, role=settings.role)
    for name in unknown([*os.environ, *dotenv_values(".env")]):
        observe.unknown_setting(name)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, most)
    )  # each socket is a file, and the soft limit of shells is low
    with server.database(settings) as conninfo:
        uvloop.run(_serve(settings, conninfo, ignores_interrupts=ignores_interrupts))


async def _serve(settings: Settings, conninfo: str, *, ignores_interrupts: bool) -> None:
    if settings.development and not ignores_interrupts:
        observe.development_secret()
    with stopped_by_signals(interrupt=not ignores_interrupts) as stopped, tasks_told_by_signal():
        if settings.workers is None:
            async with server.server(settings, conninfo, stopped=stopped):
                await stopped.wait()
        else:
            async with workers(settings, conninfo):
                await stopped.wait()

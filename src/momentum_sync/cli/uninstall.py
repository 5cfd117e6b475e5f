"""`momentum-sync uninstall`: remove Momentum Sync from a database."""

from __future__ import annotations

from typing import Annotated

import typer

from momentum_sync.cli import explained
from momentum_sync.cli.migrate import database
from momentum_sync.database.uninstall import uninstall as run
from momentum_sync.settings import read


def uninstall(
    database_url: Annotated[
        str | None, typer.Option(help="PostgreSQL to remove it from. [env: DATABASE_URL; unset: the embedded one]")
    ] = None,
    capture_url: Annotated[
        str | None,
        typer.Option(help="URL of the same database with a role that may drop the slot. [env: MOMENTUM_CAPTURE_URL]"),
    ] = None,
    slot: Annotated[
        str | None, typer.Option(help="Replication slot. [env: MOMENTUM_SLOT; default: momentum_sync]")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove slot, triggers, functions, event log and schema momentum; keep the app's tables and data.

    Stop the servers first. Clients that reconnect later begin with a snapshot.
    """
    with explained():
        settings = read(database_url=database_url, capture_url=capture_url, slot=slot)
        if not yes and not typer.confirm("Remove Momentum Sync from the database? Your tables and data are kept."):
            raise typer.Exit(1)
        with database(settings) as conninfo:
            run(conninfo, slot=settings.slot, tell=typer.echo, capture=settings.capture_url)

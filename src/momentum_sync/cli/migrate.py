"""`momentum-sync migrate`: bring a database up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from momentum_sync.cli import explained
from momentum_sync.database import adoption
from momentum_sync.database.migrate import migrate as run
from momentum_sync.errors import Unsuitable
from momentum_sync.settings import Settings, read


def migrate(
    database_url: Annotated[
        str | None, typer.Option(help="PostgreSQL to migrate. [env: DATABASE_URL; unset: the embedded one]")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, and change nothing.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Print the state of the migrations, and change nothing.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Apply all migrations again; this repairs changed functions and triggers.")
    ] = False,
    server_role: Annotated[
        str | None, typer.Option(help="Role to grant exactly the privileges that `serve` needs; see SECURITY.md.")
    ] = None,
) -> None:
    """Apply missing migrations, as `supabase db push` would. A second run changes nothing.

    Existing tables of the app keep their policies and grants; at the end each difference from the shipped ones is
    listed with its cost.
    """
    with explained():
        if plan + status + (again or server_role is not None) > 1:
            raise Unsuitable(
                "--plan and --status cannot be combined with other options of migrate.", "Give only one of them."
            )
        with database(read(database_url=database_url)) as conninfo:
            if plan or status:
                for line in adoption.plan(conninfo) if plan else adoption.status(conninfo):
                    typer.echo(line)
                return
            applied = run(conninfo, tell=typer.echo, again=again, server_role=server_role)
    typer.echo("The database is up to date." if not applied else f"{len(applied)} migrations applied.")


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """Yield the connection string of the configured database; an embedded one is started, and not migrated."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    settings.check_embedded()
    from momentum_sync.database.embedded import Embedded

    with Embedded(settings.data_dir) as embedded:
        yield embedded.conninfo

"""`momentum-sync migrate`: bring a database up to date."""

from __future__ import annotations

from typing import Annotated

import typer

from momentum_sync.cli import explained
from momentum_sync.database.migrate import migrate as run
from momentum_sync.settings import read


def migrate(
    database_url: Annotated[
        str | None, typer.Option(help="Postgres to migrate. [env: DATABASE_URL; unset: the embedded one]")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Apply all migrations again; this repairs changed functions and triggers.")
    ] = False,
    server_role: Annotated[
        str | None, typer.Option(help="A role that gets what `serve` needs, and nothing more; see SECURITY.md.")
    ] = None,
) -> None:
    """Apply what is missing of the migrations, as `supabase db push` would. Does nothing the second time."""
    with explained():
        settings = read(database_url=database_url)
        if settings.database_url is None:
            settings.check_embedded()
            from momentum_sync.database.embedded import Embedded

            with Embedded(settings.data_dir) as embedded:
                applied = run(embedded.conninfo, tell=typer.echo, again=again, server_role=server_role)
        else:
            applied = run(settings.database_url, tell=typer.echo, again=again, server_role=server_role)
    typer.echo("The database is up to date." if not applied else f"{len(applied)} migrations applied.")

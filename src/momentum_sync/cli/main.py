"""`momentum-sync`: all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from momentum_sync import __version__
from momentum_sync.cli import bench, demo, migrate, serve, tail, token, uninstall

app = typer.Typer(
    name="momentum-sync",
    help="Deliver committed changes in PostgreSQL to the clients that may see them: in commit order, without loss or "
    "duplicates, within milliseconds.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would take `[env: …]` for markup
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(name="demo")(demo.demo)
app.command(name="serve")(serve.serve)
app.command(name="migrate")(migrate.migrate)
app.command(name="uninstall")(uninstall.uninstall)
app.command(name="token")(token.token)
app.command(name="tail")(tail.tail)
app.command(name="bench")(bench.bench)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"momentum-sync {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare `--version`; the commands do the work."""

"""`momentum-sync`: all commands.

A command is imported when it is run: importing the server takes a second, which `momentum-sync token` need not wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from momentum_sync import __version__

COMMANDS = ("demo", "serve", "migrate", "doctor", "uninstall", "token", "tail", "bench")
"""Each is the function of its name in the module of its name."""


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """Return the command line with the command that the arguments name, or with all of them for `--help`."""
    app = typer.Typer(
        name="momentum-sync",
        help="Deliver committed changes in PostgreSQL to the clients that may see them: in commit order, without loss "
        "or duplicates, within milliseconds.",
        no_args_is_help=True,
        rich_markup_mode=None,  # rich would take `[env: …]` for markup
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    named = [name for name in COMMANDS if name in arguments[:1]]
    for name in named or COMMANDS:
        app.command(name=name)(getattr(import_module(f"momentum_sync.cli.{name}"), name))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"momentum-sync {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare `--version`; the commands do the work."""

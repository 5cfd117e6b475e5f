"""`momentum-sync doctor`: check everything that the server depends on."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Annotated

import typer
from dotenv import dotenv_values

from momentum_sync import observe
from momentum_sync.cli import explained
from momentum_sync.doctor.configuration import invalid
from momentum_sync.doctor.examination import examine
from momentum_sync.doctor.finding import exit_status
from momentum_sync.doctor.report import as_json, lines, summary
from momentum_sync.settings import read_with_errors

_WIDEST = 140


def doctor(
    database_url: Annotated[
        str | None, typer.Option(help="PostgreSQL to check. [env: DATABASE_URL; unset: the embedded one]")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Root URL of a running server. Unset: where these settings start one.")
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Publish a test event and wait until a client receives it. Without --token it goes to a random user"
            " id; with --token, all clients of that user receive it.",
        ),
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="MOMENTUM_TOKEN", help="A user's token for --probe; needed where only the issuer can sign one."
        ),
    ] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print a JSON array, for programs.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for a warning, too.")] = False,
) -> None:
    """Check settings, database, privileges, NATS and server. For each finding, show why it matters and how to fix it.

    Works before `migrate` and while `serve` runs, with the settings of the environment and .env. It does not change
    the database, except that --probe publishes an event. Without a database URL it starts the embedded PostgreSQL, if
    there is one. In place of an invalid setting the checks use its default. Exits with 1 if there is a problem or a
    check failed.
    """
    with explained():
        observe.configure(level="ERROR")  # the report says what is wrong
        settings, wrong = read_with_errors(database_url=database_url)
        findings = [invalid(each, ends_checks=settings is None) for each in wrong]
        if settings is not None:
            names = [*os.environ, *dotenv_values(".env")]
            findings += examine(settings, names, url=url, token=token, probes=probe)
    if as_json_:
        typer.echo(as_json(findings))
    else:
        width = min(shutil.get_terminal_size((100, 24)).columns, _WIDEST)
        for line in lines(findings, width=width, colored=sys.stdout.isatty()):
            typer.echo(line)
        typer.echo(f"\n{summary(findings)}")
    raise typer.Exit(exit_status(findings, strict=strict))

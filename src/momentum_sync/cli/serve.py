"""`momentum-sync serve`: the server."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from dotenv import dotenv_values

from momentum_sync import app, observe
from momentum_sync.cli import explained
from momentum_sync.settings import Settings, read, unknown


def serve(
    database_url: Annotated[
        str | None, typer.Option(help="Postgres >= 15, wal_level=logical. [env: DATABASE_URL; unset: an embedded one]")
    ] = None,
    capture_url: Annotated[
        str | None,
        typer.Option(help="The same database, for reading the WAL. [env: MOMENTUM_CAPTURE_URL; DATABASE_URL]"),
    ] = None,
    supabase_url: Annotated[str | None, typer.Option(help="Issuer and keys of the tokens. [env: SUPABASE_URL]")] = None,
    jwt_secret: Annotated[
        str | None, typer.Option(help="HS256 secret; better in the environment. [env: SUPABASE_JWT_SECRET]")
    ] = None,
    anon_key: Annotated[str | None, typer.Option(help="[env: SUPABASE_ANON_KEY]")] = None,
    service_role_key: Annotated[
        str | None, typer.Option(help="Better in the environment. [env: SUPABASE_SERVICE_ROLE_KEY]")
    ] = None,
    host: Annotated[str | None, typer.Option(help="[env: MOMENTUM_HOST; 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="0: any that is free. [env: MOMENTUM_PORT; 8787]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Of the embedded Postgres. [env: MOMENTUM_DATA_DIR]")] = None,
    retention: Annotated[
        str | None, typer.Option(help="How long the log keeps events: 12h, 7d. [env: MOMENTUM_RETENTION; 7d]")
    ] = None,
    allowed_origins: Annotated[
        str | None, typer.Option(help="Other web pages that may connect: a,b or *. [env: MOMENTUM_ALLOWED_ORIGINS]")
    ] = None,
    jwt_audience: Annotated[
        str | None, typer.Option(help="What `aud` must name, if a token has one. [env: MOMENTUM_JWT_AUDIENCE]")
    ] = None,
    token_in_query: Annotated[
        bool | None, typer.Option(help="Accept ?access_token=. [env: MOMENTUM_TOKEN_IN_QUERY; no]")
    ] = None,
    pages: Annotated[
        bool | None, typer.Option(help="Serve the pages for users and coaches. [env: MOMENTUM_PAGES; yes]")
    ] = None,
    metrics_open: Annotated[
        bool | None, typer.Option(help="Answer /metrics without a key. [env: MOMENTUM_METRICS_OPEN; no]")
    ] = None,
    metrics_per_second: Annotated[
        float | None,
        typer.Option(help="Events per second in realtime_event_metrics. [env: MOMENTUM_METRICS_PER_SECOND; 20]"),
    ] = None,
    slot: Annotated[str | None, typer.Option(help="Replication slot. [env: MOMENTUM_SLOT; momentum_sync]")] = None,
    window_bytes: Annotated[
        int | None, typer.Option(help="Newest events kept in memory. [env: MOMENTUM_WINDOW_BYTES; 64 MiB]")
    ] = None,
    send_buffer_bytes: Annotated[
        int | None, typer.Option(help="Unsent data a client may have. [env: MOMENTUM_SEND_BUFFER_BYTES; 1 MiB]")
    ] = None,
    send_total_bytes: Annotated[
        int | None, typer.Option(help="Unsent data of all clients. [env: MOMENTUM_SEND_TOTAL_BYTES; 256 MiB]")
    ] = None,
    max_connections: Annotated[int | None, typer.Option(help="[env: MOMENTUM_MAX_CONNECTIONS; 20000]")] = None,
    max_connections_per_user: Annotated[
        int | None, typer.Option(help="[env: MOMENTUM_MAX_CONNECTIONS_PER_USER; 50]")
    ] = None,
    pool_size: Annotated[
        int | None, typer.Option(help="Database connections for requests. [env: MOMENTUM_POOL_SIZE; 8]")
    ] = None,
    heartbeat: Annotated[str | None, typer.Option(help="[env: MOMENTUM_HEARTBEAT; 25s]")] = None,
    drain: Annotated[
        str | None, typer.Option(help="Over how long clients are sent away at the end. [env: MOMENTUM_DRAIN; 10s]")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="[env: MOMENTUM_LOG_LEVEL; INFO]")] = None,
) -> None:
    """Run the server until Ctrl-C or SIGTERM; a second one ends it at once.

    Settings are read from the environment and .env, too.
    """
    given = dict(locals())
    with explained():
        run(read(**given))


def run(settings: Settings) -> None:
    """Runs the server under these settings until a signal ends it. Raises Unsuitable."""
    observe.configure(level=settings.log_level)
    for name in unknown([*os.environ, *dotenv_values(".env")]):
        observe.unknown_setting(name)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket is a file, and shells allow few at first
    with app.database(settings) as conninfo:
        uvloop.run(_serve(settings, conninfo))


async def _serve(settings: Settings, conninfo: str) -> None:
    with app.stopped_by_signals() as stopped:
        async with app.server(settings, conninfo, stopped=stopped):
            await stopped.wait()

"""`momentum-sync bench`: load on a deployment, and its results."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated
from uuid import UUID

import httpx
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from momentum_sync.bench.load import Load, Target, run
from momentum_sync.bench.tally import Tally, spread
from momentum_sync.cli import explained
from momentum_sync.cli.options import server_url
from momentum_sync.cli.token import Role, secret_of, sign
from momentum_sync.errors import Unsuitable
from momentum_sync.settings import Settings, duration, read

_TOKENS_LAST = timedelta(hours=1)
_HEALTH_TIMEOUT_S = 10.0
_DRAW_EVERY_S = 0.1
_LATE = 1.1
EXIT_NOT_WHOLE = 1


def bench(
    url: Annotated[
        str | None, typer.Option(help="Root URL of the server. Unset: the address where serve would listen.")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="Number of clients, each with a made-up user.")] = 100,
    rate: Annotated[float, typer.Option(min=0.1, help="Events per second, over all clients.")] = 100.0,
    seconds: Annotated[str, typer.Option(help="Duration of the load: a number with s, m or h.")] = "10s",
    fill: Annotated[int, typer.Option(min=0, max=1_000_000, help="Filler bytes added to each event.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Load-test a server and show latency, order and completeness, from the write to the client.

    Publishes through DATABASE_URL, which must be the server's database (unset: the embedded PostgreSQL), for made-up
    users. Their tokens are signed with SUPABASE_JWT_SECRET, which must also be the server's. No table of the app is
    written; up to MOMENTUM_METRICS_PER_SECOND delivered events per second get a row in realtime_event_metrics. Exits
    with status 1 if an event was lost, duplicated or out of order, or a client was disconnected. This process simulates
    all clients: at thousands of events per second it becomes the bottleneck.
    """
    with explained():
        settings = read()
        lasts = duration(seconds)
        if lasts is None:
            raise Unsuitable(f"--seconds {seconds} is not a duration.", "Write a number with s, m or h, such as 30s")
        load = Load(connections, rate, lasts.total_seconds(), fill)
        if load.events < 1:
            raise Unsuitable(
                f"At {rate:g} events per second, no event is due within {seconds}.", "Increase --seconds or --rate."
            )
        url = url or server_url()
        _check_health(url)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        tally = Tally()
        with _database(settings) as conninfo, _shown() as progress:
            target = Target(url, conninfo, _token_maker(settings))
            uvloop.run(run(target, load, tally, progress))
    numbers = _numbers(load, tally)
    if as_json:
        typer.echo(json.dumps(numbers, indent=2))
    else:
        Console().print(_table(load, tally))
    raise SystemExit(0 if tally.is_whole else EXIT_NOT_WHOLE)


def _check_health(url: str) -> None:
    try:
        answer = httpx.get(f"{url.rstrip('/')}/sync/health", timeout=_HEALTH_TIMEOUT_S)
        status = answer.json()["status"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise Unsuitable(
            f"No Momentum Sync server answers at {url}: {str(error) or type(error).__name__}.",
            "Start one (momentum-sync serve), or give the root URL of another: --url http://127.0.0.1:8787",
        ) from error
    if status == "unhealthy":
        raise Unsuitable(f"The server at {url} is unhealthy.", f"See why: curl {url.rstrip('/')}/sync/health")


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    if settings.database_url is not None:
        yield settings.database_url
        return
    from momentum_sync.database.embedded import Embedded  # Linux and macOS only

    with Embedded(settings.data_dir) as embedded:
        yield embedded.conninfo


def _token_maker(settings: Settings) -> Callable[[UUID], str]:
    secret = secret_of(
        settings, "Use a server that is configured with SUPABASE_JWT_SECRET, and set the same secret here."
    )
    return lambda user: sign(secret, user, Role.user, _TOKENS_LAST, audience=settings.jwt_audience)


@contextmanager
def _shown() -> Iterator[Callable[[str, float, float], None]]:
    """Show a progress bar for each step on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        known: dict[str, TaskID] = {}
        again_at = 0.0

        def progress(what: str, done: float, total: float) -> None:
            nonlocal again_at
            if what not in known:
                known[what] = bars.add_task(what, total=total, completed=int(done))
            now = time.monotonic()
            if now >= again_at or done >= total:  # drawing costs CPU that the measurement needs
                again_at = now + _DRAW_EVERY_S
                bars.update(known[what], completed=done, total=total)

        yield progress


def _numbers(load: Load, tally: Tally) -> dict[str, object]:
    delays = spread([delay * 1000 for delay in tally.delays])
    connects = spread([took * 1000 for took in tally.connected])
    return {
        "connections": load.connections,
        "rate": load.rate,
        "seconds": load.seconds,
        "sent": tally.sent,
        "published_in_s": tally.took,
        "lost": tally.lost,
        "twice": tally.twice,
        "gaps": tally.gaps,
        "disordered": tally.disordered,
        "closes": dict(tally.closes),
        "connect_ms": None if connects is None else connects._asdict(),
        "write_to_client_ms": None if delays is None else delays._asdict(),
    }


def _table(load: Load, tally: Tally) -> Table:
    table = Table(box=None, title=f"{load.connections:,} connections, {load.rate:,g} events/s for {load.seconds:g} s")
    for name in ("milliseconds", "p50", "p95", "p99", "p99.9", "highest"):
        table.add_column(name, justify="left" if name == "milliseconds" else "right")
    for name, values in (("connect to snapshot", tally.connected), ("write due → client", tally.delays)):
        measured = spread([value * 1000 for value in values])
        table.add_row(name, *([f"{value:,.2f}" for value in measured] if measured else ["-"] * 5))
    table.add_section()
    outcome = f"lost {tally.lost:,}, duplicated {tally.twice:,}, gaps {tally.gaps:,}, out of order {tally.disordered:,}"
    pace = f"{tally.sent:,} events in {tally.took:,.1f} s"
    late = tally.took > load.seconds * _LATE
    table.add_row(f"[red]{pace}: the database did not keep up[/]" if late else pace, *[""] * 5)
    table.add_row(f"[green]{outcome}[/]" if tally.is_whole else f"[red]{outcome}[/]", *[""] * 5)
    for why, count in sorted(tally.closes.items()):
        table.add_row(f"[red]{count:,} connections closed: {why}[/]", *[""] * 5)
    return table

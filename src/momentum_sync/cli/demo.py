"""`momentum-sync demo`: database, server, pages and a simulation in one command."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer
import uvloop
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse, RedirectResponse, Response

from momentum_sync import observe, server
from momentum_sync.cli import explained
from momentum_sync.cli.token import Role, sign
from momentum_sync.demo.receipts import receipts_page
from momentum_sync.demo.simulation import COACH, PEOPLE, live
from momentum_sync.errors import Unsuitable
from momentum_sync.lifecycle import stopped_by_signals
from momentum_sync.settings import Settings, read
from momentum_sync.tasks import end
from momentum_sync.token_settings import development_secret

_LINKS_LAST = timedelta(days=7)
_AUDIENCE = "authenticated"
_SUPABASE = "supabase"
_SUPABASE_PAGE = "http://127.0.0.1:8080/"  # of examples/supabase, as its package.json serves it
_TRY_THIS = (
    "update daily_engagement_scores set final_score = 90, momentum_state = 'Rising'"
    " where score_date = current_date and user_id = '{}';"
)


def demo(
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0: any free one. [env: MOMENTUM_PORT; default: 8787]")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Directory whose subdirectory `demo` holds the demo's PostgreSQL. [env: MOMENTUM_DATA_DIR]"),
    ] = None,
    pace: Annotated[float, typer.Option(min=0.01, help="Seconds between changes.")] = 0.7,
    reset: Annotated[
        bool, typer.Option("--reset", help="Delete the demo's data and start with a new simulation.")
    ] = False,
    log_level: Annotated[
        str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR. [default: WARNING]")
    ] = "WARNING",
) -> None:
    """Start a PostgreSQL, the server and a small simulation; print links to the pages.

    It never touches DATABASE_URL, and listens on loopback only.
    """
    with explained():
        given = read(host="127.0.0.1", port=port, data_dir=data_dir, log_level=log_level)
        home = given.data_dir / "demo"
        settings = given.model_copy(
            update={
                "data_dir": home,
                "database_url": None,
                "capture_url": None,
                "supabase_url": None,
                "jwt_secret": None,  # development mode, in which pages of this machine may connect
                "anon_key": None,
                "service_role_key": None,
                "slot": "momentum_sync",
                "jwt_audience": _AUDIENCE,
                "receipts": timedelta(seconds=1),
            }
        )
        observe.configure(level=settings.log_level, form=settings.log_format)
        with _alone(home):
            if reset:
                shutil.rmtree(home / "postgres", ignore_errors=True)
            print(f"The demo's data is in {home}; `momentum-sync demo --reset` deletes it.", file=sys.stderr)
            print("Starting PostgreSQL; the first time takes a few seconds …", file=sys.stderr, flush=True)
            # An earlier version may have made this database with other migrations, which a plain `migrate` refuses.
            with server.database(settings, again=True) as conninfo:
                uvloop.run(_demo(settings, conninfo, pace, development_secret(home)))
    print("Stopped.", file=sys.stderr)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the lock of the demo. Raise Unsuitable if another demo runs; the lock ends with the process."""
    home = home.expanduser()
    home.mkdir(parents=True, exist_ok=True)
    with (home / "running.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unsuitable(
                "A demo with the same data directory is already running.",
                "Use that demo, stop it with Ctrl-C, or give this one another directory:"
                " --port 0 --data-dir <directory>",
            ) from None
        yield


async def _demo(settings: Settings, conninfo: str, pace: float, secret: str) -> None:
    with stopped_by_signals() as stopped:
        async with server.server(settings, conninfo, stopped=stopped) as running:
            links = _links(secret)
            links[_SUPABASE] = _supabase_link(running.url, links)
            _add_links(running.api, links)
            _add_receipts(running.api, conninfo)
            # PostgreSQL cannot decode rows of a table that is created at the same time as the slot.
            await _until_live(running, stopped)
            ready = asyncio.Event()
            world = asyncio.ensure_future(live(conninfo, pace=pace, ready=ready))
            world.add_done_callback(lambda _: stopped.set())
            welcome = asyncio.ensure_future(_greet(ready, _welcome(running.url, links, conninfo)))
            try:
                await stopped.wait()
            finally:
                await end(world, welcome)
                for task in (world, welcome):
                    if not task.cancelled():
                        task.result()


async def _until_live(running: server.Running, stopped: asyncio.Event) -> None:
    """Wait until capture is live, or the demo is stopped."""
    waiting = [asyncio.ensure_future(event.wait()) for event in (running.live, stopped)]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(*waiting)


async def _greet(ready: asyncio.Event, text: str) -> None:
    """Print the links once their pages have something to show."""
    await ready.wait()
    print(text, flush=True)


def _links(secret: str) -> dict[str, tuple[str, str]]:
    """Return people by short name, each with the page's address and a token behind `#`, which browsers do not send."""
    coach = urlencode({"access_token": sign(secret, COACH.id, Role.coach, _LINKS_LAST, audience=_AUDIENCE)})
    links = {"coach": (f"{COACH.name}, a coach", f"/pages/coach.html#{coach}")}
    for person in PEOPLE[:2]:
        user = urlencode({"access_token": sign(secret, person.id, Role.user, _LINKS_LAST, audience=_AUDIENCE)})
        links[person.name.split()[0].lower()] = (f"{person.name}, a user", f"/pages/user.html#{user}")
    return links


def _supabase_link(url: str, links: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Return the address of the page with Supabase's client, for the first user."""
    who, page = links[PEOPLE[0].name.split()[0].lower()]
    token = page.partition("#")[2]
    return (
        f"{who}, with Supabase's client: start examples/supabase first",
        f"{_SUPABASE_PAGE}#{token}&{urlencode({'url': url})}",
    )


def _add_links(api: FastAPI, links: Mapping[str, tuple[str, str]]) -> None:
    """Add short addresses of the demo's people. They hand out tokens to anybody on this machine, of the demo only."""

    async def follow(name: str) -> Response:
        if name not in links:
            return RedirectResponse("/")
        return RedirectResponse(links[name][1], headers={"Cache-Control": "no-store"})

    api.add_api_route("/demo/{name}", follow, include_in_schema=False)


def _add_receipts(api: FastAPI, conninfo: str) -> None:
    """Add the page that shows which devices have which notification."""

    async def page() -> Response:
        people = [person.id for person in PEOPLE[:2]]
        return HTMLResponse(await asyncio.to_thread(receipts_page, conninfo, people))

    # Before the short addresses, which take any name.
    api.router.routes.insert(0, APIRoute("/demo/receipts", page, include_in_schema=False))


def _welcome(url: str, links: Mapping[str, tuple[str, str]], conninfo: str) -> str:
    """Return the text that the terminal shows."""
    lines = ["", "Momentum Sync is running. Open these pages side by side:", ""]
    lines += [f"  {url}/demo/{name:<8} {who}" for name, (who, _) in links.items()]
    lines += [f"  {url}/demo/receipts which devices have received which notification"]
    lines += [
        "",
        "Change something yourself, with any PostgreSQL client:",
        "",
        f'  psql "{conninfo}"',
        f"  {_TRY_THIS.format(PEOPLE[0].id)}",
        "",
        "Ctrl-C stops the demo; its data is kept.",
        "",
    ]
    return "\n".join(lines)

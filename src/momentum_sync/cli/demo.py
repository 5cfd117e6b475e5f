"""`momentum-sync demo`: all of it at once, with something to see."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer
import uvloop
from pydantic import SecretStr

from momentum_sync import app, observe
from momentum_sync.cli import explained
from momentum_sync.cli.token import Role, sign
from momentum_sync.demo.world import COACH, PEOPLE, live
from momentum_sync.settings import Settings, read
from momentum_sync.tasks import end

_LINKS_LAST = timedelta(days=7)
_AUDIENCE = "authenticated"
_TRY_THIS = (
    "update daily_engagement_scores set final_score = 90, momentum_state = 'Rising'"
    " where score_date = current_date and user_id = '{}';"
)


def demo(
    port: Annotated[int | None, typer.Option(help="0: any that is free. [env: MOMENTUM_PORT; 8787]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Holds the demo's own Postgres, in `demo`. [env: MOMENTUM_DATA_DIR]")
    ] = None,
    pace: Annotated[float, typer.Option(min=0.01, help="Seconds between two changes.")] = 0.7,
    log_level: Annotated[str | None, typer.Option(help="[env: MOMENTUM_LOG_LEVEL; WARNING here]")] = "WARNING",
) -> None:
    """Start a Postgres, the server and a small world that keeps changing; print links to look at it.

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
                "jwt_secret": SecretStr(app.development_secret(home)),
                "anon_key": None,
                "service_role_key": None,
                "slot": "momentum_sync",
                "jwt_audience": _AUDIENCE,
            }
        )
        observe.configure(level=settings.log_level)
        print("Starting PostgreSQL; the first time takes a few seconds …", file=sys.stderr, flush=True)
        with app.database(settings, again=True) as conninfo:
            uvloop.run(_demo(settings, conninfo, pace, app.development_secret(home)))
    print("Stopped.", file=sys.stderr)


async def _demo(settings: Settings, conninfo: str, pace: float, secret: str) -> None:
    with app.stopped_by_signals() as stopped:
        async with app.server(settings, conninfo, stopped=stopped) as running:
            world = asyncio.ensure_future(live(conninfo, pace=pace))
            world.add_done_callback(lambda _: stopped.set())
            welcome = asyncio.ensure_future(_greet(running, _welcome(running.url, secret, conninfo)))
            try:
                await stopped.wait()
            finally:
                await end(world, welcome)
                for task in (world, welcome):
                    if not task.cancelled():
                        task.result()


async def _greet(running: app.Running, text: str) -> None:
    await running.live.wait()
    print(text, flush=True)


def _welcome(url: str, secret: str, conninfo: str) -> str:
    """What the terminal shows: links that open as they are. Tokens stand behind `#`, which browsers send to nobody."""
    lines = ["", "Momentum Sync runs. Open, side by side:", ""]
    coach = urlencode(
        [
            ("access_token", sign(secret, COACH.id, Role.coach, _LINKS_LAST, audience=_AUDIENCE)),
            ("name", COACH.name),
            *(("person", f"{person.id} {person.name}") for person in PEOPLE),
        ]
    )
    lines += [f"  {COACH.name}, a coach", f"  {url}/pages/coach.html#{coach}", ""]
    for person in PEOPLE[:2]:
        user = urlencode(
            [
                ("access_token", sign(secret, person.id, Role.user, _LINKS_LAST, audience=_AUDIENCE)),
                ("user_id", str(person.id)),
                ("name", person.name),
            ]
        )
        lines += [f"  {person.name}, a user", f"  {url}/pages/user.html#{user}", ""]
    lines += [
        "Change something yourself, with any client of PostgreSQL:",
        "",
        f'  psql "{conninfo}"',
        f"  {_TRY_THIS.format(PEOPLE[0].id)}",
        "",
        "Ctrl-C ends it; the data stay.",
        "",
    ]
    return "\n".join(lines)

"""The examples in the SDK's docstrings, run as they are printed."""

from __future__ import annotations

import asyncio
import functools
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from momentum_sync import Client
from momentum_sync.sdk.cache import Cache
from tests.fixtures.postgres import Sql, add_notification, add_score
from tests.fixtures.server import Server, sign
from tests.sdk.drivers import missing

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 20.0


def public(kind: type) -> list[tuple[str, Callable[..., Any]]]:
    """Return the public methods of a class, with the class itself."""
    methods = [(name, member) for name, member in vars(kind).items() if inspect.isfunction(member) and name[0] != "_"]
    return [(kind.__name__, kind), *((f"{kind.__name__}.{name}", member) for name, member in methods)]


DOCUMENTED = public(Client)
EXAMPLES = [each for each in [*public(Client), *public(Cache)] if "Example:" in (inspect.getdoc(each[1]) or "")]


class Shown(Exception):
    """Raised when an example prints something, to end an endless loop."""


@pytest.mark.parametrize(("name", "member"), DOCUMENTED, ids=[name for name, _ in DOCUMENTED])
def test_a_public_name_is_documented(name: str, member: Callable[..., Any]) -> None:
    text = inspect.getdoc(member) or ""
    assert "Example:" in text
    if name != "Client":
        parameters = [each for each in inspect.signature(member).parameters if each != "self"]
        assert "Args:" in text or not parameters, f"{name} takes {parameters}"


def example(text: str) -> str:
    """Return the code of a docstring's example."""
    return textwrap.dedent(text.split("Example:\n")[1].split("\n\n")[0])


@pytest.mark.parametrize(("name", "member"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
async def test_an_example_runs(name: str, member: Callable[..., Any], server: Server, db: Sql, user: UUID) -> None:
    add_score(db, user)
    add_notification(db, user)
    code = example(inspect.getdoc(member) or "")

    def show(*_: object) -> None:
        raise Shown

    async def profile() -> dict[str, str]:
        return {"name": "A"}

    async with asyncio.timeout(TIMEOUT_S), Client(server.url, sign(user)) as client:
        await client.wait_until_live()
        names = {
            "Client": lambda _, token: Client(server.url, token),
            "client": client,
            "event": None,
            "fresh_token": functools.partial(sign, user),
            "load_profile": profile,
            "print": show,
            "user_id": str(user),
        }
        if name == "Client.ack":
            add_notification(db, user)
            names["event"] = await anext(client.events())
        if "interventions:coaches" in code:
            names["client"] = await coaching_client(server, user, client)
        body = textwrap.indent(code, "        ")
        source = f"async def run():\n    for _ in range(1):\n{body}\n"
        exec(compile(source, f"example of {name}", "exec"), names)
        running = asyncio.ensure_future(names["run"]())  # type: ignore[operator]
        if "async for" in code:
            while not running.done():
                db.execute("update daily_engagement_scores set final_score = 100 - final_score")
                await asyncio.wait([running], timeout=0.1)
            with pytest.raises(Shown):
                await running
        else:
            await running
        if isinstance(other := names["client"], Client) and other is not client:
            await other.close()


async def coaching_client(server: Server, user: UUID, client: Client) -> Client:
    """Return a live client that may have the coaches' channel."""
    await client.close()
    coach = Client(server.url, sign(user, app_role="coach"))
    await coach.start()
    await coach.wait_until_live()
    return coach


@pytest.mark.skipif(missing("node") is not None, reason=str(missing("node")))
def test_the_example_is_clean_for_pyright_too() -> None:
    pyright = ROOT / "clients" / "js" / "node_modules" / ".bin" / "pyright"
    done = subprocess.run(
        [pyright, "--pythonpath", sys.executable, "examples/follow.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout

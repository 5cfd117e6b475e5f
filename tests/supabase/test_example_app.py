"""examples/supabase/app.mjs: the momentum app's use of Supabase's client, on a running server."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.fixtures.postgres import Sql, add_intervention, add_score
from tests.fixtures.server import SERVICE_KEY, TIMEOUT_S, Server, sign
from tests.sdk.drivers import NODE
from tests.supabase.programs import CLIENTS, missing

EXAMPLE = Path(__file__).parents[2] / "examples" / "supabase"

pytestmark = pytest.mark.skipif(missing("node-2026") is not None, reason=str(missing("node-2026")))


class App:
    """The example under one of its roles. Its lines are read as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def until(self, wanted: str) -> None:
        """Read until a line begins with a text."""
        assert self.process.stdout is not None
        said = []
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                line = (await self.process.stdout.readline()).decode()
                said.append(line)
                assert line, said
                if line.startswith(wanted):
                    return


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the example's folder with supabase-js as the tests have installed it, in place of `npm install`."""
    (tmp_path / "node_modules" / "@supabase").mkdir(parents=True)
    (tmp_path / "node_modules" / "@supabase" / "supabase-js").symlink_to(CLIENTS / "node_modules" / "supabase-2026")
    (tmp_path / "node_modules" / "ws").symlink_to(CLIENTS / "node_modules" / "ws")
    (tmp_path / "app.mjs").write_text((EXAMPLE / "app.mjs").read_text())
    return tmp_path


@asynccontextmanager
async def app(folder: Path, server: Server, *arguments: str, **environment: str) -> AsyncIterator[App]:
    assert NODE is not None
    process = await asyncio.create_subprocess_exec(
        NODE, "app.mjs", *arguments, cwd=folder, stdout=subprocess.PIPE,
        env={**os.environ, "MOMENTUM_URL": server.url, **environment},
    )  # fmt: skip
    try:
        yield App(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_the_momentum_app(folder: Path, server: Server, db: Sql, user: UUID, other: UUID) -> None:
    db.execute((EXAMPLE / "channels.sql").read_bytes())
    coach = uuid4()
    db.execute("insert into auth.users (id) values (%s)", (coach,))
    score = add_score(db, user, "Steady", 50)
    others = add_score(db, other, "Steady", 50)
    first = {"ACCESS_TOKEN": sign(coach, app_role="coach")}
    async with (
        app(folder, server, "user", ACCESS_TOKEN=sign(user)) as phone,
        app(folder, server, "coach", "Ada", **first) as dashboard,
    ):
        await phone.until("status realtime:my-score SUBSCRIBED")
        await phone.until(f"status realtime:momentum_updates:{user} SUBSCRIBED")
        await dashboard.until("coaches Ada")
        change = "update public.daily_engagement_scores set momentum_state = 'Rising', final_score = 80 where id = %s"
        db.execute(change, (others,))
        db.execute(change, (score,))
        await phone.until("score UPDATE 80 Rising")
        await phone.until('message state_changed {"id":')
        async with app(folder, server, "remind", str(user), "Drink water", SERVICE_ROLE_KEY=SERVICE_KEY) as edge:
            assert await asyncio.wait_for(edge.process.wait(), TIMEOUT_S) == 0
        await phone.until('message reminder {"text":"Drink water"}')
        add_intervention(db, user, coach=coach)
        await dashboard.until("intervention INSERT")
        async with app(folder, server, "coach", "Grace", **first):
            await dashboard.until("coaches Ada, Grace")
        await dashboard.until("coaches Ada")
    async with app(folder, server, "coach", ACCESS_TOKEN=sign(user)) as stranger:
        await stranger.until("status realtime:coaches CHANNEL_ERROR")

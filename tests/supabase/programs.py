"""The clients: Python and supabase-js in Node and in a real Chromium, each in its newest version and one a year old."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.browser.chromium import HEADLESS
from tests.sdk.drivers import NODE, Chromium, Program, chromium

CLIENTS = Path(__file__).parent / "clients"
NAMES = [f"{kind}-{year}" for kind in ("python", "node", "chromium") for year in (2026, 2025)]


def missing(name: str) -> str | None:
    """Return why a client cannot be tested on this machine; None if it can, and in CI, where it must."""
    if "CI" in os.environ:
        return None
    kind, _, year = name.partition("-")
    if kind == "python":
        there = (CLIENTS / f"python-{year}").is_dir()
    else:
        there = NODE is not None and (CLIENTS / "node_modules" / f"supabase-{year}").is_dir()
    if not there:
        return f"{name} is not installed (script/test installs it, where there is npm)"
    return "no Chromium on this machine" if kind == "chromium" and HEADLESS is None else None


@asynccontextmanager
async def program(name: str) -> AsyncIterator[Program | Chromium]:
    """Yield a client by its name, such as `node-2026`."""
    kind, _, year = name.partition("-")
    if kind == "python":
        # Its dependencies stand before those of the tests, which have other versions.
        yield Program(
            sys.executable, "-m", "tests.supabase.python_driver", env={"PYTHONPATH": str(CLIENTS / f"python-{year}")}
        )
    elif kind == "node":
        assert NODE is not None
        yield Program(NODE, str(CLIENTS / "driver_node.js"), f"supabase-{year}")
    else:
        async with chromium(CLIENTS, f"driver.html?version=supabase-{year}") as (browser, _):
            yield browser

"""The SDKs, each in a program that takes commands: Python, Node, and a page in a real Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from playwright.async_api import BrowserContext, Page

from tests.browser.chromium import HEADLESS, PLAYWRIGHT

ROOT = Path(__file__).parents[2]
JAVASCRIPT = ROOT / "clients" / "js"
NODE = shutil.which("node")
TIMEOUT_S = 20.0

Happened = dict[str, Any]


class Driver:
    """One run of a program with an SDK. `seen` has its output in order, unless `hear` takes it."""

    def __init__(self, tell: Callable[[str], Any], hear: Callable[[Happened], None] | None = None) -> None:
        self._tell = tell
        self._hear = hear
        self.seen: list[Happened] = []
        self._read = 0
        self._more = asyncio.Condition()

    async def happened(self, text: str) -> None:
        """Record an output of the program."""
        async with self._more:
            one = json.loads(text)
            if self._hear is not None:
                self._hear(one)
            else:
                self.seen.append(one)
            self._more.notify_all()

    async def do(self, what: str, **more: Any) -> None:
        """Send the program a command."""
        await self._tell(json.dumps({"do": what, **more}))

    async def until(self, wanted: Callable[[Happened], Any]) -> Happened:
        """Return the next output that satisfies a condition, after those awaited before."""
        try:
            async with asyncio.timeout(TIMEOUT_S), self._more:
                while True:
                    while self._read < len(self.seen):
                        one = self.seen[self._read]
                        self._read += 1
                        assert "failed" not in one, one
                        if wanted(one):
                            return one
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError("it did not come; at last came\n  " + "\n  ".join(map(str, self.seen[-20:]))) from None

    async def come(self, what: Callable[[], Any], expected: object) -> None:
        """Wait until the output equals the expected value. The state may be ahead of the events."""
        try:
            async with asyncio.timeout(TIMEOUT_S), self._more:
                await self._more.wait_for(lambda: what() == expected)
        except TimeoutError:
            assert what() == expected, "at last came\n  " + "\n  ".join(map(str, self.seen[-20:]))

    async def state(self, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Return the next state that satisfies a condition; the latest one counts, if it does."""
        for one in reversed(self.seen):
            if "state" in one:
                if wanted(one["state"]):
                    return dict(one["state"])
                break
        return dict((await self.until(lambda one: "state" in one and wanted(one["state"])))["state"])

    async def live(self) -> dict[str, Any]:
        """Wait until it is live."""
        return await self.state(lambda state: state["status"] == "live")

    def all(self, name: str) -> list[Any]:
        """Return all outputs under a name."""
        return [one[name] for one in self.seen if name in one]


class Sdk(Protocol):
    """Starts a program repeatedly; its store stays."""

    def start(self) -> Any:
        """Run the program once: `async with sdk.start() as driver`; it is killed at the end."""

    def store(self, folder: Path) -> str:
        """Return the program's name for its store."""


class Program:
    """A process, with more in its environment if need be."""

    def __init__(self, *command: str, env: dict[str, str] | None = None) -> None:
        self._command = command
        self._env = {**os.environ, **(env or {})}

    def store(self, folder: Path) -> str:
        return str(folder / "kept" / "client.json")

    @asynccontextmanager
    async def start(self, hear: Callable[[Happened], None] | None = None) -> AsyncIterator[Driver]:
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT, limit=2**22,
            env=self._env,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        async def tell(text: str) -> None:
            stdin.write(text.encode() + b"\n")
            await stdin.drain()

        driver = Driver(tell, hear)

        async def read() -> None:
            async for line in stdout:
                await driver.happened(line.decode())

        reading = asyncio.ensure_future(read())
        try:
            yield driver
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading


class Chromium:
    """A page. Its origin differs from the server's, like that of an app."""

    def __init__(self, context: BrowserContext, origin: str, page: str) -> None:
        self._context = context
        self._origin = origin
        self._page = page

    def store(self, folder: Path) -> str:
        return "client"

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Driver]:
        page = await PLAYWRIGHT.do(self._context.new_page())
        driver = Driver(partial(_command, page))
        ours = asyncio.get_running_loop()

        async def happened(text: str) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(driver.happened(text), ours))

        page.on("pageerror", lambda error: driver.seen.append({"failed": str(error)}))
        try:
            await PLAYWRIGHT.do(page.expose_function("happened", happened))
            await PLAYWRIGHT.do(page.goto(f"{self._origin}/{self._page}"))
            await PLAYWRIGHT.do(page.wait_for_function("() => window.command !== undefined"))
            yield driver
        finally:
            await PLAYWRIGHT.do(page.close())


async def _command(page: Page, text: str) -> None:
    await PLAYWRIGHT.do(page.evaluate("(text) => void window.command(JSON.parse(text))", text))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@asynccontextmanager
async def chromium(folder: Path = JAVASCRIPT, page: str = "test/driver.html") -> AsyncIterator[tuple[Chromium, str]]:
    """Yield a browser of its own, as its cookies and storage go, with a page of a folder, and the pages' origin."""
    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=files.serve_forever, daemon=True)
    thread.start()
    origin = f"http://127.0.0.1:{files.server_address[1]}"
    try:
        context = await PLAYWRIGHT.new_context()
        try:
            yield Chromium(context, origin, page), origin
        finally:
            await PLAYWRIGHT.do(context.close())
    finally:
        files.shutdown()
        files.server_close()
        thread.join()


def python() -> Program:
    """Yield the Python SDK."""
    return Program(sys.executable, "-m", "tests.sdk.python_driver")


def node() -> Program:
    """Yield the JavaScript SDK in Node."""
    assert NODE is not None
    return Program(NODE, str(JAVASCRIPT / "test" / "driver_node.js"))


def missing(name: str) -> str | None:
    """Return why an SDK cannot be tested on this machine; None if it can, and in CI, where it must."""
    if "CI" in os.environ:
        return None
    if name == "node" and (NODE is None or not (JAVASCRIPT / "node_modules").is_dir()):
        return "no Node with its packages on this machine (script/test installs them where there is npm)"
    if name == "chromium" and HEADLESS is None:
        return "no Chromium on this machine"
    return None

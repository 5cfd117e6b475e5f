"""Starting the browser."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# The same engine without windows, whose interface takes ten times as much of the processor as the page of a test.
HEADLESS = shutil.which("chromium-headless-shell") or CHROMIUM
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
_START_S = 30.0
_STOP_S = 10.0
_Result = TypeVar("_Result")


class Shared:
    """One Chromium for all tests of this process that ask for it: starting it costs more than most of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""

    def endpoint(self) -> str:
        """Return the URL at which it is controlled. Start it if need be."""
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._start()
        port, path = (Path(self._folder) / "DevToolsActivePort").read_text(encoding="utf-8").split()
        return f"ws://127.0.0.1:{port}{path}"

    def _start(self) -> None:
        assert HEADLESS is not None
        self._folder = tempfile.mkdtemp(prefix="momentum-chromium-")
        options = ["--headless", "--no-startup-window", "--remote-debugging-port=0", f"--user-data-dir={self._folder}"]
        self._process = subprocess.Popen(
            [HEADLESS, *options, *FLAGS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        written, ends_at = Path(self._folder) / "DevToolsActivePort", time.monotonic() + _START_S
        while not written.is_file() or len(written.read_text(encoding="utf-8").split()) < 2:
            assert self._process.poll() is None, "Chromium has ended"
            assert time.monotonic() < ends_at, "Chromium does not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
            shutil.rmtree(self._folder, ignore_errors=True)


class SharedPlaywright:
    """Playwright's program, started once. It belongs to one event loop, which tests do not share: that of a thread."""

    def __init__(self, chromium: Shared) -> None:
        self._chromium = chromium
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = asyncio.Lock()
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None

    async def do(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Await Playwright's work in the event loop that it belongs to."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def new_context(self) -> BrowserContext:
        """Return a context of the shared browser, with no cookies and no storage yet."""
        return await self.do(self._new_context())

    async def _new_context(self) -> BrowserContext:
        from playwright.async_api import async_playwright  # `script/test --fast` does without

        async with self._starting:
            if self._playwright is None:
                self._playwright = await async_playwright().start()
            if self._browser is None or not self._browser.is_connected():
                self._browser = await self._playwright.chromium.connect_over_cdp(self._chromium.endpoint())
            browser = self._browser
        return await browser.new_context()

    def stop(self) -> None:
        """End it, if it runs."""
        if self._loop is None or self._thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_STOP_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_S)

    async def _stop(self) -> None:
        if self._playwright is not None:
            await self._playwright.stop()


SHARED = Shared()
PLAYWRIGHT = SharedPlaywright(SHARED)

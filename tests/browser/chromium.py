"""Starting the browser."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
_START_S = 30.0


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
        assert CHROMIUM is not None
        self._folder = tempfile.mkdtemp(prefix="momentum-chromium-")
        options = ["--headless", "--no-startup-window", "--remote-debugging-port=0", f"--user-data-dir={self._folder}"]
        self._process = subprocess.Popen(
            [CHROMIUM, *options, *FLAGS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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


SHARED = Shared()

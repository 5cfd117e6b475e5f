"""examples/react.jsx in React, in a real Chromium, on a page of another origin."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.chromium import FLAGS, HEADLESS
from tests.fixtures.demo import Demo
from tests.sdk.drivers import JAVASCRIPT, missing

ROOT = Path(__file__).parents[2]
# In development, StrictMode mounts every component twice.
ENTRY = """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Momentum } from "./examples/react.jsx";

const { url, token } = window.given;
const root = createRoot(document.querySelector("main"));
const freshToken = () => token;
window.show = () => root.render(<StrictMode><Momentum url={url} freshToken={freshToken} /></StrictMode>);
window.hide = () => root.render(null);
window.show();
"""
AMARA = "(select id from auth.users where email = 'amara@demo.invalid')"

pytestmark = [
    pytest.mark.skipif(
        HEADLESS is None and "CI" not in os.environ, reason="no Chromium on this machine; React was not tried"
    ),
    pytest.mark.skipif(missing("node") is not None, reason=str(missing("node"))),
]


@pytest.fixture(scope="module")
def bundle() -> str:
    """Return the example with React, as one script."""
    modules = JAVASCRIPT / "node_modules"
    done = subprocess.run(
        [modules / ".bin" / "esbuild", "--bundle", "--loader=jsx", "--jsx=automatic", "--log-level=warning",
         f"--alias:momentum-sync={JAVASCRIPT / 'src' / 'index.js'}", '--define:process.env.NODE_ENV="development"'],
        input=ENTRY, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
        env={**os.environ, "NODE_PATH": str(modules)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def origin() -> Iterator[str]:
    """Return the address of an empty page on an origin of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<!doctype html><link rel=icon href=data:,><main></main>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://localhost:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(demo: Demo, bundle: str, origin: str) -> Iterator[Page]:
    """Return a page that shows the example, and that may log no error."""
    link = urlsplit(demo.links[1])
    given = {"url": f"http://{link.netloc}", "token": parse_qs(link.fragment)["access_token"][0]}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=HEADLESS, args=FLAGS)
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.goto(origin)
        page.evaluate("given => { window.given = given; }", given)
        page.add_script_tag(content=bundle)
        yield page
        browser.close()
    assert complaints == []


def write(demo: Demo, statement: str, *parameters: object) -> None:
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        connection.execute(statement.encode(), parameters)


def score(demo: Demo, value: float) -> None:
    write(
        demo,
        "update daily_engagement_scores set final_score = %s, momentum_state = 'Rising'"
        f" where score_date = current_date and user_id = {AMARA}",
        value,
    )


def test_a_component_follows_its_user_through_strict_mode_and_a_second_mount(demo: Demo, page: Page) -> None:
    write(demo, "delete from momentum_notifications")
    expect(page.locator("section")).to_have_attribute("aria-busy", "false", timeout=20_000)
    score(demo, 81.5)
    expect(page.get_by_text("81.5 Rising")).to_be_visible()
    page.evaluate("window.hide()")
    expect(page.locator("section")).to_have_count(0)
    score(demo, 82.5)
    page.evaluate("window.show()")
    expect(page.get_by_text("82.5 Rising")).to_be_visible(timeout=20_000)
    write(
        demo,
        "insert into momentum_notifications"
        " (user_id, notification_type, trigger_date, title, message, action_type, status)"
        f" values ({AMARA}, 'celebration', current_date, 'Well done', 'Keep it up', 'none', 'sent')",
    )
    page.get_by_role("button", name="Read").click()
    expect(page.locator("li")).to_have_count(0)

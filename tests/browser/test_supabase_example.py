"""examples/supabase in a real Chromium, with supabase-js from npm, on the demo."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from playwright.sync_api import Page, Route, expect, sync_playwright

from tests.browser.chromium import FLAGS, HEADLESS
from tests.fixtures.demo import Demo, start
from tests.supabase.programs import CLIENTS, missing

EXAMPLE = Path(__file__).parents[2] / "examples" / "supabase"
AMARA = "(select id from auth.users where email = 'amara@demo.invalid')"

pytestmark = [
    pytest.mark.skipif(HEADLESS is None and "CI" not in os.environ, reason="no Chromium on this machine"),
    pytest.mark.skipif(missing("node-2026") is not None, reason=str(missing("node-2026"))),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def page(demo: Demo) -> Iterator[Page]:
    """Return the example's page, opened by the demo's link. supabase-js is the one that the tests have installed."""

    def module(route: Route) -> None:
        name = urlsplit(route.request.url).path.partition("@supabase/supabase-js/")[2]
        route.fulfill(path=CLIENTS / "node_modules" / "supabase-2026" / name)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=EXAMPLE)) as server, sync_playwright() as play:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        browser = play.chromium.launch(executable_path=HEADLESS, args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 700})
        page.route("**/node_modules/**", module)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        link = urlsplit(demo.links[-1])
        assert link.netloc == "127.0.0.1:8080"
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/#{link.fragment}")
        yield page
        browser.close()
        server.shutdown()
        assert complaints == []


def score(demo: Demo, value: float) -> None:
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        connection.execute(
            "update daily_engagement_scores set final_score = %s, momentum_state = 'Rising'"
            f" where score_date = current_date and user_id = {AMARA}".encode(),
            (value,),
        )


def today(demo: Demo) -> str:
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        row = connection.execute("select current_date::text").fetchone()
    assert row is not None
    return str(row[0])


def test_a_page_with_supabases_client_shows_changes_and_survives_a_restart(demo: Demo, page: Page) -> None:
    expect(page.locator("#status")).to_have_text("SUBSCRIBED", timeout=20_000)
    assert "access_token" not in page.url
    score(demo, 81.5)
    expect(page.locator("#score")).to_have_text("81.5 Rising")
    port = urlsplit(demo.links[0]).port
    assert port is not None
    demo.process.kill()
    demo.process.communicate()
    again = start(demo.folder, port)
    try:
        expect(page.locator("#notice")).to_contain_text("Resumed", timeout=30_000)
        score(demo, 82.5)
        expect(page.locator("#score")).to_have_text("82.5 Rising")
        assert page.locator("#changes li").first.text_content() == f"UPDATE {today(demo)} 82.5 Rising"
    finally:
        again.process.kill()
        again.process.communicate()

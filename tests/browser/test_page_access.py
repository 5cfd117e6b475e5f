"""The pages on their first view: tokens, screens, accessibility, permissions. One demo serves all of these."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.chromium import HEADLESS
from tests.browser.data import notify
from tests.fixtures.demo import Demo, running
from tests.sdk.drivers import JAVASCRIPT, missing

pytestmark = pytest.mark.skipif(
    HEADLESS is None and "CI" not in os.environ, reason="no Chromium on this machine; the pages were not looked at"
)
AXE = JAVASCRIPT / "node_modules" / "axe-core" / "axe.min.js"
PHONE = {"width": 360, "height": 780}
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running() as demo:
        yield demo


@pytest.mark.skipif(missing("node") is not None, reason=str(missing("node")))
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("link", [0, 1], ids=["coach", "user"])
def test_by_screen_reader_in_any_light_and_on_any_screen(
    demo: Demo, browser: Browser, link: int, viewport: Any, scheme: Any
) -> None:
    """The pages pass axe-core's rules for WCAG 2.2 AA and do not scroll sideways."""
    notify(demo, "Read me")
    page = browser.new_page(viewport=viewport, color_scheme=scheme)
    page.goto(demo.links[link])
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.locator("figure svg")).to_be_visible()
    if link == 0:
        page.locator("[data-person]").first.click()
        expect(page.locator("#detail-trend svg")).to_be_visible()
        check_accessible(page)
        page.keyboard.press("Escape")
    check_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def check_accessible(page: Page) -> None:
    page.evaluate(AXE.read_text(encoding="utf-8"))
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("(tags) => axe.run(document, { runOnly: tags })", tags)
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []


def test_a_page_without_a_token_asks_for_one(demo: Demo, context: BrowserContext) -> None:
    page = context.new_page()
    address, given = demo.links[1].split("#")
    page.goto(address)
    expect(page.get_by_role("status")).to_have_text("not signed in")
    token = dict(part.split("=", 1) for part in given.split("&"))["access_token"]
    page.get_by_label("Your token").fill(token)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("status")).to_have_text("live")


def test_a_page_with_a_wrong_token_says_so(demo: Demo, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(demo.links[1].split("#")[0] + "#access_token=x.y.z")
    expect(page.get_by_role("status")).to_have_text("signed out")
    expect(page.get_by_role("alert")).to_contain_text("rejected the token")
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.get_by_label("Your token")).to_be_visible()


def test_a_token_that_has_expired_signs_out(demo: Demo, browser: Browser) -> None:
    page = browser.new_page()
    address, given = demo.links[1].split("#")
    token = given.removeprefix("access_token=")
    claims = jwt.decode(token, options={"verify_signature": False})
    secret = next(demo.folder.rglob("development.secret")).read_text().strip()
    past = {**claims, "iat": int(time.time()) - 7200, "exp": int(time.time()) - 3600}
    page.goto(f"{address}#access_token={jwt.encode(past, secret, algorithm='HS256')}")
    expect(page.get_by_role("status")).to_have_text("signed out")
    expect(page.get_by_role("alert")).to_contain_text("the token has expired")
    assert "kept" not in page.locator("body").inner_text()
    page.get_by_label("Your token").fill(token)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("status")).to_have_text("live")


def test_a_users_token_on_the_coachs_page_says_so(demo: Demo, page: Page) -> None:
    coach, user = (link.split("#") for link in demo.links[:2])
    page.goto(f"{coach[0]}#{user[1]}")
    expect(page.get_by_role("status")).to_have_text("signed out")
    expect(page.get_by_role("alert")).to_contain_text("This page requires the role coach or admin")


def test_the_token_is_nowhere_that_outlives_the_tab(demo: Demo, page: Page) -> None:
    page.goto(demo.links[1])
    expect(page.get_by_role("status")).to_have_text("live")
    page.evaluate("() => navigator.serviceWorker.ready")
    page.reload()
    expect(page.get_by_role("status")).to_have_text("live")
    assert "#" not in page.url
    token = demo.links[1].split("access_token=")[1]
    kept = page.evaluate(
        "async () => { const [name] = await caches.keys(); const keys = await (await caches.open(name)).keys();"
        " return JSON.stringify([keys.map((one) => one.url), { ...localStorage }, document.cookie]); }"
    )
    assert token.split(".")[1] not in kept
    assert "user.html" in kept


def test_the_queue_can_be_read_on_a_phone(demo: Demo, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": PHONE["width"], "height": PHONE["height"]})
    page.goto(demo.links[0])
    expect(page.locator("#queue tr").first.locator("td[data-what=Reason]")).to_be_visible()
    box = page.evaluate("document.querySelector('#queue td[data-what=Reason]').getBoundingClientRect().toJSON()")
    assert box["x"] >= 0
    assert box["width"] > 0
    assert box["x"] + box["width"] <= PHONE["width"]


def test_what_the_pages_may_do(demo: Demo) -> None:
    """The pages may use their own scripts and styles and this server, nothing else."""
    root = demo.links[0].split("#")[0].removesuffix("coach.html")
    for path in ("coach.html", "user.js", "sdk/index.js"):
        headers = httpx.get(root + path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in json.dumps(policy)
        assert headers["x-content-type-options"] == "nosniff"
    assert httpx.get(root + "coach.html").status_code == 200
    assert httpx.get(root + "nothing-there").status_code == 404
    for outside in ("%2e%2e/pages.py", "..%2fpages.py", "%2e%2e%2fpages.py", "sdk/%2e%2e/%2e%2e/package.json"):
        assert httpx.get(root + outside).status_code == 404

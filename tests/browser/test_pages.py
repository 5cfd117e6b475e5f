"""The pages in a real Chromium, by the actions and observations of a person. Skipped with a reason without Chromium."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.chromium import CHROMIUM, FLAGS
from tests.fixtures.demo import Demo, start
from tests.sdk.drivers import JAVASCRIPT, missing

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on this machine; the pages were not looked at"
)
AXE = JAVASCRIPT / "node_modules" / "axe-core" / "axe.min.js"
expect.set_options(timeout=20_000)  # the machine may be busy
PHONE = {"width": 360, "height": 780}
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser, demo: Demo) -> Iterator[BrowserContext]:
    """Yield a browser context; its pages must log no error and contact no other server."""
    context = browser.new_context(locale="en-GB", timezone_id="UTC")
    complaints: list[str] = []
    hosts: set[str] = set()
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    context.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    yield context
    gone = ("ERR_CONNECTION_REFUSED", "Unexpected response code: 503")  # the server may be away or starting
    assert [text for text in complaints if not text.endswith(gone)] == []
    assert hosts == {urlsplit(demo.links[0]).netloc}


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def sql(demo: Demo, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        cursor = connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


AMARA = "(select id from auth.users where email = 'amara@demo.invalid')"
TODAYS = "update daily_engagement_scores set final_score = %s, momentum_state = %s where score_date = current_date"


def notify(demo: Demo, title: str) -> None:
    sql(
        demo,
        "insert into momentum_notifications"
        " (user_id, notification_type, trigger_date, title, message, action_type, status)"
        f" values ({AMARA}, 'celebration', current_date, %s, 'Keep it up', 'none', 'sent')",
        title,
    )


def until_read(page: Page, conninfo: str, title: str) -> None:
    """Wait until a notification is opened in the database; the page shows it as read before."""
    ends_at = time.monotonic() + 20
    with psycopg.connect(conninfo, autocommit=True) as connection:
        while True:
            rows = connection.execute("select title from momentum_notifications where status = 'opened'").fetchall()
            if rows == [(title,)] or time.monotonic() > ends_at:
                assert rows == [(title,)]
                return
            page.wait_for_timeout(50)


def test_a_user_sees_momentum_change_and_reads_what_there_is_to_read(demo: Demo, page: Page) -> None:
    sql(demo, "delete from momentum_notifications")
    page.goto(demo.links[1])
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_role("heading", name="Amara’s momentum")).to_be_visible()
    sql(demo, f"{TODAYS} and user_id = {AMARA}", 81.5, "Rising")
    expect(page.get_by_role("img", name="Momentum 81.5 of 100: Rising")).to_be_visible()
    expect(page.locator("#state")).to_have_text("▲ Rising")
    # The history is read again, because the epoch has changed.
    page.get_by_text("Show as a table").click()
    expect(page.locator("#trend tbody tr")).to_have_count(30)
    expect(page.locator("#trend tbody tr").first).to_contain_text("81.5")
    sql(demo, f"{TODAYS} and user_id = {AMARA}", 21, "NeedsCare")
    expect(page.locator("#trend tbody tr").first).to_contain_text("21Needs care")
    expect(page.locator("#breakdown dt")).to_have_count(2)
    for title in ("One", "Two"):
        notify(demo, title)
    expect(page.locator("#unread")).to_have_text("2")
    page.get_by_role("button", name="Mark as read: One").click()
    expect(page.locator("#unread")).to_have_text("1")
    expect(page.locator("#notifications")).not_to_contain_text("One")
    expect(page.locator("#to-send")).to_be_empty()
    until_read(page, demo.conninfo, "One")
    sql(
        demo,
        "insert into coach_interventions (user_id, intervention_type, trigger_date, trigger_reason)"
        f" values ({AMARA}, 'check_in', current_date, '<b>fell</b>')",
    )
    expect(page.locator("#interventions")).to_contain_text("<b>fell</b>")


def test_without_a_connection_the_page_opens_and_keeps_what_is_done(demo: Demo, page: Page) -> None:
    sql(demo, "delete from momentum_notifications")
    notify(demo, "Read me")
    page.goto(demo.links[1])
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_role("button", name="Mark as read: Read me")).to_be_visible()
    sql(demo, f"{TODAYS} and user_id = {AMARA}", 64.5, "Steady")
    expect(page.get_by_role("img", name="Momentum 64.5 of 100: Steady")).to_be_visible()
    page.wait_for_function("() => navigator.serviceWorker.controller !== null")
    page.reload()  # now the service worker has cached the page
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.locator("#trend svg")).to_be_visible()
    port = int(urlsplit(demo.links[1]).netloc.rsplit(":", 1)[1])
    demo.process.kill()
    demo.process.communicate()
    expect(page.get_by_role("status")).to_have_text(re.compile(r"offline since \d+ \w+ \d{4}"))
    page.reload()
    expect(page.get_by_role("status")).to_have_text(re.compile(r"offline since \d+ \w+ \d{4}"))
    expect(page.locator("#notice")).to_contain_text("Shown as of")
    expect(page.get_by_role("img", name="Momentum 64.5 of 100: Steady")).to_be_visible()
    expect(page.locator("#trend svg")).to_be_visible()
    page.get_by_role("button", name="Mark as read: Read me").click()
    expect(page.locator("#unread")).to_have_text("0")
    expect(page.locator("#to-send")).to_have_text("1 marked as read; sent when the connection is back")
    page.reload()
    expect(page.locator("#unread")).to_have_text("0")
    expect(page.locator("#to-send")).to_have_text("1 marked as read; sent when the connection is back")
    again = start(demo.folder, port)
    try:
        page.evaluate("window.dispatchEvent(new Event('online'))")
        expect(page.get_by_role("status")).to_have_text("live", timeout=25_000)
        expect(page.locator("#notice")).to_be_hidden()
        expect(page.locator("#to-send")).to_be_empty()
        until_read(page, again.conninfo, "Read me")
        page.wait_for_function(
            "() => Object.values(localStorage).every((text) => JSON.parse(text).outbox.length === 0)"
        )
    finally:
        again.process.kill()
        again.process.communicate()


def test_a_coach_sees_who_needs_care_and_the_queue(demo: Demo, page: Page) -> None:
    page.goto(demo.links[0])
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_role("heading", name="Noor’s people")).to_be_visible()
    sql(demo, TODAYS, 80, "Rising")
    expect(page.locator("#care-count")).to_have_text("0")
    expect(page.locator("[data-state=Rising]")).to_contain_text("6")
    sql(demo, f"{TODAYS} and user_id = {AMARA}", 20, "NeedsCare")
    expect(page.locator("#care")).to_contain_text("Amara")
    expect(page.locator("#care")).to_contain_text("20.0 ▼ Needs care")
    expect(page.locator("[data-state=Rising]")).to_contain_text("5")
    # The database counts the states of each day.
    page.locator("#days").get_by_text("Show as a table").click()
    expect(page.locator("#days tbody tr")).to_have_count(30)
    expect(page.locator("#days tbody tr").first.locator("td")).to_have_text(["5", "0", "1"])
    sql(demo, "delete from coach_interventions")
    expect(page.locator("#queue tr")).to_have_count(0)
    for kind, reason, status in (("check_in", "<b>fell</b>", "scheduled"), ("escalation", "no answer", "in_progress")):
        sql(
            demo,
            "insert into coach_interventions (user_id, intervention_type, trigger_date, trigger_reason, status)"
            " select id, %s, current_date, %s, %s from auth.users where email = 'ben@demo.invalid'",
            kind, reason, status,
        )  # fmt: skip
    expect(page.locator("#queue tr")).to_have_count(2)
    expect(page.locator("#queue")).to_contain_text("Bencheck in<b>fell</b>")
    page.get_by_label("Status").select_option("in progress")
    expect(page.locator("#queue tr")).to_have_count(1)
    expect(page.locator("#queue")).to_contain_text("no answer")
    page.get_by_label("Status").select_option("all")
    page.get_by_label("Person or reason").fill("FELL")
    expect(page.locator("#queue tr")).to_have_count(1)
    page.get_by_label("Person or reason").fill("")
    page.get_by_label("Type").select_option("escalation")
    expect(page.locator("#queue tr")).to_have_count(1)
    sql(demo, "update coach_interventions set status = 'completed' where intervention_type = 'escalation'")
    expect(page.locator("#queue tr")).to_have_count(1)
    expect(page.locator("#queue")).to_contain_text("check in")  # the filter is reset when no row has its type


def test_a_coachs_page_is_opened_again_and_without_a_connection(demo: Demo, page: Page) -> None:
    page.goto(demo.links[0])
    expect(page.get_by_role("status")).to_have_text("live")
    sql(demo, TODAYS, 80, "Rising")
    expect(page.locator("[data-state=Rising]")).to_contain_text("6")
    page.wait_for_function("() => navigator.serviceWorker.controller !== null")
    page.goto("about:blank")
    sql(demo, f"{TODAYS} and user_id = {AMARA}", 20, "NeedsCare")  # while the page is closed
    page.goto(demo.links[0])
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.locator("#care")).to_contain_text("Amara")
    sql(demo, f"{TODAYS} and user_id <> {AMARA}", 50, "Steady")  # the page follows the scores again
    expect(page.locator("[data-state=Steady]")).to_contain_text("5")
    page.wait_for_function("() => Object.values(localStorage).some((text) => text.includes('Steady'))")
    demo.process.kill()
    demo.process.communicate()
    expect(page.get_by_role("status")).to_have_text(re.compile("offline since"))
    page.reload()
    expect(page.get_by_role("status")).to_have_text(re.compile("offline since"))
    expect(page.locator("#care")).to_contain_text("Amara")
    expect(page.locator("[data-state=Steady]")).to_contain_text("5")
    expect(page.locator("#days svg")).to_be_visible()
    # Stored data belong to the owner of one token.
    address, given = demo.links[0].split("#")
    page.goto("about:blank")
    page.goto(f"{address}#{given.replace('access_token=', 'access_token=x.')}")
    expect(page.get_by_role("status")).to_have_text("offline")
    expect(page.locator("#care li")).to_have_count(0)


def test_one_person_in_detail_by_keyboard(demo: Demo, page: Page) -> None:
    page.goto(demo.links[0])
    expect(page.get_by_role("status")).to_have_text("live")
    sql(demo, f"{TODAYS} and user_id = {AMARA}", 20, "NeedsCare")
    name = page.locator("#care").get_by_role("button", name="Amara")
    expect(name).to_be_visible()
    name.focus()
    page.keyboard.press("Enter")
    detail = page.get_by_role("dialog", name="Amara")
    expect(detail.get_by_role("img", name="Momentum 20.0 of 100: Needs care")).to_be_visible()
    expect(detail.locator("#detail-trend svg")).to_be_visible()
    sql(demo, f"{TODAYS} and user_id = {AMARA}", 19, "NeedsCare")
    expect(detail.get_by_role("img", name="Momentum 19.0 of 100: Needs care")).to_be_visible()
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    expect(page.locator("#care").get_by_role("button", name="Amara")).to_be_focused()


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


def test_a_page_opens_without_a_network_from_the_first_visit_on(demo: Demo, page: Page) -> None:
    page.goto(demo.links[1])
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.locator("#trend svg")).to_be_visible()
    page.evaluate("() => navigator.serviceWorker.ready")
    page.wait_for_function("() => Object.values(localStorage).some((text) => text.includes('shown:history'))")
    demo.process.kill()
    demo.process.communicate()
    page.reload()
    expect(page.get_by_role("status")).to_have_text(re.compile("offline since"))
    expect(page.locator("#trend svg")).to_be_visible()


def test_people_are_found_sorted_and_opened_by_their_row(demo: Demo, page: Page) -> None:
    page.goto(demo.links[0])
    expect(page.get_by_role("status")).to_have_text("live")
    sql(demo, TODAYS, 80, "Rising")
    sql(demo, f"{TODAYS} and user_id = {AMARA}", 70, "Rising")
    expect(page.locator("#people-count")).to_have_text("6")
    expect(page.locator("#people li").first).to_contain_text("Amara")
    page.get_by_label("Sort by").select_option("high")
    expect(page.locator("#people li").last).to_contain_text("Amara")
    page.get_by_label("Sort by").select_option("name")
    names = page.locator("#people li button").all_inner_texts()
    assert names == sorted(names)
    page.get_by_role("searchbox", name="Name").fill("chi")
    expect(page.locator("#people li")).to_have_count(1)
    sql(
        demo,
        "insert into coach_interventions (user_id, intervention_type, trigger_date, trigger_reason, scheduled_date,"
        " scheduled_time) select id, 'check_in', current_date, 'by the clock', date '2026-12-03', time '09:30'"
        " from auth.users where email = 'chiara@demo.invalid'",
    )
    row = page.locator("#queue tr", has_text="by the clock")
    expect(row).to_contain_text("3 Dec 2026")
    row.get_by_text("check in").click()
    expect(page.get_by_role("dialog", name="Chiara")).to_be_visible()
    page.keyboard.press("Escape")
    sql(
        demo,
        "update coach_interventions set status = 'completed', completed_at = now()"
        " where trigger_reason = 'by the clock'",
    )
    expect(page.locator("#people li").first).to_contain_text("Last contact")


def test_the_queue_can_be_read_on_a_phone(demo: Demo, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": PHONE["width"], "height": PHONE["height"]})
    page.goto(demo.links[0])
    expect(page.locator("#queue tr").first.locator("td[data-what=Reason]")).to_be_visible()
    box = page.evaluate("document.querySelector('#queue td[data-what=Reason]').getBoundingClientRect().toJSON()")
    assert box["x"] >= 0
    assert box["width"] > 0
    assert box["x"] + box["width"] <= PHONE["width"]


def test_a_row_that_stays_the_same_stays_in_the_page(page: Page, demo: Demo) -> None:
    """Else a click is lost when an event about somebody else arrives between press and release."""
    page.goto(demo.links[0])
    row = page.locator("#people li", has_text="Amara")
    expect(row).to_be_visible()
    expect(page.locator("#people li", has_text="Chiara")).to_be_visible()
    row.evaluate("row => { row.pressed = true; }")
    for score in (31.5, 32.5):
        sql(
            demo,
            "update daily_engagement_scores set final_score = %s where score_date = current_date"
            " and user_id = (select id from auth.users where email = 'chiara@demo.invalid')",
            score,
        )
        expect(page.locator("#people li", has_text="Chiara")).to_contain_text(f"{score:.1f}")
        assert row.evaluate("row => row.pressed")


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

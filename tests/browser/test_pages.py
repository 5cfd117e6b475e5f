"""The demo's pages in a real Chromium. Skipped, and saying so, where there is no Chromium."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.chromium import CHROMIUM, FLAGS
from tests.server.test_demo import Demo, demo

__all__ = ["demo"]


pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on this machine; the pages were not looked at"
)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    assert complaints == []


def test_a_users_page_follows_the_score(demo: Demo, page: Page) -> None:
    page.goto(demo.links[1])
    expect(page.locator("#status")).to_have_text("live")
    expect(page.locator("#name")).to_have_text("Amara’s")
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        for score, confirmed in ((77, "4"), (81.5, "8")):
            connection.execute(
                "update daily_engagement_scores set final_score = %s, momentum_state = 'Rising' where user_id ="
                " (select id from auth.users where email = 'amara@demo.invalid')",
                (score,),
            )
            expect(page.locator("#confirmed")).to_have_text(confirmed)
    expect(page.locator("#score")).to_have_text("81.5")
    expect(page.locator("#state")).to_have_text("Rising")
    expect(page.locator("#count")).to_have_text("2")
    expect(page.locator("#round-trip")).to_contain_text("ms")
    expect(page.locator("#events li")).to_have_count(2)
    assert len((page.locator("#trend").get_attribute("points") or "").split()) >= 3


def test_a_coachs_page_follows_the_queue_and_the_distribution(demo: Demo, page: Page) -> None:
    page.goto(demo.links[0])
    expect(page.locator("#status")).to_have_text("live")
    expect(page.locator("#people span")).to_have_count(6)
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        connection.execute("update daily_engagement_scores set final_score = 80, momentum_state = 'Rising'")
        expect(page.locator("#count-Rising")).to_have_text("6")
        expect(page.locator("#bar [data-momentum=Rising]")).to_have_text("6")
        connection.execute("delete from coach_interventions")
        expect(page.locator("#queue tr")).to_have_count(0)
        connection.execute(
            "insert into coach_interventions (user_id, intervention_type, trigger_date, trigger_reason)"
            " select id, 'check_in', current_date, '<b>fell</b>' from auth.users where email = 'ben@demo.invalid'"
        )
        expect(page.locator("#queue tr")).to_have_count(1)
        expect(page.locator("#queue td").first).to_have_text("Ben")
        expect(page.locator("#queue td").nth(2)).to_have_text("<b>fell</b>")
        connection.execute("update coach_interventions set status = 'completed'")
        expect(page.locator("#queue tr")).to_have_count(0)


def test_a_page_with_a_wrong_token_says_that_it_cannot_connect(demo: Demo, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(demo.links[1].split("#")[0] + "#access_token=x")
    expect(page.locator("#status")).to_contain_text("connection lost")

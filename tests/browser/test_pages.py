"""The pages in a real Chromium, by the actions and observations of a person. Skipped with a reason without Chromium."""

from __future__ import annotations

import os
import re
import time
from urllib.parse import urlsplit

import psycopg
import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import HEADLESS
from tests.browser.data import AMARA, TODAYS, notify, sql
from tests.fixtures.demo import Demo, start

pytestmark = pytest.mark.skipif(
    HEADLESS is None and "CI" not in os.environ, reason="no Chromium on this machine; the pages were not looked at"
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

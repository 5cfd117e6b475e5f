"""The README's screenshots: the demo's pages on a coach's desktop and a user's phone."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from playwright.sync_api import expect, sync_playwright

from momentum_sync.database.embedded import short_folder
from tests.browser.chromium import CHROMIUM, FLAGS
from tests.fixtures.demo import start

DOCS = Path(__file__).parents[2] / "docs"
SHOTS = (
    ("coach.png", 0, {"width": 1100, "height": 850}, "light"),
    ("user.png", 1, {"width": 1100, "height": 850}, "light"),
    ("phone.png", 1, {"width": 390, "height": 760}, "dark"),
)
WORDS = """
    insert into momentum_notifications
        (user_id, notification_type, trigger_date, title, message, action_type, status)
    select id, 'celebration', current_date, 'You are rising', 'Your momentum has grown; keep going.', 'none', 'sent'
    from auth.users where email = 'amara@demo.invalid'
"""

CARE = """
    update daily_engagement_scores set final_score = 31.5, momentum_state = 'NeedsCare'
    where score_date = current_date
      and user_id in (select id from auth.users where email in ('elif@demo.invalid', 'chiara@demo.invalid'))
"""


def main() -> None:
    """Write docs/*.png."""
    if CHROMIUM is None:
        raise SystemExit("There is no Chromium on this machine. Debian and Ubuntu: sudo apt install chromium")
    with short_folder() as folder:
        demo = start(folder)
        try:
            with psycopg.connect(demo.conninfo, autocommit=True) as connection:
                connection.execute("delete from momentum_notifications")
                connection.execute(WORDS)
                connection.execute(CARE)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                for name, link, viewport, scheme in SHOTS:
                    page = browser.new_page(viewport=viewport, color_scheme=scheme, locale="en-GB")  # type: ignore[arg-type]
                    page.goto(demo.links[link])
                    expect(page.get_by_role("status")).to_have_text("live")
                    expect(page.locator("figure svg")).to_be_visible()
                    page.screenshot(path=DOCS / name)
                    print(
                        f"docs/{name}: {urlsplit(demo.links[link]).path}, {viewport['width']} px, {scheme}",
                        file=sys.stderr,
                    )
                browser.close()
        finally:
            demo.process.terminate()
            demo.process.communicate()


if __name__ == "__main__":
    main()

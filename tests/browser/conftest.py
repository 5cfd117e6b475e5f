"""Fixtures of the tests in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.chromium import FLAGS, HEADLESS
from tests.fixtures.demo import Demo

expect.set_options(timeout=20_000)  # the machine may be busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=HEADLESS, args=FLAGS)
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
    # The server may have been killed, be away, or be starting.
    gone = ("ERR_CONNECTION_RESET", "ERR_CONNECTION_REFUSED", "Unexpected response code: 503")
    assert [text for text in complaints if not text.endswith(gone)] == []
    assert hosts == {urlsplit(demo.links[0]).netloc}


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()

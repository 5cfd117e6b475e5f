"""Fixtures, as plugins by subject."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

from tests.browser.chromium import SHARED

# How long an example takes depends on what else the machine does.
settings.register_profile("momentum", deadline=None)
settings.load_profile("momentum")

pytest_plugins = [
    "tests.fixtures.postgres",
    "tests.fixtures.server",
    "tests.fixtures.cluster",
    "tests.fixtures.demo",
    "tests.fixtures.todos",
    "tests.fixtures.gateways",
]


@pytest.fixture(autouse=True)
def log_left_alone() -> Iterator[None]:
    """Refuse a test that sets up the log for all tests after it, which would find no lines."""
    before = structlog.get_config()["wrapper_class"]
    yield
    assert structlog.get_config()["wrapper_class"] is before


def pytest_collection_finish() -> None:
    """Take the imported modules out of garbage collections: every server in the tests begins with a full one."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Stop the browser that tests share."""
    SHARED.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest test first: at the end it would leave the other processes without work."""
    items.sort(key=lambda item: "walk" not in item.path.parts)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--postgres /usr/lib/postgresql/15/bin`: another PostgreSQL than the embedded one."""
    parser.addoption("--postgres", help="a folder with PostgreSQL's programs, instead of the embedded ones")

"""Fixtures, as plugins by subject."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from tests.browser.chromium import PLAYWRIGHT, SHARED

ROOT = Path(__file__).parent
LONG = ["walk", "test_deploy_files.py", "faults", "test_benchmarks.py"]
"""Folders and files of tests that take ten seconds and more, the longest first."""

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
    PLAYWRIGHT.stop()
    SHARED.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first: at the end, they would leave the other processes without work.

    `--dist worksteal` gives each process a part of the tests in their order, so each part gets its share of the long
    ones.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = sorted(filter(_is_long, items), key=lambda item: LONG.index(_subject(item)))
    others = [item for item in items if not _is_long(item)]
    bounds = [len(others) * number // processes for number in range(processes + 1)]
    items[:] = [
        item
        for number, (start, end) in enumerate(pairwise(bounds))
        for item in (*long[number::processes], *others[start:end])
    ]


def _subject(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT).parts[0]


def _is_long(item: pytest.Item) -> bool:
    return _subject(item) in LONG


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--postgres /usr/lib/postgresql/15/bin`: another PostgreSQL than the embedded one."""
    parser.addoption("--postgres", help="a folder with PostgreSQL's programs, instead of the embedded ones")

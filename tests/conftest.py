"""Fixtures, as plugins by subject."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from tests.browser.chromium import PLAYWRIGHT, SHARED

ROOT = Path(__file__).parent
LONG = [
    "walk", "test_deploy_files.py", "faults", "test_benchmarks.py", "server/test_network.py", "server/test_workers.py",
    "server/test_big_transaction.py", "supabase/test_resume.py", "server/test_history.py", "fuzz",
]  # fmt: skip
"""Folders and files of tests that take ten seconds and more, the longest first."""
SHORT = ["test_architecture.py", "unit"]
"""Those that take milliseconds."""

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
    """Freeze the imported modules, so that full garbage collections do not traverse them."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Stop the browser that tests share."""
    try:
        PLAYWRIGHT.stop()
    finally:
        SHARED.stop()


@pytest.hookimpl(trylast=True)  # once it is known which tests are selected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first and the shortest last: at the end, no process should wait for another.

    `--dist worksteal` gives each process a part of the tests in their order, so each part gets its share of both.
    """
    by_subject: dict[str, list[pytest.Item]] = {}
    for item in items:
        path = item.path.relative_to(ROOT)
        parts = (path.as_posix(), path.parts[0])
        subject = next((part for part in parts if part in LONG or part in SHORT), parts[0])
        by_subject.setdefault(subject, []).append(item)
    long = [item for subject in LONG for item in by_subject.pop(subject, [])]
    short = [item for subject in SHORT for item in by_subject.pop(subject, [])]
    others = [item for tests in by_subject.values() for item in tests]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    left, taken, ordered = len(items), 0, list[pytest.Item]()
    for number in range(processes):
        size = left // (processes - number)  # as xdist divides them
        left -= size
        first = long[processes - 1 - number :: processes]
        last = short[len(short) * number // processes : len(short) * (number + 1) // processes]
        # Neighbours, so that few files are divided, whose fixtures each process would make.
        middle = others[taken : taken + max(0, size - len(first) - len(last))]
        taken += len(middle)
        ordered += [*first, *middle, *last]
    items[:] = ordered + others[taken:]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--postgres /usr/lib/postgresql/15/bin`: another PostgreSQL than the embedded one."""
    parser.addoption("--postgres", help="a folder with PostgreSQL's programs, instead of the embedded ones")

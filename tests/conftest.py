"""Fixtures, as plugins by subject."""

from __future__ import annotations

import pytest

pytest_plugins = [
    "tests.fixtures.postgres",
    "tests.fixtures.server",
    "tests.fixtures.cluster",
    "tests.fixtures.demo",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--postgres /usr/lib/postgresql/15/bin`: another PostgreSQL than the embedded one."""
    parser.addoption("--postgres", help="a folder with PostgreSQL's programs, instead of the embedded ones")

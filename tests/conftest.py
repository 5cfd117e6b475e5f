"""Fixtures are plugins by subject."""

pytest_plugins = ["tests.fixtures.postgres", "tests.fixtures.server"]

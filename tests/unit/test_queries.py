"""Named SQL."""

from __future__ import annotations

import pytest

from momentum_sync.database import queries


def test_statements_by_name() -> None:
    parsed = queries.parse("-- a comment\n\n-- name: one\n-- why\nselect 1;\n\n-- name: two\nselect\n  2\n")
    assert dict(parsed) == {"one": "-- why\nselect 1", "two": "select\n  2"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("select 1", "before the first"),
        ("-- name: a\n", "empty"),
        ("-- name: a\nselect 1\n-- name: a\nselect 2", "two statements"),
    ],
)
def test_mistakes_are_errors(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        queries.parse(text)


@pytest.mark.parametrize("package", ["capture", "eventlog", "identity", "domain", "demo"])
def test_every_file_of_ours_parses(package: str) -> None:
    assert len(queries.load(f"momentum_sync.{package}")) >= 2

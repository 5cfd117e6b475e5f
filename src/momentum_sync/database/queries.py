"""Named SQL beside the Python code that runs it.

A `queries.sql` holds statements, each under a line `-- name: the_name`; comments below that line belong to the
statement. Parameters are psycopg's, `%(name)s`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import LiteralString, cast

_NAME = re.compile(r"^-- name: *([a-z][a-z0-9_]*) *$", re.MULTILINE)


def parse(text: str) -> Mapping[str, LiteralString]:
    """Return the statements of a file by name. Raise ValueError for text outside, empty statements and duplicates."""
    parts = _NAME.split(text)
    outside = "\n".join(line for line in parts[0].splitlines() if not line.startswith("--"))
    if outside.strip():
        raise ValueError(f"SQL before the first '-- name:' line: {outside.strip()[:60]!r}")
    statements: dict[str, LiteralString] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in statements:
            raise ValueError(f"two statements are named {name}")
        if not body.strip():
            raise ValueError(f"the statement {name} is empty")
        # The text is part of the package and never from a user, as psycopg requires of a literal.
        statements[name] = cast(LiteralString, body.strip().rstrip(";"))
    return statements


def load(package: str) -> Mapping[str, LiteralString]:
    """Return the statements of the `queries.sql` of a package; pass `__package__`."""
    return parse(resources.files(package).joinpath("queries.sql").read_text(encoding="utf-8"))

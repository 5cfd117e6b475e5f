"""Licences of the server's dependencies, and the bill of materials."""

from __future__ import annotations

import json

import pytest

from momentum_sync.version import __version__
from tests import bill
from tests.bill import Package


def test_no_licence_forbids_the_product() -> None:
    found = bill.packages()
    assert {"msgspec", "websockets", "psycopg", "uvicorn", "nats-py"} <= {package.name for package in found}
    assert bill.refused(found) == []


@pytest.mark.parametrize(
    ("licence", "is_allowed"),
    [
        ("MIT", True), ("Apache-2.0 OR GPL-3.0-only", True), ("Apache-2.0 AND BSD-2-Clause", True),
        ("GPL-3.0-only", False), ("MIT AND GPL-2.0-only", False), ("AGPL-3.0-or-later", False),
        ("LGPL-3.0-only", False), ("unknown", False), ("", False),
    ],
)  # fmt: skip
def test_a_licence_is_allowed_by_name(licence: str, *, is_allowed: bool) -> None:
    assert (bill.refused([Package("x", "1", licence)]) == []) == is_allowed


def test_the_lgpl_only_for_libraries_that_are_known() -> None:
    assert bill.refused([Package("psycopg", "3", "LGPL-3.0-only")]) == []


def test_the_bill_names_every_package() -> None:
    found = bill.packages()
    written = json.loads(bill.bill(found))
    assert (written["bomFormat"], written["specVersion"]) == ("CycloneDX", "1.6")
    assert written["metadata"]["component"]["version"] == __version__
    assert {(part["name"], part["version"]) for part in written["components"]} == {
        (package.name, package.version) for package in found
    }
    assert all(part["licenses"] for part in written["components"])
    assert len(bill.listing(found).splitlines()) == len(found) + 2

"""Bill of materials and licence list of a release: `python -m tests.bill FOLDER`.

The packages are those in `requirements/server.txt`, as they are installed here.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import cast

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from momentum_sync.version import __version__

ROOT = Path(__file__).parents[1]
LOCKED = ROOT / "requirements" / "server.txt"
_LINE = re.compile(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==([^ ;\\]+)([^\n\\]*)", re.MULTILINE)

# Licences that a product under Apache-2.0 may depend on.
ALLOWED = frozenset({
    "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0", "PostgreSQL",
})  # fmt: skip
# The LGPL allows the use of a library that a user can replace, which pip does; nothing of it is in our packages.
REPLACEABLE = frozenset({"psycopg", "psycopg-binary", "psycopg-pool"})
# Names in older metadata.
_NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0", "BSD License": "BSD-3-Clause", "ISC License": "ISC",
    "ISC License (ISCL)": "ISC", "MIT License": "MIT", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Package:
    """A package that is installed with the server, and its licence as an SPDX expression."""

    name: str
    version: str
    licence: str


def packages() -> list[Package]:
    """Return the locked packages that this machine needs. Raise SystemExit if one is missing or of another version."""
    found = []
    for name, version, marker in _LINE.findall(LOCKED.read_text(encoding="utf-8")):
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            if marker.strip():  # of another platform
                continue
            raise SystemExit(f"{name} is not installed; run script/setup") from None
        if about["Version"] != version:
            raise SystemExit(f"{name} {about['Version']} is installed, but {version} is locked; run script/setup")
        found.append(Package(name, version, _licence(about)))
    return found


def _licence(about: metadata.PackageMetadata) -> str:
    """Return the licence by the newest of the three ways in which metadata names it."""
    fields = cast(Message, about)
    expression = fields["License-Expression"]
    if expression:
        return str(expression)
    lines = map(str, fields.get_all("Classifier", []))
    classified = [line.rpartition(" :: ")[2] for line in lines if line.startswith("License :: OSI")]
    if len(classified) == 1:
        return _NAMES.get(classified[0], classified[0])
    written = str(fields["License"] or "")
    if written:
        return _NAMES.get(written, written)
    return " OR ".join(sorted(_NAMES.get(each, each) for each in classified)) or "unknown"


def refused(found: list[Package]) -> list[Package]:
    """Return packages with a licence that is not allowed."""
    return [package for package in found if package.name not in REPLACEABLE and not _is_allowed(package.licence)]


def _is_allowed(expression: str) -> bool:
    """Return whether one of the alternatives has allowed licences alone. SPDX: AND binds more than OR."""
    return any(
        all(part.strip(" ()") in ALLOWED for part in alternative.split(" AND "))
        for alternative in expression.split(" OR ")
    )


def bill(found: list[Package]) -> str:
    """Return the bill of materials, as CycloneDX 1.6 in JSON."""
    bom = Bom()
    ours = Component(
        name="momentum-sync", version=__version__, type=ComponentType.APPLICATION,
        purl=_purl("momentum-sync", __version__), licenses=[DisjunctiveLicense(id="Apache-2.0")],
    )  # fmt: skip
    bom.metadata.component = ours
    parts = [
        Component(
            name=package.name, version=package.version, purl=_purl(package.name, package.version),
            licenses=[LicenseExpression(package.licence)],
        )
        for package in found
    ]  # fmt: skip
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(ours, parts)
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


def _purl(name: str, version: str) -> PackageURL:
    return PackageURL("pypi", name=name, version=version)


def listing(found: list[Package]) -> str:
    """Return one line for each package: name, version, licence."""
    width = max(len(f"{package.name} {package.version}") for package in found)
    lines = [f"{f'{package.name} {package.version}':{width}}  {package.licence}" for package in found]
    return "\n".join(["Packages that the server runs with, and their licences.", "", *lines, ""])


def main() -> None:
    """Write both files. The exit status is 1 if a licence is not allowed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bill", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write sbom.cdx.json and licences.txt")
    folder: Path = parser.parse_args().folder
    found = packages()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sbom.cdx.json").write_text(bill(found), encoding="utf-8")
    (folder / "licences.txt").write_text(listing(found), encoding="utf-8")
    for package in refused(found):
        sys.stderr.write(f"{package.name} {package.version}: the licence {package.licence} is not allowed\n")
    raise SystemExit(1 if refused(found) else 0)


if __name__ == "__main__":
    main()

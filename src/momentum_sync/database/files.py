"""The SQL files of the package: the migrations, and the other scripts that `migrate` runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from momentum_sync.errors import Unsuitable

# The seed names these two versions, so a database with the seed's own implementation has them with other content.
SEED_VERSIONS = ("20241215000000", "20241217000001")
_NAMES = "Creates|Changes in your tables|Locks|Needs|Undo"
_FIELD = re.compile(rf"^-- ({_NAMES}): (.+(?:\n-- +(?!(?:{_NAMES}): ).+)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `supabase/migrations/`: `<version>_<name>.sql`."""

    version: str
    name: str
    sql: str

    @property
    def title(self) -> str:
        """Return version and name, as in the file's name."""
        return f"{self.version}_{self.name}"

    @property
    def header(self) -> dict[str, str]:
        """Return the header by field: `Creates`, `Changes in your tables`, `Locks`, `Needs` and `Undo`."""
        return {name: re.sub(r"\n-- +", " ", said) for name, said in _FIELD.findall(self.sql)}


def migrations() -> list[Migration]:
    """Return the migrations of the package, in order."""
    found = []
    for path in sorted(_folder().glob("*.sql")):
        version, _, name = path.stem.partition("_")
        found.append(Migration(version, name, path.read_text(encoding="utf-8")))
    if not found:
        raise Unsuitable("The package contains no migrations.", "Reinstall momentum-sync.")
    return found


def text(path: str) -> str:
    """Return the content of a file of the package, such as `database/bootstrap.sql`."""
    return resources.files("momentum_sync").joinpath(path).read_text(encoding="utf-8")


def _folder() -> Path:
    """Return `supabase/migrations`, which a wheel has inside the package and a checkout beside it."""
    package = Path(str(resources.files("momentum_sync")))
    inside = package / "supabase" / "migrations"
    return inside if inside.is_dir() else package.parents[1] / "supabase" / "migrations"

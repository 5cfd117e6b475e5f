"""The SQL files that come with the package: the migrations, and what `migrate` runs beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from momentum_sync.errors import Unsuitable

# The seed names these two versions, so a database that runs the seed's own implementation has them with other content.
SEED_VERSIONS = ("20241215000000", "20241217000001")
_FIELD = re.compile(r"^-- (Creates|Changes in your tables|Locks|Needs|Undo): (.+(?:\n--   .+)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `supabase/migrations/`: `<version>_<name>.sql`."""

    version: str
    name: str
    sql: str

    @property
    def title(self) -> str:
        """Version and name, as the file is called."""
        return f"{self.version}_{self.name}"

    @property
    def header(self) -> dict[str, str]:
        """Return the header by field: `Creates`, `Changes in your tables`, `Locks`, `Needs` and `Undo`."""
        return {name: re.sub(r"\n--   ", " ", said) for name, said in _FIELD.findall(self.sql)}


def migrations() -> list[Migration]:
    """The migrations that come with the package, in order."""
    found = []
    for path in sorted(_folder().glob("*.sql")):
        version, _, name = path.stem.partition("_")
        found.append(Migration(version, name, path.read_text(encoding="utf-8")))
    if not found:
        raise Unsuitable("The package holds no migrations.", "Install momentum-sync again.")
    return found


def text(path: str) -> str:
    """A file of the package, such as `database/bootstrap.sql`."""
    return resources.files("momentum_sync").joinpath(path).read_text(encoding="utf-8")


def _folder() -> Path:
    """`supabase/migrations`, which a wheel carries inside the package and a checkout beside it."""
    package = Path(str(resources.files("momentum_sync")))
    inside = package / "supabase" / "migrations"
    return inside if inside.is_dir() else package.parents[1] / "supabase" / "migrations"

"""The installed package: the SDK alone by default; the wheel has pages, JavaScript SDK and migrations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from momentum_sync.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the unpacked wheel, with only the SDK's dependencies beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    installed = folder / "installed"
    zipfile.ZipFile(built).extractall(installed)
    for name in ("msgspec", "websockets"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (installed / name).symlink_to(Path(spec.origin).parent)
    return installed


def run(wheel: Path, code: str) -> subprocess.CompletedProcess[str]:
    text = f"import sys; sys.path.insert(0, {str(wheel)!r}); {code}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", text], capture_output=True, text=True, timeout=60)


def test_the_sdk_needs_nothing_of_the_server(wheel: Path) -> None:
    done = run(wheel, "import momentum_sync as m; print(m.Client('https://x', 't').state.status, *m.__all__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("offline Cache Client")


def test_without_the_server_the_command_says_what_to_install(wheel: Path) -> None:
    done = run(wheel, "from momentum_sync.__main__ import main; main()")
    assert done.returncode == 2
    assert "pip install '.[server]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_wheel_holds_pages_sdk_and_migrations(wheel: Path) -> None:
    package = wheel / "momentum_sync"
    for name in ("web/static/user.html", "web/static/coach.js", "web/sdk/index.js", "web/sdk/client.js", "py.typed"):
        assert (package / name).is_file(), name
    assert len(list((package / "supabase" / "migrations").glob("*.sql"))) == 7
    metadata = next(wheel.glob("*.dist-info")) / "METADATA"
    needed = [line for line in metadata.read_text(encoding="utf-8").splitlines() if line.startswith("Requires-Dist")]
    names = sorted(re.split("[<>]", line.split()[1])[0] for line in needed if "extra" not in line)
    assert names == ["msgspec", "websockets"]


def test_what_is_installed_finds_its_pages_and_migrations(wheel: Path) -> None:
    code = (
        "import momentum_sync; from pathlib import Path; from momentum_sync.web.pages import _sdk;"
        "from momentum_sync.database.migrate import migrations; home = Path(momentum_sync.__file__).parent;"
        "print(home, _sdk(home / 'web'), len(migrations()))"
    )
    text = f"import sys; sys.path.insert(0, {str(wheel)!r}); {code}"
    done = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, timeout=60, check=False)
    home = wheel / "momentum_sync"
    assert done.stdout.split() == [str(home), str(home / "web" / "sdk"), "7"], done.stderr


def test_both_sdks_have_the_servers_version() -> None:
    package = json.loads((ROOT / "clients" / "js" / "package.json").read_text(encoding="utf-8"))
    source = (ROOT / "clients" / "js" / "src" / "version.js").read_text(encoding="utf-8")
    assert package["version"] == __version__
    assert f'VERSION = "{__version__}"' in source

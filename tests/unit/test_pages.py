"""The service worker of the pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

from momentum_sync.web import pages

STATIC = Path(pages.__file__).parent / "static"
SDK = Path(__file__).parents[2] / "clients" / "js" / "src"


def constants(worker: str) -> tuple[str, list[str]]:
    (cache,) = re.findall(r"^const CACHE = (.*);$", worker, re.MULTILINE)
    (files,) = re.findall(r"^const FILES = (.*);$", worker, re.MULTILINE)
    return json.loads(cache), json.loads(files)


def test_the_worker_names_every_file_of_the_pages() -> None:
    _, files = constants(pages.service_worker(STATIC, SDK))
    assert {"user.html", "coach.html", "page.js", "sdk/client.js", "sdk/index.js"} <= set(files)
    assert not {"sw.js", "sdk/node.js"} & set(files)
    assert all((STATIC / name).is_file() or (SDK / name.removeprefix("sdk/")).is_file() for name in files)


def test_the_name_of_the_cache_changes_with_any_file(tmp_path: Path) -> None:
    static, sdk = tmp_path / "static", tmp_path / "sdk"
    static.mkdir()
    sdk.mkdir()
    (static / "sw.js").write_text((STATIC / "sw.js").read_text(encoding="utf-8"), encoding="utf-8")
    (static / "a.js").write_text("1", encoding="utf-8")
    (sdk / "b.js").write_text("2", encoding="utf-8")
    names = [constants(pages.service_worker(static, sdk))[0]]
    assert names == [constants(pages.service_worker(static, sdk))[0]]
    (sdk / "b.js").write_text("3", encoding="utf-8")
    names.append(constants(pages.service_worker(static, sdk))[0])
    (static / "a.js").rename(static / "c.js")
    names.append(constants(pages.service_worker(static, sdk))[0])
    assert len(set(names)) == 3

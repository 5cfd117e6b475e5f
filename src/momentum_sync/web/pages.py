"""The pages for a user and for a coach: static files on the JavaScript SDK, without requests to other servers."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

ROOT = "/pages"
_WORKER = "sw.js"
_NOT_FOR_PAGES = frozenset({"node.js"})
# The pages show health data: injected markup must neither run a script nor reach another server.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
# `no-cache`: file names carry no version, so a browser must ask whether a file has changed.
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class _Pages(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def mount(api: FastAPI) -> None:
    """Serve the pages and the SDK that they use."""
    pages = Path(str(resources.files("momentum_sync"))) / "web"
    static, sdk = pages / "static", _sdk(pages)
    worker = service_worker(static, sdk)

    @api.get(f"{ROOT}/{_WORKER}", include_in_schema=False)
    async def answer_with_the_worker() -> Response:
        return Response(worker, media_type="text/javascript", headers=HEADERS)

    api.mount(f"{ROOT}/sdk", _Pages(directory=sdk))
    api.mount(ROOT, _Pages(directory=static))


def service_worker(static: Path, sdk: Path) -> str:
    """Return the service worker, with the names of all files and a cache name that changes with any of them.

    Browsers install a worker again only if its bytes change, so a worker that did not name the files' contents would
    serve the pages of the version before.
    """
    files = {path.name: path for path in static.iterdir() if path.name != _WORKER}
    files |= {f"sdk/{path.name}": path for path in sdk.iterdir() if path.name not in _NOT_FOR_PAGES}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}\0".encode())
    text = (static / _WORKER).read_text(encoding="utf-8")
    for constant, value in (("CACHE", f"pages {digest.hexdigest()[:16]}"), ("FILES", sorted(files))):
        text, found = re.subn(rf"(?m)^const {constant} = .*$", f"const {constant} = {json.dumps(value)};", text)
        assert found == 1, constant
    return text


def _sdk(pages: Path) -> Path:
    """Return the folder of the JavaScript SDK, which a wheel has inside the package and a checkout in `clients/js`."""
    inside = pages / "sdk"
    return inside if inside.is_dir() else pages.parents[2] / "clients" / "js" / "src"

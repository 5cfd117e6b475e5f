"""The pages for a user and for a coach: static files on the JavaScript SDK, without requests to other servers."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

ROOT = "/pages"
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
    api.mount(f"{ROOT}/sdk", _Pages(directory=_sdk(pages)))
    api.mount(ROOT, _Pages(directory=pages / "static"))


def _sdk(pages: Path) -> Path:
    """Return the folder of the JavaScript SDK, which a wheel has inside the package and a checkout in `clients/js`."""
    inside = pages / "sdk"
    return inside if inside.is_dir() else pages.parents[2] / "clients" / "js" / "src"

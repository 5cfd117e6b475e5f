"""`/`, an index of everything, and `/docs`, the HTTP API rendered from its description."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from momentum_sync.web.pages import HEADERS, ROOT

_PLACES = (
    ("/sync/health", "health and lag of the server"),
    ("/functions/v1/realtime-momentum-sync", "the WebSocket, also at /ws"),
    ("/docs", "the HTTP API"),
    ("/openapi.json", "the HTTP API as OpenAPI"),
    ("/metrics", "for Prometheus, with the service key"),
)
_PAGES = ((f"{ROOT}/user.html", "a user's page"), (f"{ROOT}/coach.html", "a coach's page"))


def mount_index(api: FastAPI, *, pages: bool) -> None:
    """Serve both, and link to the pages if they are served."""
    places = dict((*(_PAGES if pages else ()), *_PLACES))

    async def index(request: Request) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"name": "Momentum Sync", "version": api.version, "places": places})
        rows = "".join(f'<li><a href="{path}">{path}</a> {escape(what)}</li>' for path, what in places.items())
        return _page("Momentum Sync", f"<p>Version {escape(api.version)}. This server has:</p><ul>{rows}</ul>")

    async def docs() -> Response:
        return _page("HTTP API", _operations(api.openapi()))

    api.add_api_route("/", index, include_in_schema=False)
    api.add_api_route("/docs", docs, include_in_schema=False)


def _page(title: str, body: str) -> HTMLResponse:
    style = f'<link rel="stylesheet" href="{ROOT}/style.css">'
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{style}'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>'
        f'<body><main class="card"><h1>{title}</h1>{body}</main></body></html>'
    )
    return HTMLResponse(html, headers=HEADERS)


def _operations(document: Mapping[str, Any]) -> str:
    """Render an OpenAPI document: each operation with its fields and its answers."""
    schemas = document.get("components", {}).get("schemas", {})
    parts = ["<p>Send a token as <code>Authorization: Bearer …</code>, an API key as <code>apikey</code>.</p>"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description') or operation.get('summary') or '')}</p>")
            parts.append(_fields(operation, schemas))
            answers = ", ".join(
                escape(f"{status} {one['description']}") for status, one in operation["responses"].items()
            )
            parts.append(f"<p>Responses: {answers}.</p>")
    return "".join(parts)


def _fields(operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    name = str(content.get("schema", {}).get("$ref", "")).rsplit("/", 1)[-1]
    schema = schemas.get(name, {})
    rows = []
    for field, said in schema.get("properties", {}).items():
        kinds = [one.get("format") or one.get("type", "") for one in said.get("anyOf", [said])]
        needed = "" if field in schema.get("required", ()) else ", optional"
        rows.append(f"<li><code>{escape(field)}</code>: {escape(' or '.join(kinds))}{needed}</li>")
    return f"<ul>{''.join(rows)}</ul>" if rows else ""

"""The pages: those that are written by hand, and those that are printed from the code."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

import momentum_sync
from momentum_sync.cli.options import described
from momentum_sync.database.files import migrations, text
from momentum_sync.settings import Settings, variable
from momentum_sync.wire.close import Close, Verdict
from reference.javascript import page

ROOT = Path(__file__).parents[1]

WRITTEN: Mapping[str, str] = {
    "README.md": "index.md", "docs/adopt.md": "adopt.md", "docs/supabase.md": "supabase.md",
    "docs/flutter.md": "flutter.md", "docs/operate.md": "operate.md", "docs/upgrade.md": "upgrade.md",
    "docs/scale.md": "scale.md", "docs/performance.md": "performance.md", "docs/glossary.md": "glossary.md",
    "SECURITY.md": "security.md", "ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md", "clients/js/README.md": "javascript-start.md",
}  # fmt: skip
"""Source in the repository, and name on the site."""


def settings() -> str:
    """Return the settings page: variable, option, meaning and default."""
    rows = [
        f"| `{variable(name)}` | `--{name.replace('_', '-')}` | {_cell(described(name))} |"
        for name in Settings.model_fields
    ]
    return "\n".join([
        "# Settings", "",
        "Each is a variable, also in `.env`, and an option of `momentum-sync serve`. Generated from the code.", "",
        "| variable | option | meaning |", "|---|---|---|", *rows, "",
    ])  # fmt: skip


def sql() -> str:
    """Return the page of the SQL functions that an app may call, from their comments."""
    scripts = [*(migration.sql for migration in migrations()), text("eventlog/receipts.sql")]
    found: dict[str, str] = {}
    for script in scripts:
        for name, comment in re.findall(r"comment on function ([\w.]+\([^)]*\)) is\s+'((?:[^']|'')*)'", script):
            found[name] = comment.replace("''", "'")
    parts = [
        "# SQL functions",
        "",
        "Functions that an app calls, and those that the server calls. Generated from their comments.",
        "",
    ]
    for name in sorted(found):
        parts += [f"## {name.partition('(')[0]}", "", f"`{name}`", "", _sections(found[name]), ""]
    return "\n".join(parts)


def _sections(comment: str) -> str:
    """Return a comment as Markdown: its sections become paragraphs and blocks."""
    sections = re.split(r"^(Args|Returns|Raises|Example):\n", comment.strip(), flags=re.MULTILINE)
    out = [sections[0].strip(), ""]
    for title, body in zip(sections[1::2], sections[2::2], strict=True):
        lines = textwrap.dedent(body).strip()
        if title == "Example":
            out += [f"**{title}**", "", "```sql", lines, "```", ""]
        else:
            out += [f"**{title}**", "", *_items(lines), ""]
    return "\n".join(out)


def _items(lines: str) -> list[str]:
    """Return lines of `name: meaning` as a list, others as they are."""
    found: list[str] = []
    for line in lines.splitlines():
        name, colon, meaning = line.partition(": ")
        if colon and re.fullmatch(r"[\w, `]+", name) and not line.startswith(" "):
            found.append(f"- `{name.strip('`')}`: {meaning}")
        elif found and found[-1].startswith("- ") and line.startswith(" "):
            found[-1] += f" {line.strip()}"
        else:
            found.append(line)
    return found


def protocol() -> str:
    """Return the page of the messages, from the AsyncAPI description."""
    document = yaml.safe_load((ROOT / "spec" / "asyncapi.yaml").read_text(encoding="utf-8"))
    parts = ["# Protocol", "", str(document["info"].get("description", "")), "",
             "The machine-readable form is `spec/asyncapi.yaml`; this page is generated from it.", ""]  # fmt: skip
    channel = document["channels"]["connection"]
    parts += ["## The handshake", "", f"`GET {channel['address']}`. {channel['description']}", "",
              "| parameter | meaning |", "|---|---|"]  # fmt: skip
    query = channel["bindings"]["ws"]["query"]["properties"]
    parts += [f"| `{name}` | {_cell(str(about['description']))} |" for name, about in query.items()]
    parts += ["", "The token comes in one of these ways:", ""]
    parts += [f"- {scheme['description']}" for scheme in document["components"]["securitySchemes"].values()]
    parts += ["", "## Close codes", "", "| code | reason | what a client does |", "|---|---|---|"]
    parts += [f"| {close.code} | {close.reason} | {_VERDICTS[close.verdict]} |" for close in Close]
    parts.append("")
    schemas = document["components"]["schemas"]
    sent = {each["payload"]["$ref"].rpartition("/")[2] for each in document["components"]["messages"].values()}
    for name, message in document["components"]["messages"].items():
        schema = schemas[message["payload"]["$ref"].rpartition("/")[2]]
        by = "client" if f"on_{name}" in document["operations"] else "server"
        parts += [f"## {name}", "", f"Sent by the {by}. {message['summary']}", "", *_fields("field", schema)]
    parts += ["## Objects in messages", ""]
    for name, schema in schemas.items():
        if name not in sent:
            parts += [f"### {name}", "", str(schema.get("description", "")), "", *_fields("field", schema)]
            if "anyOf" in schema:
                parts += [f"One of: {_type(schema)}.", ""]
    return "\n".join(parts)


_VERDICTS: Mapping[Verdict, str] = {
    "come_back": "connects again after a pause", "fresh_token": "connects again with another token",
    "later": "connects again after the longest pause", "end": "does not connect again",
}  # fmt: skip


def _type(about: Mapping[str, object]) -> str:
    if "const" in about:
        return f"`{about['const']}`"
    if "$ref" in about:
        return str(about["$ref"]).rpartition("/")[2]
    if isinstance(enum := about.get("enum"), list):
        return " or ".join(f"`{each}`" for each in enum)
    if isinstance(parts := about.get("anyOf", about.get("oneOf")), list):
        return " or ".join(_type(part) for part in parts)
    kind = about.get("type", "")
    if kind == "array" and isinstance(items := about.get("items"), dict) and items:
        return f"array of {_type(items)}"
    return " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


def http() -> str:
    """Return the page of the HTTP API, from the server's OpenAPI description."""
    from reference.openapi import document  # it builds a gateway, which takes a second

    parts = ["# HTTP API", "", "Every path also exists under `/functions/v1/realtime-momentum-sync`. A running server",
             "has the same at `/openapi.json`, and as a page at `/docs`.", "",
             "Requests need `Authorization: Bearer <token>`, or the service key as `apikey`; health needs none. Reads",
             "may have the header `Last-Event-ID` with the client's position: the answer is not older than what the",
             "client has received, also on another gateway.", ""]  # fmt: skip
    described = document()
    for path, methods in sorted(described["paths"].items()):
        for method, about in methods.items():
            parts += [f"## {method.upper()} {path}", "", str(about.get("description", about.get("summary", ""))), ""]
            rows = [
                f"| `{one['name']}` | {one['in']} | {_cell(str(one.get('description', '')))} |"
                for one in about.get("parameters", [])
                if one["name"] != "Last-Event-ID"
            ]
            if rows:
                parts += ["| parameter | in | meaning |", "|---|---|---|", *rows, ""]
            parts += _body("body", about.get("requestBody"), described["components"]["schemas"])
            parts += _body("answer", about["responses"].get("200"), described["components"]["schemas"])
            codes = ", ".join(f"`{code}`" for code in sorted(about["responses"]))
            parts += [f"Status codes: {codes}.", ""]
    return "\n".join(parts)


def _body(title: str, content: Any, schemas: Mapping[str, Any]) -> list[str]:
    """Return the fields of a request's body or of an answer, as a table."""
    schema = (content or {}).get("content", {}).get("application/json", {}).get("schema", {})
    return _fields(title, schemas.get(str(schema.get("$ref", "")).rpartition("/")[2], schema))


def _fields(title: str, schema: Mapping[str, Any]) -> list[str]:
    """Return the properties of a JSON schema as a table; nothing if it has none."""
    rows = [
        f"| `{name}` | {'yes' if name in schema.get('required', []) else ''} | {_type(about)} |"
        f" {_cell(str(about.get('description', '')))} |"
        for name, about in schema.get("properties", {}).items()
    ]
    return [f"| {title} | required | type | meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def python() -> str:
    """Return the page of the Python SDK, from its docstrings."""
    parts = ["# Python SDK", "", str(inspect.getdoc(momentum_sync)), ""]
    for name in momentum_sync.__all__:
        thing = getattr(momentum_sync, name)
        if not inspect.isclass(thing):
            continue
        parts += [f"## {name}", ""]
        if not issubclass(thing, Exception) and "__init__" in vars(thing):
            parts += [f"`{name}{_signature(thing.__init__)}`".replace(" -> None", ""), ""]
        parts += [_docstring(thing), ""]
        if issubclass(thing, Exception):
            continue
        for member, value in vars(thing).items():
            function = value.fget if isinstance(value, property) else value
            if member.startswith("_") or not (inspect.isfunction(function) and function.__doc__):
                continue
            signature = "" if isinstance(value, property) else _signature(function)
            parts += [f"### {name}.{member}", "", f"`{member}{signature}`", "", _docstring(function), ""]
    return "\n".join(parts)


def _signature(function: Callable[..., object]) -> str:
    shown = str(inspect.signature(function))
    return re.sub(r"\(self(?:, )?", "(", shown).replace("momentum_sync.", "").replace("'", "")


def _docstring(thing: object) -> str:
    """Return a docstring in Google's style as Markdown."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    out: list[str] = []
    for line in lines:
        title = re.fullmatch(r"(Args|Returns|Raises|Attributes|Example|Yields):", line)
        item = re.match(r"    ([\w.*]+): (.*)", line)
        if title:
            out += ["", f"**{title[1]}**", ""]
        elif item and any(part.startswith("**") for part in out):
            out.append(f"- `{item[1]}`: {item[2]}")
        elif line.startswith("    ") and out and out[-1].startswith("- "):
            out[-1] += f" {line.strip()}"
        else:
            out.append(line)
    return "\n".join(out)


def _cell(content: str) -> str:
    return content.replace("\n", " ").replace("|", "\\|")


def javascript() -> str:
    """Return the page of the JavaScript SDK, from its comments."""
    return page(ROOT / "clients" / "js" / "src")


PRINTED: Mapping[str, Callable[[], str]] = {
    "settings.md": settings, "sql.md": sql, "protocol.md": protocol, "http.md": http, "python.md": python,
    "javascript.md": javascript,
}  # fmt: skip
"""Name on the site, and the function that prints it."""
